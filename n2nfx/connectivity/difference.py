"""Whether two channel graphs are of the same channels, and what differs if not."""

from dataclasses import replace
from itertools import zip_longest

from n2nfx.connectivity.graph import ChannelGraph, Group


def difference(one: ChannelGraph, other: ChannelGraph) -> str | None:
    """What differs between the nodes of two graphs as a sentence's end, or None where nothing does.

    Graphs of one network before and after pruning, or with other skips, have the same nodes.
    """
    known = ("aggregation", "weight"), ("residual", "residual"), ("fold_norms", "fold_norms")
    for name, told in known:
        first, second = getattr(one, name), getattr(other, name)
        if first != second:
            return f"one has {told}={first!r}, the other {told}={second!r}"
    for place, (first, second) in enumerate(zip_longest(one.groups, other.groups)):
        if _known_by(first) != _known_by(second):
            return f"group {place} of one is {_told(first)}, of the other {_told(second)}"
    return None


def _known_by(group: Group | None) -> Group | None:
    """An input by what it is: its name is an argument's, which any forward may call otherwise."""
    return replace(group, name="") if group is not None and group.kind == "input" else group


def _told(group: Group | None) -> str:
    return "missing" if group is None else f"the {group.kind} {group.name!r} of {group.size} nodes"
