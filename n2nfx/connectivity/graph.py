"""A channel graph: nodes are channels, edges the aggregated weights between them; no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from n2nfx.errors import UsageError

if TYPE_CHECKING:
    from n2nfx.connectivity.eigenvalues import Method as ScreeMethod
    from n2nfx.connectivity.heat import Heat
    from n2nfx.connectivity.propagate import Method
    from n2nfx.connectivity.scree import Scree, ZeroModes

Kind = Literal["input", "constant", "layer", "gate", "hub"]
Aggregation = Literal["abs_sum", "l2", "count", "binary"]
Residual = Literal["identity", "merge"]
Matrix = np.ndarray | sparse.csr_array

_DENSE_FILL = 0.25  # above it a dense block takes no more memory, and is faster


@dataclass(frozen=True)
class Group:
    """Consecutive nodes of a graph: the channels of an input or a layer, or others that join them.

    A `constant` is what a layer reads that depends on no input; a `gate` stands between channels
    that act on others all together, such as queries and keys; a `hub` is an operation without a
    rule. `channels` are the layer's channels that the nodes stand for, where not all of them do,
    since some were merged into earlier nodes.
    """

    name: str
    kind: Kind
    size: int
    channels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """The edges between two groups, `source` before `target` in the graph's order.

    Edges inside a group (a half of its channels times the other) have it for both, and each of
    them is there once, from the earlier node to the later: below the diagonal. `weights` is
    (size of target, size of source) in float64, nonnegative; `names` are the weights that it was
    summed up from, none for edges that no weight stands for (identities, gates, hubs).
    """

    source: int
    target: int
    weights: Matrix
    names: tuple[str, ...] = ()

    @property
    def edges(self) -> int:
        """Pairs of channels with a weight between them."""
        if isinstance(self.weights, np.ndarray):
            return int(np.count_nonzero(self.weights))
        return int(self.weights.count_nonzero())


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """An undirected graph of nonnegative weights over n channels, in groups that follow each other.

    `aggregation` says how a kernel became one weight, `residual` what a sum is, `fold_norms`
    whether norms scale the weights, and `hubs` names the operations that no rule describes: each is
    a node of its own, joined to all it reads.
    `density`, `effective_density` and `dead_channels` are those of the network it was made from
    (see `count_effective`), None where that is not known.
    Raises `UsageError` for no nodes, and for weights that are negative (the Laplacian would be
    indefinite, and its heat grow without bound), infinite or NaN, with the layer's name.
    """

    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]
    aggregation: Aggregation = "abs_sum"
    residual: Residual = "identity"
    hubs: tuple[str, ...] = ()
    density: float | None = None
    effective_density: float | None = None
    dead_channels: int | None = None
    fold_norms: bool = False

    def __post_init__(self) -> None:
        if not self.n:
            raise UsageError("the graph has no nodes")
        pairs = [(block.source, block.target) for block in self.blocks]
        if len(set(pairs)) < len(pairs):
            raise UsageError("two blocks join the same groups; add them up first")
        for block in self.blocks:
            self._check(block)

    def _check(self, block: Block) -> None:
        if not 0 <= block.source <= block.target < len(self.groups):
            raise UsageError(
                f"a block joins groups {block.source} and {block.target} of "
                f"{len(self.groups)}; its source must come before its target"
            )
        source, target = self.groups[block.source], self.groups[block.target]
        told = f"the edges from {source.name} to {target.name}"
        if block.weights.shape != (target.size, source.size):
            raise UsageError(
                f"{told} have shape {block.weights.shape}, not {(target.size, source.size)}"
            )
        if block.source == block.target and sparse.triu(block.weights).count_nonzero():
            raise UsageError(f"{told} must be below the diagonal, so that each is there once")
        values = block.weights if isinstance(block.weights, np.ndarray) else block.weights.data
        if not np.isfinite(values).all():
            raise UsageError(f"{told} are not all finite: look at the weights of {target.name}")
        if values.size and values.min() < 0:
            raise UsageError(
                f"{told} are negative: heat needs nonnegative weights, since the Laplacian is "
                "indefinite otherwise; take abs_sum, l2, count or binary"
            )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first node of every group, and the number of nodes at the end."""
        sizes = np.cumsum([0, *(group.size for group in self.groups)])
        return tuple(int(start) for start in sizes)

    @property
    def n(self) -> int:
        """Number of nodes."""
        return sum(group.size for group in self.groups)

    @cached_property
    def edges(self) -> int:
        """Number of edges: pairs of nodes with a weight between them, each counted once."""
        return sum(block.edges for block in self.blocks)

    @cached_property
    def sources(self) -> np.ndarray:
        """(n,) float64, 1 at the input's channels and 0 elsewhere (A of Eq. 4)."""
        return np.concatenate(
            [np.full(group.size, float(group.kind == "input")) for group in self.groups]
        )

    @cached_property
    def degrees(self) -> np.ndarray:
        """(n,) float64, the sum of the weights at every node (D of Eq. 3)."""
        found = np.zeros(self.n)
        for block in self.blocks:
            source, target = self.span(block.source), self.span(block.target)
            found[target] += np.asarray(block.weights.sum(axis=1)).ravel()
            found[source] += np.asarray(block.weights.sum(axis=0)).ravel()
        return found

    @property
    def edgeless(self) -> tuple[str, ...]:
        """Names of the groups none of whose nodes has an edge."""
        return tuple(
            group.name
            for place, group in enumerate(self.groups)
            if group.size and not self.degrees[self.span(place)].any()
        )

    def span(self, group: int) -> slice:
        """The nodes of a group."""
        return slice(self.starts[group], self.starts[group + 1])

    def to_scipy(self) -> sparse.csr_array:
        """The symmetric (n, n) matrix of weights W, in CSR."""
        rows, columns, values = self.edge_list()
        shape = (self.n, self.n)
        upper = sparse.coo_array((values, (rows, columns)), shape=shape).tocsr()
        return sparse.csr_array(upper + upper.T)

    def to_networkx(self) -> Any:
        """A `networkx.Graph` whose nodes know their layer and channel; needs networkx."""
        from n2nfx.connectivity.graph_files import to_networkx

        return to_networkx(self)

    def save(self, path: str | Path) -> Path:
        """Write the graph as .npz, .mtx, .graphml, .csv or .parquet (see `graph_files.save`)."""
        from n2nfx.connectivity.graph_files import save

        return save(self, path)

    def heat(
        self,
        times: ArrayLike,
        tol: float = 1e-10,
        *,
        sources: ArrayLike | None = None,
        method: "Method" = "auto",
    ) -> "Heat":
        """Heat signatures S(t) = exp(-t L) A with a certificate each: see `heat.heat`."""
        from n2nfx.connectivity.heat import heat  # it works on graphs

        return heat(self, times, tol, sources=sources, method=method)

    def scree(
        self,
        K: ArrayLike = 0.06,
        times: ArrayLike | None = None,
        *,
        method: "ScreeMethod" = "auto",
        zero_modes: "ZeroModes" = "paper",
        seed: int = 0,
    ) -> "Scree":
        """alpha(K, t) of Eq. 7 with an interval each, at Fig. 4's times by default: see `scree`."""
        from n2nfx.connectivity.scree import FIGURE_4, scree  # it works on graphs

        at = FIGURE_4 if times is None else times
        return scree(self, K, at, method=method, zero_modes=zero_modes, seed=seed)

    def edge_list(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every edge once: its nodes, source first, and its weight."""
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
            (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        ]
        for block in self.blocks:
            found = sparse.coo_array(block.weights)
            kept = found.data != 0
            rows = found.coords[1][kept].astype(np.int64) + self.starts[block.source]
            columns = found.coords[0][kept].astype(np.int64) + self.starts[block.target]
            parts.append((rows, columns, found.data[kept].astype(np.float64)))
        sources, targets, values = zip(*parts, strict=True)
        return np.concatenate(sources), np.concatenate(targets), np.concatenate(values)


def shape_of(weights: Matrix) -> tuple[int, int]:
    """Rows and columns, of which scipy's types are not sure."""
    rows, columns = weights.shape or (0, 0)
    return rows, columns


def stored(parts: Sequence[Matrix]) -> Matrix:
    """The rows of all parts together: dense above a quarter of fill, else CSR."""
    size = sum(rows * columns for rows, columns in map(shape_of, parts))
    filled = sum(
        int(np.count_nonzero(part)) if isinstance(part, np.ndarray) else part.count_nonzero()
        for part in parts
    )
    if filled > _DENSE_FILL * size:
        dense = [part if isinstance(part, np.ndarray) else part.toarray() for part in parts]
        return dense[0] if len(dense) == 1 else np.concatenate(dense)
    listed = [_listed(part) if isinstance(part, np.ndarray) else part for part in parts]
    return listed[0] if len(listed) == 1 else sparse.csr_array(sparse.vstack(listed))


def _listed(dense: np.ndarray) -> sparse.csr_array:
    """The same in CSR, several times faster than scipy, which looks for rows and columns apart."""
    rows, columns = dense.shape
    places = np.flatnonzero(dense != 0)
    starts = np.searchsorted(places, np.arange(rows + 1) * columns)
    values = dense.reshape(-1)[places]
    return sparse.csr_array((values, places % max(columns, 1), starts), shape=dense.shape)


def layered(sizes: Sequence[int], weights: Iterable[tuple[int, int, Matrix]]) -> ChannelGraph:
    """A graph of layers whose first is the input, from (source, target, weights) of each block.

    What tests and closed forms use: a layer's nodes have consecutive numbers.
    """
    groups = tuple(
        Group(f"layer{place}" if place else "input", "layer" if place else "input", size)
        for place, size in enumerate(sizes)
    )
    return ChannelGraph(groups, tuple(Block(*block) for block in weights))
