"""A branch beside a shortcut of the network starts silent, or its activations would explode."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import n2nfx
from n2nfx.network import Network
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip
from n2nfx.shortcuts import beside_shortcuts, into_bypassed
from n2nfx.splice import prepare
from n2nfx.wiring import Options, find_branches

BLOCKS = 12


class Block(nn.Module):
    """A bottleneck: the stream, and two layers that are added to it."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.inner, self.outer = nn.BatchNorm2d(8), nn.BatchNorm2d(wide)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.outer(self.up(self.inner(self.down(x)).relu()))).relu()


def residual() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = nn.Sequential(nn.Conv2d(3, 8, 1), *(Block() for _ in range(BLOCKS)))
    return n2nfx.trace(blocks, torch.zeros(2, 3, 6, 6))


def chained() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(9)]
    network = nn.Sequential(*(part for layer in layers for part in layer))
    return n2nfx.trace(network, torch.zeros(2, 8, 6, 6))


def spread(network: Network) -> float:
    """The deviation of what the last block gives in training."""
    images = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return network.module.train()(images).std().item()


def found(network: Network, **options: Any) -> set[tuple[str, str]]:
    prepare(network)
    skips = find_branches(network, Options(**options)).skips
    beside = beside_shortcuts(network, skips)
    return {(skip.source, skip.target) for skip in skips if skip.name in beside}


@pytest.mark.parametrize("hops", [(2,), (3,), (2, 3)])
@pytest.mark.parametrize("skips", ["identities", "residuals"])
def test_activations_do_not_grow_with_the_depth(hops: tuple[int, ...], skips: str) -> None:
    plain = spread(n2nfx.Pipeline([RandomPruning(0.5)])(residual()).network)
    add = ResSkip(hops) if skips == "residuals" else N2NSkip(0.4, hops, kernel=1)
    network = n2nfx.Pipeline([RandomPruning(0.5), add])(residual()).network
    assert network.skips
    assert spread(network) < 4 * plain


def test_what_the_stream_carries_is_not_added_to_it_again() -> None:
    stream = ["0", *(f"{number}.up" for number in range(1, BLOCKS + 1))]
    assert found(residual(), hops=(2,)) >= set(pairwise(stream))


def test_such_a_branch_starts_at_zero_and_learns() -> None:
    network = n2nfx.Pipeline([RandomPruning(0.5), N2NSkip(0.4, (2,), kernel=1)])(residual()).network
    assert network.skips
    assert not any(network.module.get_parameter(skip.weight).any() for skip in network.skips)
    network.module(torch.randn(4, 3, 6, 6)).square().sum().backward()
    for skip in network.skips:
        gradient = network.module.get_parameter(skip.weight).grad
        assert gradient is not None
        assert gradient.any()


@pytest.mark.parametrize("hops", [(2,), (3,)])
def test_a_chain_has_no_shortcuts(hops: tuple[int, ...]) -> None:
    assert found(chained(), hops=hops) == set()
    network = n2nfx.Pipeline([RandomPruning(0.5), N2NSkip(0.4, hops, kernel=1)])(chained()).network
    assert all(network.module.get_parameter(skip.weight).any() for skip in network.skips)


def test_only_layers_that_a_value_passes_by_are_gone_around() -> None:
    class Gated(nn.Module):
        """Sizes are read early and used late; a gate is gone around, what it gates is not."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.second, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8 * 36, 5)

        def forward(self, x: Tensor) -> Tensor:
            size = x.shape[0]
            value = self.first(x).relu()
            value = self.second(value * self.gate(value).sigmoid()).relu()
            return self.last(value.reshape(size, -1))

    network = n2nfx.trace(Gated(), torch.zeros(2, 3, 6, 6))
    prepare(network)
    skips = find_branches(network, Options(hops=(1, 2, 3))).skips
    around = into_bypassed(network, skips)
    assert {skip.target for skip in skips} == {"first", "gate", "second", "last"}
    assert {skip.target for skip in skips if skip.name in around} == {"gate"}


def test_behind_a_norm_sums_begin_anew() -> None:
    assert found(residual(), hops=(2,), wiring="joint") == set()


def test_residual_skips_say_which_pairs_a_shortcut_joins() -> None:
    refused = n2nfx.Pipeline([ResSkip((2,))])(residual()).network.refused
    told = {(r.source, r.target) for r in refused if "a shortcut of the network" in r.reason}
    assert told == found(residual(), hops=(2,))


def test_the_branches_of_eq_2_start_as_in_the_paper() -> None:
    skips = N2NSkip(0.4, (2,), wiring="paper", pattern="random")
    network = n2nfx.Pipeline([RandomPruning(0.5), skips])(residual()).network
    assert all(network.module.get_parameter(skip.weight).any() for skip in network.skips)
