"""A channel map contracted to the channels of inputs and layers: nodes, and edges between them.

Value by value, in the map's order: which nodes its channels are. What only moves values passes
them on; a layer makes new ones, and edges to them; where different nodes meet, one of them is the
channel from there on, and the others are joined to it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from n2nfx.connectivity.aggregates import aggregate
from n2nfx.connectivity.graph import Aggregation, Group, Kind, Matrix, Residual, stored
from n2nfx.connectivity.relations import ChannelMap, Every, Link, Pairs
from n2nfx.connectivity.rows import Rows, united
from n2nfx.connectivity.weights import Use


@dataclass(frozen=True, eq=False)
class Applied:
    """A call of a layer: its weights are looked at when its edges are made, and not before.

    `name` is the layer's, empty where it has none; `branch` says whether it is that of a skip.
    """

    use: Use
    name: str
    branch: bool

    def forward(self, reached: np.ndarray, size: int) -> np.ndarray:
        return self.use.relation().forward(reached, size)

    def backward(self, needed: np.ndarray, size: int) -> np.ndarray:
        return self.use.relation().backward(needed, size)


@dataclass(frozen=True, eq=False)
class Piece:
    """Edges from some nodes to others, the way that values go: `weights` is (targets, sources)."""

    targets: np.ndarray
    sources: np.ndarray
    weights: Matrix
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Contraction:
    """Nodes in groups that follow each other, and the edges between them as they were found.

    `units` are the (sources, targets) of edges of weight 1, some of them more than once; `merged`
    pairs of nodes that are one.
    """

    groups: tuple[Group, ...]
    pieces: tuple[Piece, ...]
    units: tuple[np.ndarray, np.ndarray]
    merged: tuple[np.ndarray, np.ndarray]


def contract(
    channels: ChannelMap,
    how: Aggregation,
    residual: Residual,
    scales: Mapping[int, np.ndarray],
) -> Contraction:
    """The nodes and edges of a map whose layers' links are `Applied`.

    `scales` (out,) by value is what the outputs of a layer are multiplied by at once. Raises
    `CannotOperate` for weights that are not finite.
    """
    return _Contractor(channels, how, residual, scales).run()


class _Contractor:
    """One walk over a map: the nodes of every value, and what was made on the way.

    What a skip's branch gives has no nodes of its own: its weights are kept beside the value
    (`_branches`) until it meets the channels that it is added to.
    """

    def __init__(
        self,
        channels: ChannelMap,
        how: Aggregation,
        residual: Residual,
        scales: Mapping[int, np.ndarray],
    ) -> None:
        self._map = channels
        self._how: Aggregation = how
        self._merges = residual == "merge"
        self._scales = scales
        self._rows: list[Rows] = []
        self._branches: dict[int, list[tuple[str, Rows]]] = {}
        self._names: Counter[str] = Counter()
        self._groups: list[Group] = []
        self._firsts = [0]
        self._pieces: list[Piece] = []
        self._units: list[tuple[np.ndarray, np.ndarray]] = []
        self._merged: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self) -> Contraction:
        links: list[list[Link]] = [[] for _ in self._map.sizes]
        for link in self._map.links:
            links[link.target].append(link)
        for value, own in enumerate(links):
            self._rows.append(self._rows_of(value, own))
        return Contraction(
            groups=tuple(self._groups),
            pieces=tuple(self._pieces),
            units=_concatenated(self._units),
            merged=_concatenated(self._merged),
        )

    def _rows_of(self, value: int, links: Sequence[Link]) -> Rows:
        """The nodes of a value whose sources have theirs."""
        if value in self._map.inputs:
            kind = "constant" if value in self._map.tables else "input"
            return Rows.one_each(self._group(value, kind, self._map.sizes[value]))
        if links and isinstance(links[0].relation, Applied):
            return self._layer(value, links[0], links[0].relation, links[1:])
        if any(isinstance(link.relation, Every) for link in links):
            return Rows.one_each(self._joint(value, "hub", links))
        return self._met(value, links)

    def _group(self, value: int, kind: Kind, size: int, name: str = "") -> np.ndarray:
        """New nodes, under a name that is free; what only serves an operation is told so."""
        name = name or self._map.names[value]
        if kind in ("gate", "constant"):
            name = f"{kind} of {name}"
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name} ({self._names[name]})"
        first = self._firsts[-1]
        self._groups.append(Group(name, kind, size))
        self._firsts.append(first + size)
        return np.arange(first, first + size)

    def _joint(self, value: int, kind: Kind, links: Sequence[Link]) -> np.ndarray:
        """One new node that depends on all of the links' sources."""
        read = [np.unique(self._settled(link.source).nodes) for link in links]
        node = self._group(value, kind, 1)
        for nodes in read:
            self._join(nodes, np.broadcast_to(node, nodes.shape))
        return node

    def _join(self, sources: np.ndarray, targets: np.ndarray) -> None:
        self._units.append((sources, targets))

    # Layers.

    def _layer(self, value: int, link: Link, called: Applied, others: Sequence[Link]) -> Rows:
        """The nodes that a layer makes; a skip's branch makes none."""
        size = self._map.sizes[value]
        name = called.name or self._map.names[value]
        read, scale = self._settled(link.source), self._scales.get(value)
        nodes, weights = aggregate(called.use, read, self._how, name, scale)
        weight = "" if called.use.kept is None else called.use.kept.weight
        if called.branch:
            self._branches[value] = [(weight, _as_rows(nodes, weights))]
            return Rows.empty(size)
        mixed = [self._joint(value, "gate", [other]) for other in others]
        made = self._group(value, "layer", size, name)
        self._pieces.append(Piece(made, nodes, weights, (weight,) if weight else ()))
        for gate in mixed:  # the weight itself depends on these
            self._join(np.broadcast_to(gate, made.shape), made)
        return Rows.one_each(made)

    def _settled(self, value: int) -> Rows:
        """A value's nodes; what a branch gives has some of its own after all, if it is read."""
        for name, rows in self._branches.pop(value, ()):
            made = self._group(value, "gate", rows.size, name)
            self._piece(made, rows, name)
            self._rows[value] = united([self._rows[value], Rows.one_each(made)])
        return self._rows[value]

    def _piece(self, targets: np.ndarray, rows: Rows, name: str) -> None:
        """Weighted edges from the nodes of rows to one target for each row."""
        ends, rows_at = np.unique(targets[rows.owners], return_inverse=True)
        nodes, columns = np.unique(rows.nodes, return_inverse=True)
        shape = ends.size, nodes.size
        weights = sparse.csr_array((rows.weights, (rows_at, columns)), shape=shape)
        self._pieces.append(Piece(ends, nodes, stored([weights]), (name,)))

    # What is no layer.

    def _met(self, value: int, links: Sequence[Link]) -> Rows:
        """What moves its operands about, and joins those that meet at one channel."""
        size = self._map.sizes[value]
        operands: list[tuple[Rows, bool]] = []
        for link in links:
            assert isinstance(link.relation, Pairs)
            rows = self._gathered(value, self._rows[link.source], link.relation)
            operands.append((rows, link.relation.is_whole))
        best, is_whole = self._best(operands, size)
        for rows, whole in operands:
            self._meet(rows, best, is_whole & whole)
        self._add_branches(value, links, best)
        found = best >= 0
        one = Rows(np.concatenate([[0], np.cumsum(found)]), best[found], np.ones(found.sum()))
        return united([one, *(rows.kept(~found) for rows, _ in operands if not rows.is_single)])

    def _gathered(self, value: int, rows: Rows, pairs: Pairs) -> Rows:
        """The rows of an operand, behind gates where channels share what they list.

        Each row that is taken is looked at once, however many take it: a mean over n channels
        that acts on n is n entries, and not n * n.
        """
        size = self._map.sizes[value]
        if rows.is_single or not pairs.is_function:
            rows = rows.gathered(pairs, size)
            return self._gated(value, rows, np.ones(size))
        times = np.bincount(pairs.sources, minlength=rows.size)
        gated = self._gated(value, rows.kept(times > 0), times)
        return gated.gathered(pairs, size)

    def _gated(self, value: int, rows: Rows, times: np.ndarray) -> Rows:
        """What lists several nodes, and not alone some of them, reads one for them all: a gate."""
        numbers = rows.shared(times)
        if not (numbers >= 0).any():
            return rows
        gates = self._group(value, "gate", int(numbers.max()) + 1)
        at = numbers[rows.owners]
        self._join(rows.nodes[at >= 0], gates[at[at >= 0]])
        inside = numbers >= 0
        made = Rows(
            np.concatenate([[0], np.cumsum(inside)]), gates[numbers[inside]], np.ones(inside.sum())
        )
        return united([made, rows.kept(~inside)])

    def _best(
        self, operands: Sequence[tuple[Rows, bool]], size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The node that each channel is from here on, or -1; and if an operand without repetition
        gave it.

        Such an operand's come first: a weight of attention, or a map for all channels, acts on
        others. Then those that are channels of a layer or an input come, and the latest of them.
        """
        n, starts = self._firsts[-1], np.array(self._firsts)
        own = np.array([group.kind in ("input", "constant", "layer") for group in self._groups])
        best = np.full(size, -1)
        for rows, whole in operands:
            single = np.flatnonzero(rows.lengths == 1)
            nodes = rows.nodes[rows.starts[single]]
            is_own = own[np.searchsorted(starts, nodes, side="right") - 1]
            best[single] = np.maximum(best[single], (2 * whole + is_own) * n + nodes)
        return np.where(best >= 0, best % max(n, 1), -1), best >= 2 * n

    def _meet(self, rows: Rows, best: np.ndarray, can_merge: np.ndarray) -> None:
        """Join an operand's nodes to those that the channels are from here on."""
        owners = rows.owners
        others = (best[owners] >= 0) & (best[owners] != rows.nodes)
        if not others.any():
            return
        one = others & can_merge[owners] & (rows.lengths[owners] == 1) & self._merges
        self._merged.append((rows.nodes[one], best[owners[one]]))
        left = others & ~one
        self._join(rows.nodes[left], best[owners[left]])

    def _add_branches(self, value: int, links: Sequence[Link], best: np.ndarray) -> None:
        """Let skips' weights lead to the channels that they are added to, or wait for them."""
        waiting: list[tuple[str, Rows]] = []
        for link in links:
            assert isinstance(link.relation, Pairs)
            for name, rows in self._branches.get(link.source, ()):
                moved = rows.gathered(link.relation, best.size, add=True)
                if (best >= 0).any():
                    self._piece(best, moved.kept(best >= 0), name)
                if (best < 0).any():
                    waiting.append((name, moved.kept(best < 0)))
        if waiting:
            self._branches[value] = waiting


def _as_rows(nodes: np.ndarray, weights: Matrix) -> Rows:
    listed = sparse.csr_array(weights)
    return Rows(listed.indptr.astype(np.int64), nodes[listed.indices], listed.data)


def _concatenated(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([none, *(one for one, _ in pairs)]),
        np.concatenate([none, *(other for _, other in pairs)]),
    )
