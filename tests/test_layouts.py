"""What a traced graph says of its own values: folds, grids, and what a branch cannot read."""

from collections.abc import Callable

import pytest
import torch
from samples import Model
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.layouts import Fold, Grid, Grids, Layout, Layouts, Misfit, joined_tokens
from n2nfx.network import Move, Network
from n2nfx.sites import Sites


def trace(forward: Callable[..., Tensor], *shape: int, **layers: nn.Module) -> Network:
    return n2nfx.trace(Model(forward, **layers), torch.zeros(2, *shape))


def layout_of(network: Network, name: str) -> Layout | Misfit:
    sites = Sites(network.module, network.layers)
    return sites.layout(sites.by_name(name), sites.by_name(name).activation)


def windows(x: Tensor) -> Tensor:
    """(B, 8, 8, C) as (B * 4, 16, C)."""
    x = x.reshape(x.shape[0], 2, 4, 2, 4, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, 16, x.shape[-1])


def heads_and_back(x: Tensor) -> Tensor:
    """As attention folds and unfolds its heads, the batch in the second dimension meanwhile."""
    folded, places, channels = x.shape
    q, k = x.reshape(folded, places, 2, 2, channels // 4).permute(2, 0, 3, 1, 4).unbind(0)
    return (q + k).transpose(1, 2).reshape(folded, places, channels // 2)


TURN = Move("permute", (2, 1, 0, 3))

FORWARDS: dict[str, tuple[Callable[..., Tensor], Layout]] = {
    "a map": (lambda m, x: m.conv(x), Layout(4, (8, 8), last=False)),
    "channels last": (lambda m, x: m.last(x.permute(0, 2, 3, 1)), Layout(4, (8, 8), last=True)),
    "tokens": (lambda m, x: m.last(x.flatten(2).transpose(1, 2)), Layout(4, (64,), last=True)),
    "a vector": (lambda m, x: m.last(x.mean((2, 3))), Layout(4, (), last=True)),
    "a sequence first": (
        lambda m, x: m.last(x.flatten(2).permute(2, 0, 1)),
        Layout(4, (64,), last=True, batch=1),
    ),
    "windows": (
        lambda m, x: m.last(windows(x.permute(0, 2, 3, 1))),
        Layout(4, (16,), last=True, fold=Fold(1, 4)),
    ),
    "windows behind heads": (
        lambda m, x: m.last(heads_and_back(m.pair(windows(x.permute(0, 2, 3, 1))))),
        Layout(4, (16,), last=True, fold=Fold(1, 4)),
    ),
    "places before the batch": (
        lambda m, x: m.last(x.flatten(2).permute(2, 0, 1).reshape(-1, 4)),
        Layout(4, (), last=True, fold=Fold(64, 1)),
    ),
    "places behind the batch": (
        lambda m, x: m.last(x.permute(0, 2, 3, 1).reshape(-1, 4)),
        Layout(4, (), last=True, fold=Fold(1, 64)),
    ),
    "two batches": (
        lambda m, x: m.last(torch.cat([x, x]).permute(0, 2, 3, 1)),
        Layout(4, (8, 8), last=True, fold=Fold(2, 1)),
    ),
    "the batch third": (
        lambda m, x: m.last(x.permute(0, 2, 3, 1).permute(2, 1, 0, 3)),
        Layout(4, (8, 8), last=True, there=(TURN,), back=(TURN,)),
    ),
    "a window of a window": (
        lambda m, x: m.last(windows(x.permute(0, 2, 3, 1)).reshape(-1, 4, 4)),
        Layout(4, (4,), last=True, fold=Fold(1, 16)),
    ),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_a_value_is_known_by_what_was_done_to_it(case: str) -> None:
    forward, layout = FORWARDS[case]
    layers = {"conv": nn.Conv2d(4, 4, 1), "last": nn.Linear(4, 4), "pair": nn.Linear(4, 8)}
    network = trace(forward, 4, 8, 8, **layers)
    assert layout_of(network, network.layers[-1].name) == layout


UNREADABLE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "no batch": (
        lambda m, x: x * m.one(torch.ones(4, 4, device=x.device)).mean(),
        "the same for every example",
    ),
    "batch third": (
        lambda m, x: m.one(x.flip(1).permute(2, 1, 0, 3)),
        "the batch in dimension 2",
    ),
    "batch twice": (lambda m, x: m.one(x[:, None] - x[None]), "the batch in dimensions 0, 1"),
    "turned batches": (lambda m, x: m.one(x.repeat(2, 1, 1, 1)), "a way that cannot be followed"),
    "one more dimension": (
        lambda m, x: functional.relu(m.one(x) + torch.ones(2, 1, 1, 1, 4, device=x.device)),
        "has 5 dimensions where its layer gives 4",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_value_that_no_branch_can_read_is_told_why(case: str) -> None:
    forward, reason = UNREADABLE[case]
    found = layout_of(trace(forward, 4, 4, 4, one=nn.Linear(4, 4)), "one")
    assert isinstance(found, Misfit)
    assert reason in found.reason


def test_an_inputs_channels_are_where_the_first_layer_has_them() -> None:
    def of(*shape: int, layer: nn.Module) -> Layout | Misfit:
        return layout_of(trace(lambda m, x: m.layer(x), *shape, layer=layer), "input")

    assert of(6, 4, layer=nn.Linear(4, 2)) == Layout(4, (6,), last=True)
    assert of(6, 4, layer=nn.Conv1d(6, 2, 1)) == Layout(6, (4,), last=False)
    assert of(4, layer=nn.Linear(4, 2)) == Layout(4, (), last=True)


def tokens(m: nn.Module, x: Tensor) -> Tensor:
    """Patches behind a register token behind a class token."""
    x = m.conv(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
    x = torch.cat([m.one(x[:, :1]), torch.cat([x], 1)], dim=1)  # type: ignore[operator]
    return torch.cat([x[:, :1], x], 1)


def test_a_grid_is_a_convolutions_map_or_a_part_of_it_and_may_have_a_prefix() -> None:
    network = trace(tokens, 3, 12, 12, conv=nn.Conv2d(3, 4, 2, stride=2), one=nn.Linear(4, 4))
    assert joined_tokens(network.module.graph) == {37: (1, 36), 38: (1, 37)}
    grids = Sites(network.module, network.layers).grids()
    assert grids.of(36, 2) == Grid((6, 6))
    assert grids.of(9, 2) == Grid((3, 3))  # half the size
    assert grids.of(4, 2) == Grid((2, 2))  # rounded up
    assert grids.of(38, 2) == Grid((6, 6), prefix=2)
    assert grids.of(36, 2, like=(4, 9)) == Grid((4, 9))  # where the other end says so
    assert grids.of(35, 2) is grids.of(36, 3) is None
    assert grids.both(38, 9) == (Grid((6, 6), 2), Grid((3, 3)))


def test_a_map_is_a_part_of_the_input_in_every_direction() -> None:
    grids = Grids([], {}, whole=(224, 320))
    assert grids.is_map((224, 320))
    assert grids.is_map((56, 80))
    assert grids.is_map((7, 10))
    assert not grids.is_map((64, 49))  # windows
    assert not grids.is_map((196, 196))  # queries and keys
    assert not grids.is_map((14, 14, 14))
    assert Grids([(64, 49)], {}, ()).is_map((64, 49))  # a convolution has it


def test_layouts_of_an_input_without_dimensions_are_none() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.placeholder("x"))
    layouts = Layouts(torch.fx.GraphModule(nn.Module(), graph), graph)
    assert isinstance(layouts.of(next(iter(graph.nodes)), False, 0), Misfit)
