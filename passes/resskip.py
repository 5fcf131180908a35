"""ResSkip (section 4.1, Fig. 6): conventional dense residual skips, for comparison."""

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from n2nfx.errors import CannotOperate
from n2nfx.network import Network, Probe, Refusal, Skip
from n2nfx.shortcuts import beside_shortcuts
from n2nfx.splice import prepare, splice
from n2nfx.wiring import Options, Placement, find_branches


@dataclass(frozen=True)
class ResSkip:
    """Add each source's activation itself to its target's pre-activation (Eq. 1), without weights.

    The pairs are those of `N2NSkip`. Where the shapes differ the activation is brought to the
    target's layout, averaged to its places, and its channels are cropped or padded with zeros. The
    budget is unchanged. Where the network itself adds the one to the other, no second sum is made.
    """

    name: ClassVar[str] = "resskip"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "nnz", "outputs"})

    hops: tuple[int, ...] = (3,)
    placement: Placement = "every"

    def __post_init__(self) -> None:
        Options(self.hops, self.placement, "linear")

    def __call__(self, network: Network, probe: Probe) -> Network:
        if network.skips:
            raise CannotOperate("the network has skips already; give ResSkip all hops at once")
        prepare(network)
        branches = find_branches(network, Options(self.hops, self.placement, "linear"))
        there = beside_shortcuts(network, branches.skips)
        skips = tuple(_without_weights(s) for s in branches.skips if s.name not in there)
        refused = (*branches.refused, *(_there(s) for s in branches.skips if s.name in there))
        if not skips:
            raise CannotOperate(
                f"no legal pair of layers is {' or '.join(map(str, self.hops))} apart"
                + (f", but those that a shortcut joins already ({len(there)})" if there else "")
            )
        splice(network, skips)
        return replace(network, skips=skips, refused=refused)


def _there(skip: Skip) -> Refusal:
    reason = "a shortcut of the network adds the one to the other already"
    return Refusal(skip.source, skip.target, skip.hop, reason)


def _without_weights(skip: Skip) -> Skip:
    """The same pair as a residual skip: averaged where the branch would have had a stride."""
    pool = skip.places if prod(skip.stride) > 1 else skip.pool
    shape = skip.weight_shape[:2]
    return replace(skip, kind="identity", weight_shape=shape, stride=(), padding=(), pool=pool)
