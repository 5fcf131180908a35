"""The values that passes take and give: a network, its prunable layers, its masks and skips."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx

from n2nfx.budget import Allocation
from n2nfx.errors import CannotOperate as CannotOperate
from n2nfx.errors import UsageError, require_kind
from n2nfx.graphmodule import graphs_of, parts_of
from n2nfx.masks import Masks, Ranking
from n2nfx.seeds import require_seed

INPUT = "input"  # the name of l = 0, the network's input, as the source of a skip

# Where a branch is added to its target: before its norm, before its nonlinearity, or behind it.
At = Literal["norm", "activation", "output"]


@dataclass(frozen=True)
class Layer:
    """One prunable weight of the reference network: names and integers, no tensors, no nodes.

    `name` is the module's path, or the parameter's name where a function uses it directly;
    `weight` is the parameter's name. `reads` and `writes` are activation shapes without the
    batch, at the first call. `uses` is how often each weight is multiplied for one example, over
    all calls, so that `size * uses` is the layer's number of multiply-adds.
    """

    name: str
    kind: Literal["conv", "linear"]
    weight: str
    weight_shape: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    uses: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.weight_shape)

    @property
    def channels(self) -> int:
        """Channels on the wider side; what is computed from no example has no activation shapes."""
        axis = 0 if self.kind == "conv" else -1
        sides = [shape[axis] for shape in (self.reads, self.writes) if shape]
        return max(sides or self.weight_shape[:2])


How = Literal[
    "transpose", "movedim", "permute", "flatten", "unflatten", "unsqueeze", "broadcast_to",
    "narrow", "pad", "roll", "mean",
]  # fmt: skip


@dataclass(frozen=True)
class Move:
    """One step from a layout to another: the torch function `how`, called with the numbers `by`.

    `narrow` drops tokens that stand for no place, `pad` puts zeros in their place. `mean` averages
    over what the target does not have (heads, keys), `broadcast_to` gives it to all that it has.
    """

    how: How
    by: tuple[int, ...]


@dataclass(frozen=True)
class Skip:
    """One branch from the output activation of `source` to the pre-activation of `target`.

    `name` is the branch's module path (its weight is `name + ".weight"`), `source` and `target`
    are layer names (source "input" is the network's input), `hop` the number of layers bypassed,
    `places` the spatial size at the target (without tokens that stand for no place), `fold` how
    many windows or heads an example is folded into.
    The source is brought to the branch's layout by the moves `before`, averaged to the spatial
    size `pool` unless that is None, and the branch's output to the target's layout by the moves
    `after`. `inner` says whether the target's nonlinearity is applied to the branch too (Eq. 2).
    What is added behind the nonlinearity (`at="output"`) went through the target's own norm before,
    and is max-pooled last by the factors `shrink`, if there are any.
    `calls` says which call of the source is joined with which of the target, from 0 on; like a
    layer that is called several times, a branch is then called as often, with the same weights.
    A residual skip (`kind="identity"`, Eq. 1) adds the activation itself and has no weights.
    """

    name: str
    kind: Literal["conv", "linear", "identity"]
    source: str
    target: str
    hop: int
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    pool: tuple[int, ...] | None
    at: At
    inner: bool
    branch_norm: bool
    nnz: int
    places: tuple[int, ...]
    fold: int = 1
    before: tuple[Move, ...] = ()
    after: tuple[Move, ...] = ()
    shrink: tuple[int, ...] = ()
    calls: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def weight(self) -> str:
        """The name of the branch's weight."""
        return f"{self.name}.weight"

    @property
    def computed(self) -> tuple[int, ...]:
        """The spatial size at which the branch is computed: the target's unless it shrinks."""
        if not self.shrink:
            return self.places
        return tuple(at * by for at, by in zip(self.places, self.shrink, strict=True))

    @property
    def uses(self) -> int:
        """How often each weight is multiplied for one example, over all calls."""
        return len(self.calls) * self.fold * prod(self.computed)

    @property
    def size(self) -> int:
        """Number of weights that the branch could hold."""
        return prod(self.weight_shape) if self.kind != "identity" else 0

    @property
    def channels(self) -> int:
        """Channels on the wider side."""
        return max(self.weight_shape[:2])

    @property
    def spread(self) -> float:
        """Standard deviation of the kept weights by kaiming, on the branch's real fan-in."""
        return (2.0 / max(self.nnz / self.weight_shape[0], 1.0)) ** 0.5


@dataclass(frozen=True)
class InputSpec:
    """One tensor that the network is called with: its name, shape (batch included) and dtype.

    `by_name` says whether the model it was traced from took it by that name, or in order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    by_name: bool = False

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise UsageError(f"input {self.name}: torch has no dtype {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself; `dtype` is its name, such as float32."""
        return getattr(torch, self.dtype)


def blank_inputs(
    inputs: Sequence[InputSpec],
    batch: int | None = None,
    device: torch.device | None = None,
    precision: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """Tensors of the inputs' shapes, their values undefined, for another batch if one is given.

    The batch is the first dimension of the first input, and of every other that is as long there.
    Floating-point numbers are of the precision that is given, or of the trace's.
    """
    own = inputs[0].shape[0]

    def dtype(traced: torch.dtype) -> torch.dtype:
        return (precision or traced) if traced.is_floating_point else traced

    return tuple(
        torch.empty(
            (batch if batch and spec.shape[0] == own else spec.shape[0], *spec.shape[1:]),
            dtype=dtype(spec.torch_dtype),
            device=device,
        )
        for spec in inputs
    )


@dataclass(frozen=True)
class Refusal:
    """A pair of layers that a branch cannot join, and why."""

    source: str
    target: str
    hop: int
    reason: str


@dataclass(frozen=True)
class Step:
    """One line of a record: what a pass did.

    spec: the pass as text. seed: that of its probe. nnz, nodes: kept weights and graph nodes,
    before and after. seconds: wall time. keeps: the invariants that the pass promised, and kept.
    skips: those it added.
    """

    spec: str
    seed: int
    nnz: tuple[int, int]
    nodes: tuple[int, int]
    seconds: float
    keeps: tuple[str, ...]
    skips: tuple[Skip, ...]


class Row(NamedTuple):
    """One line of the ledger: a layer or a skip, what it could keep, what it keeps, its uses."""

    name: str
    kind: str
    weight: str
    shape: tuple[int, ...]
    size: int
    kept: int
    uses: int


@dataclass(frozen=True)
class Origin:
    """Where a network's module came from: a model's name and how it was built, or else a class.

    `pretrained` says whether it had trained weights then.
    """

    name: str | None = None
    module_class: str | None = None
    seed: int = 0
    num_classes: int | None = None
    input_shape: tuple[int, ...] | None = None
    pretrained: bool = False

    @property
    def told(self) -> str:
        """The name or the class, for a person; a module that was only traced has neither."""
        return self.name or f"a module ({self.module_class or 'of no recorded class'})"


@dataclass(frozen=True, eq=False)
class Network:
    """What lies on the table: a traced module, its reference layers, and what is kept of them.

    Without masks it is the reference network: every weight is kept. `scores` and `allocation`
    are how the masks were chosen, so that a later pass can ask the same ranking for fewer.
    `origin` says how the module can be built again and `history` what was done to it since;
    `refused` are the pairs that got no skip, `notes` what a person should know.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    inputs: tuple[InputSpec, ...]
    masks: Masks = field(default_factory=Masks)
    skips: tuple[Skip, ...] = ()
    scores: Ranking | None = None
    allocation: Allocation | None = None
    origin: Origin = Origin()
    history: tuple[Step, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [*(layer.weight for layer in self.layers), *(skip.weight for skip in self.skips)]
        unknown = sorted(set(self.masks) - set(names))
        if unknown:
            raise CannotOperate(f"masks for weights that are not prunable: {', '.join(unknown)}")
        for name, shape in self._shapes().items():
            if name in self.masks and tuple(self.masks[name].shape) != shape:
                raise CannotOperate(
                    f"the mask of {name} has shape {tuple(self.masks[name].shape)}, "
                    f"its weight {shape}"
                )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        prunable = [*self.layers, *(skip for skip in self.skips if skip.kind != "identity")]
        return {item.weight: item.weight_shape for item in prunable}

    @property
    def size(self) -> int:
        """N: the number of prunable weights of the reference network."""
        return sum(layer.size for layer in self.layers)

    @property
    def nnz(self) -> int:
        """Kept weights, those of the skips included, counted on mask bits."""
        return sum(row.kept for row in self.ledger())

    @property
    def density(self) -> float:
        """Kept weights over N; 1 where there are none to keep."""
        return self.nnz / self.size if self.size else 1.0

    @property
    def dropped_before(self) -> bool:
        """Whether an earlier pipeline dropped weights, which are zero since."""
        return any(after < before for before, after in (step.nnz for step in self.history))

    @property
    def flops(self) -> int:
        """Multiply-adds of the kept weights for one example."""
        return sum(row.kept * row.uses for row in self.ledger())

    @property
    def dense_flops(self) -> int:
        """Multiply-adds of the reference network's prunable weights for one example."""
        return sum(layer.size * layer.uses for layer in self.layers)

    @property
    def flop_density(self) -> float:
        """Multiply-adds of kept weights over those of the reference network."""
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    def ledger(self) -> tuple[Row, ...]:
        """One row for every layer, in order of execution, then one for every skip."""
        counts = self.masks.counts
        layers = (
            Row(
                layer.name,
                layer.kind,
                layer.weight,
                layer.weight_shape,
                layer.size,
                counts.get(layer.weight, layer.size),
                layer.uses,
            )
            for layer in self.layers
        )
        skips = (
            Row(
                f"{skip.source} -> {skip.target}",
                f"skip {skip.kind}",
                skip.weight,
                skip.weight_shape,
                skip.size,
                counts.get(skip.weight, skip.nnz),
                skip.uses,
            )
            for skip in self.skips
        )
        return (*layers, *skips)

    def text(self) -> str:
        """The graph, one node a line: stable, readable, and the same for the same network."""
        lines: list[str] = []
        for path, part in parts_of(self.module):
            graph, *training = graphs_of(part)
            lines += [f"in {path}:"] if path else []
            lines += [_line(part, node) for node in graph.nodes]
            for other in training:
                lines += ["in training:", *(_line(part, node) for node in other.nodes)]
        return "\n".join(lines) + "\n"


def _line(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"{node.name} = input"
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    arguments = [_argument(value) for value in node.args]
    arguments += [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    line = f"{node.name} = {_callee(node)}({', '.join(arguments)})"
    if node.op != "call_module":
        return line
    return f"{line}  # {type(module.get_submodule(str(node.target))).__name__}"


def _callee(node: fx.Node) -> str:
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    prefix = {"call_module": "self.", "get_attr": "get self.", "call_method": "."}[node.op]
    return f"{prefix}{node.target}"


def _argument(value: object) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, tuple | list):
        inner = ", ".join(_argument(item) for item in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_argument(item)}" for key, item in value.items()) + "}"
    return repr(value)


@dataclass(frozen=True, eq=False)
class Probe:
    """Everything from outside that a pass may use: batches of (inputs, targets), a loss, a seed."""

    seed: int = 0
    batches: Sequence[tuple[Tensor, Tensor]] = ()
    loss: Callable[[Any, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require_kind(self.batches, Sequence, "batches are a list of (inputs, targets)")
        if self.loss is not None and not callable(self.loss):
            raise UsageError(f"a loss must be a function of (output, targets), not {self.loss!r}")
