"""From a network to its heat: the graph, the linear algebra and the comparison together."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import nn

import n2nfx
from n2nfx.connectivity import count_effective
from n2nfx.connectivity.elimination import Elimination
from n2nfx.connectivity.graph import Block, ChannelGraph, Group
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.passes import N2NSkip, RandomPruning


def with_edges_inside() -> ChannelGraph:
    """A group whose first half is joined to its second, as in a gated linear unit."""
    rng = np.random.default_rng(0)
    inside = np.zeros((6, 6))
    inside[3:, :3] = np.diag([1.0, 2.0, 3.0])
    blocks = Block(0, 1, rng.random((6, 4))), Block(1, 1, inside), Block(1, 2, rng.random((3, 6)))
    groups = Group("input", "input", 4), Group("gated", "layer", 6), Group("last", "layer", 3)
    return ChannelGraph(groups, blocks)


def laplacian_of(graph: ChannelGraph) -> np.ndarray:
    weights = graph.to_scipy().toarray()
    return np.diag(weights.sum(axis=0)) - weights


@pytest.mark.parametrize("method", ["lanczos", "chebyshev", "shift-invert"])
def test_edges_inside_a_group_conduct_heat(method: str) -> None:
    graph = with_edges_inside()
    found = graph.heat([0.3, 2.0], method=method)  # pyright: ignore[reportArgumentType]
    for time, signature in zip(found.times, found.signature, strict=True):
        exact = expm(-time * laplacian_of(graph)) @ graph.sources
        np.testing.assert_allclose(signature, exact, atol=1e-9)


def test_edges_inside_a_group_are_in_the_matrix_and_in_its_factors() -> None:
    graph = with_edges_inside()
    laplacian, exact = Laplacian(graph), laplacian_of(graph)
    np.testing.assert_allclose(laplacian.toarray(), exact, atol=1e-12)
    for shift in (0.5, 2.0, 5.0):
        factors = Elimination(laplacian, 1.0, -shift, keep=False, backwards=False)
        assert factors.negative == (np.linalg.eigvalsh(exact) < shift).sum()


class Net(nn.Module):
    """A convolution, a residual block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("residual", ["identity", "merge"])
@pytest.mark.parametrize("weight", ["abs_sum", "l2", "count", "binary"])
def test_a_pruned_network_is_compared_with_its_own_reference(weight: str, residual: str) -> None:
    torch.manual_seed(0)
    reference = n2nfx.trace(Net(), torch.randn(1, 3, 8, 8))
    steps = RandomPruning(density=0.3), N2NSkip(ratio=0.3, hops=(2,))
    network = n2nfx.Pipeline(steps)(reference, seed=0).network
    whole, pruned = (
        n2nfx.channel_graph(one, weight=weight, residual=residual)  # pyright: ignore[reportArgumentType]
        for one in (reference, network)
    )
    found = n2nfx.compare(whole, pruned)
    assert (found.frobenius <= found.bound).all()
    assert (found.certificate < 1e-9).all()
    assert found.direct_density == network.density
    assert found.effective_density is not None
    assert found.effective_density <= network.density
    assert found.dead_channels == count_effective(network).dead_channels
    assert (n2nfx.compare(whole, whole).frobenius == 0).all()
