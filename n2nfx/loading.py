"""An artifact read back into a network: the model built again, the record replayed, all checked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from n2nfx import artifact, models, recorded
from n2nfx.atomic import as_path
from n2nfx.bind import as_it_acts, bind, plain_state
from n2nfx.errors import DamagedFile, N2nfxError, UsageError, described, require_kind
from n2nfx.graphmodule import graphs_of, parts_of, recompile
from n2nfx.masks import Masks
from n2nfx.network import Layer, Network, Probe, Step
from n2nfx.plan import Plan, graph_sha256
from n2nfx.registry import passes
from n2nfx.settings import difference, settings_of
from n2nfx.source import from_model, network_of
from n2nfx.spec import from_text
from n2nfx.splice import splice
from n2nfx.tracing.example import Example, call_of
from n2nfx.tracing.layers import nodes_of


def load(
    directory: str | PathLike[str],
    model: str | nn.Module | None = None,
    *,
    example: Example | None = None,
) -> Network:
    """The network that was saved to a directory, its masks at work.

    The model is built again by its recorded name, or taken from `model`, which is needed where a
    module or a file of one's own was transformed: an artifact never has us run a file. It is traced
    on `example`, by default what a name brings with it, or zeros: a model whose forward looks at
    values may need the one that it was transformed with. Passes
    that changed the graph are replayed, skips are spliced as recorded; layers, shapes, graph and
    what modules are set to must then be those recorded, and each tensor is of the precision that it
    was saved in. Raises `DamagedFile` for a damaged artifact or a wrong model, and
    `UsageError` where one must be handed in, or is one that no artifact could have.
    """
    path = as_path(directory)
    found = recorded.read(path)
    plan = found.plan
    network = _rebuild(path, plan, model, example)
    if graph_sha256(network) != plan.graph_sha256:
        raise DamagedFile(f"{path}: the graph built here is not the one recorded ({_made(plan)})")
    if other := difference(settings_of(network.module), plan.settings):
        raise DamagedFile(f"{path}: another model: {other}")
    _load_state(path, network, found.tensors)
    network = replace(network, masks=_masks(path, network, plan, found.masks), history=plan.steps)
    bind(network)
    return as_it_acts(network)


def _rebuild(
    path: Path, plan: Plan, model: str | nn.Module | None, example: Example | None
) -> Network:
    """The network as the passes left it: the same graph, masks and weights still to come."""
    origin = plan.origin
    if model is None and (origin.name is None or ".py:" in origin.name):
        raise UsageError(
            f"{path} was made from {origin.told}, which must be handed in: --model "
            "file.py:function (load(..., model=) in Python)"
        )
    if model is not None and not isinstance(model, nn.Module):
        require_kind(model, str, "a model is a name or an nn.Module")
        models.require_known(model)
    but = DamagedFile if example is None else UsageError  # which then can be the example's
    with _told_as_damage(path, plan, example, but):
        network = _reference(plan, model, example)
    with _told_as_damage(path, plan, example):
        as_recorded = all("graph" in step.keeps for step in plan.steps)
        if as_recorded:
            network = _with_recorded_layers(path, network, plan)
        for step in plan.steps:
            network = _replay(network, step)
        for _, part in parts_of(network.module):
            for graph in graphs_of(part):
                graph.lint()
        recompile(network.module)
    return _with_recorded_layers(path, network, plan)


@contextmanager
def _told_as_damage(
    path: Path, plan: Plan, example: Example | None, but: type[N2nfxError] = DamagedFile
) -> Iterator[None]:
    """Tell whatever goes wrong inside as damage of the artifact, but for one kind of error."""
    try:
        yield
    except (DamagedFile, but):
        raise
    except Exception as error:  # a plan can say what no pass says, and fx and torch then raise
        told = str(error) if isinstance(error, N2nfxError) else described(error)
        if example is None:
            told += "; where forward looks at values, hand in what it was traced on: load(example=)"
        raise DamagedFile(f"{path}: cannot be built again here: {told} ({_made(plan)})") from error


_NO_USE: dict[str, Any] = {"reads": (), "writes": (), "uses": 0}


def _reference(plan: Plan, model: str | nn.Module | None, example: Example | None) -> Network:
    """The network before the first pass."""
    origin = plan.origin
    if isinstance(model, nn.Module):
        made = network_of(model, example=_blanks(plan) if example is None else example)
        return replace(made, origin=origin)
    built = models.build(
        model or str(origin.name), seed=origin.seed, num_classes=origin.num_classes,
        input_shape=origin.input_shape, pretrained="unfilled" if origin.pretrained else "no",
    )  # fmt: skip
    if example is None:
        own = call_of(built.module, built.example).inputs
        example = built.example if own == plan.inputs else _blanks(plan)
    return from_model(built, example, origin)


def _blanks(plan: Plan) -> Example:
    """Inputs as those that were traced, without what was in them."""
    blanks = {spec.name: torch.zeros(spec.shape, dtype=spec.torch_dtype) for spec in plan.inputs}
    return blanks if any(spec.by_name for spec in plan.inputs) else tuple(blanks.values())


def _replay(network: Network, step: Step) -> Network:
    """A pass that kept the graph did no more than add its skips."""
    if "graph" not in step.keeps:
        operation = from_text(step.spec, passes())
        return operation(network, Probe(seed=step.seed))
    if step.skips:
        splice(network, step.skips)
        network = replace(network, skips=(*network.skips, *step.skips))
    return network


def _with_recorded_layers(path: Path, network: Network, plan: Plan) -> Network:
    """The network with the layers as recorded, which its own must be.

    But for how often those are used that the graph does not call itself, as that can depend on
    data: those in a module that is kept whole.
    """
    module = network.module
    nodes = (found for graph in graphs_of(module) for found in nodes_of(module, graph))
    called = {layer.weight for _, layer in nodes}
    for here, there in zip(network.layers, plan.layers, strict=False):
        ignored = {} if here.weight in called else _NO_USE
        if replace(here, **ignored) != replace(there, **ignored):
            raise DamagedFile(f"{path}: another model: {_other_layer(here, there)}")
    if len(network.layers) != len(plan.layers):
        counts = f"{len(plan.layers)} layers are recorded, this one has {len(network.layers)}"
        raise DamagedFile(f"{path}: another model: {counts}")
    return replace(network, layers=plan.layers)


def _other_layer(here: Layer, there: Layer) -> str:
    """What tells a layer of this model from the one that is recorded in its place."""
    names = [f"{layer.name} {layer.weight_shape}" for layer in (here, there)]
    if names[0] != names[1]:
        return f"layer {names[1]} is recorded where this one has {names[0]}"
    key = next(key for key, value in vars(here).items() if value != vars(there)[key])
    return f"layer {here.name} {key} {vars(here)[key]}, and is recorded with {vars(there)[key]}"


def _load_state(path: Path, network: Network, tensors: dict[str, Tensor]) -> None:
    """Every tensor of the module, and no other, from the artifact.

    Each is let go once it is there, as large models are held few times over: `tensors` is emptied.
    """
    _move(network.module, tensors)
    own = plain_state(network.module)
    missing, unknown = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or unknown:
        what = f"{min(missing)} is missing" if missing else f"{min(unknown)} is not the model's"
        raise DamagedFile(f"{path / artifact.WEIGHTS}: {what}")
    for name, tensor in tensors.items():
        here = own[name]
        if (here.shape, here.dtype) != (tensor.shape, tensor.dtype):
            raise DamagedFile(
                f"{path / artifact.WEIGHTS}: {name} is {tensor.dtype} {tuple(tensor.shape)}, the "
                f"model's is {here.dtype} {tuple(here.shape)}"
            )
    with torch.no_grad():
        for name in [*tensors]:
            own[name].copy_(tensors.pop(name))


def _move(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Bring floating-point tensors to the precision that they were moved to before the save."""
    for name, own in module.state_dict(keep_vars=True).items():
        stored = tensors.get(name)
        if stored is None or stored.dtype == own.dtype:
            continue
        if stored.is_floating_point() and own.is_floating_point():
            own.data = own.data.to(stored.dtype)


def _masks(path: Path, network: Network, plan: Plan, found: Masks) -> Masks:
    """The masks in the ledger's order, each of its weight's shape, with the counts of the plan."""
    sizes = {row.weight: row.size for row in network.ledger() if row.size}
    masks = Masks({name: found[name] for name in sizes if name in found})
    kept = {name: masks.counts.get(name, size) for name, size in sizes.items()}
    for name in sorted({*kept, *plan.kept, *found}):
        if name not in kept or kept[name] != plan.kept.get(name):
            raise DamagedFile(
                f"{path / artifact.PLAN}: {name} keeps {plan.kept.get(name)} weights by the plan, "
                f"{kept.get(name)} by its mask"
            )
    return masks


def _made(plan: Plan) -> str:
    return "made with " + ", ".join(f"{name} {number}" for name, number in plan.versions.items())
