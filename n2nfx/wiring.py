"""Every branch that could be spliced: for each hop the legal pairs of layers, and why not others.

A branch leaves the output activation of its source and enters its target just before the
nonlinearity (or before the norm). Where every target that is `hop` layers away has a shape that
cannot be met (a map of other dimensions, a batch folded out of sight), the chain goes on to the
next layers that fit, up to twice as far: layers of one kind of shape form chains of their own.
"""

import copy
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import fx, nn

from n2nfx.anysize import follows_size, unfit
from n2nfx.errors import UsageError, did_you_mean
from n2nfx.fitting import Fit, Kernel, Matching, Resolution, fit
from n2nfx.graphmodule import HOOKS, graphs_of
from n2nfx.layouts import Layout, Misfit
from n2nfx.network import At, Network, Refusal, Skip
from n2nfx.partwise import by_part, from_part
from n2nfx.sites import Site, Sites, entry_of, own_norm
from n2nfx.tracing.ops import is_in_place, is_view, name_of

Wiring = Literal["paper", "linear", "joint", "released-vgg"]
Placement = Literal["every", "blocks", "stages"]

_ENTRIES: dict[Wiring, At] = {
    "paper": "activation",
    "linear": "activation",
    "joint": "norm",
    "released-vgg": "output",
}
TWIN = "the same branch as"  # how the reason of a pair begins that another pair has made one
INNER = ("paper", "released-vgg")  # the wirings with the target's nonlinearity inside the branch


@dataclass(frozen=True)
class Options:
    """How branches are laid.

    hops: numbers of layers that a branch bypasses (more where shapes forbid it). placement:
    `every` legal pair; `blocks`, end to end without overlap; `stages`, one over each change of
    resolution. wiring: where a branch enters: `paper` (Eq. 2: before the target's nonlinearity,
    through that nonlinearity itself), `linear` (the same without it), `joint` (before the target's
    norm, without it), `released-vgg` (what the authors' public VGG does: through the target's own
    norm and nonlinearity, max-pooled to the target's size, and added behind them). kernel: the
    branch's spatial size, an odd number, or `target` for the target's own. resolution: how a branch
    meets a smaller target: by its `stride` where the sizes divide, and else as by `pool`, which
    averages the source to the target's size before. Onto a larger one it reads the nearest place
    (or the average of the nearest, where the sizes do not divide).
    """

    hops: tuple[int, ...] = (3,)
    placement: Placement = "every"
    wiring: Wiring = "linear"
    kernel: Kernel = "target"
    resolution: Resolution = "stride"

    def __post_init__(self) -> None:
        whole = isinstance(self.hops, tuple) and all(type(hop) is int for hop in self.hops)
        if not whole or not self.hops or min(self.hops) < 1:
            raise UsageError(
                f"hops must be a tuple of whole numbers from 1 on, such as (3,), not {self.hops!r}"
            )
        _check("placement", self.placement, get_args(Placement))
        _check("wiring", self.wiring, get_args(Wiring))
        _check("resolution", self.resolution, get_args(Resolution))
        if self.wiring == "released-vgg" and self.resolution != "stride":
            raise UsageError("wiring 'released-vgg' max-pools; resolution is for the others")
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
    def twins(self) -> tuple[Refusal, ...]:
        """The refused pairs that would have the very branch that another pair has."""
        return tuple(one for one in self.refused if one.reason.startswith(TWIN))

    @property
    def capacity(self) -> int:
        """How many weights the branches could hold together."""
        return sum(skip.size for skip in self.skips)


def find_branches(network: Network, options: Options) -> Branches:
    """Every branch that the options allow on a network, and every refused pair with its reason.

    Of a network in parts, those within each.
    """
    skips: list[Any] = []
    refused: list[Any] = []
    for path, part in by_part(network):
        found = _find_within(part, options)
        skips += [from_part(skip, path) for skip in found.skips]
        refused += [from_part(refusal, path) for refusal in found.refused]
    return Branches(tuple(skips), tuple(refused))


def _find_within(network: Network, options: Options) -> Branches:
    """The branches of a network's own graph."""
    _, *trainings = graphs_of(network.module)
    sites = Sites(network.module, network.layers)
    others = [Sites(network.module, network.layers, graph) for graph in trainings]
    gathered, refused = _Gathered(network.module), list[Refusal]()
    for source, target, found in _Search(sites, options).pairs():
        if isinstance(found, Skip):
            ends = source.activation, entry_of(target, found.at)
            reason = gathered.twin(ends) or _apart(others, found, source, target)
            if reason is None:
                gathered.add(found, ends, (source.call, target.call))
                continue
            found = Refusal(found.source, found.target, found.hop, reason)
        refused.append(found)
    skips = gathered.skips
    placed, misplaced = _place(skips, sites, options.placement)
    joined = {(skip.source, skip.target) for skip in skips}
    left = [one for one in refused if (one.source, one.target) not in joined]  # at any other call
    return Branches(tuple(placed), tuple(dict.fromkeys((*left, *misplaced))))


class _Gathered:
    """The branches so far. Several calls of two layers that are met in one way share a branch."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._names = {name for name, _ in module.named_modules()}
        self._skips: dict[Skip, Skip] = {}  # by the same record without name, hop and calls
        self._taken: dict[tuple[fx.Node, fx.Node], Skip] = {}

    @property
    def skips(self) -> list[Skip]:
        """The branches, in order of their first calls."""
        return list(self._skips.values())

    def twin(self, ends: tuple[fx.Node, fx.Node]) -> str | None:
        """What tells that there is a branch from one node to another already, or None."""
        twin = self._taken.get(ends)
        return twin and f"{TWIN} {twin.source} -> {twin.target}"

    def add(self, found: Skip, ends: tuple[fx.Node, fx.Node], calls: tuple[int, int]) -> None:
        """Add a branch, or to one that is there another two calls."""
        self._taken[ends] = found
        record = replace(found, hop=0, calls=())
        if record not in self._skips:
            name = _branch_name(found, self._module, self._names)
            self._names.add(name)
            self._skips[record] = replace(found, name=name, calls=())
        known = self._skips[record]
        self._skips[record] = replace(known, calls=(*known.calls, calls))


def _apart(others: Sequence[Sites], skip: Skip, source: Site, target: Site) -> str | None:
    """Why a branch of one graph has no place in the module's other one, or None."""
    for sites in others:
        for own in (source, target):
            if sites.calls.get(own.name, 0) <= own.call:
                return f"{own.name} is called in one mode (train or eval) only"
            if not _alike(own, sites.by_name(own.name, own.call), skip.at):
                return f"what is behind {own.name} depends on the mode (train or eval)"
        there = (
            sites.by_name(source.name, source.call).activation,
            sites.by_name(target.name, target.call),
        )
        if sites.position[there[0]] >= sites.position[entry_of(there[1], skip.at)]:
            return f"in one mode the output of {source.name} is not there yet"
    return None


def _alike(one: Site, other: Site, at: At) -> bool:
    """Whether two sites of a layer offer a branch the same ends."""
    pairs = [(site.activation, entry_of(site, at)) for site in (one, other)]
    shapes = [[node.meta["spec"][1] for node in nodes] for nodes in pairs]
    between = [
        (site.nonlinearity and site.nonlinearity.target, at == "output" and site.before.target)
        for site in (one, other)
    ]
    return shapes[0] == shapes[1] and between[0] == between[1]


def _branch_name(skip: Skip, module: nn.Module, taken: Container[str]) -> str:
    """The branch's module path: its ends, in a container that is not the model's own."""
    container = "skips"
    while hasattr(module, container):
        container += "_"
    name = f"{container}.{skip.source.replace('.', '_')}__{skip.target.replace('.', '_')}"
    while name in taken:
        name += "_"
    return name


class _Search:
    """Tries pairs of sites one by one, and remembers what holds for one end of them."""

    def __init__(self, sites: Sites, options: Options) -> None:
        self._sites = sites
        self._options = options
        self._grids = sites.grids()
        self._at: At = _ENTRIES[options.wiring]
        self._inside: dict[fx.Node, str | None] = {}
        self._follows = follows_size(sites.graph)

    def pairs(self) -> Iterator[tuple[Site, Site, Skip | Refusal]]:
        """Every pair that was tried, ordered by target, deepest source first, and what it gave."""
        sites, depth = self._sites.sites, self._sites.depths()
        tried = [
            ((target, -depth.get(source, 0), source), distance, found)
            for source in self._sites.sources()
            for target, (distance, found) in self._from(source).items()
        ]
        for (target, _, source), distance, found in sorted(tried, key=lambda one: one[0]):
            ends = sites[source], sites[target]
            if isinstance(found, Skip):
                yield *ends, replace(found, hop=distance)
            else:
                yield *ends, Refusal(ends[0].name, ends[1].name, distance, _reason(found))

    def _from(self, source: int) -> dict[int, tuple[int, Skip | Misfit | str]]:
        """The targets tried for a source, each with its distance and what it gave."""
        tried: dict[int, tuple[int, Skip | Misfit | str]] = {}
        hops = sorted(set(self._options.hops))
        reach = self._sites.within(source, 2 * hops[-1])
        for hop in hops:
            for distance in range(hop, 2 * hop + 1):
                targets = reach.get(distance, [])
                for target in targets:
                    if target not in tried:
                        ends = self._sites.sites[source], self._sites.sites[target]
                        tried[target] = distance, self._try(*ends)
                here = [tried[target][1] for target in targets]
                fits = any(isinstance(found, Skip) for found in here)
                if fits or (distance == hop and not _only_misfits(here)):
                    break
        return tried

    def _try(self, source: Site, target: Site) -> Skip | Misfit | str:
        """The branch from one site to another, or why there can be none."""
        entry = entry_of(target, self._at)
        reads = self._sites.layout(source, source.activation)
        reason = self._forbidden(source, target, entry)
        if reason is not None:
            return reason
        if isinstance(reads, Misfit):
            return f"the output of {source.name} {reads.reason}"
        writes = self._sites.layout(target, entry)
        if isinstance(writes, Misfit):
            return Misfit(f"the output of {target.name} {writes.reason}")
        return self._fit(source, target, reads, writes)

    def _fit(self, source: Site, target: Site, reads: Layout, writes: Layout) -> Skip | Misfit:
        """The branch whose shapes meet exactly, its name and hop still to come."""
        assert target.layer is not None
        own = target.layer.weight_shape[2:] if target.layer.kind == "conv" else None
        options = self._options
        matching: Matching = "shrink" if self._at == "output" else options.resolution
        found = fit(reads, writes, self._grids, own, options.kernel, matching)
        if self._follows and isinstance(found, Fit):
            ends, layouts = (source.activation, entry_of(target, self._at)), (reads, writes)
            if unfit(found, ends, layouts) and matching == "stride":  # averaged, it follows
                found = fit(reads, writes, self._grids, own, options.kernel, "pool")
            reason = unfit(found, ends, layouts) if isinstance(found, Fit) else None
            found = reason or found
        if isinstance(found, Misfit):
            return found
        inner = options.wiring in INNER and target.nonlinearity is not None
        return Skip(
            name="", source=source.name, target=target.name, hop=0, at=self._at, inner=inner,
            branch_norm=False, nnz=0, **vars(found),
        )  # fmt: skip

    def _forbidden(self, source: Site, target: Site, entry: fx.Node) -> str | None:
        """What forbids a branch whatever its shape, or None."""
        sites, wiring = self._sites, self._options.wiring
        if target.sealed and wiring != "joint":
            return f"the norm of {target.name} has its nonlinearity inside, with weights of its own"
        if sites.position[source.activation] >= sites.position[entry]:
            return f"the output of {source.name} is not there yet when {target.name} needs it"
        reason = _unfit_numbers(source, target, entry)
        if reason is None and self._at == "output":
            reason = self._unfit_behind(target)
        if reason is not None:
            return reason
        if wiring in INNER and target.nonlinearity is not None:
            reason = self._unfit_inside(target.nonlinearity)
            if reason is not None:
                name = target.name
                return f"the nonlinearity of {name} {reason}; wiring linear or joint would do"
        return _changed_in_place(sites.module, source)

    def _unfit_behind(self, target: Site) -> str | None:
        """Why a branch cannot go through the target's norm and be added behind it, or None."""
        norm = own_norm(self._sites.module, target)
        if norm is None:
            return f"{target.name} has no batch norm right between itself and a nonlinearity"
        if _is_moved_by(self._sites.module.get_submodule(str(norm.target))):
            return f"the norm of {target.name}, which the branch shares, is not 0 at 0"
        return None

    def _unfit_inside(self, nonlinearity: fx.Node) -> str | None:
        if nonlinearity not in self._inside:
            self._inside[nonlinearity] = _unfit_inside(self._sites.module, nonlinearity)
        return self._inside[nonlinearity]


def _only_misfits(found: Sequence[Skip | Misfit | str]) -> bool:
    """Whether there were pairs, and shapes alone forbade each."""
    return bool(found) and all(isinstance(one, Misfit) for one in found)


def _reason(found: Misfit | str) -> str:
    return found.reason if isinstance(found, Misfit) else found


def _unfit_numbers(source: Site, target: Site, entry: fx.Node) -> str | None:
    """Why what a branch computes with would not be numbers of one kind, or None."""
    kinds = [_dtype(source.activation), _dtype(entry)]
    for site, kind in zip((source, target), kinds, strict=True):
        if kind is not None and not kind.is_floating_point:
            return f"{site.name} is not a floating-point tensor"
    if kinds[0] != kinds[1]:
        return f"{source.name} is {kinds[0]}, and {target.name} {kinds[1]}"
    return None


def _is_moved_by(norm: nn.Module) -> bool:
    """Whether a batch norm gives something else than 0 for 0, in evaluation or in training."""
    shifts = (getattr(norm, "bias", None), getattr(norm, "running_mean", None))
    return any(shift is not None and bool(shift.any()) for shift in shifts)


def _dtype(node: fx.Node) -> torch.dtype | None:
    """The dtype of a node's value, None where that is not one tensor."""
    spec = node.meta["spec"]
    return spec[1].dtype if isinstance(spec, tuple) else None


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
    one_place = torch.zeros(1, *shape[1:2], *(1 for _ in shape[2:]))  # nonlinearities are pointwise
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


def _place(
    skips: list[Skip], sites: Sites, placement: Placement
) -> tuple[list[Skip], list[Refusal]]:
    """The branches that a placement takes, and the others with the reason."""
    if placement == "every":
        return skips, []
    order = {site.name: number for number, site in enumerate(sites.sites)}
    taken = _end_to_end(skips, order) if placement == "blocks" else _over_stages(skips)
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


def _over_stages(skips: list[Skip]) -> list[Skip]:
    """The first branch onto each resolution from another."""
    taken: dict[int, Skip] = {}
    for skip in skips:
        if prod(skip.stride) > 1 or skip.pool is not None or skip.shrink:
            taken.setdefault(prod(skip.places), skip)
    return list(taken.values())
