"""What is folded unfolds to the map that it was made of, place by place, and folds again."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Model
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.dimensions import Dimensions, Line, Part
from n2nfx.layouts import Layout, Misfit
from n2nfx.network import Move
from n2nfx.sites import Sites
from n2nfx.unfolding import unfolding

BATCH = 3


def moved(value: Tensor, move: Move) -> Tensor:
    """A move, by its definition."""
    if move.how == "pad":
        return functional.pad(value, move.by)
    if move.how == "unflatten":
        return value.unflatten(move.by[0], move.by[1:])
    if move.how in ("permute", "mean", "broadcast_to"):
        return getattr(torch, move.how)(value, move.by)
    return getattr(torch, move.how)(value, *move.by)


def through(value: Tensor, moves: tuple[Move, ...]) -> Tensor:
    for move in moves:
        value = moved(value, move)
    return value


@st.composite
def folded(draw: st.DrawFn) -> tuple[Dimensions, int]:
    """A grid cut into parts in any order, with what is no place between; and its channels."""
    rank = draw(st.integers(1, 2))
    parts = [Part("batch", BATCH)]
    for number in range(rank):
        sizes = draw(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=3))
        length, step = 1, 1
        for size in sizes:
            length *= size
        line = Line(number, rank, length)
        for size in sizes:
            parts.append(Part(line, size, step))
            step *= size
    parts += [Part("other", size) for size in draw(st.lists(st.just(2), max_size=2))]
    parts = draw(st.permutations(parts))
    dimensions: list[tuple[Part, ...]] = [()]
    for part in parts:
        if draw(st.booleans()):
            dimensions.append(())
        dimensions[-1] = (*dimensions[-1], part)
    channels = draw(st.integers(0, len(dimensions)))
    dimensions.insert(channels, (Part("other", 4),))
    return tuple(dimensions), channels


def places(dimensions: Dimensions, channels: int) -> Tensor:
    """Which place of which example, and which channel, is where: by definition of the parts."""
    shape = [torch.Size([part.size for part in parts]).numel() for parts in dimensions]
    value = torch.zeros(shape)
    for at, parts in enumerate(dimensions):
        inner = 1
        for part in reversed(parts):
            steps = torch.arange(shape[at]) // inner % part.size
            inner *= part.size
            if at == channels:
                weight = 1e5
            elif part.line == "batch":
                weight = 1e4
            elif isinstance(part.line, Line):
                weight = part.step * (100.0 if part.line.number == 0 else 1.0)
            else:
                weight = 0.0
            along = [-1 if dimension == at else 1 for dimension in range(len(shape))]
            value = value + weight * steps.reshape(along)
    return value


@given(folded())
@settings(max_examples=300, deadline=None)
def test_whatever_is_folded_unfolds_to_its_map_and_folds_again(
    case: tuple[Dimensions, int],
) -> None:
    dimensions, channels = case
    found = unfolding(dimensions, channels)
    assert found is not None
    value = places(dimensions, channels)
    unfolded = through(value, found.there)
    lines = [torch.arange(size) for size in found.places]
    grid = lines[0] if len(lines) == 1 else lines[0][:, None] * 100 + lines[1]
    grid = grid * (100 if len(lines) == 1 else 1)
    example = torch.arange(BATCH).reshape(-1, *(1,) * len(lines), 1) * 1e4
    assert torch.equal(unfolded, example + grid[..., None] + torch.arange(4) * 1e5)
    assert torch.equal(through(unfolded, found.back), value)


def test_a_part_of_a_grid_does_not_unfold() -> None:
    line = Line(0, 1, 6)
    examples = (Part("batch", BATCH),)
    assert unfolding((examples, (Part(line, 3, 2),), (Part("other", 4),)), 2) is None
    assert unfolding(((Part(line, 6),), (Part("other", 4),)), 1) is None  # no example
    assert unfolding((examples, (Part(Line(0, 2, 6), 6),), (Part("other", 4),)), 2) is None


# What is done to maps in real networks


def windows(x: Tensor, by: int = 4) -> Tensor:
    """(B, 8, 8, C) as (B * 4, 16, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // by, by, width // by, by, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, by * by, channels)


def grid_windows(x: Tensor) -> Tensor:
    """Every other place: MaxViT's grid attention."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, 4, height // 4, 4, width // 4, channels)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, 16, channels)


def padded_windows(x: Tensor) -> Tensor:
    """(B, 8, 8, C) as windows of 3, which do not divide it."""
    return windows(functional.pad(x, (0, 0, 1, 0, 0, 1)), 3)


def shifted_windows(x: Tensor) -> Tensor:
    return windows(torch.roll(x, (-2, 1), (1, 2)))


def in_heads(x: Tensor) -> Tensor:
    """Two heads as examples, with half of the channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height * width, 2, channels // 2).transpose(1, 2)
    return x.reshape(batch * 2, height * width, channels // 2)


def tiles(x: Tensor) -> Tensor:
    """(B, 8, 8, C) as (B * 4, 16, C), by the module that cuts out squares."""
    batch, channels = x.shape[0], x.shape[-1]
    x = nn.Unfold(4, stride=4)(x.permute(0, 3, 1, 2)).transpose(1, 2)
    return x.reshape(batch * 4, channels, 16).transpose(1, 2)


FOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "windows": windows,
    "every other place": grid_windows,
    "padded windows": padded_windows,
    "shifted windows": shifted_windows,
    "twice shifted": lambda x: windows(torch.roll(torch.roll(x, -2, 1), 1, 2)),
    "shifted there and back": lambda x: windows(torch.roll(torch.roll(x, -2, 1), 2, 1)),
    "rows": lambda x: x.reshape(-1, 8, x.shape[-1]),
    "columns": lambda x: x.transpose(1, 2).flatten(0, 1),
    "places before the batch": lambda x: x.permute(1, 2, 0, 3).reshape(-1, x.shape[-1]),
    "windows beside the batch": lambda x: windows(x).unflatten(0, (-1, 4)),
    "stripes": lambda x: x.reshape(-1, 4, 16, x.shape[-1]),
}


def layout_of(network: n2nfx.Network, name: str) -> Layout | Misfit:
    sites = Sites(network.module, network.layers)
    return sites.layout(sites.by_name(name), sites.by_name(name).activation)


def traced(fold: Callable[[Tensor], Tensor], channels: int = 4) -> n2nfx.Network:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.last(fold(m.conv(x).permute(0, 2, 3, 1)))  # type: ignore[operator]

    layers = {"conv": nn.Conv2d(3, 4, 1), "last": nn.Linear(channels, channels)}
    return n2nfx.trace(Model(forward, **layers), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("case", FOLDS)
def test_each_way_of_folding_is_known_place_by_place(case: str) -> None:
    layout = layout_of(traced(FOLDS[case]), "last")
    assert isinstance(layout, Layout)
    unfolded = layout.unfolded
    assert unfolded is not None
    assert (unfolded.places, unfolded.last) == ((8, 8), True)
    x = torch.randn(BATCH, 8, 8, 4)
    assert torch.equal(through(FOLDS[case](x), unfolded.there), x)
    assert torch.equal(through(x, unfolded.back), FOLDS[case](x))


def test_heads_are_averaged_there_and_alike_on_the_way_back() -> None:
    layout = layout_of(traced(in_heads, 2), "last")
    assert isinstance(layout, Layout)
    unfolded = layout.unfolded
    assert unfolded is not None
    x = torch.randn(BATCH, 8, 8, 4)
    halves = x.unflatten(3, (2, 2))
    assert torch.allclose(through(in_heads(x), unfolded.there), halves.mean(3), atol=1e-6)
    again = through(halves[..., 0, :], unfolded.back)
    assert torch.equal(again, in_heads(halves[..., :1, :].expand_as(halves).flatten(3)))


def test_squares_that_a_module_cuts_out_are_windows() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
            self.unfold = nn.Unfold(4, stride=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.unfold(self.conv(x)).transpose(1, 2)
            return self.last(x.reshape(x.shape[0] * 4, 4, 16).transpose(1, 2))

    layout = layout_of(n2nfx.trace(Cut(), torch.zeros(2, 3, 8, 8)), "last")
    assert isinstance(layout, Layout)
    assert layout.unfolded is not None
    x = torch.randn(BATCH, 8, 8, 4)
    assert torch.equal(through(tiles(x), layout.unfolded.there), x)


FORGOTTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "turned around": lambda x: windows(x.flip(1)),
    "a part only": lambda x: windows(x[:, 1:5, 1:5], 2),
    "other numbers of examples": lambda x: windows(x.repeat(2, 1, 1, 1)),
    "rolled in parts": lambda x: torch.roll(windows(x), 1, 1),
}


@pytest.mark.parametrize("case", FORGOTTEN)
def test_what_is_not_followed_is_not_guessed(case: str) -> None:
    layout = layout_of(traced(FORGOTTEN[case]), "last")
    assert isinstance(layout, Misfit) or layout.unfolded is None or not layout.unfolded.places
