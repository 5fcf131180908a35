"""Random layered graphs for the tests of heat and spectra, and what their heat really is."""

from itertools import combinations, combinations_with_replacement

import numpy as np
from hypothesis import strategies as st

from n2nfx.connectivity.graph import ChannelGraph, layered

FILLS = (0.0, 0.05, 0.3, 1.0)


@st.composite
def layered_graphs(draw: st.DrawFn, scales: tuple[float, ...] = (0.03, 1.0, 30.0)) -> ChannelGraph:
    """Up to 60 nodes in up to 5 layers, any two of which may be joined, densely or hardly.

    A layer may also be joined to itself. Blocks may be empty and nodes isolated; weights of a block
    are uniform, times a scale.
    """
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = []
    for source, target in combinations_with_replacement(range(len(sizes)), 2):
        fill, scale = draw(st.sampled_from(FILLS)), draw(st.sampled_from(scales))
        shape = (sizes[target], sizes[source])
        kept = generator.random(shape) < fill
        if source == target:
            kept = np.tril(kept, -1)
        blocks.append((source, target, kept * scale * (0.1 + generator.random(shape))))
    return layered(sizes, blocks)


def random_graph(sizes: list[int], fill: float, seed: int, skip: int = 0) -> ChannelGraph:
    """A chain of layers with kept weights at random, and skips over `skip` layers if any."""
    generator = np.random.default_rng(seed)
    hops = {1, skip + 1}
    blocks = [
        (source, target, _block(generator, (sizes[target], sizes[source]), fill))
        for source, target in combinations(range(len(sizes)), 2)
        if target - source in hops
    ]
    return layered(sizes, blocks)


def _block(generator: np.random.Generator, shape: tuple[int, int], fill: float) -> np.ndarray:
    return (generator.random(shape) < fill) * generator.random(shape)


def dense_laplacian(graph: ChannelGraph) -> np.ndarray:
    """L = D - W from the list of edges, without the operator that is under test."""
    weights = graph.to_scipy().toarray()
    return np.diag(weights.sum(axis=1)) - weights


def true_heat(graph: ChannelGraph, time: float, start: np.ndarray) -> np.ndarray:
    """exp(-t L) start in extended precision, by squaring nonnegative stochastic matrices.

    Nothing cancels in them, and rows of sum 1 are kept at sum 1.
    """
    weights = graph.to_scipy().toarray().astype(np.longdouble)
    degrees = weights.sum(axis=1)
    highest = degrees.max()
    squarings = max(0, int(np.ceil(np.log2(float(time * highest) + 1e-300))) + 2)
    step = np.longdouble(time) / np.longdouble(2) ** squarings
    positive = (weights + np.diag(highest - degrees)) * step
    power = np.eye(graph.n, dtype=np.longdouble)
    term = power
    for order in range(1, 25):
        term = term @ positive / order
        power = power + term
    for _ in range(squarings):
        power = power / power.sum(axis=1, keepdims=True)
        power = power @ power
    power = power / power.sum(axis=1, keepdims=True)
    return power @ start
