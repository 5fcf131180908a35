"""The nodes and edges of a contraction put together: groups, and one block for each two of them."""

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from n2nfx.connectivity.aggregates import capped
from n2nfx.connectivity.contraction import Contraction, Piece
from n2nfx.connectivity.graph import Block, Group, Matrix, shape_of, stored


def assemble(found: Contraction, binary: bool) -> tuple[tuple[Group, ...], tuple[Block, ...]]:
    """Groups without the nodes that were merged into earlier ones, and the blocks between them.

    What joins the same two channels is added up, or stays 1 where it is `binary`.
    """
    groups, final = _numbered(found)
    sums = _Sums(groups)
    for piece in found.pieces:
        sums.add(final[piece.targets], final[piece.sources], piece)
    sums.add_units(*(final[ends] for ends in found.units))
    return groups, tuple(sums.blocks(binary))


def _numbered(found: Contraction) -> tuple[tuple[Group, ...], np.ndarray]:
    """The groups that are left, and the final number of every node: the earliest of its class."""
    sizes = np.array([group.size for group in found.groups])
    n, ends = int(sizes.sum()), found.merged
    classes = np.arange(n)
    if ends[0].size:
        joins = sparse.csr_array((np.ones(ends[0].size), ends), shape=(n, n))
        classes = csgraph.connected_components(joins, directed=False)[1]
    _, firsts, classes = np.unique(classes, return_index=True, return_inverse=True)
    is_first = np.zeros(n, dtype=bool)
    is_first[firsts] = True
    numbers = np.cumsum(is_first) - 1
    groups = [
        _left(group, np.flatnonzero(own))
        for group, own in zip(found.groups, np.split(is_first, np.cumsum(sizes)[:-1]), strict=True)
    ]
    return tuple(group for group in groups if group.size), numbers[firsts[classes]]


def _left(group: Group, channels: np.ndarray) -> Group:
    if channels.size == group.size:
        return group
    return Group(group.name, group.kind, channels.size, tuple(channels.tolist()))


class _Sums:
    """Blocks as they grow, by the numbers of their two groups."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._sizes = [group.size for group in groups]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)])
        self._parts: dict[tuple[int, int], list[Matrix]] = {}
        self._names: dict[tuple[int, int], list[str]] = {}

    def add(self, targets: np.ndarray, sources: np.ndarray, piece: Piece) -> None:
        """Take in edges, whose ends may be in several groups."""
        for target, rows in self._by_group(targets):
            for source, columns in self._by_group(sources):
                part = _taken(piece.weights, rows, columns)
                ends = targets[rows] - self._starts[target], sources[columns] - self._starts[source]
                whole = self._placed(part, (target, source), *ends)
                self._put(target, source, whole, piece.names)

    def add_units(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Take in edges of weight 1, each once, however often it was found."""
        apart = sources != targets
        low, high = np.minimum(sources, targets)[apart], np.maximum(sources, targets)[apart]
        found = np.sort(low * self._starts[-1] + high)  # quicker than np.unique, which hashes
        found = found[np.diff(found, prepend=-1) > 0]
        low, high = np.divmod(found, self._starts[-1])
        blocks = self._group_of(low) * len(self._sizes) + self._group_of(high)
        order = np.argsort(blocks, kind="stable")
        cuts = np.flatnonzero(np.diff(blocks[order])) + 1
        for part in np.split(order, cuts) if order.size else ():
            source, target = divmod(int(blocks[part[0]]), len(self._sizes))
            ends = high[part] - self._starts[target], low[part] - self._starts[source]
            shape = self._sizes[target], self._sizes[source]
            self._put(target, source, sparse.csr_array((np.ones(part.size), ends), shape=shape))

    def blocks(self, binary: bool) -> Iterator[Block]:
        """In the order of their targets, then of their sources."""
        for source, target in sorted(self._parts, key=lambda ends: ends[::-1]):
            parts = self._parts.pop((source, target))
            total = stored([_sum(parts)])
            names = tuple(dict.fromkeys(self._names[source, target]))
            yield Block(source, target, capped(total) if binary else total, names)

    def _put(self, target: int, source: int, weights: Matrix, names: tuple[str, ...] = ()) -> None:
        """Add to a block, whose source comes first; inside a group, below the diagonal."""
        if source > target:
            source, target, weights = target, source, weights.T
        if source == target:
            weights = sparse.tril(weights, -1) + sparse.triu(weights, 1).T
        if isinstance(weights, np.ndarray):
            weights = np.ascontiguousarray(weights)
        else:
            weights = sparse.csr_array(weights)
        self._parts.setdefault((source, target), []).append(weights)
        self._names.setdefault((source, target), []).extend(names)

    def _placed(
        self, part: Matrix, groups: tuple[int, int], rows: np.ndarray, columns: np.ndarray
    ) -> Matrix:
        """A part of a block in its place in the whole of it; what meets there is added up."""
        shape = self._sizes[groups[0]], self._sizes[groups[1]]
        if _is_all(rows, shape[0]) and _is_all(columns, shape[1]):
            return part
        listed = sparse.coo_array(part)
        ends = rows[listed.coords[0]], columns[listed.coords[1]]
        return stored([sparse.csr_array((listed.data, ends), shape=shape)])

    def _group_of(self, nodes: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, nodes, side="right") - 1

    def _by_group(self, nodes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each group that nodes are in, and which of them."""
        groups = self._group_of(nodes)
        for group in np.unique(groups):
            yield int(group), np.flatnonzero(groups == group)


def _sum(parts: list[Matrix]) -> Matrix:
    if len(parts) == 1:
        return parts[0]
    dense = [part for part in parts if isinstance(part, np.ndarray)]
    if not dense:
        return sparse.csr_array(sum(parts[1:], start=parts[0]))
    total = dense[0].copy()
    for part in parts:
        if part is not dense[0]:
            total += part if isinstance(part, np.ndarray) else part.toarray()
    return total


def _taken(weights: Matrix, rows: np.ndarray, columns: np.ndarray) -> Matrix:
    height, width = shape_of(weights)
    if rows.size < height:
        weights = weights[rows]
    return weights[:, columns] if columns.size < width else weights


def _is_all(places: np.ndarray, size: int) -> bool:
    return np.array_equal(places, np.arange(size))
