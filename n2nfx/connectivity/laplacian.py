"""The Laplacian L = D - W of a channel graph, as an operator on blocks; its null space, exactly."""

from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from n2nfx.connectivity.graph import ChannelGraph, Matrix, stored
from n2nfx.errors import require_kind


class Laplacian:
    """`laplacian @ x` for x (n,) or (n, k) in float64; time is linear in the number of edges.

    Blocks are dense above 25% fill and CSR below, both directions stored. The null space of L is
    spanned by the indicators of the connected components, which are found from the edges alone.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        require_kind(graph, ChannelGraph, "a Laplacian is of an n2nfx.channel_graph(network)")
        self.n = graph.n
        self.edges = graph.edges
        self.degrees = graph.degrees
        self.spans = tuple(graph.span(group) for group in range(len(graph.groups)))
        self.blocks = {
            (block.source, block.target): _kept(block.weights)
            for block in graph.blocks
            if block.edges
        }
        self._uses = [
            (self.spans[source], self.spans[target], weights, _transposed(weights))
            for (source, target), weights in self.blocks.items()
        ]

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        product = (self.degrees * x.T).T
        for source, target, forward, backward in self._uses:
            product[target] -= forward @ x[source]
            product[source] -= backward @ x[target]
        return product

    def toarray(self) -> np.ndarray:
        """The dense (n, n) matrix."""
        dense = np.diag(self.degrees)
        for source, target, forward, _ in self._uses:
            weights = forward if isinstance(forward, np.ndarray) else forward.toarray()
            dense[target, source] -= weights
            dense[source, target] -= weights.T
        return dense

    @cached_property
    def largest(self) -> float:
        """An upper bound of every eigenvalue: the largest d_i + d_j over the edges.

        Source: Anderson and Morley, Eigenvalues of the Laplacian of a graph, 1985.
        """
        bounds = [
            _largest_sum(forward, self.degrees[target], self.degrees[source])
            for source, target, forward, _ in self._uses
        ]
        return max(bounds, default=0.0) * (1 + 1e-12)  # the degrees are rounded

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) the number of every node's component, from 0."""
        reached = self._flooded(int(self.degrees.argmax()))
        known = np.flatnonzero(reached)
        rows, columns = [np.full(known.size, known[0])], [known]
        for source, target, forward, _ in self._uses:
            ends, starts = np.flatnonzero(~reached[target]), np.flatnonzero(~reached[source])
            left = sparse.coo_array(forward[np.ix_(ends, starts)])
            row, column = left.nonzero()
            rows.append(ends[row] + target.start)
            columns.append(starts[column] + source.start)
        places = np.concatenate(rows), np.concatenate(columns)
        ones = np.ones(places[0].size, dtype=bool)
        edges = sparse.csr_array((ones, places), shape=(self.n, self.n))
        return csgraph.connected_components(edges, directed=False)[1]

    @cached_property
    def components(self) -> int:
        """Number of connected components, which is the dimension of the null space."""
        return int(self.labels.max()) + 1

    def means(self, x: np.ndarray) -> np.ndarray:
        """The projection of x, (n,) or (n, k), onto the null space: its component means."""
        return (((self._membership @ x).T / self._sizes).T)[self.labels]

    def project(self, x: np.ndarray) -> np.ndarray:
        """x, (n,) or (n, k), minus its component means."""
        return x - self.means(x)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.bincount(self.labels)

    @cached_property
    def _membership(self) -> sparse.csr_array:
        nodes = np.arange(self.n)
        return sparse.csr_array((np.ones(self.n), (self.labels, nodes)))

    def _flooded(self, seed: int) -> np.ndarray:
        """The component of one node.

        Most networks have a component of nearly all nodes, which a few products with every block
        find much faster than a list of the edges is made.
        """
        reached = np.zeros(self.n)
        reached[seed] = 1.0
        before = 0.0
        while (found := reached.sum()) > before:
            before = found
            for source, target, forward, backward in (*self._uses, *self._uses[::-1]):
                reached[target][forward @ reached[source] > 0] = 1.0
                reached[source][backward @ reached[target] > 0] = 1.0
        return reached > 0


def _kept(weights: Matrix) -> Matrix:
    """Dense or CSR by fill, in CSR without the zeros that are stored, which are no edges."""
    found = stored([weights])
    if isinstance(found, np.ndarray):
        return found.astype(np.float64, copy=False)
    listed = sparse.csr_array(found, dtype=np.float64)
    if listed.count_nonzero() < listed.nnz:
        listed = listed.copy()
        listed.eliminate_zeros()
    return listed


def _transposed(weights: Matrix) -> Matrix:
    return weights.T if isinstance(weights, np.ndarray) else sparse.csr_array(weights.T)


def _largest_sum(weights: Matrix, rows: np.ndarray, columns: np.ndarray) -> float:
    """The largest row value plus column value where there is a weight."""
    if isinstance(weights, np.ndarray):
        return float((np.where(weights > 0, columns, -np.inf).max(axis=1) + rows).max())
    row, column = weights.nonzero()
    return float((rows[row] + columns[column]).max())
