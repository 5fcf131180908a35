"""Edits the fx graph of a network: branches in, and what that needs before.

Everything here works on the network's own module, in place: the pipeline has copied it before, and
lints and recompiles it after.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional

from n2nfx.anysize import follows_size, pools_to
from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import graphs_of, parts_of
from n2nfx.network import Move, Network, Skip
from n2nfx.partwise import by_part, in_part, skips_of
from n2nfx.sites import Site, Sites, entry_of, own_norm
from n2nfx.tracing.ops import is_in_place, is_size, kind_of, make_out_of_place
from n2nfx.tracing.sizes import add
from n2nfx.tracing.tape import Spec

_CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_AVERAGE = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}
_MOST = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def prepare(network: Network) -> None:
    """Split every norm with its nonlinearity inside in two, so that what lies between is a node.

    The norm keeps its weights and names, and what it computes does not change. A nonlinearity
    with weights of its own stays inside, or its names in the state dict would change.
    """
    for _, part in parts_of(network.module):
        _prepare(part)


def _prepare(module: fx.GraphModule) -> None:
    """`prepare` for the graphs that a module has itself."""
    fused: dict[str, list[fx.Node]] = {}
    for node in (node for graph in graphs_of(module) for node in graph.nodes):
        if node.op == "call_module" and kind_of(module, node) == "fused":
            fused.setdefault(str(node.target), []).append(node)
    for path, nodes in fused.items():
        norm = module.get_submodule(path)
        inner = norm.act
        assert isinstance(inner, nn.Module)
        if any(True for _ in inner.parameters()):
            continue
        norm.act = nn.Identity()
        name = f"{path.replace('.', '_')}_act"
        while hasattr(module, name):
            name += "_"
        module.add_module(name, inner)
        for node in nodes:
            _follow(node, name)


def _follow(node: fx.Node, name: str) -> None:
    """Let a nonlinearity be called on a node's value, and everyone read that instead."""
    with node.graph.inserting_after(node):
        after = node.graph.call_module(name, (node,))
    after.meta.update(node.meta, is_activation=True)
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)


def splice(network: Network, skips: Sequence[Skip]) -> None:
    """Add the branches to the network's graphs and module, their weights zero.

    A branch whose weights are zero changes nothing, to the last bit (a norm of its own may, once
    it was trained). Raises `CannotOperate` when a skip does not fit.
    """
    prepare(network)
    parts = dict(by_part(network))
    homeless = [skip for skip in skips if not any(skips_of([skip], path) for path in parts)]
    if homeless:
        raise CannotOperate(f"a skip is called {homeless[0].name}, which is in no part's container")
    for path, part in parts.items():
        _splice(part, [in_part(skip, path) for skip in skips_of(skips, path)])


def _splice(network: Network, skips: Sequence[Skip]) -> None:
    """Add branches to the graphs that a network has itself."""
    for graph in graphs_of(network.module):
        sites = Sites(network.module, network.layers, graph)
        ends = [
            (skip, _end(sites, skip.source, source), _end(sites, skip.target, target))
            for skip in skips
            for source, target in skip.calls
        ]
        surgeon = _Surgeon(network.module, graph)
        for skip, source, target in ends:
            surgeon.join(skip, source, target)


def _end(sites: Sites, name: str, call: int) -> Site:
    if name not in sites.calls:
        raise CannotOperate(f"a skip ends at {name}, which is no layer of this network")
    if not 0 <= call < sites.calls[name]:
        raise CannotOperate(
            f"a skip ends at call {call} of {name}, which is called {sites.calls[name]} times"
        )
    return sites.by_name(name, call)


class _Surgeon:
    """Adds branches to a graph one by one; knows what became of the values they were added to."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph) -> None:
        self.module = module
        self.graph = graph
        self._parts = {name for name, _ in module.named_modules()}
        self._sums: dict[fx.Node, fx.Node] = {}
        self._follows = follows_size(graph)

    def join(self, skip: Skip, source: Site, target: Site) -> None:
        """Add one branch: its modules, its nodes, and the sum at its target."""
        read, into = source.activation, entry_of(target, skip.at)
        read, entry = self._sums.get(read, read), self._sums.get(into, into)
        self._protect(read)
        norm = self._shared_norm(target) if skip.at == "output" else None
        behind = entry.next
        with self.graph.inserting_before(norm or behind):
            value = self._branch(skip, read, target, entry)
            if skip.kind == "identity":
                value = self._with_channels_of(entry, value, -1 if target.last else 1)
            if norm is not None:
                value = self._repeat(norm, value)
            if skip.inner and target.nonlinearity is not None:
                value = self._repeat(target.nonlinearity, value)
            if skip.shrink:
                value = self._call(_MOST[len(skip.shrink)], value, skip.shrink)
        with self.graph.inserting_before(behind):
            total = self._call(add, entry, value, spec=entry.meta["spec"])
        entry.replace_all_uses_with(
            total, delete_user_cb=lambda user: user is not total and not is_size(user)
        )
        self._sums[into] = total

    def _shared_norm(self, target: Site) -> fx.Node:
        """The target's norm, before which a branch that shares it is computed.

        So its running statistics end with those of the layer itself, as in the authors' code.
        """
        norm = own_norm(self.module, target)
        if norm is None:
            raise CannotOperate(f"{target.name} has no batch norm that a branch could share")
        return norm

    def _protect(self, read: fx.Node) -> None:
        """A branch reads an activation late: those who would change it in place until then do not.

        What they write is a new tensor then, and whoever read the changed one reads that already.
        """
        for user in list(read.users):
            changes = is_in_place(self.module, user) and user.args and user.args[0] is read
            if changes and not make_out_of_place(self.module, user):
                raise CannotOperate(f"{user.name} changes {read.name} in place for good")

    def _branch(self, skip: Skip, value: fx.Node, target: Site, entry: fx.Node) -> fx.Node:
        """What a branch makes of its source's activation, in the target's layout."""
        for move in skip.before:
            value = self._move(move, value)
        if skip.pool is not None:
            value = self._averaged(skip, skip.pool, value, target, entry)
        if skip.pool is not None and not skip.places:
            value = self._call(torch.flatten, value, 1)
        if skip.kind != "identity":
            self._add(skip.name, partial(branch, skip), target)
            value = self._call_module(skip.name, value, _made_by(skip, value))
        if skip.branch_norm:
            value = self._normed(skip, value, target)
        for move in skip.after:
            value = self._move(move, value)
        return value

    def _averaged(
        self, skip: Skip, pool: tuple[int, ...], value: fx.Node, target: Site, entry: fx.Node
    ) -> fx.Node:
        """To the target's size: the one that it has each time where the graph follows its input."""
        average = _AVERAGE[len(pool)]
        if not (self._follows and pools_to(skip.places, pool, target.last)):
            return self._call(average, value, pool)
        sizes = [self.graph.call_method("size", (entry, 2 + at)) for at in range(len(pool))]
        for size in sizes:
            size.meta.update(spec=None, scope="")
        specs = tuple(
            Spec((*_shape(value, at)[:2], *pool), value.meta["spec"][at].dtype) for at in (0, 1)
        )
        return self._call(average, value, tuple(sizes), spec=specs)

    def _add(self, name: str, make: Callable[[], nn.Module], target: Site) -> None:
        """A module of a branch, where its target's weight is and of its kind of numbers.

        A second graph, or call, finds it there.
        """
        assert target.layer is not None
        if name in self._parts:
            return
        self._parts.add(name)
        part = make()
        like = self.module.get_parameter(target.layer.weight)
        part.to(device=like.device, dtype=like.dtype).train(self.module.training)
        self.module.add_submodule(name, part)
        self.module.get_submodule(name.rpartition(".")[0]).training = self.module.training

    def _normed(self, skip: Skip, value: fx.Node, target: Site) -> fx.Node:
        """Through the branch's batch norm, which takes the second dimension for channels."""
        rank = len(_shape(value))
        norm = partial(_BATCH_NORM[rank], skip.weight_shape[0])
        self._add(norm_name(skip), norm, target)
        last = skip.kind == "linear" and rank > 2
        if last:
            value = self._call(torch.movedim, value, -1, 1)
        value = self._call_module(norm_name(skip), value, value.meta["spec"])
        return self._call(torch.movedim, value, 1, -1) if last else value

    def _move(self, move: Move, value: fx.Node) -> fx.Node:
        function = functional.pad if move.how == "pad" else getattr(torch, move.how)
        return self._call(function, value, *_arguments(move))

    def _with_channels_of(self, entry: fx.Node, value: fx.Node, axis: int) -> fx.Node:
        """A residual skip has no weights to change the channels: they are cropped, or zeros added.

        The channels are at `axis`.
        """
        more = _shape(entry)[axis] - _shape(value)[axis]
        behind = 0 if axis == -1 else len(_shape(entry)) - 2
        return self._call(functional.pad, value, (*(0, 0) * behind, 0, more)) if more else value

    def _call(self, function: Any, *args: Any, spec: Any = None) -> fx.Node:
        """A function's node, its shapes those that the function gives to tensors without data."""
        node = self.graph.call_function(function, args)
        node.meta.update(spec=spec or _made_from(function, args), scope="")
        return node

    def _call_module(self, name: str, value: fx.Node, spec: Any) -> fx.Node:
        node = self.graph.call_module(name, (value,))
        node.meta.update(spec=spec, scope="")
        return node

    def _repeat(self, operation: fx.Node, value: fx.Node) -> fx.Node:
        """The target's own norm or nonlinearity on another value."""
        node = self.graph.create_node(
            operation.op,
            operation.target,
            (value, *operation.args[1:]),
            dict(operation.kwargs),
        )
        node.meta.update(value.meta)
        return node


def _shape(node: fx.Node, at: int = 1) -> tuple[int, ...]:
    return node.meta["spec"][at].shape


def _arguments(move: Move) -> tuple[Any, ...]:
    """The numbers of a move as its function takes them."""
    if move.how in ("pad", "permute", "mean", "broadcast_to"):  # all numbers are one argument
        return (move.by,)
    if move.how == "unflatten":
        return move.by[0], move.by[1:]
    return move.by


def _made_from(function: Any, args: tuple[Any, ...]) -> tuple[Spec, ...]:
    """The specs of what a function makes, at both batches."""
    made = [function(*map_arg(args, partial(_blank, at))) for at in (0, 1)]
    return tuple(Spec(tuple(one.shape), one.dtype) for one in made)


def _blank(at: int, node: fx.Node) -> Any:
    """A tensor like a node's value, without data: the smaller batch's at 0, the larger's at 1."""
    spec = node.meta["spec"][at]
    return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def _made_by(skip: Skip, value: fx.Node) -> tuple[Spec, ...]:
    """The specs of what a branch's layer makes of a value."""
    channels, specs = skip.weight_shape[0], value.meta["spec"]
    if skip.kind == "linear":
        return tuple(Spec((*spec.shape[:-1], channels), spec.dtype) for spec in specs)
    return tuple(Spec((spec.shape[0], channels, *skip.computed), spec.dtype) for spec in specs)


def norm_name(skip: Skip) -> str:
    """The module path of a branch's norm."""
    return f"{skip.name}_norm"


def branch(skip: Skip) -> nn.Module:
    """The convolution or linear layer of a branch, without bias, its weights zero."""
    out, into, *kernel = skip.weight_shape
    with torch.device("meta"):
        if skip.kind == "linear":
            made: nn.Module = nn.Linear(into, out, bias=False)
        else:
            made = _CONVOLUTION[len(kernel)](
                into, out, tuple(kernel), skip.stride, skip.padding, bias=False
            )
    zeros = np.empty(skip.weight_shape, dtype=np.float32)  # in huge pages, which torch does not ask
    zeros.fill(0.0)  # for: half the time where branches are large
    made.register_parameter("weight", nn.Parameter(torch.from_numpy(zeros)))
    return made


def fill(network: Network, skip: Skip, mask: Tensor, values: Tensor) -> None:
    """Set the kept weights of a branch, in the order of their indices."""
    weight = network.module.get_parameter(skip.weight)
    kept = torch.from_numpy(np.flatnonzero(mask.numpy()))
    with torch.no_grad():
        weight.view(-1)[kept.to(weight.device)] = values.to(weight)
