"""Passes in order over one network: copied once, checked after each, with a record of each."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, fx, nn

from n2nfx.bind import as_it_acts, bind, unbind, zero_masked
from n2nfx.errors import CannotOperate, N2nfxError, UsageError, require_kind
from n2nfx.graphmodule import HOOKS, graphs_of, judged_parts, nodes_in, parts_of, recompile
from n2nfx.network import Network, Probe, Step, blank_inputs
from n2nfx.outcome import Outcome
from n2nfx.plan import graph_sha256
from n2nfx.precision import precision_of
from n2nfx.settings import settings_of
from n2nfx.spec import to_text
from n2nfx.tracing import record
from n2nfx.tracing.fake import lay_bare
from n2nfx.tracing.kinds import traced_inputs
from n2nfx.tracing.tape import Spec
from n2nfx.tracing.values import items, tensors

_log = logging.getLogger(__name__)


class Pass(Protocol):
    """An operation on a network, as a value: a frozen dataclass whose fields are its arguments.

    A pass gets a network whose module is the pipeline's own, to be edited in place, and gives the
    network that it has become. `keeps` names the invariants that it promises: see `INVARIANTS`.
    """

    name: ClassVar[str]
    keeps: ClassVar[frozenset[str]]

    def __call__(self, network: Network, probe: Probe) -> Network: ...


class BrokenInvariant(N2nfxError):
    """A pass did not keep what it promised: a bug in the pass, told with the numbers."""


@dataclass(frozen=True)
class Facts:
    """What is compared of a network before and after a pass, since passes edit in place."""

    kept: Mapping[str, int]
    skips: frozenset[str]
    graph: str
    outputs: tuple[tuple[int, ...], ...]
    nodes: int

    @property
    def nnz(self) -> int:
        return sum(self.kept.values())


def _facts(network: Network, before: Facts | None = None) -> Facts:
    """The facts of a network; it runs only where its graph is not the one of `before`."""
    graph = f"{network.text()}\n{settings_of(network.module)}"
    if before is None:
        outputs = _traced_outputs(network)
    else:
        outputs = before.outputs if before.graph == graph else output_shapes(network)
    return Facts(
        kept={row.weight: row.kept for row in network.ledger() if row.size},
        skips=frozenset(skip.name for skip in network.skips),
        graph=graph,
        outputs=outputs,
        nodes=sum(1 for _ in nodes_in(network.module)),
    )


def _traced_outputs(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of all output tensors for one example, as they were when the network was traced."""
    graphs = [part.graph for _, part in judged_parts(network.module)]
    return tuple(spec.shape for graph in graphs for spec in _specs(graph.output_node().args))


def _specs(value: Any) -> Iterator[Spec]:
    """The specs, for one example, of all tensors among the arguments of an output."""
    if isinstance(value, fx.Node):
        built = isinstance(value.target, type)  # a dataclass or a mapping, made of tensors
        yield from _specs((value.args, value.kwargs) if built else value.meta["spec"])
    elif isinstance(value, tuple) and value and isinstance(value[0], Spec):
        yield value[0]
    for _, item in items(value):
        if not isinstance(item, Spec):
            yield from _specs(item)


def output_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of all output tensors for one example, from a run without data.

    A module that is kept whole may look at data: then the run is on a copy, with data. Where it
    has parts, it is these that run, as what it makes of theirs can depend on the data.
    """
    shapes: list[tuple[int, ...]] = []
    for _, part in judged_parts(network.module):
        data = any("inner" in node.meta for node in part.graph.nodes)
        shapes += (
            tuple(one.shape) for one in tensors(_on_ones(part) if data else _without_data(part))
        )
    return tuple(shapes)


def _without_data(module: fx.GraphModule) -> Any:
    """What a module gives, in shapes."""
    device = torch.device("meta")
    inputs = traced_inputs(module, partial(torch.empty, device=device))
    # What the graph itself makes is on the device too, so that it has no data either.
    with _dry(module, device), torch.no_grad(), device:
        return module(*inputs)


def _on_ones(module: fx.GraphModule) -> Any:
    """What a copy of the module gives on ones, without hooks, which are not ours to call."""
    device = next(module.parameters()).device
    module = copy.deepcopy(module).eval()
    lay_bare(module)
    with torch.no_grad():
        return module(*traced_inputs(module, partial(torch.ones, device=device)))


@contextmanager
def _dry(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module without its hooks and in evaluation, the quickest; its tensors are on the device.

    (`torch.func.functional_call` would leave tensors where parameters were in a module that has
    two names.)
    """
    names = (*HOOKS, *_TABLES, "training")
    own = [  # what `torch.compile` makes of a module is one, and has none of these
        (vars(part), {name: vars(part)[name] for name in names})
        for part in module.modules()
        if "training" in vars(part)
    ]
    for attributes, before in own:
        attributes.update({name: type(before[name])() for name in HOOKS}, training=False)
        attributes.update({name: _moved(before[name], device) for name in _TABLES})
    try:
        yield
    finally:
        for attributes, before in own:
            attributes.update(before)


_TABLES = ("_parameters", "_buffers")


def _moved(tensors: Mapping[str, Tensor | None], device: torch.device) -> dict[str, Tensor | None]:
    return {name: None if one is None else one.to(device) for name, one in tensors.items()}


def _keeps_nnz(before: Facts, after: Facts) -> str | None:
    if before.nnz == after.nnz:
        return None
    changes = {
        name: after.kept.get(name, 0) - before.kept.get(name, 0)
        for name in {*before.kept, *after.kept}
    }
    most = max(changes, key=lambda name: (abs(changes[name]), name))
    return f"{before.nnz} before, {after.nnz} after ({after.nnz - before.nnz:+d}; most in {most})"


def _keeps_outputs(before: Facts, after: Facts) -> str | None:
    if before.outputs == after.outputs:
        return None
    return f"shapes {before.outputs} before, {after.outputs} after"


def _keeps_graph(before: Facts, after: Facts) -> str | None:
    if before.skips != after.skips or before.graph == after.graph:
        return None
    return f"{before.nodes} nodes before, {after.nodes} after, and no skip was added"


INVARIANTS: Mapping[str, Callable[[Facts, Facts], str | None]] = {
    "nnz": _keeps_nnz,  # the number of kept weights
    "outputs": _keeps_outputs,  # the shapes of the network's outputs
    "graph": _keeps_graph,  # the graph, but for the skips that the pass says it added
}


@dataclass(frozen=True)
class Pipeline:
    """Passes to apply in order. Calling it with a network gives an `Outcome`."""

    passes: Sequence[Pass]

    def __post_init__(self) -> None:
        listed = isinstance(self.passes, Sequence)
        for operation in self.passes if listed else [self.passes]:
            made = is_dataclass(operation) and not isinstance(operation, type)
            if not (listed and made and hasattr(operation, "keeps")):
                raise UsageError(f"a pipeline is made of a list of passes, not of {operation!r}")

    def __call__(
        self, network: Network, probe: Probe | None = None, *, seed: int | None = None
    ) -> Outcome:
        """Apply the passes to a copy of the network and let its masks act.

        `probe` is what scored passes see of the world, seed included; without one there is only
        the seed (0 unless given). Raises `CannotOperate` when a pass cannot do its job here,
        `BrokenInvariant` when one broke its promise.
        """
        wanted = "a pipeline operates on a network, n2nfx.trace(module, example)"
        require_kind(network, Network, wanted)
        if probe is not None:
            require_kind(probe, Probe, "a probe is an n2nfx.Probe")
        if probe is not None and seed is not None:
            raise UsageError("the seed is the probe's; give one or the other")
        return apply(self.passes, _own(network), probe or Probe(seed=0 if seed is None else seed))


def apply(passes: Sequence[Pass], network: Network, probe: Probe) -> Outcome:
    """Apply passes to a network that nobody else holds, in place: `Pipeline` without the copy."""
    for operation in passes:
        _require_known_invariants(operation)
    _require_data(network)
    current = network
    record: list[Step] = []
    before = _facts(current)
    for operation in passes:
        _log.info("%s", to_text(operation))
        start = time.perf_counter()
        known = current.skips
        current = operation(current, probe)
        seconds = time.perf_counter() - start
        after = _verified(operation, before, current)
        record.append(
            Step(
                spec=to_text(operation),
                seed=probe.seed,
                nnz=(before.nnz, after.nnz),
                nodes=(before.nodes, after.nodes),
                seconds=seconds,
                keeps=tuple(sorted(operation.keeps)),
                skips=tuple(skip for skip in current.skips if skip not in known),
            )
        )
        before = after
    return _finish(current, record)


def _require_data(network: Network) -> None:
    for name, weight in network.module.named_parameters():
        if weight.is_meta:
            raise CannotOperate(
                f"{name} has no data (it is on the meta device): fill the model first"
            )


def _finish(network: Network, record: Sequence[Step]) -> Outcome:
    """Let a network's masks act: masked weights are zero, and stay without effect."""
    graph = graph_sha256(network)
    sequential = {layer.weight for layer in network.layers}  # those of branches are zero already
    zero_masked(network.module, {n: m for n, m in network.masks.items() if n in sequential})
    bind(network)
    return Outcome(replace(network, history=(*network.history, *record)), tuple(record), graph)


def _own(network: Network) -> Network:
    """The network with a module of the pipeline's own, its masks not at work."""
    module = copy.deepcopy(network.module)
    unbind(module)
    if any("spec" not in node.meta for _, node in nodes_in(module) if node.op != "output"):
        device = next(module.parameters()).device  # a graph made elsewhere has no shapes
        blanks = blank_inputs(network.inputs, None, device, precision_of(module))
        module = record(module, blanks).module
    return replace(as_it_acts(network), module=module)


def _require_known_invariants(operation: Pass) -> None:
    unknown = operation.keeps - set(INVARIANTS)
    if unknown:
        raise UsageError(
            f"{operation.name} promises {', '.join(sorted(unknown))}; "
            f"what can be promised is {', '.join(INVARIANTS)}"
        )


def _verified(operation: Pass, before: Facts, network: Network) -> Facts:
    """The facts after a pass; raises `BrokenInvariant` where they are not as promised."""
    try:
        for _, part in parts_of(network.module):
            for graph in graphs_of(part):
                graph.lint()
        recompile(network.module)
        after = _facts(network, before)
    except Exception as error:
        raise BrokenInvariant(
            f"{operation.name} left a network that cannot run: {error}"
        ) from error
    for name in sorted(operation.keeps):
        broken = INVARIANTS[name](before, after)
        if broken:
            raise BrokenInvariant(f"{operation.name} promised to keep {name}: {broken}")
    for skip in network.skips:
        kept = network.masks.counts.get(skip.weight, skip.size)
        if kept != skip.nnz:
            raise BrokenInvariant(
                f"{operation.name} gives {skip.name} {skip.nnz} weights; its mask keeps {kept}"
            )
    shapes = {name: tuple(weight.shape) for name, weight in network.module.named_parameters()}
    for item in (*network.layers, *(skip for skip in network.skips if skip.size)):
        if shapes.get(item.weight) != item.weight_shape:
            raise BrokenInvariant(
                f"{operation.name} left {item.weight} with shape {shapes.get(item.weight)}, "
                f"not {item.weight_shape}"
            )
    return after
