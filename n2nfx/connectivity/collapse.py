"""Whether pruning killed a network: no path of kept weights, or an output that does not move."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from n2nfx.batches import inputs_of
from n2nfx.bind import bind, is_bound, masks_at_work, unbind, with_acting_masks
from n2nfx.connectivity.counting import count_effective
from n2nfx.connectivity.effective import Effective
from n2nfx.errors import UsageError
from n2nfx.graphmodule import graphs_of, join, judged_parts, parts_of
from n2nfx.masked import PLAIN_CLASS
from n2nfx.network import Network, blank_inputs
from n2nfx.saliency import call, seeded, set_mode
from n2nfx.seeds import derive
from n2nfx.tracing.kinds import traced_inputs
from n2nfx.tracing.values import tensors
from n2nfx.tracing.weights import is_weighted

_EXAMPLES = 2
_STILL = torch.finfo(torch.float32).eps  # less than float32 can tell from no movement


@dataclass(frozen=True)
class Collapse:
    """Why a network is dead, as a sentence, and the layers at which it ends."""

    reason: str
    layers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reason}; it ends at {', '.join(self.layers)}" if self.layers else self.reason


def find_collapse(
    network: Network,
    inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    effective: Effective | None = None,
) -> Collapse | None:
    """Why a network is dead, or None where it is not.

    It is where no path of kept weights leads from an input to an output, or where the output is
    the same for all examples of `inputs` (at least two; drawn from a normal distribution, unless
    given), in float64 and with batch statistics: running ones that are as before training let a
    healthy sparse network move its output by next to nothing. A network that cannot run like that
    is judged by its paths alone. Where forward is kept whole and has parts, each of these is judged
    by its own output, `inputs` or not. `effective` is what `count_effective` gave, if it did.

    Raises `UsageError` for inputs that are no tensors, or of one example, and `CannotOperate` where
    they do not fit the network.
    """
    network = with_acting_masks(network)
    found = effective or count_effective(network)
    examples = None if inputs is None else _several(inputs_of(network, inputs))
    if not found.connected:
        return Collapse(
            "the network is cut: no path of kept weights leads from its input to its output",
            found.cut or found.empty_layers,
        )
    runs = _Runs(network)
    for path, part in judged_parts(runs.module):
        given = _drawn(network, part, path) if examples is None or path else examples
        if not runs.output_moves(part, given):
            told = f"{path} is dead" if path else "the network is dead"
            stops = runs.stops(part, given, path)
            return Collapse(f"{told}: its output does not move with its input", stops)
    return None


def _several(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, where they are of more than one example."""
    if len(inputs[0]) < _EXAMPLES:
        raise UsageError("inputs of one example cannot tell whether the output moves: give two")
    return inputs


def _drawn(network: Network, part: fx.GraphModule, path: str) -> list[Any]:
    """Two examples of what a network takes, or a part; whole numbers, maybe words, are 0 and 1."""
    generator = torch.Generator().manual_seed(derive(0, "movement") % 2**63)

    def drawn(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=dtype)
        return torch.randint(2, shape, generator=generator).to(dtype)

    if path:
        return traced_inputs(part, lambda shape, dtype: drawn(_doubled(shape), dtype))
    return [drawn(one.shape, one.dtype) for one in blank_inputs(network.inputs, _EXAMPLES)]


def _doubled(shape: Sequence[int]) -> tuple[int, ...]:
    """For two examples instead of one."""
    return (_EXAMPLES, *shape[1:]) if shape[:1] == (1,) else tuple(shape)


_NAMING = ("call_module", "get_attr")  # the steps of a graph whose target is a path


class _Runs:
    """A copy of a network in float64, its masks at work."""

    def __init__(self, network: Network) -> None:
        self._layers = [layer.name for layer in network.layers]
        self.module = _with_the_same_weights(network.module)
        if not is_bound(network):
            unbind(self.module)
            bind(replace(network, module=self.module))
        self._device = next(self.module.parameters()).device
        _compute_in_float64(self.module)
        set_mode(self.module, "batch")

    def output_moves(self, part: fx.GraphModule, inputs: Sequence[Any]) -> bool:
        """Whether any output of the module or a part does, as far as it can run."""
        given = pytree.tree_map_only(Tensor, self._widened, list(inputs))
        try:
            with seeded(0, self._device), torch.no_grad():
                return _moves(call(part, given))
        except Exception:  # an operation that float64 does not have: nothing is known
            return True

    def _widened(self, one: Tensor) -> Tensor:
        return one.to(self._device, torch.float64 if one.is_floating_point() else None)

    def stops(self, part: fx.GraphModule, inputs: Sequence[Any], path: str) -> tuple[str, ...]:
        """The layers that get a movement and give none, or else the last that gives one."""
        moving: dict[str, tuple[bool, bool]] = {}  # what each layer gets, and gives
        parts = {join(path, name): module for name, module in part.named_modules()}
        for name in self._layers:
            if name in parts:
                parts[name].register_forward_hook(_watch(moving, name))
        self.output_moves(part, inputs)
        stops = [name for name, (got, gave) in moving.items() if got and not gave]
        last = [name for name, (_, gave) in moving.items() if gave]
        return tuple(stops or last[-1:])


def _watch(
    moving: dict[str, tuple[bool, bool]], name: str
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, given: Any, output: Any) -> None:
        moving.setdefault(name, (_moves(given), _moves(output)))

    return hook


def _with_the_same_weights(module: fx.GraphModule) -> fx.GraphModule:
    """A copy that has the module's own weights and masks, which are most of its memory."""
    masks = (mask for found in masks_at_work(module).values() for mask in found)
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *masks)})


def _compute_in_float64(module: fx.GraphModule) -> None:
    """Let a module compute in float64: a layer that is called has such a weight only meanwhile."""
    called: set[str] = set()
    read: set[str] = set()
    for path, part in parts_of(module):
        nodes = [node for graph in graphs_of(part) for node in graph.nodes]
        targets = {op: [str(n.target) for n in nodes if n.op == op] for op in _NAMING}
        called |= {join(path, target) for target in targets["call_module"]}
        read |= {join(path, target.rpartition(".")[0]) for target in targets["get_attr"]}
    for path, part in module.named_modules():
        layer = is_weighted(part) or type(part) in PLAIN_CLASS
        if layer and path in called - read:
            _widen_while_called(part)
        else:
            _widen(part)


def _widen(part: nn.Module) -> None:
    """Have float64 in the place of every other floating-point number of a module's own."""
    for table in (part._parameters, part._buffers):
        for name, one in table.items():
            if one is not None and one.is_floating_point():
                table[name] = one.detach().double()  # pyright: ignore[reportArgumentType]


def _widen_while_called(part: nn.Module) -> None:
    own = dict(part._parameters)
    part.register_forward_pre_hook(lambda part, _: _widen(part))
    part.register_forward_hook(lambda part, *_: part._parameters.update(own))


def _moves(value: Any) -> bool:
    """Whether any tensor differs between examples by more than float32 could hide."""
    return any(_movement(one) > _STILL for one in _examples(value))


def _examples(value: Any) -> Iterator[Tensor]:
    """The tensors, a row for each example."""
    for one in tensors(value):
        if one.is_floating_point() and one.ndim and len(one):
            yield one.detach().reshape(len(one), -1)


def _movement(rows: Tensor) -> float:
    """The largest difference to the first example, in parts of the largest value."""
    largest = float(rows.abs().max()) if rows.numel() else 0.0
    return float((rows - rows[:1]).abs().max()) / largest if largest else 0.0
