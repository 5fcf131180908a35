"""Branches in a graph that follows its input's size: they have to meet at every size.

A part of a model can be called with other sizes each time. What was recorded of its values at two
others tells which branches would not meet there, and no number of places is written into one.
"""

from math import prod

from torch import fx

from n2nfx.fitting import Fit
from n2nfx.layouts import Layout, Misfit

_FREE = ("transpose", "movedim", "flatten", "pad")  # moves without a number of places in them


def follows_size(graph: fx.Graph) -> bool:
    """Whether a graph was recorded to take any size, and what it gives at another is known."""
    return any("grown" in node.meta for node in graph.nodes)


def pools_to(places: tuple[int, ...], pool: tuple[int, ...] | None, last: bool) -> bool:
    """Whether a branch is averaged to the size of a target that is a map, channels first."""
    return pool is not None and pool == places and bool(places) and not last


def unfit(
    found: Fit, ends: tuple[fx.Node, fx.Node], layouts: tuple[Layout, Layout]
) -> Misfit | None:
    """Why a branch that fits does not at another size, or None."""
    writes = layouts[1]
    if any(move.how not in _FREE for move in (*found.before, *found.after)):
        return Misfit("the part takes any size, and the branch would have one written into it")
    if pools_to(found.places, found.pool, writes.last):
        return None
    if found.pool is not None:
        one = prod(found.pool) == 1
        return None if one else Misfit("the part takes any size, and the branch would be averaged")
    for at in (0, 1):
        here, there = (_grown(*end, at) for end in zip(ends, layouts, strict=True))
        made = tuple(map(_convolved, here, *_geometry(found))) if found.kind == "conv" else here
        if made != there and (len(made) == len(there) or prod(made) != prod(there)):
            return Misfit("at another size of the input the branch would not meet its target")
    return None


def _geometry(found: Fit) -> tuple[tuple[int, ...], ...]:
    return found.weight_shape[2:], found.stride, found.padding


def _convolved(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _grown(node: fx.Node, layout: Layout, at: int) -> tuple[int, ...]:
    """The places of a node's value at one of the other sizes."""
    shape = node.meta["grown"][at].shape
    if layout.batch:
        return shape[:1]
    return shape[1:-1] if layout.last else shape[2:]
