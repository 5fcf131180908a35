"""In which order the groups of a Laplacian are eliminated, and how large its factor is then."""

from dataclasses import dataclass

import numpy as np

from n2nfx.connectivity.graph import Matrix, shape_of
from n2nfx.connectivity.laplacian import Laplacian

LARGEST_FACTOR = 2**28  # entries of a factor: 2 GiB


@dataclass(frozen=True)
class Order:
    """Groups in the order of their elimination, those without nodes left out.

    `entries` is how many numbers the factor keeps.
    """

    groups: tuple[int, ...]
    entries: int

    @property
    def fits(self) -> bool:
        """Whether the factor takes no more than 2 GiB."""
        return self.entries <= LARGEST_FACTOR


def elimination_order(laplacian: Laplacian, *, backwards: bool = False) -> Order:
    """The widest groups first that are cheap to take out, then the others from the first on.

    Channels of one layer share no edge, so that a group's own block is a diagonal until a neighbour
    is eliminated before it. Taking it out by then costs its size times the square of what it is
    joined to: for what a narrow layer widened (a hidden layer of a perceptron, a depthwise
    convolution) next to nothing, where the other way around it would fill up. `backwards` is from
    the last on, without those first.
    """
    groups = _Groups(laplacian)
    if not backwards:
        for group in sorted(groups.sizes, key=lambda one: -groups.sizes[one]):
            if groups.diagonal[group] and groups.width(group) <= groups.sizes[group]:
                groups.eliminate(group)
    for group in sorted(groups.near, reverse=backwards):
        groups.eliminate(group)
    return Order(tuple(groups.order), groups.entries)


def is_diagonal(weights: Matrix) -> bool:
    """Whether a block joins each node to the one of the same place alone, if to any.

    One that is stored dense is filled above a quarter, and counts as none.
    """
    rows, columns = shape_of(weights)
    if isinstance(weights, np.ndarray) or rows != columns or weights.nnz > rows:
        return False
    row, column = weights.nonzero()
    return bool((row == column).all())


class _Groups:
    """Which groups are joined, as elimination goes on, and which blocks are diagonals.

    `near` maps a group to its neighbours, and these to whether the block between is one.
    """

    def __init__(self, laplacian: Laplacian) -> None:
        self.sizes = {
            group: span.stop - span.start
            for group, span in enumerate(laplacian.spans)
            if span.stop > span.start
        }
        self.near: dict[int, dict[int, bool]] = {group: {} for group in self.sizes}
        self.diagonal = dict.fromkeys(self.sizes, True)
        self.order: list[int] = []
        self.entries = 0
        for (source, target), weights in laplacian.blocks.items():
            if source == target:
                self.diagonal[source] = False
            else:
                self.near[source][target] = self.near[target][source] = is_diagonal(weights)

    def width(self, group: int) -> int:
        """How many nodes a group is joined to by blocks that are no diagonals."""
        return sum(self.sizes[other] for other, plain in self.near[group].items() if not plain)

    def eliminate(self, group: int) -> None:
        """Take a group out: its neighbours are joined to each other from now on."""
        near, plain, size = self.near.pop(group), self.diagonal[group], self.sizes[group]
        alike = {other: plain and block for other, block in near.items()}
        self.order.append(group)
        self.entries += size if plain else size * size
        self.entries += sum(size if alike[other] else size * self.sizes[other] for other in near)
        for one in near:
            del self.near[one][group]
            self.diagonal[one] &= alike[one]
            for other in near:
                if other != one:
                    both = alike[one] and alike[other]
                    self.near[one][other] = both and self.near[one].get(other, True)
