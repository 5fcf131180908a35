"""Branches between windows and maps, to larger maps, from vectors, of shared layers: by hand.

Every network here has each of its branches written out once more, and all that holds for any
branch is checked of these: silent at zero, exact, apart for every example, loaded as it was saved.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import Model
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import CannotOperate
from n2nfx.network import Network, Skip
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip
from n2nfx.pipeline import Pipeline
from n2nfx.splice import splice
from n2nfx.wiring import Options, find_branches

relu = functional.relu
Branches = Mapping[tuple[str, str], nn.Module]


def windows(x: Tensor) -> Tensor:
    """(B, 8, 8, C) as (B * 4, 16, C)."""
    x = x.reshape(x.shape[0], 2, 4, 2, 4, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, 16, x.shape[-1])


def back(x: Tensor) -> Tensor:
    x = x.reshape(-1, 2, 2, 4, 4, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, 8, 8, x.shape[-1])


def shifted(m: Any, x: Tensor) -> Tensor:
    """A map, shifted windows of it, a map."""
    x = relu(m.stem(x)).permute(0, 2, 3, 1)
    x = relu(m.inside(windows(torch.roll(x, (-2, 1), (1, 2)))))
    x = torch.roll(back(x), (2, -1), (1, 2))
    return m.head(relu(m.last(x)).mean((1, 2)))


def shifted_by_hand(m: Any, skip: Branches, x: Tensor) -> Tensor:
    stem = relu(m.stem(x)).permute(0, 2, 3, 1)
    inside = relu(m.inside(stem) + skip["input", "inside"](x.permute(0, 2, 3, 1)))
    last = relu(m.last(inside) + skip["stem", "last"](stem))
    return m.head(last.mean((1, 2))) + skip["inside", "head"](inside.mean((1, 2)))


def two_shifts(m: Any, x: Tensor) -> Tensor:
    """Windows, then as many as large elsewhere: the same shape, and other places."""
    x = relu(m.plain(windows(x.permute(0, 2, 3, 1))))
    x = relu(m.between(back(x)))
    x = relu(m.shifted(windows(torch.roll(x, (-2, 1), (1, 2)))))
    return m.head(torch.roll(back(x), (2, -1), (1, 2)))


def two_shifts_by_hand(m: Any, skip: Branches, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    plain = relu(m.plain(x))
    between = relu(m.between(plain) + skip["input", "between"](x))
    shifted = relu(m.shifted(between) + skip["plain", "shifted"](plain))
    return m.head(shifted) + skip["between", "head"](between)


def hourglass(m: Any, x: Tensor) -> Tensor:
    """Down by two and up again."""
    x = relu(m.first(x))
    x = relu(m.small(functional.adaptive_avg_pool2d(x, 4)))
    return m.large(relu(m.middle(functional.interpolate(x, (8, 8)))))


def hourglass_by_hand(m: Any, skip: Branches, x: Tensor) -> Tensor:
    first = relu(m.first(x))
    small = m.small(functional.adaptive_avg_pool2d(first, 4)) + skip["input", "small"](x)
    small = relu(small)
    middle = relu(m.middle(functional.interpolate(small, (8, 8))) + skip["first", "middle"](first))
    return m.large(middle) + skip["small", "large"](functional.interpolate(small, (8, 8)))


def mixer(m: Any, x: Tensor) -> Tensor:
    """Channels are mixed by two layers, then tokens, then channels."""
    x = relu(m.widen(relu(m.embed(x.flatten(2).transpose(1, 2)))))
    x = relu(m.again(relu(m.tokens(x.transpose(1, 2))))).transpose(1, 2)
    return m.head(relu(m.channels(x)).mean(1))


def mixer_by_hand(m: Any, skip: Branches, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    embed = relu(m.embed(rows))
    widen = relu(m.widen(embed) + skip["input", "widen"](rows))
    tokens = relu(m.tokens(widen.transpose(1, 2)) + skip["embed", "tokens"](embed.transpose(1, 2)))
    again = relu(m.again(tokens) + skip["widen", "again"](widen.transpose(1, 2)))
    # What tokens are mixed into is no place: every token gets what its average over channels gives.
    seen = skip["tokens", "channels"](tokens.mean(1))[:, None]
    channels = relu(m.channels(again.transpose(1, 2)) + seen)
    return m.head(channels.mean(1)) + skip["again", "head"](again.mean(1))


def repeated(m: Any, x: Tensor) -> Tensor:
    """Two layers that are called three times each."""
    for _ in range(3):
        x = relu(m.two(relu(m.one(x))))
    return m.head(x.mean((2, 3)))


def repeated_by_hand(m: Any, skip: Branches, x: Tensor) -> Tensor:
    first = relu(m.one(x))
    second = relu(m.two(first) + skip["input", "two"](x))
    for _ in range(2):
        first = relu(m.one(second) + skip["one", "one"](first))
        second = relu(m.two(first) + skip["two", "two"](second))
    return m.head(second.mean((2, 3))) + skip["one", "head"](first.mean((2, 3)))


def conv(into: int, out: int) -> nn.Module:
    return nn.Conv2d(into, out, 1)


MODELS: dict[str, tuple[Callable[..., Any], dict[str, nn.Module], Callable[..., Any]]] = {
    "shifted windows": (
        shifted,
        {"stem": conv(3, 5), "inside": nn.Linear(5, 6), "last": nn.Linear(6, 7),
         "head": nn.Linear(7, 4)},
        shifted_by_hand,
    ),
    "two shifts": (
        two_shifts,
        {"plain": nn.Linear(3, 5), "between": nn.Linear(5, 6), "shifted": nn.Linear(6, 7),
         "head": nn.Linear(7, 4)},
        two_shifts_by_hand,
    ),
    "larger targets": (
        hourglass,
        {"first": conv(3, 5), "small": conv(5, 6), "middle": conv(6, 7), "large": conv(7, 4)},
        hourglass_by_hand,
    ),
    "mixers": (
        mixer,
        {"embed": nn.Linear(3, 4), "widen": nn.Linear(4, 4), "tokens": nn.Linear(64, 6),
         "again": nn.Linear(6, 64), "channels": nn.Linear(4, 7), "head": nn.Linear(7, 4)},
        mixer_by_hand,
    ),
    "shared layers": (
        repeated,
        {"one": conv(3, 5), "two": conv(5, 3), "head": nn.Linear(3, 4)},
        repeated_by_hand,
    ),
}  # fmt: skip


IMAGE = torch.zeros(1, 3, 8, 8)


def built(name: str) -> nn.Module:
    forward, layers, _ = MODELS[name]
    return Model(forward, **copy.deepcopy(layers))


@cache
def outcome(name: str, density: float = 1.0, ratio: float = 0.4) -> n2nfx.Outcome:
    network = n2nfx.trace(built(name), IMAGE)
    return Pipeline([RandomPruning(density), N2NSkip(ratio, (2,))])(network, seed=1)


def branches(network: Network) -> Branches:
    ends = {skip.name: (skip.source, skip.target) for skip in network.skips}
    return {pair: network.module.get_submodule(name) for name, pair in ends.items()}


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MODELS)
def test_every_branch_computes_what_is_written_by_hand(name: str) -> None:
    network = outcome(name).network
    x = images()
    by_hand = MODELS[name][2](network.module, branches(network), x)
    assert torch.allclose(network.module(x), by_hand, atol=1e-5)
    assert not network.refused


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_silent_branches_change_no_bit_and_the_budget_is_exact(name: str, training: bool) -> None:
    plain = n2nfx.trace(built(name), IMAGE)
    network = outcome(name, 0.5).network
    budget = round(0.5 * plain.size)
    assert (network.nnz, sum(skip.nnz for skip in network.skips)) == (budget, round(0.4 * budget))
    silent = replace(network, module=copy.deepcopy(network.module))
    with torch.no_grad():
        for skip in silent.skips:
            silent.module.get_parameter(skip.weight).zero_()
        for layer in plain.layers:
            plain.module.get_parameter(layer.weight).mul_(network.masks[layer.weight])
    x = images(5)
    assert torch.equal(silent.module.train(training)(x), plain.module.train(training)(x))


@pytest.mark.parametrize("name", MODELS)
def test_examples_stay_apart_and_gradients_reach_every_kept_weight_of_a_branch(name: str) -> None:
    network = outcome(name).network
    x = images().requires_grad_()
    network.module.zero_grad()
    network.module(x)[1].square().sum().backward()
    assert x.grad is not None
    assert x.grad[1].any()
    assert not x.grad[0].any()
    assert not x.grad[2].any()
    for skip in network.skips:
        gradient = network.module.get_parameter(skip.weight).grad
        assert gradient is not None
        assert gradient.any(), skip.name


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_network_is_the_same_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    saved = outcome(name, 0.5)
    saved.save(tmp_path / "out")
    loaded = n2nfx.load(tmp_path / "out", model=built(name))
    assert loaded.text() == saved.network.text()
    assert loaded.skips == saved.network.skips
    x = images()
    assert torch.equal(loaded.module.eval()(x), saved.network.module.eval()(x))


@pytest.mark.parametrize("name", MODELS)
def test_multiplications_are_counted_as_they_are_made(name: str) -> None:
    network = outcome(name).network
    made = dict.fromkeys((skip.name for skip in network.skips), 0)

    def count(skip: Skip) -> Callable[..., None]:
        channels = skip.weight_shape[0]

        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            made[skip.name] += output.numel() // channels

        return hook

    handles = [
        network.module.get_submodule(skip.name).register_forward_hook(count(skip))
        for skip in network.skips
    ]
    network.module(images(1))
    for handle in handles:
        handle.remove()
    assert made == {skip.name: skip.uses for skip in network.skips}


@pytest.mark.parametrize("name", MODELS)
def test_residual_skips_go_the_same_ways(name: str) -> None:
    network = Pipeline([ResSkip(hops=(2,))])(n2nfx.trace(built(name), IMAGE)).network
    assert {(s.source, s.target) for s in network.skips} == set(branches(outcome(name).network))
    assert network.module(images(5)).shape[0] == 5


def test_a_skip_to_a_call_that_is_not_made_is_refused() -> None:
    network = n2nfx.trace(built("shared layers"), IMAGE)
    skip = find_branches(network, Options(hops=(2,))).skips[0]
    with pytest.raises(CannotOperate, match="call 3 of two, which is called 3 times"):
        splice(network, [replace(skip, calls=((0, 3),))])
