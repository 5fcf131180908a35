"""Which nodes of a graph the channels of a value are: sparse rows, numpy only."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from n2nfx.connectivity.relations import Pairs


@dataclass(frozen=True, eq=False)
class Rows:
    """Row i lists nodes, each once and with a weight: `nodes[starts[i] : starts[i + 1]]`.

    A channel that is computed from constants alone has none; one that several nodes are read as,
    such as a channel behind a pixel shuffle, has each of them.
    """

    starts: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray

    @classmethod
    def empty(cls, size: int) -> Self:
        """Rows without nodes."""
        return cls(np.zeros(size + 1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))

    @classmethod
    def one_each(cls, nodes: np.ndarray) -> Self:
        """Rows of one node."""
        return cls(np.arange(nodes.size + 1), nodes.astype(np.int64), np.ones(nodes.size))

    @classmethod
    def of_entries(
        cls, size: int, rows: np.ndarray, nodes: np.ndarray, weights: np.ndarray, add: bool
    ) -> Self:
        """From entries in any order; of those at one place the weights are added, or the largest
        is taken."""
        if not (np.diff(rows) > 0).all():
            order = np.lexsort((nodes, rows))
            rows, nodes, weights = rows[order], nodes[order], weights[order]
        first = np.ones(rows.size, dtype=bool)
        first[1:] = (rows[1:] != rows[:-1]) | (nodes[1:] != nodes[:-1])
        places = np.flatnonzero(first)
        if places.size:
            weights = (np.add if add else np.maximum).reduceat(weights, places)
        counts = np.bincount(rows[first], minlength=size)
        return cls(np.concatenate([[0], np.cumsum(counts)]), nodes[first], weights)

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.starts.size - 1

    @property
    def lengths(self) -> np.ndarray:
        """How many nodes each row has."""
        return np.diff(self.starts)

    @property
    def owners(self) -> np.ndarray:
        """The row of every entry."""
        return np.repeat(np.arange(self.size), self.lengths)

    @property
    def is_single(self) -> bool:
        """Whether no row has more than one node."""
        return self.nodes.size <= self.size and bool((self.lengths <= 1).all())

    def gathered(self, pairs: Pairs, size: int, add: bool = False) -> "Rows":
        """The rows of a value whose channels `pairs.targets` are these `pairs.sources`."""
        lengths = self.lengths[pairs.sources]
        at = np.repeat(self.starts[pairs.sources], lengths) + _counted(lengths)
        rows = np.repeat(pairs.targets, lengths)
        return Rows.of_entries(size, rows, self.nodes[at], self.weights[at], add)

    def kept(self, rows: np.ndarray) -> "Rows":
        """The rows that are marked, the others empty."""
        lengths = np.where(rows, self.lengths, 0)
        entries = rows[self.owners]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return Rows(starts, self.nodes[entries], self.weights[entries])

    def shared(self, times: np.ndarray) -> np.ndarray:
        """For each row of several nodes, of which another row has some too, the number of what it
        lists, from 0 on: equal rows have one number. -1 for all other rows. Row i stands for
        `times[i]` equal ones.
        """
        found = np.full(self.size, -1)
        if self.is_single:
            return found
        _, places = np.unique(self.nodes, return_inverse=True)
        owners = self.owners
        counts = np.bincount(places, weights=times[owners])
        is_shared = np.zeros(self.size, dtype=bool)
        is_shared[owners[counts[places] > 1]] = True
        known: dict[bytes, int] = {}
        for row in np.flatnonzero(is_shared & (self.lengths > 1)):
            listed = self.nodes[self.starts[row] : self.starts[row + 1]].tobytes()
            found[row] = known.setdefault(listed, len(known))
        return found


def united(parts: list[Rows], add: bool = False) -> Rows:
    """Rows with all that the parts have in each."""
    if len(parts) == 1:
        return parts[0]
    return Rows.of_entries(
        parts[0].size,
        np.concatenate([part.owners for part in parts]),
        np.concatenate([part.nodes for part in parts]),
        np.concatenate([part.weights for part in parts]),
        add,
    )


def _counted(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each length in turn."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if ends.size else 0) - np.repeat(ends - lengths, lengths)
