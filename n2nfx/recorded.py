"""What an artifact says of itself, held against itself: all that is known without its model.

Whoever can write a plan can sign it, so a right hash is no reason to believe it: names, shapes
and counts must be those of the masks and tensors beside it, and its sums must be right.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, fx, nn

from n2nfx import artifact
from n2nfx.errors import CannotOperate, DamagedFile, did_you_mean
from n2nfx.graphmodule import join
from n2nfx.masks import Masks
from n2nfx.network import INPUT, Layer, Network, Skip
from n2nfx.plan import Counts, Plan, count

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_MOST = 2**40  # no weight or number of uses comes near it
_MOST_INPUT = 2**30  # nor an input near this; one is made where the model is built again


@dataclass(frozen=True, eq=False)
class Recorded:
    """An artifact that was found consistent.

    `network` is the network on paper: its module has no node, and everything that is counted,
    layers, skips and masks, is there. `tensors` has every state entry, dense.
    """

    plan: Plan
    network: Network
    tensors: dict[str, Tensor]

    @property
    def masks(self) -> Masks:
        return self.network.masks


def read(directory: Path) -> Recorded:
    """Read an artifact, and check whatever can be checked without its model.

    Raises `DamagedFile`, which names the file and what is wrong with it.
    """
    found = artifact.read(directory)
    path = directory / artifact.PLAN
    plan = _parsed(path, found.plan)
    _refuse(path, _impossible(plan))
    network = _on_paper(path, plan, Masks(found.masks))
    _refuse(directory / artifact.WEIGHTS, _absent(network, found.tensors))
    _refuse(path, chain(_wrong_kept(network, plan), _wrong_counts(network, plan.counts)))
    return Recorded(plan, network, found.tensors)


def _refuse(path: Path, faults: Iterator[str]) -> None:
    """Raise the first fault, if there is one."""
    for fault in faults:
        raise DamagedFile(f"{path}: {fault}; restore it or write the artifact again")


# From JSON data to a plan


def _parsed(path: Path, data: dict[str, Any]) -> Plan:
    """The plan, its types those that are written: no text for a number, no key too many."""
    own = {key: value for key, value in data.items() if key not in artifact.RESERVED}
    try:
        return Plan.model_validate_json(json.dumps(own), strict=True)
    except (ValidationError, RecursionError) as error:
        what = _first_mistake(error) if isinstance(error, ValidationError) else "is too deep"
        raise DamagedFile(f"{path}: {what}; restore it or write the artifact again") from error


def _first_mistake(error: ValidationError) -> str:
    """Where a plan is no plan; of an unknown key, which missing one it may be."""
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] in _UNKNOWN_KEY), errors[0])
    *parents, name = first["loc"] or ("the plan",)
    what = f"{'.'.join(map(str, (*parents, name)))}: {first['msg']}"
    if first["type"] not in _UNKNOWN_KEY:
        return what
    beside = [str(one["loc"][-1]) for one in errors if [*one["loc"]][:-1] == parents]
    return what + did_you_mean(str(name), set(beside) - {name})


# What no plan says


def _impossible(plan: Plan) -> Iterator[str]:
    weights: Counter[str] = Counter()
    yield from _impossible_shrinks(plan)  # before anything is counted by them
    for item in (*plan.layers, *_skips(plan)):
        shape, what = item.weight_shape, f"{_kind(item)} {item.name!r}"
        weights[item.weight] += 1
        if weights[item.weight] > 1:
            yield f"{what} has a weight that another has: {item.weight!r}"
        if not _sizes(shape):
            yield f"{what} has a weight of shape {list(shape)}"
        activations = (item.reads, item.writes) if isinstance(item, Layer) else (item.places,)
        if not all(map(_sizes, activations)):
            yield f"{what} has an activation that no network has"
        if not 0 <= item.uses <= _MOST:
            yield f"{what} uses each weight {item.uses} times"
    for spec in plan.inputs:
        if not _sizes(spec.shape, _MOST_INPUT):
            yield f"input {spec.name!r} has the shape {list(spec.shape)}"
    for key in ("num_classes", "input_shape"):
        if not _buildable(getattr(plan.origin, key)):
            yield f"origin: {key} is {getattr(plan.origin, key)}"
    yield from _impossible_steps(plan)
    yield from _impossible_skips(plan)


def _kind(item: Layer | Skip) -> str:
    return "layer" if isinstance(item, Layer) else "skip"


def _sizes(shape: tuple[int, ...], most: int = _MOST) -> bool:
    """Whether these are sizes of a tensor that somebody can have."""
    return all(0 <= size <= most for size in shape) and prod(map(float, shape)) <= most


def _buildable(sizes: int | tuple[int, ...] | None) -> bool:
    """Whether a model can be asked for so many classes, or for inputs of this shape."""
    if sizes is None:
        return True
    each = sizes if isinstance(sizes, tuple) else (sizes,)
    return all(each) and bool(each) and _sizes(each, _MOST_INPUT)


def _impossible_steps(plan: Plan) -> Iterator[str]:
    """A count that is none, or a promise that was not kept."""
    for number, step in enumerate(plan.steps, 1):
        before, after = step.nnz
        if min(*step.nnz, *step.nodes) < 0 or ("nnz" in step.keeps and before != after):
            yield f"step {number} ({step.spec}) has {before} weights before and {after} after"


def _impossible_skips(plan: Plan) -> Iterator[str]:
    """A skip that leads nowhere, or backwards, or keeps more than it has."""
    places = _places(plan)
    for skip in _skips(plan):
        for name in (skip.source, skip.target):
            if name not in places:
                yield f"skip {skip.name!r}: there is no layer {name!r}{did_you_mean(name, places)}"
        backwards = not all(_is_forward(places, skip, *calls) for calls in skip.calls)
        if backwards or skip.hop < 1 or not skip.calls:
            yield f"skip {skip.name!r} bypasses nothing: {skip.source!r} to {skip.target!r}"
        if not 0 <= skip.nnz <= skip.size:
            yield f"skip {skip.name!r} keeps {skip.nnz} of {skip.size} weights"


def _is_forward(places: dict[str, int], skip: Skip, source: int, target: int) -> bool:
    """Whether one call of a layer can come before another; layers lie as they are called first."""
    if skip.source == skip.target:
        return source < target
    return target > 0 or places[skip.source] < places[skip.target]


def _places(plan: Plan) -> dict[str, int]:
    """Where the ends of skips lie: the layers in their order, the network's and parts' inputs."""
    layers = [layer.name for layer in plan.layers]
    parts = {".".join(skip.name.split(".")[:-2]) for skip in _skips(plan)}
    inputs = dict.fromkeys((join(part, INPUT) for part in sorted(parts)), -1)
    return {INPUT: -1, **inputs, **{name: at for at, name in enumerate(layers)}}


def _impossible_shrinks(plan: Plan) -> Iterator[str]:
    for skip in _skips(plan):
        if skip.shrink and (len(skip.shrink) != len(skip.places) or min(skip.shrink) < 1):
            yield f"skip {skip.name!r} shrinks places that it does not have: {list(skip.shrink)}"


def _skips(plan: Plan) -> Iterator[Skip]:
    """The skips that the network has: those that a step added and no later one took out.

    Only a pass that edits the graph in its own way can take one out: it keeps nothing then.
    """
    edits = [at for at, step in enumerate(plan.steps) if "graph" not in step.keeps]
    last = max(edits, default=-1)
    for at, step in enumerate(plan.steps):
        yield from (skip for skip in step.skips if at >= last or skip.weight in plan.kept)


# The plan against the masks and the tensors


def _on_paper(path: Path, plan: Plan, masks: Masks) -> Network:
    """The network that the plan speaks of, without a graph."""
    try:
        return Network(
            module=fx.GraphModule(nn.Module(), fx.Graph()),
            layers=plan.layers,
            inputs=plan.inputs,
            masks=masks,
            skips=tuple(_skips(plan)),
            origin=plan.origin,
            history=plan.steps,
        )
    except CannotOperate as error:
        raise DamagedFile(f"{path}: {error}; restore it or write the artifact again") from error


def _absent(network: Network, tensors: dict[str, Tensor]) -> Iterator[str]:
    for row in network.ledger():
        tensor = tensors.get(row.weight)
        if row.size and tensor is None:
            yield f"{row.weight!r} is missing{did_you_mean(row.weight, tensors)}"
        elif row.size and tensor is not None and tuple(tensor.shape) != row.shape:
            yield f"{row.weight!r} is {list(tensor.shape)}, by the plan it is {list(row.shape)}"


def _wrong_kept(network: Network, plan: Plan) -> Iterator[str]:
    kept = {row.weight: row.kept for row in network.ledger() if row.size}
    for name, number in kept.items():
        if plan.kept.get(name) != number:
            yield f"kept: {name!r} keeps {plan.kept.get(name)} by the plan, {number} by its mask"
    for name in plan.kept.keys() - kept.keys():
        yield f"kept: there is no layer or skip with the weight {name!r}{did_you_mean(name, kept)}"


def _wrong_counts(network: Network, told: Counts) -> Iterator[str]:
    counted = asdict(count(network))
    for field in fields(told):
        if getattr(told, field.name) != counted[field.name]:
            yield (
                f"counts: {field.name} is {getattr(told, field.name)}, and {counted[field.name]} "
                "by the layers, skips and masks"
            )
