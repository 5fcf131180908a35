"""Each layer by itself as a bipartite graph: how near to a Ramanujan graph pruning left it."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from n2nfx.connectivity.graph import Block, ChannelGraph

_DENSE = 512  # channels on the narrower side up to which all singular values are computed
_SEED = 0  # of the vector that larger layers are iterated from


@dataclass(frozen=True)
class LayerSpectrum:
    """The binary channel adjacency of one block of edges, and what its spectrum says.

    `degrees` are the mean degrees of the targets and of the sources, over the channels that have
    an edge; `singular` the two largest singular values, the second 0 where there is but one.
    """

    source: str
    target: str
    weights: tuple[str, ...]
    edges: int
    degrees: tuple[float, float]
    singular: tuple[float, float]

    @property
    def gap(self) -> float:
        """sqrt(d1 - 1) + sqrt(d2 - 1) - sigma_2: a Ramanujan graph, one that mixes well, has >= 0.

        The bound of a biregular graph (Feng and Li 1996), taken at the mean degrees where a graph
        is irregular, as in Hoang et al., Revisiting Pruning at Initialization Through the Lens of
        Ramanujan Graph, ICLR 2023, who found that it does not go with accuracy by itself.
        """
        first, second = (max(degree - 1.0, 0.0) ** 0.5 for degree in self.degrees)
        return first + second - self.singular[1]


def layer_spectra(graph: ChannelGraph) -> tuple[LayerSpectrum, ...]:
    """The bipartite spectrum of every block that weights stand for, in the graph's order.

    Singular values are exact to rounding up to 512 channels on the narrower side; above it they
    come from an Arnoldi iteration of the squared matrix, to about 1e-8 of the largest.
    """
    return tuple(_spectrum(graph, block) for block in graph.blocks if block.names)


def _spectrum(graph: ChannelGraph, block: Block) -> LayerSpectrum:
    found = sparse.coo_array(block.weights)
    kept = found.data != 0
    rows, columns = found.coords[0][kept], found.coords[1][kept]
    source, target = graph.groups[block.source], graph.groups[block.target]
    shape = target.size, source.size
    joined = sparse.csr_array((np.ones(rows.size), (rows, columns)), shape=shape)
    return LayerSpectrum(
        source=source.name,
        target=target.name,
        weights=block.names,
        edges=rows.size,
        degrees=(_mean_degree(rows), _mean_degree(columns)),
        singular=_two_largest(joined, min(shape)),
    )


def _mean_degree(ends: np.ndarray) -> float:
    """Edges a channel, over the channels that have one; 0 where none has."""
    return ends.size / max(np.unique(ends).size, 1)


def _two_largest(matrix: sparse.csr_array, narrow: int) -> tuple[float, float]:
    if narrow <= _DENSE:
        found = np.linalg.svd(matrix.toarray(), compute_uv=False)
    else:
        start = np.random.default_rng(_SEED).standard_normal(narrow)
        found = np.asarray(svds(matrix, k=2, v0=start, return_singular_vectors=False))
    second, first = [0.0, 0.0, *sorted(map(float, found))][-2:]
    return first, second
