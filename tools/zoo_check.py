"""Everything that must hold for one model of a zoo, checked on real weights.

`check(name)` builds, traces, compares, prunes and splices one model and gives a row of plain data;
`tools/zoo.py` does it for many, `tests/zoo` for one of each family. Where branches on every legal
pair would take gigabytes, they are spliced end to end and with kernel 1 only.
"""

import copy
import gc
import hashlib
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import timm
import torch
import torchvision
import zoo_detectors
from torch import Tensor, fx, nn

import n2nfx
from n2nfx import models
from n2nfx.bind import as_it_acts, bind, plain_state
from n2nfx.graphmodule import graphs_of, join, nodes_in, parts_of
from n2nfx.masked import keep
from n2nfx.masks import Masks
from n2nfx.network import Network, Origin
from n2nfx.passes import N2NSkip, RandomPruning
from n2nfx.splice import prepare
from n2nfx.tracing import record
from n2nfx.tracing.fake import meta_copy
from n2nfx.tracing.unprunable import not_prunable
from n2nfx.tracing.values import items
from n2nfx.wiring import Options, find_branches

HOPS = (2, 3)
DENSITY, RATIO = 0.1, 0.2
_NEARLY = 1e-3  # of the largest output
LARGE = 1.6e8  # weights of a model of which as few copies are made as can be
ROOM = 1e8  # weights that branches may hold together, as they lie in dense tensors

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How far the check of one model goes.

    Where one forward costs more than `most` multiply-adds, numbers are left out and shapes are
    compared instead, which the row says; not of a detector, whose shapes depend on numbers. With
    `only`, no more than that part is done. Numbers alone can be compared on a `device`.
    """

    most: float = 2e10  # multiply-adds of a forward whose numbers are compared
    gradients: bool = True
    only: Literal["blank", "numbers"] | None = None
    device: str = "cpu"
    batch: int = 3  # examples that are compared; as many as tracing itself never uses


class Fails(Exception):
    """Something that must hold does not."""


def family(name: str) -> str:
    """The file of its zoo that a model comes from: `timm:resnet`, `torchvision:video.s3d`."""
    zoo, _, plain = name.partition(":")
    if zoo == "timm":
        from timm.models import model_entrypoint

        return f"timm:{model_entrypoint(plain).__module__.rpartition('.')[2]}"
    if zoo == "torchvision":
        from torchvision.models import get_model_builder

        path = get_model_builder(plain).__module__
        return f"torchvision:{path.removeprefix('torchvision.models.')}"
    return "n2nfx:zoo"


def check(name: str, effort: Effort) -> Row:
    """Check one model; the row's `status` is "ok" or "failed", then with `stage` and `reason`.

    In the row of a part of the check is what that part finds, and `only`, which says so.
    """
    row: Row = {"name": name, "family": family(name), "status": "ok", "stage": "build"}
    row["batch"] = effort.batch
    if effort.only:
        row["only"] = effort.only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _no_fast_path():
                if effort.only == "numbers":
                    _check_numbers(row, effort)
                elif effort.only == "blank":
                    _check_blank(row, effort)
                else:
                    _check(row, effort)
            del row["stage"]
        except Exception as error:
            told = str(error).strip().splitlines()
            row.update(status="failed", reason=f"{type(error).__name__}: {told[0] if told else ''}")
            row["where"] = _last_line(error)
    return row


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Attention's native fast path differs from attention itself by 2e-6."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def warm_up() -> None:
    """Trace something, so that torch's own imports are not counted with the first model.

    Without gradients: a process that has computed some cannot be forked into others that do.
    """
    record(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.zeros(1, 3, 8, 8))


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"


def _check(row: Row, effort: Effort) -> None:
    original, example, row["build_ms"] = _built(row["name"])
    if sum(parameter.numel() for parameter in original.parameters()) > LARGE:
        made = [original]
        del original
        _check_large(row, made, example, effort)
        return
    network, calls = _traced(row, original, example, effort)
    del original
    row["stage"] = "skips"
    room = _count_pairs(row, network, copy.deepcopy(network.module))
    if network.layers:
        _operate(row, network, room, calls)


def _check_large(row: Row, made: list[nn.Module], example: models.Example, effort: Effort) -> None:
    """All that needs no numbers, with as few copies at a time as can be: each takes gigabytes.

    `made` holds the model, alone, and is emptied.
    """
    blank = meta_copy(made[0])
    row["stage"] = "careful"
    careful = _careful(made[0], example)
    gc.collect()  # a graph and its module hold each other
    network = _recorded(row, blank, made.pop(), example)
    row["stage"] = "careful"
    _require_same_graph(careful, network)
    row["stage"] = "same"
    row["compared"] = "shapes"
    module = meta_copy(network.module)
    assert isinstance(module, fx.GraphModule)
    _same_shapes(blank, replace(network, module=module), effort.batch)
    row["stage"] = "skips"
    room = _count_pairs(row, network, module)
    outcomes = [_transformed(row, network, room)]
    del network
    _comes_back(row, outcomes)


def _check_numbers(row: Row, effort: Effort) -> None:
    """What the model does and what its graph does, if a forward costs no more than `most`."""
    if effort.device == "cpu":
        original, example, row["build_ms"] = _built(row["name"])
    else:
        original, example, row["build_ms"] = _built_on(effort.device, row["name"])
        row["device"] = f"{torch.cuda.get_device_name(effort.device)}, torch {torch.__version__}"
    # Gradients are of each alone; without them both can have the weights in common.
    shared = {} if effort.gradients else {id(p): p for p in original.parameters()}
    network = _recorded(row, original, copy.deepcopy(original, shared), example)
    _compare(row, original, network, effort)


def _built_on(device: str, name: str) -> tuple[nn.Module, models.Example, int]:
    """A model of timm made on a device, its example, and the milliseconds that building took.

    Others are made as always, and then moved.
    """
    zoo, _, plain = name.partition(":")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    if zoo != "timm":
        model, example, milliseconds = _built(name)
        assert isinstance(example, Tensor)
        return model.to(device), example.to(device), milliseconds
    with torch.device(device):
        model, milliseconds = _timed(lambda: timm.create_model(plain))
        example = torch.zeros(1, *model.pretrained_cfg["input_size"])
    return _shaken(model), example, milliseconds


def _check_blank(row: Row, effort: Effort) -> None:
    """All that needs no data, with weights that have none, so that no image model is too large.

    It is traced, shapes are compared, and pairs of layers are counted.
    """
    zoo, _, plain = row["name"].partition(":")
    make = timm.create_model if zoo == "timm" else torchvision.models.get_model
    with torch.device("meta"):
        model, row["build_ms"] = _timed(lambda: make(plain))
    size = model.pretrained_cfg["input_size"] if zoo == "timm" else (3, 224, 224)
    example = torch.zeros(1, *size)
    network = _recorded(row, model, copy.deepcopy(model), example)
    row["stage"] = "same"
    row["compared"] = "shapes, without data"
    _same_shapes(model, network, effort.batch)
    row["stage"] = "skips"
    _count_pairs(row, network, copy.deepcopy(network.module))


def _traced(
    row: Row, original: nn.Module, example: models.Example, effort: Effort
) -> tuple[Network, "Calls | None"]:
    """The network, which does what the model does, and calls of it, if numbers were compared."""
    network = _recorded(row, original, copy.deepcopy(original), example)
    row["stage"] = "careful"
    _require_same_graph(_careful(original, example), network)
    return network, _compare(row, original, network, effort)


def _compare(row: Row, original: nn.Module, network: Network, effort: Effort) -> "Calls | None":
    """Compare a network with its model; gives the calls of both, if numbers were compared."""
    row["stage"] = "same"
    numbers = network.dense_flops <= effort.most or zoo_detectors.is_detector(original)
    row["compared"] = "numbers" if numbers else "shapes"
    calls = _calls(original, network, effort) if numbers else None
    if calls is None:
        _same_shapes(original, network, effort.batch)
    else:
        _same_numbers(row, original, network.module, calls, effort.gradients)
    return calls


def _recorded(row: Row, original: nn.Module, own: nn.Module, example: models.Example) -> Network:
    """A copy of a model traced, which reaches all its weights."""
    row["stage"] = "trace"
    network, row["trace_ms"] = _timed(lambda: record(own, example))
    # Whoever builds it again gets other weights, so that those of a file cannot be these by chance.
    network = replace(network, origin=Origin(row["name"], seed=1))
    _describe(row, network)
    row["stage"] = "reach"
    row["hidden"], row["unused"] = _unreached(original, network)
    if row["hidden"]:
        raise Fails(f"weights that no layer has: {', '.join(row['hidden'][:5])}")
    return network


def _built(name: str) -> tuple[nn.Module, models.Example, int]:
    """A model to be checked, its example, and the milliseconds that building it took."""
    built, milliseconds = _timed(lambda: models.build(name))
    model = _shaken(built.module)
    if zoo_detectors.is_detector(model):
        zoo_detectors.make_small(model)
    return model, built.example, milliseconds


def _careful(original: nn.Module, example: models.Example) -> tuple[str, Any]:
    """Text and layers of a copy of the model that is traced with fake tensors."""
    network = record(copy.deepcopy(original), example, quick=False)
    return network.text(), network.layers


def _require_same_graph(careful: tuple[str, Any], network: Network) -> None:
    """Fake tensors must have given the text and layers that tensors without data gave."""
    if careful != (network.text(), network.layers):
        raise Fails("fake tensors and tensors without data give different graphs")


def _timed(work: Any) -> tuple[Any, int]:
    """What work gives, and the milliseconds of processor time that it took."""
    start = time.process_time()
    result = work()
    return result, round(1000 * (time.process_time() - start))


def _describe(row: Row, network: Network) -> None:
    wholes = [node for _, node in nodes_in(network.module) if "inner" in node.meta]
    row.update(
        parameters=sum(p.numel() for p in network.module.parameters()),
        weights=network.size,
        layers=len(network.layers),
        multiply_adds=network.dense_flops,
        nodes=sum(1 for _ in nodes_in(network.module)),
        graphs=len(graphs_of(network.module)),
        whole=[str(node.target) for node in wholes],
        parts=[path for path, _ in parts_of(network.module) if path],
        any_size="of_size" not in network.text(),
        notes=list(network.notes),
    )


def _shaken(model: nn.Module) -> nn.Module:
    """The model with norms and biases away from 0 and 1, so that no branch is silent."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 and parameter.is_floating_point():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def _unreached(model: nn.Module, network: Network) -> tuple[list[str], list[str]]:
    """Weights of convolutions, linear layers and attention that are no layer and in no note.

    Apart from these, those that forward never uses.
    """
    reached = {layer.weight for layer in network.layers}
    told = {name for names in not_prunable(network.module).values() for name in names}
    used = _used(network)
    hidden, unused = [], []
    for path, module in model.named_modules():
        if not isinstance(module, _WEIGHTED):
            continue
        for name, parameter in module.named_parameters(path, recurse=True):
            if parameter.dim() < 2 or name in reached or name.endswith(("bias", "gain")):
                continue
            if any(name == t or name.startswith(f"{t}.") for t in told):
                continue
            alive = any(name == u or name.startswith(f"{u}.") for u in used)
            (hidden if alive else unused).append(name)
    known = _tied(model, reached)
    return sorted(set(hidden) - known), sorted(set(unused) - known)


def _tied(model: nn.Module, reached: set[str]) -> set[str]:
    """Other names of the reached weights."""
    names = dict(model.named_parameters(remove_duplicate=False))
    ids = {id(names[name]) for name in reached if name in names}
    return {name for name, parameter in names.items() if id(parameter) in ids}


def _used(network: Network) -> set[str]:
    """Modules that a graph calls, and attributes that it reads."""
    return {
        join(path, str(node.target))
        for path, part in parts_of(network.module)
        for graph in graphs_of(part)
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }


@dataclass(frozen=True)
class Calls:
    """The arguments of the calls that are compared, in evaluation and in training."""

    evaluation: Sequence[tuple[Any, ...]]
    training: Sequence[tuple[Any, ...]]

    def of(self, training: bool) -> Sequence[tuple[Any, ...]]:
        """Those of a mode."""
        return self.training if training else self.evaluation


def _calls(model: nn.Module, network: Network, effort: Effort) -> Calls:
    generator = torch.Generator().manual_seed(1)
    if zoo_detectors.is_detector(model):
        return Calls(zoo_detectors.evaluated(generator), zoo_detectors.trained(generator))
    inputs = tuple(
        (torch.rand((effort.batch, *spec.shape[1:]), generator=generator) - 0.3).to(effort.device)
        for spec in network.inputs
    )
    return Calls([inputs], [inputs])


# What a model does, and whether its graph does the same.


def _same_numbers(
    row: Row, original: nn.Module, graph: nn.Module, calls: Calls, gradients: bool
) -> None:
    for training in (False, True):
        mode = "train" if training else "eval"
        grads = gradients and training
        try:
            want = _effects(original, calls.of(training), training, grads)
        except Exception as error:
            if not training:
                raise
            row["train"] = f"the model itself cannot train on this input: {error}"[:200]
            continue
        got = _effects(graph, calls.of(training), training, grads)
        if list(want) != list(got):
            raise Fails(f"{mode}: other results: {sorted(set(want) ^ set(got))[:5]}")
        wrong = [key for key in want if not _equal(want[key], got[key])]
        if wrong:
            raise Fails(f"{mode}: {len(wrong)} of {len(want)} differ: {', '.join(wrong[:5])}")
        row[mode] = f"{len(want)} tensors bit-equal"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


def _effects(
    model: nn.Module, calls: Sequence[tuple[Any, ...]], training: bool, gradients: bool
) -> dict[str, Tensor]:
    """Everything that calls leave behind, by name, and a backward where gradients are asked."""
    model.train(training).zero_grad()
    torch.manual_seed(0)
    with torch.set_grad_enabled(gradients):
        results = [model(*copy.deepcopy(arguments)) for arguments in calls]
        outputs = dict(_flat(results if len(calls) > 1 else results[0], "output"))
    if gradients:
        losses = [v.float().square().mean() for v in outputs.values() if v.requires_grad]
        sum(losses, torch.zeros(())).backward()
    found = {name: value.detach() for name, value in outputs.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    state = model.state_dict(keep_vars=True)  # buffers that are not saved are caches
    return found | {n: v.clone() for n, v in model.named_buffers() if n in state}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    kind = type(value).__name__ if isinstance(value, Mapping | list | tuple) else ""
    for key, item in items(value):
        yield from _flat(item, f"{name}.{kind}[{key}]")


def _same_shapes(original: nn.Module, network: Network, batch: int) -> None:
    shapes = []
    for model in (original, network.module):
        blank = meta_copy(model).eval()
        inputs = [torch.empty((batch, *s.shape[1:]), device="meta") for s in network.inputs]
        with torch.no_grad():
            shapes.append([(n, tuple(v.shape)) for n, v in _flat(blank(*inputs), "output")])
    if shapes[0] != shapes[1]:
        raise Fails(f"shapes {shapes[0]} and {shapes[1]}")


# Budgets and skips.


def _operate(row: Row, network: Network, room: int, calls: Calls | None) -> None:
    """Everything that is done to a network that was traced right, and has layers."""
    outcome = _transformed(row, network, room)
    loaded = _comes_back(row, [outcome])
    if calls is not None:
        _same_outputs(outcome.network.module, loaded.module, calls, (False,), "what was loaded")
    if calls is not None and outcome.network.skips:
        row["stage"] = "silent"
        _examples_stay_apart(outcome.network, calls)
        _zeroed_branches_are_silent(outcome.network, network, calls)


def _transformed(row: Row, network: Network, room: int) -> n2nfx.Outcome:
    """The network with exactly a tenth of its weights, a fifth of these in skips if it can be.

    `room` is how many weights branches on all its pairs hold together.
    """
    prune = RandomPruning(DENSITY)
    if room > ROOM:
        skip = N2NSkip(RATIO, HOPS[-1:], "blocks", "linear", kernel=1)
    else:
        skip = N2NSkip(RATIO, HOPS, wiring="linear")
    try:
        outcome, row["operate_ms"] = _timed(lambda: n2nfx.Pipeline([prune, skip])(network))
        row["spliced"] = len(outcome.network.skips)
    except n2nfx.CannotOperate as error:
        outcome, row["operate_ms"] = _timed(lambda: n2nfx.Pipeline([prune])(network))
        row["spliced"] = str(error)[:300]
    counts, want = outcome.counts, round(DENSITY * network.size)
    if counts.kept != want or counts.skip != (round(RATIO * want) if outcome.network.skips else 0):
        raise Fails(f"counts {counts}, where {want} weights were to be kept")
    return outcome


def _comes_back(row: Row, outcomes: list[n2nfx.Outcome]) -> Network:
    """What was saved, loaded again; it must have the same tensors and masks.

    `outcomes` holds the outcome, alone, and is emptied: a large one is let go before it is loaded.
    """
    outcome = outcomes.pop()
    row["stage"] = "channels"
    _follow_channels(row, outcome.network)
    row["stage"] = "saved"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        _, row["save_ms"] = _timed(partial(outcome.save, path))
        row["bytes"] = sum(file.stat().st_size for file in path.iterdir())
        saved = _digests(as_it_acts(outcome.network))
        del outcome
        gc.collect()
        model = _built(row["name"])[0] if row["parts"] else None  # its name does not say small
        loaded, row["load_ms"] = _timed(lambda: n2nfx.load(path, model=model))
    found = _digests(loaded)
    wrong = [n for n in sorted({*saved, *found}) if saved.get(n) != found.get(n)]
    if wrong:
        raise Fails(f"{len(wrong)} tensors do not come back as they were: {', '.join(wrong[:5])}")
    return loaded


def _digests(network: Network) -> dict[str, str]:
    """SHA-256 of the bits of every tensor of a network, as its mask keeps it, and of the masks."""
    masks = network.masks
    found = {f"mask of {name}": _digest(mask) for name, mask in masks.items()}
    for name, tensor in plain_state(network.module).items():
        found[name] = _digest(keep(tensor, masks[name]) if name in masks else tensor)
    return found


def _digest(tensor: Tensor) -> str:
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(bits).hexdigest()}"


def _follow_channels(row: Row, network: Network) -> None:
    """The channel graph, all of whose hubs have names."""
    gc.collect()
    graph, row["graph_ms"] = _timed(lambda: n2nfx.channel_graph(network))
    row["channels"] = sum(group.size for group in graph.groups)
    row["hubs"] = list(graph.hubs)
    if not all(graph.hubs):
        raise Fails("a hub without a name")


def _count_pairs(row: Row, network: Network, module: fx.GraphModule) -> int:
    """Count pairs exactly so far apart, and give how many weights all branches could hold.

    `module` is a copy of the network's, and is changed.

    Two pairs that would have the very same branch, from the same activation to the same
    pre-activation, are one pair; `twins` says how many there were beside it.
    """
    ready = replace(network, module=module)
    prepare(ready)
    row.update(pairs={}, legal={}, refused={}, twins=0)
    room = 0
    for hop in HOPS:
        found = find_branches(ready, Options((hop,), wiring="linear"))
        room += found.capacity
        twins = [pair for pair in found.twins if pair.hop == hop]
        refused = [pair for pair in found.refused if pair.hop == hop and pair not in twins]
        row["twins"] += len(twins)
        row["legal"][hop] = sum(skip.hop == hop for skip in found.skips)
        row["pairs"][hop] = row["legal"][hop] + len(refused)
        for refusal in refused:
            row["refused"][refusal.reason] = row["refused"].get(refusal.reason, 0) + 1
    return room


def _examples_stay_apart(spliced: Network, calls: Calls) -> None:
    """The examples in another order have the same outputs in that order, nearly."""
    inputs = calls.evaluation[0]
    if not all(isinstance(value, Tensor) for value in inputs):
        return  # a detector's images are apart: a list
    apart = _apart(spliced.module, inputs)
    if apart > _NEARLY:  # in single precision; rounding alone may do that in a deep network
        exact = tuple(v.double() if v.is_floating_point() else v for v in inputs)
        apart = _apart(copy.deepcopy(spliced.module).double(), exact)
    if apart > _NEARLY:
        raise Fails(f"branches mix the examples of a batch: {apart:.1e} apart")


def _apart(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """How far outputs are from those of the examples in another order, beside the largest."""
    turned = tuple(value.flip(0) for value in inputs)
    one, other = (_effects(module, [each], False, False) for each in (inputs, turned))
    apart = [0.0]
    for key, value in one.items():
        if key.startswith("output") and value.is_floating_point() and len(value) == len(inputs[0]):
            value, again = value.nan_to_num(), other[key].flip(0).nan_to_num()
            apart.append(float((value - again).abs().max() / value.abs().max().clamp_min(1e-30)))
    return max(apart)


def _zeroed_branches_are_silent(spliced: Network, reference: Network, calls: Calls) -> None:
    """With every branch at zero the outputs are, to the last bit, those without branches."""
    with torch.no_grad():
        for skip in spliced.skips:
            spliced.module.get_parameter(skip.weight).zero_()
    masks = Masks({layer.weight: spliced.masks[layer.weight] for layer in reference.layers})
    plain = replace(reference, module=copy.deepcopy(reference.module), masks=masks)
    bind(plain)
    _same_outputs(plain.module, spliced.module, calls, (False, True), "zeroed branches")


def _same_outputs(
    one: nn.Module, other: nn.Module, calls: Calls, modes: Sequence[bool], what: str
) -> None:
    for training in modes:
        want = _effects(one, calls.of(training), training, False)
        got = _effects(other, calls.of(training), training, False)
        wrong = [k for k in want if k.startswith("output") and not _equal(want[k], got[k])]
        if wrong:
            raise Fails(f"{what}: another {', '.join(wrong[:3])}, training {training}")
