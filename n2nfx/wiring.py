"""Every branch that could be spliced: for each hop the legal pairs of layers, and why not others.

A branch leaves the output activation of its source and enters its target just before the
nonlinearity (or before the norm), with stride, padding and kernel such that the shapes meet.
"""

import copy
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from n2nfx.errors import UsageError, did_you_mean
from n2nfx.graphmodule import HOOKS
from n2nfx.network import Layer, Network, Refusal, Skip
from n2nfx.sites import Site, Sites, channels_last, entry_of, places_of
from n2nfx.tracing.ops import is_in_place, is_view, name_of

Wiring = Literal["paper", "linear", "joint"]
Placement = Literal["every", "blocks", "stages"]


@dataclass(frozen=True)
class Options:
    """How branches are laid.

    hops: numbers of layers that a branch bypasses. placement: `every` legal pair; `blocks`, end
    to end without overlap; `stages`, one over each change of resolution. wiring: where a branch
    enters: `paper` (Eq. 2: before the target's nonlinearity, through that nonlinearity itself),
    `linear` (the same without it), `joint` (before the target's norm, without it). kernel: the
    branch's spatial size, an odd number, or `target` for the target's own.
    """

    hops: tuple[int, ...] = (3,)
    placement: Placement = "every"
    wiring: Wiring = "paper"
    kernel: int | Literal["target"] = "target"

    def __post_init__(self) -> None:
        whole = isinstance(self.hops, tuple) and all(type(hop) is int for hop in self.hops)
        if not whole or not self.hops or min(self.hops) < 1:
            raise UsageError(
                f"hops must be a tuple of whole numbers from 1 on, such as (3,), not {self.hops!r}"
            )
        _check("placement", self.placement, get_args(Placement))
        _check("wiring", self.wiring, get_args(Wiring))
        odd = type(self.kernel) is int and self.kernel > 0 and self.kernel % 2 == 1
        if self.kernel != "target" and not odd:
            raise UsageError(f"kernel must be 'target' or an odd whole number, not {self.kernel!r}")


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(
            f"{what} must be one of {', '.join(known)}, not {value!r}"
            f"{did_you_mean(str(value), known)}"
        )


@dataclass(frozen=True)
class Branches:
    """The candidate branches in order of their targets, nothing decided yet, and the refused."""

    skips: tuple[Skip, ...]
    refused: tuple[Refusal, ...]

    @property
    def capacity(self) -> int:
        """How many weights the branches could hold together."""
        return sum(skip.size for skip in self.skips)


def find_branches(network: Network, options: Options) -> Branches:
    """Every branch that the options allow on a network, and every refused pair with its reason."""
    sites = Sites(network.module, network.layers)
    skips: list[Skip] = []
    refused: list[Refusal] = []
    taken: dict[tuple[fx.Node, fx.Node], Skip] = {}
    names = set(dict(network.module.named_modules()))
    for source, target, hop in sites.pairs(options.hops):
        found = _join(sites, source, target, hop, options)
        if isinstance(found, Refusal):
            refused.append(found)
            continue
        ends = (source.activation, entry_of(target, found.at))
        if ends in taken:
            twin = f"the same branch as {taken[ends].source} -> {taken[ends].target}"
            refused.append(Refusal(found.source, found.target, hop, twin))
            continue
        taken[ends] = replace(found, name=_branch_name(found, network.module, names))
        names.add(taken[ends].name)
        skips.append(taken[ends])
    placed, misplaced = _place(skips, sites, options.placement)
    return Branches(tuple(placed), (*refused, *misplaced))


def _branch_name(skip: Skip, module: nn.Module, taken: Container[str]) -> str:
    """The branch's module path: its ends, in a container that is not the model's own."""
    container = "skips"
    while hasattr(module, container):
        container += "_"
    name = f"{container}.{skip.source.replace('.', '_')}__{skip.target.replace('.', '_')}"
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class _Shape:
    """An activation as a branch sees it: channels, places, and whether channels come last."""

    channels: int
    places: tuple[int, ...]
    last: bool


def _shape(node: fx.Node, last: bool, batches: tuple[int, int]) -> _Shape | None:
    """None where the batch is not the first dimension."""
    small, large = node.meta["spec"]
    if small.shape[1:] != large.shape[1:] or (small.shape[0], large.shape[0]) != batches:
        return None
    rest = small.shape[1:]
    return _Shape(rest[-1], rest[:-1], last) if last else _Shape(rest[0], rest[1:], last)


def _join(sites: Sites, source: Site, target: Site, hop: int, options: Options) -> Skip | Refusal:
    """The branch from one site to another, or why there can be none."""
    reason = _forbidden(sites, source, target, options)
    if reason is None:
        branch = _fit(source, target, options, sites.batches)
        if not isinstance(branch, str):
            return replace(branch, hop=hop)
        reason = branch
    return Refusal(source.name, target.name, hop, reason)


def _forbidden(sites: Sites, source: Site, target: Site, options: Options) -> str | None:
    """What forbids a branch whatever its shape, or None."""
    for end in (source, target):
        if sites.calls[end.name] > 1:
            return f"{end.name} is called {sites.calls[end.name]} times"
    entry = entry_of(target, "norm" if options.wiring == "joint" else "activation")
    if target.sealed and options.wiring != "joint":
        return f"the norm of {target.name} has its nonlinearity inside, with weights of its own"
    if sites.position[source.activation] >= sites.position[entry]:
        return f"the output of {source.name} is not there yet when {target.name} needs it"
    if not source.activation.meta["spec"][0].dtype.is_floating_point:
        return f"{source.name} is not a floating-point tensor"
    if options.wiring == "paper" and target.nonlinearity is not None:
        reason = _unfit_inside(sites.module, target.nonlinearity)
        if reason:
            return f"the nonlinearity of {target.name} {reason}; wiring linear or joint would do"
    return _changed_in_place(sites.module, source)


def _unfit_inside(module: fx.GraphModule, nonlinearity: fx.Node) -> str | None:
    """Why Eq. 2 cannot have a nonlinearity inside the branch, or None.

    A branch without weights must be silent, so g(0) has to be 0, which is found by trying it on a
    copy, its hooks left out.
    """
    rest = (*nonlinearity.args[1:], *nonlinearity.kwargs.values())
    if any(isinstance(argument, fx.Node) for argument in rest):
        return "takes other values of the graph"
    called: Any = nonlinearity.target
    if nonlinearity.op == "call_module":
        called = copy.deepcopy(module.get_submodule(str(called))).cpu().float().eval()
        if isinstance(called, nn.RReLU):
            return "draws at random"
        for hooks in HOOKS:
            getattr(called, hooks).clear()
    elif name_of(nonlinearity) == "rrelu":
        return "draws at random"
    elif nonlinearity.op == "call_method":
        called = getattr(torch.Tensor, str(called))
    shape = nonlinearity.meta["spec"][1].shape  # of several examples: one could be squeezed away
    one_place = torch.zeros(1, shape[1], *(1 for _ in shape[2:]))  # nonlinearities are pointwise
    with torch.no_grad():
        result = called(one_place, *nonlinearity.args[1:], **nonlinearity.kwargs)
    return "is not 0 at 0" if bool(result.any()) else None


def _changed_in_place(module: fx.GraphModule, source: Site) -> str | None:
    """Why what a branch reads would be overwritten beyond repair, or None.

    An in-place reader of the activation itself is made out of place when a branch is spliced.
    Through a view that would change what others see.
    """
    views = [user for user in source.activation.users if is_view(module, user)]
    changed = any(is_in_place(module, user) for user in source.activation.users)
    if views and changed:
        return f"the output of {source.name} is changed in place and seen through a view"
    while views:
        view = views.pop()
        for user in view.users:
            if is_in_place(module, user) and user.args[0] is view:
                return f"the output of {source.name} is changed in place through {view.name}"
            if is_view(module, user):
                views.append(user)
    return None


def _fit(source: Site, target: Site, options: Options, batches: tuple[int, int]) -> Skip | str:
    """The branch whose shapes meet exactly, or why none does."""
    reads = _shape(source.activation, channels_last(source), batches)
    at: Literal["norm", "activation"] = "norm" if options.wiring == "joint" else "activation"
    writes = _shape(entry_of(target, at), channels_last(target), batches)
    if reads is None or writes is None:
        return "the batch is folded into other dimensions"
    assert target.layer is not None
    inner = options.wiring == "paper" and target.nonlinearity is not None
    blank = Skip(
        name="", kind="linear", source=source.name, target=target.name, hop=0,
        weight_shape=(writes.channels, reads.channels), stride=(), padding=(), pool=None,
        at=at, inner=inner, branch_norm=False, nnz=0, places=writes.places,
    )  # fmt: skip
    if not writes.places:
        if reads.last and reads.places:
            return "tokens cannot be pooled to a vector yet"
        return replace(blank, pool=tuple(1 for _ in reads.places) or None)
    if reads.last and writes.last and reads.places == writes.places:
        return blank
    if reads.last or writes.last or len(reads.places) != len(writes.places):
        return f"a {_describe(reads)} cannot be laid onto a {_describe(writes)}"
    if any(read < write for read, write in zip(reads.places, writes.places, strict=True)):
        return f"the target is larger: {_size(reads.places)} to {_size(writes.places)}"
    return _fit_convolution(blank, target.layer, reads, writes, options)


def _fit_convolution(
    blank: Skip, target: Layer, reads: _Shape, writes: _Shape, options: Options
) -> Skip:
    """Strided where the sizes divide, else averaged to the target's size first."""
    own = target.weight_shape[2:] if target.kind == "conv" else (1,) * len(writes.places)
    wanted = own if options.kernel == "target" else (options.kernel,) * len(writes.places)
    divides = all(
        read % write == 0 for read, write in zip(reads.places, writes.places, strict=True)
    )
    places = reads.places if divides else writes.places
    stride = tuple(read // write for read, write in zip(places, writes.places, strict=True))
    fitted = [
        _fit_kernel(*sizes) for sizes in zip(wanted, stride, places, writes.places, strict=True)
    ]
    kernel = tuple(size for size, _ in fitted)
    return replace(
        blank,
        kind="conv",
        weight_shape=(writes.channels, reads.channels, *kernel),
        stride=stride,
        padding=tuple(padding for _, padding in fitted),
        pool=None if divides else writes.places,
    )


def _fit_kernel(kernel: int, stride: int, read: int, write: int) -> tuple[int, int]:
    """Kernel and padding with which `read` places become exactly `write` (= read / stride).

    An odd kernel with its natural padding always does; an even one may need to be one smaller.
    """
    for padding in sorted(range(kernel), key=lambda padding: abs(2 * padding - kernel + 1)):
        if (read + 2 * padding - kernel) // stride + 1 == write:
            return kernel, padding
    return kernel - 1, (kernel - 1) // 2


def _describe(shape: _Shape) -> str:
    if not shape.places:
        return f"vector of {shape.channels}"
    order = "channels last" if shape.last else "channels first"
    return f"{_size(shape.places)} map of {shape.channels} channels ({order})"


def _size(places: Sequence[int]) -> str:
    return "x".join(map(str, places))


def _place(
    skips: list[Skip], sites: Sites, placement: Placement
) -> tuple[list[Skip], list[Refusal]]:
    """The branches that a placement takes, and the others with the reason."""
    if placement == "every":
        return skips, []
    order = {site.name: number for number, site in enumerate(sites.sites)}
    taken = _end_to_end(skips, order) if placement == "blocks" else _over_stages(skips, sites)
    names = {skip.name for skip in taken}
    left = [
        Refusal(skip.source, skip.target, skip.hop, f"placement {placement} takes another")
        for skip in skips
        if skip.name not in names
    ]
    return taken, left


def _end_to_end(skips: list[Skip], order: dict[str, int]) -> list[Skip]:
    """Each branch starts at or after the end of the one before."""
    taken: list[Skip] = []
    for skip in sorted(skips, key=lambda skip: (order[skip.target], -order[skip.source])):
        if not taken or order[skip.source] >= order[taken[-1].target]:
            taken.append(skip)
    return taken


def _over_stages(skips: list[Skip], sites: Sites) -> list[Skip]:
    """The first branch onto each resolution from a larger one."""
    taken: dict[int, Skip] = {}
    for skip in skips:
        if prod(skip.stride) > 1 or skip.pool is not None:
            taken.setdefault(prod(places_of(sites.by_name(skip.target))), skip)
    return list(taken.values())
