"""Channel graphs: by hand for every kind of operation, against weights, against what moves."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from channel_probe import Probe, once_called, probes, thinned
from operations import OPERATIONS
from samples import Model
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.bind import bind
from n2nfx.connectivity.channel_graph import contraction_of
from n2nfx.connectivity.difference import difference
from n2nfx.connectivity.graph import ChannelGraph, layered, shape_of
from n2nfx.masks import Masks
from n2nfx.models import build
from n2nfx.network import Network, Skip
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip


def conv(into: int, out: int, kernel: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, **settings)


def traced(model: nn.Module, shape: Sequence[int]) -> Network:
    """A network of random weights of both signs, in double precision."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return n2nfx.trace(model.double().eval(), torch.ones(2, *shape, dtype=torch.float64))


def graph_of(model: nn.Module, *shape: int, **options: Any) -> ChannelGraph:
    return n2nfx.channel_graph(traced(model, shape), **options)


def sizes(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


def dense(graph: ChannelGraph) -> np.ndarray:
    return graph.to_scipy().toarray()


def between(graph: ChannelGraph, target: str, source: str) -> np.ndarray:
    """The weights between two groups, as (channels of target, channels of source)."""
    names = [group.name for group in graph.groups]
    return dense(graph)[graph.span(names.index(target)), graph.span(names.index(source))]


def total(graph: ChannelGraph) -> float:
    return float(graph.edge_list()[2].sum())


def weight_of(model: nn.Module, name: str) -> np.ndarray:
    return model.get_parameter(f"{name}.weight").detach().double().numpy()


def pointwise(model: nn.Module, name: str) -> np.ndarray:
    """The absolute weights of a convolution with kernel 1."""
    return np.abs(weight_of(model, name)[..., 0, 0])


# One layer, whatever its kind.


AGGREGATED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs_sum": lambda kernel: np.abs(kernel).sum(-1),
    "l2": lambda kernel: np.sqrt((kernel**2).sum(-1)),
    "count": lambda kernel: np.full(kernel.shape[:2], float(kernel.shape[2])),
    "binary": lambda kernel: np.ones(kernel.shape[:2]),
}


@pytest.mark.parametrize("how", AGGREGATED)
def test_a_kernel_becomes_one_weight(how: Any) -> None:
    model = conv(3, 4, 3)
    graph = graph_of(nn.Sequential(model), 3, 6, 6, weight=how)
    assert sizes(graph) == {"input": 3, "0": 4}
    assert [group.kind for group in graph.groups] == ["input", "layer"]
    kernel = model.weight.detach().numpy().reshape(4, 3, 9)
    assert between(graph, "0", "input") == pytest.approx(AGGREGATED[how](kernel))
    assert graph.edges == 12
    assert graph.blocks[0].names == ("0.weight",)
    assert graph.sources.tolist() == [1, 1, 1, 0, 0, 0, 0]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (conv(6, 9, 3, groups=3), (6, 7, 7)),
    "depthwise": (conv(6, 6, 3, groups=6), (6, 7, 7)),
    "depthwise multiplier": (conv(3, 6, 3, groups=3), (3, 7, 7)),
    "transposed": (nn.ConvTranspose2d(4, 3, 3, stride=2), (4, 7, 7)),
    "transposed groups": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 7, 7)),
    "one dimension": (nn.Conv1d(4, 3, 3, padding=1), (4, 7)),
    "transposed one dimension": (nn.ConvTranspose1d(4, 3, 3), (4, 7)),
    "three dimensions": (nn.Conv3d(2, 3, 3, padding=1), (2, 5, 5, 5)),
    "transposed three dimensions": (nn.ConvTranspose3d(2, 3, 2, groups=1), (2, 5, 5, 5)),
    "linear": (nn.Linear(5, 4), (5,)),
    "linear on tokens": (nn.Linear(5, 4), (3, 5)),
}


def response(layer: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a layer of absolute weights adds up to, for a one at a place of each channel."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.abs_()
        layer.bias.zero_()
    last = isinstance(layer, nn.Linear)
    columns = []
    for channel in range(shape[-1] if last else shape[0]):
        x = torch.zeros(1, *shape, dtype=torch.float64)
        place = tuple(size // 2 for size in (shape[:-1] if last else shape[1:]))
        x[(0, *place, channel) if last else (0, channel, *place)] = 1.0
        y = layer(x).detach()
        columns.append(y.reshape(-1, y.shape[-1]).sum(0) if last else y[0].flatten(1).sum(1))
    return torch.stack(columns, dim=1).numpy()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_joins_what_it_reads_to_what_it_gives(name: str) -> None:
    layer, shape = LAYERS[name]
    graph = graph_of(nn.Sequential(copy.deepcopy(layer)), *shape)
    same = traced(nn.Sequential(copy.deepcopy(layer)), shape).module.get_submodule("0")
    expected = response(same, shape)
    assert between(graph, "0", "input") == pytest.approx(expected)
    assert graph.edges == np.count_nonzero(expected)
    counted = graph_of(nn.Sequential(copy.deepcopy(layer)), *shape, weight="count")
    assert total(counted) == layer.get_parameter("weight").numel()


def test_the_places_of_a_channel_are_taken_together_where_it_is_flattened() -> None:
    model = nn.Sequential(conv(2, 3), nn.Flatten(), nn.Linear(12, 4))
    graph = graph_of(model, 2, 2, 2)
    assert sizes(graph) == {"input": 2, "0": 3, "2": 4}
    by_channel = np.abs(weight_of(model, "2")).reshape(4, 3, 4)
    assert between(graph, "2", "0") == pytest.approx(by_channel.sum(-1))
    squares = graph_of(model, 2, 2, 2, weight="l2")
    roots = np.sqrt((weight_of(model, "2") ** 2).reshape(4, 3, 4).sum(-1))
    assert between(squares, "2", "0") == pytest.approx(roots)


def test_a_weight_that_a_function_uses_in_parts_makes_a_group_for_each_call() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        first, second = m.matrix.split([3, 5])
        return torch.cat([functional.linear(x, first), functional.linear(x, second)], dim=1)

    model = Model(body, matrix=nn.Parameter(torch.ones(8, 4)))
    graph = graph_of(model, 4)
    assert sizes(graph) == {"input_0": 4, "matrix": 3, "matrix (2)": 5}
    weights = np.abs(model.get_parameter("matrix").detach().numpy())
    assert between(graph, "matrix", "input_0") == pytest.approx(weights[:3])
    assert between(graph, "matrix (2)", "input_0") == pytest.approx(weights[3:])


def test_a_weight_that_is_called_twice_makes_two_groups_and_counts_twice() -> None:
    model = Model(lambda m, x: m.fc(functional.relu(m.fc(x))), fc=nn.Linear(4, 4))
    graph = graph_of(model, 4)
    assert sizes(graph) == {"input_0": 4, "fc": 4, "fc (2)": 4}
    assert between(graph, "fc (2)", "fc") == pytest.approx(np.abs(weight_of(model, "fc")))
    assert not between(graph, "fc (2)", "input_0").any()
    assert total(graph_of(model, 4, weight="count")) == 2 * 16


# What is no layer.


def middle(operation: Callable[[Tensor], Tensor], wide: int = 6, after: int = 6) -> Model:
    """An operation between two layers."""
    return Model(
        lambda m, x: m.after(operation(m.before(x))), before=conv(2, wide), after=conv(after, 3)
    )


def moved(model: nn.Module, columns: Sequence[int]) -> np.ndarray:
    """Edges of the layer behind an operation that moved these channels there, -1 for none."""
    weights, found = pointwise(model, "after"), np.zeros((3, 6))
    for column, channel in enumerate(columns):
        if channel >= 0:
            found[:, channel] += weights[:, column]
    return found


MOVES: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "activation": (functional.relu, [0, 1, 2, 3, 4, 5]),
    "pooling": (lambda x: functional.max_pool2d(x, 2), [0, 1, 2, 3, 4, 5]),
    "global pooling": (lambda x: x.mean((2, 3), keepdim=True), [0, 1, 2, 3, 4, 5]),
    "concat": (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), [4, 5, 0, 1, 2, 3]),
    "split": (lambda x: torch.cat(x.split([1, 2, 3], 1)[::-1], 1), [3, 4, 5, 1, 2, 0]),
    "chunk": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), [4, 5, 2, 3, 0, 1]),
    "slice": (lambda x: torch.cat([x[:, 1::2], x[:, 1::2]], 1), [1, 3, 5, 1, 3, 5]),
    "crop": (lambda x: functional.pad(x[:, 2:], (0, 0, 0, 0, 0, 2)), [2, 3, 4, 5, -1, -1]),
    "reshape": (lambda x: x.view(-1, 2, 3, 8, 8).flatten(1, 2), [0, 1, 2, 3, 4, 5]),
    "shuffle": (
        lambda x: x.view(-1, 2, 3, 8, 8).transpose(1, 2).reshape(-1, 6, 8, 8),
        [0, 3, 1, 4, 2, 5],
    ),
    "channels last": (lambda x: x.permute(0, 2, 3, 1).movedim(3, 1), [0, 1, 2, 3, 4, 5]),
    "to tokens and back": (
        lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (8, 8)),
        [0, 1, 2, 3, 4, 5],
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_channels_makes_no_nodes_and_no_edges(name: str) -> None:
    operation, columns = MOVES[name]
    model = middle(operation)
    graph = graph_of(model, 2, 8, 8)
    assert sizes(graph) == {"input_0": 2, "before": 6, "after": 3}
    assert between(graph, "after", "before") == pytest.approx(moved(model, columns))


def test_a_channel_behind_a_pixel_shuffle_is_all_those_that_it_is_made_of() -> None:
    model = middle(lambda x: functional.pixel_shuffle(x, 2), wide=8, after=2)
    graph = graph_of(model, 2, 4, 4)
    assert sizes(graph) == {"input_0": 2, "before": 8, "after": 3}
    weights = pointwise(model, "after")
    assert between(graph, "after", "before") == pytest.approx(np.repeat(weights, 4, axis=1))


def test_a_norm_is_channel_to_channel_and_can_be_folded_into_its_layer() -> None:
    norm = nn.BatchNorm2d(6)
    model = nn.Sequential(conv(2, 6, bias=False), norm, nn.ReLU(), conv(6, 3))
    network = traced(model, (2, 4, 4))
    with torch.no_grad():
        network.module.get_buffer("1.running_var").copy_(torch.arange(1.0, 7.0))
    plain, folded = (n2nfx.channel_graph(network, fold_norms=fold) for fold in (False, True))
    weights = pointwise(network.module, "0")
    scale = np.abs(weight_of(network.module, "1")) / np.sqrt(np.arange(1.0, 7.0) + norm.eps)
    assert between(plain, "0", "input") == pytest.approx(weights)
    assert between(folded, "0", "input") == pytest.approx(weights * scale[:, None])
    assert between(folded, "3", "0") == pytest.approx(between(plain, "3", "0"))
    numbers = n2nfx.channel_graph(network, "count", fold_norms=True)
    assert total(numbers) == 12 + 18


@pytest.mark.parametrize("how", ["layer", "group", "function", "sparse"])
def test_the_scale_of_any_norm_is_folded(how: str) -> None:
    norms: dict[str, nn.Module] = {
        "layer": nn.Sequential(nn.Flatten(2), nn.LayerNorm(16), nn.Unflatten(2, (4, 4))),
        "group": nn.GroupNorm(2, 6),
        "sparse": nn.GroupNorm(2, 6),
        "function": Model(
            lambda m, x: functional.batch_norm(x, m.mean, m.var, m.weight, None, False, 0.1, 0.5),
            mean=torch.zeros(6), var=torch.full((6,), 3.5), weight=nn.Parameter(torch.ones(6)),
        ),
    }  # fmt: skip
    model = nn.Sequential(conv(2, 6, groups=2 if how == "sparse" else 1), norms[how], conv(6, 3))
    network = traced(model, (2, 4, 4))
    ratio = np.divide(
        between(n2nfx.channel_graph(network, fold_norms=True), "0", "input"),
        plain := between(n2nfx.channel_graph(network), "0", "input"),
        where=plain > 0,
        out=np.full((6, 2), np.nan),
    )
    weights = {name: p for name, p in network.module.named_parameters() if name == "1.weight"}
    scale = weights["1.weight"].detach().abs().numpy() if weights else np.ones(6)
    expected = {"function": scale / 2.0}.get(how, scale)
    assert np.nanmean(ratio, axis=1) == pytest.approx(expected)


def residual() -> Model:
    return Model(
        lambda m, x: m.last((y := m.first(x)) + m.third(functional.relu(m.second(y)))),
        first=conv(2, 3), second=conv(3, 4), third=conv(4, 3), last=conv(3, 2),
    )  # fmt: skip


def test_a_residual_is_an_identity_to_the_latest() -> None:
    model = residual()
    graph = graph_of(model, 2, 4, 4)
    assert sizes(graph) == {"input_0": 2, "first": 3, "second": 4, "third": 3, "last": 2}
    assert (between(graph, "third", "first") == np.eye(3)).all()
    assert between(graph, "last", "third") == pytest.approx(pointwise(model, "last"))
    assert not between(graph, "last", "first").any()
    assert graph.edges == 2 * 3 + 3 * 4 + 4 * 3 + 3 + 3 * 2


def test_a_residual_merges_two_channels_into_the_earlier() -> None:
    model = residual()
    graph = graph_of(model, 2, 4, 4, residual="merge")
    assert sizes(graph) == {"input_0": 2, "first": 3, "second": 4, "last": 2}
    second, third = (pointwise(model, name) for name in ("second", "third"))
    assert between(graph, "second", "first") == pytest.approx(second + third.T)
    assert between(graph, "last", "first") == pytest.approx(pointwise(model, "last"))
    (both,) = (block for block in graph.blocks if len(block.names) == 2)
    assert both.names == ("second.weight", "third.weight")


def test_a_layer_that_is_added_to_what_it_reads_has_edges_inside_the_group() -> None:
    model = Model(lambda m, x: m.last((y := m.first(x)) + m.second(y)),
                  first=conv(2, 3), second=conv(3, 3), last=conv(3, 2))  # fmt: skip
    graph = graph_of(model, 2, 4, 4, residual="merge")
    assert sizes(graph) == {"input_0": 2, "first": 3, "last": 2}
    weights = pointwise(model, "second")
    np.fill_diagonal(weights, 0.0)  # an edge from a node to itself is no connection
    assert between(graph, "first", "first") == pytest.approx(weights + weights.T)
    assert dense(graph).diagonal().any() == False  # noqa: E712


def test_what_is_merged_in_part_keeps_its_channels_numbers() -> None:
    model = Model(
        lambda m, x: m.last(torch.cat([(z := m.second(y := m.first(x)))[:, :1],
                                       z[:, 1:3] + y[:, :2], z[:, 3:]], 1)),
        first=conv(2, 3), second=conv(3, 4), last=conv(4, 2),
    )  # fmt: skip
    graph = graph_of(model, 2, 4, 4, residual="merge")
    assert sizes(graph) == {"input_0": 2, "first": 3, "second": 2, "last": 2}
    assert graph.groups[2].channels == (0, 3)
    weights = pointwise(model, "last")
    assert between(graph, "last", "second") == pytest.approx(weights[:, [0, 3]])
    assert between(graph, "last", "first")[:, :2] == pytest.approx(weights[:, 1:3])


def test_a_sum_with_itself_or_a_constant_is_no_edge() -> None:
    model = middle(lambda x: x * torch.sigmoid(x) + x + torch.ones(6, 1, 1, dtype=x.dtype))
    for residuals in ("identity", "merge"):
        graph = graph_of(model, 2, 8, 8, residual=residuals)
        assert graph.edges == 12 + 18


def excited() -> Model:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        gate = torch.sigmoid(m.up(functional.relu(m.down(y.mean((2, 3), keepdim=True)))))
        return m.last(y * gate)

    return Model(body, first=conv(2, 6), down=conv(6, 2), up=conv(2, 6), last=conv(6, 3))


def test_a_squeeze_excite_gate_is_an_identity_or_merges() -> None:
    graph = graph_of(excited(), 2, 4, 4)
    assert (between(graph, "up", "first") == np.eye(6)).all()
    assert between(graph, "last", "up").all()
    assert not between(graph, "last", "first").any()
    merged = graph_of(excited(), 2, 4, 4, residual="merge")
    assert sizes(merged) == {"input_0": 2, "first": 6, "down": 2, "last": 3}


def attention(fused: bool) -> Model:
    def body(m: Any, x: Tensor) -> Tensor:
        heads = [part(x).unflatten(2, (2, 3)).transpose(1, 2) for part in (m.q, m.k, m.v)]
        if fused:
            mixed = functional.scaled_dot_product_attention(*heads)
        else:
            query, key, value = heads
            mixed = functional.softmax(query @ key.transpose(2, 3), dim=-1) @ value
        return m.out(mixed.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(4, 6) for name in "qkv"}
    return Model(body, **layers, out=nn.Linear(6, 4))


@pytest.mark.parametrize("fused", [False, True])
def test_attention_keeps_its_values_and_queries_and_keys_are_their_gate(fused: bool) -> None:
    model = attention(fused)
    graph = graph_of(model, 5, 4)
    (gate,) = (group for group in graph.groups if group.kind == "gate")
    assert (gate.size, graph.n, graph.hubs) == (2, 4 + 3 * 6 + 2 + 4, ())
    of_a_head = np.repeat(np.eye(2), 3, axis=1)
    for name in "qkv":
        assert (between(graph, gate.name, name) == of_a_head).all()
    assert between(graph, "out", "v") == pytest.approx(np.abs(weight_of(model, "out")))
    assert not any(between(graph, "out", name).any() for name in "qk")
    merged = graph_of(model, 5, 4, residual="merge")
    assert sizes(merged) == sizes(graph)


def test_a_map_for_all_channels_acts_on_each_and_is_none_of_them() -> None:
    """Spatial attention: the mean over channels is a gate, and so is softmax."""
    model = middle(lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)))
    soft = middle(lambda x: functional.softmax(x, dim=1))
    for one in (model, soft):
        graph = graph_of(one, 2, 4, 4)
        (gate,) = (group for group in graph.groups if group.kind == "gate")
        assert gate.size == 1
        assert (between(graph, gate.name, "before") == 1).all()
        assert between(graph, "after", "before").all()
        assert not between(graph, "after", gate.name).any()


def test_one_channel_of_a_layer_for_all_is_joined_to_each() -> None:
    model = Model(
        lambda m, x: m.last((y := m.first(x)) * torch.sigmoid(m.map(y))),
        first=conv(2, 5), map=conv(5, 1), last=conv(5, 2),
    )  # fmt: skip
    for residuals in ("identity", "merge"):
        graph = graph_of(model, 2, 4, 4, residual=residuals)
        weights = pointwise(model, "map")
        assert between(graph, "map", "first") == pytest.approx(weights + 1)
        assert between(graph, "last", "first").all()


def test_a_half_of_the_channels_times_the_other_is_joined_inside_the_group() -> None:
    model = middle(lambda x: functional.glu(x, dim=1), after=3)
    graph = graph_of(model, 2, 4, 4)
    halves = np.kron([[0, 1], [1, 0]], np.eye(3))
    assert (between(graph, "before", "before") == halves).all()
    assert between(graph, "after", "before")[:, 3:].all()
    merged = graph_of(model, 2, 4, 4, residual="merge")
    assert sizes(merged) == {"input_0": 2, "before": 3, "after": 3}
    assert merged.groups[1].channels == (0, 1, 2)


def test_a_mean_that_acts_on_n_channels_is_followed_in_n_entries() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.before(x)
        energy = y.square().mean((2, 3), keepdim=True)
        return m.after(y * (energy / energy.mean(1, keepdim=True)))

    n = 4096
    model = Model(body, before=conv(1, n), after=conv(n, 1))
    found, _ = contraction_of(traced(model, (1, 3, 3)))
    (gate,) = (group for group in found.groups if group.kind == "gate")
    assert gate.size == 1
    assert found.units[0].size < 10 * n


def test_a_weight_that_is_mixed_from_the_input_is_read_through_a_gate() -> None:
    model = Model(
        lambda m, x: functional.linear(m.fc(x), m.mixing(x).mean(0).view(5, 4)),
        fc=nn.Linear(6, 4),
        mixing=nn.Linear(6, 20),
    )
    graph = graph_of(model, 6)
    (gate,) = (group for group in graph.groups if group.kind == "gate")
    made = graph.groups[-1]
    assert (gate.size, made.size, made.kind) == (1, 5, "layer")
    assert (between(graph, made.name, gate.name) == 1).all()
    assert (between(graph, gate.name, "mixing") == 1).all()
    assert (between(graph, made.name, "fc") == 1).all()  # a weight for each pair, whatever it is


def test_a_table_that_a_layer_reads_is_a_constant_and_no_source() -> None:
    model = Model(
        lambda m, x: m.fc(x) + m.table_fc(m.table),
        fc=nn.Linear(4, 3), table_fc=nn.Linear(5, 3), table=nn.Parameter(torch.ones(1, 5)),
    )  # fmt: skip
    graph = graph_of(model, 4)
    (table,) = (group for group in graph.groups if group.kind == "constant")
    weights = np.abs(weight_of(model, "table_fc")).sum(1, keepdims=True)
    assert between(graph, "table_fc", table.name) == pytest.approx(weights)
    assert graph.sources.sum() == 4


def test_several_inputs_are_groups_of_their_own() -> None:
    model = Model(
        lambda m, x, y: m.a(x) + m.b(y), a=nn.Linear(3, 2), b=nn.Linear(5, 2)
    )  # fmt: skip
    network = n2nfx.trace(model, (torch.ones(2, 3), torch.ones(2, 5)))
    graph = n2nfx.channel_graph(network)
    assert [(group.name, group.kind) for group in graph.groups][:2] == [
        ("input_0", "input"),
        ("input_1", "input"),
    ]
    assert graph.sources.sum() == 8


# Hubs.


def hubbed() -> Model:
    return middle(lambda x: x.cumsum(1).sort(dim=1).values)


def test_an_operation_without_a_rule_is_a_named_node() -> None:
    model = hubbed()
    graph = graph_of(model, 2, 4, 4)
    hubs = [(group.name, group.size) for group in graph.groups if group.kind == "hub"]
    assert hubs == [("cumsum", 1), ("sort", 1)]
    assert graph.hubs == ("cumsum", "sort")
    assert (between(graph, "cumsum", "before") == 1).all()
    assert between(graph, "sort", "cumsum") == 1
    summed = pointwise(model, "after").sum(1, keepdims=True)
    assert between(graph, "after", "sort") == pytest.approx(summed)


def test_strict_refuses_hubs_by_name() -> None:
    with pytest.raises(n2nfx.CannotOperate, match="cumsum, sort"):
        graph_of(hubbed(), 2, 4, 4, strict=True)
    assert graph_of(excited(), 2, 4, 4, strict=True).hubs == ()


# Masks and values.


def masked() -> Network:
    model = nn.Sequential(conv(2, 6, 3), nn.ReLU(), conv(6, 4))
    network = traced(model, (2, 6, 6))
    generator = torch.Generator().manual_seed(3)
    masks = {
        layer.weight: torch.rand(layer.weight_shape, generator=generator) < 0.4
        for layer in network.layers
    }
    return replace(network, masks=Masks(masks))


@pytest.mark.parametrize("how", AGGREGATED)
def test_only_kept_entries_count_whether_masks_are_at_work_or_not(how: Any) -> None:
    network = masked()
    apart = n2nfx.channel_graph(network, how)
    kernel = network.module.get_parameter("0.weight").detach().numpy().reshape(6, 2, 9)
    kept = network.masks["0.weight"].numpy().reshape(6, 2, 9)
    expected = {
        "abs_sum": (np.abs(kernel) * kept).sum(-1),
        "l2": np.sqrt((kernel**2 * kept).sum(-1)),
        "count": kept.sum(-1),
        "binary": kept.any(-1),
    }
    assert between(apart, "0", "input") == pytest.approx(expected[how].astype(float))
    bind(network)
    bound = n2nfx.channel_graph(network, how)
    assert (dense(bound) == dense(apart)).all()
    baked = n2nfx.channel_graph(n2nfx.bake(network), how)
    assert (dense(baked) == dense(apart)).all()


def test_kept_weights_are_counted_exactly_also_where_some_are_zero() -> None:
    network = masked()
    with torch.no_grad():
        network.module.get_parameter("0.weight").zero_()
    graph = n2nfx.channel_graph(network, "count")
    assert total(graph) == network.nnz
    assert n2nfx.channel_graph(network).edges < graph.edges


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_kept_weight_that_is_not_finite_is_told_by_its_layer(value: float) -> None:
    network = masked()
    weight, mask = network.module.get_parameter("2.weight"), network.masks["2.weight"]
    with torch.no_grad():
        weight[~mask] = value
    assert n2nfx.channel_graph(network).edges
    with torch.no_grad():
        weight[mask] = value
    for how in ("abs_sum", "l2"):
        with pytest.raises(n2nfx.CannotOperate, match="weights of 2 are not all finite"):
            n2nfx.channel_graph(network, how)
    assert n2nfx.channel_graph(network, "count").edges


def test_a_weight_that_is_standardized_counts_as_it_is_used() -> None:
    """Also where the masks are not at work yet: what is standardized depends on them."""

    def body(m: Any, x: Tensor) -> Tensor:
        flat = m.weight.reshape(1, 5, -1)
        standard = functional.batch_norm(flat, None, None, training=True, momentum=0.0)
        return functional.conv2d(x, standard.reshape_as(m.weight))

    model = Model(body, weight=nn.Parameter(torch.ones(5, 2, 3, 3)))
    network = traced(model, (2, 6, 6))
    mask = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    network = replace(network, masks=Masks({"weight": mask}))
    apart = n2nfx.channel_graph(network)
    bind(network)
    assert (dense(n2nfx.channel_graph(network)) == dense(apart)).all()
    kept = np.ma.masked_array(
        model.get_parameter("weight").detach().numpy(), ~mask.numpy()
    ).reshape(5, 18)
    centred = kept - kept.mean(1, keepdims=True)
    used = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    expected = np.abs(used.filled(0.0)).reshape(5, 2, 9).sum(-1)
    assert between(apart, "weight", "input_0") == pytest.approx(expected)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_summed_up_in_double_precision(kind: torch.dtype) -> None:
    layer = nn.Conv2d(4, 3, 9, bias=False).to(kind)
    graph = n2nfx.channel_graph(n2nfx.trace(nn.Sequential(layer), torch.ones(2, 4, 9, 9).to(kind)))
    expected = layer.weight.detach().double().abs().sum((2, 3)).numpy()
    assert between(graph, "0", "input") == pytest.approx(expected, rel=1e-14)


def test_a_block_is_dense_above_a_quarter_of_fill_only() -> None:
    network = traced(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), (8,))
    few = torch.zeros(8, 8) > 0
    few[0] = few[1] = True  # a quarter
    graph = n2nfx.channel_graph(replace(network, masks=Masks({"0.weight": few})))
    assert [isinstance(block.weights, np.ndarray) for block in graph.blocks] == [False, True]
    assert all(shape_of(block.weights) == (8, 8) for block in graph.blocks)


def test_many_weights_are_brought_together_a_part_at_a_time(monkeypatch: Any) -> None:
    network = masked()
    whole = n2nfx.channel_graph(network)
    monkeypatch.setattr("n2nfx.connectivity.aggregates._ROOM", 7)
    assert (dense(n2nfx.channel_graph(network)) == dense(whole)).all()


def test_the_graph_knows_its_networks_densities_and_dead_channels() -> None:
    network = masked()
    found = n2nfx.connectivity.count_effective(network)
    graph = n2nfx.channel_graph(network)
    assert graph.density == network.density
    assert graph.effective_density == found.effective_density
    assert graph.dead_channels == found.dead_channels


# Skips.


CHAIN = (
    conv(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
    conv(8, 8, 3, bias=False, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
    conv(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
)  # fmt: skip


@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
@pytest.mark.parametrize("residuals", ["identity", "merge"])
def test_skips_add_edges_and_no_nodes(wiring: Any, residuals: Any) -> None:
    reference = traced(copy.deepcopy(nn.Sequential(*CHAIN)), (3, 8, 8))
    passes = [RandomPruning(density=0.3), N2NSkip(ratio=0.5, hops=(2, 3), wiring=wiring)]
    network = n2nfx.Pipeline(passes)(reference, seed=1).network
    assert network.skips
    dense_graph = n2nfx.channel_graph(reference, "count", residuals)
    graph = n2nfx.channel_graph(network, "count", residuals)
    assert difference(dense_graph, graph) is None
    assert graph.n == 3 + 8 + 8 + 8 + 4
    assert total(graph) == network.nnz
    for skip in network.skips:
        source = "input" if skip.source == "input" else skip.source
        kept = network.masks[skip.weight].numpy()
        counts = kept.reshape(*kept.shape[:2], -1).sum(-1)
        assert (between(graph, skip.target, source) == counts).all()
        assert any(skip.weight in block.names for block in graph.blocks)


def test_a_layer_or_skip_that_keeps_nothing_has_no_edges() -> None:
    reference = traced(copy.deepcopy(nn.Sequential(*CHAIN)), (3, 8, 8))
    passes = [RandomPruning(density=0.3), N2NSkip(ratio=0.5, hops=(2, 3))]
    network = n2nfx.Pipeline(passes)(reference, seed=1).network
    n = n2nfx.channel_graph(network).n
    state = network.module.state_dict()
    network.module.load_state_dict(
        {name: torch.zeros_like(v) if v.dtype == torch.bool else v for name, v in state.items()}
    )
    empty = n2nfx.channel_graph(network)
    assert (empty.n, empty.edges) == (n, 0)


def test_a_residual_skip_is_an_identity() -> None:
    model = nn.Sequential(conv(6, 8), nn.ReLU(), conv(8, 5), nn.ReLU(), conv(5, 7), nn.ReLU())
    network = n2nfx.Pipeline([ResSkip(hops=(2,))])(traced(model, (6, 4, 4)), seed=0).network
    graph = n2nfx.channel_graph(network)
    assert sizes(graph) == {"input": 6, "0": 8, "2": 5, "4": 7}
    skips = [block for block in graph.blocks if not block.names]
    assert skips
    for block in skips:
        assert isinstance(block.weights, sparse.csr_array)
        assert (block.weights.toarray() == np.eye(*shape_of(block.weights))).all()


def test_a_branch_that_is_no_part_of_a_sum_has_nodes_after_all() -> None:
    """It meets no channels that its weights could lead to."""
    network = traced(nn.Sequential(conv(2, 3), conv(3, 4, bias=False), conv(4, 2)), (2, 4, 4))
    first, second, third = network.layers
    skip = Skip(
        name="1", kind="conv", source="0", target="2", hop=1, weight_shape=second.weight_shape,
        stride=(1, 1), padding=(0, 0), pool=None, at="norm", inner=False, branch_norm=False,
        nnz=12, places=(4, 4),
    )  # fmt: skip
    graph = n2nfx.channel_graph(replace(network, layers=(first, third), skips=(skip,)))
    assert sizes(graph) == {"input": 2, "0": 3, "gate of 1.weight": 4, "2": 2}
    weights = pointwise(network.module, "1")
    assert between(graph, "gate of 1.weight", "0") == pytest.approx(weights)
    assert between(graph, "2", "gate of 1.weight").all()


# Graphs of the whole.


def test_vgg19_has_5517_nodes_and_an_edge_for_every_kernel() -> None:
    built = build("n2nfx:vgg19_cifar")
    network = n2nfx.trace(built.module, built.example)
    graph = n2nfx.channel_graph(network, "count")
    assert graph.n == 5517
    assert graph.edges == sum(
        layer.weight_shape[0] * layer.weight_shape[1] for layer in network.layers
    )
    assert total(graph) == network.nnz
    assert [block.names for block in graph.blocks] == [(one.weight,) for one in network.layers]


def test_resnet50_has_26573_nodes_and_identities_for_its_residuals() -> None:
    built = build("n2nfx:resnet50_cifar")
    network = n2nfx.trace(built.module, built.example)
    graph = n2nfx.channel_graph(network, "count", strict=True)
    assert graph.n == 26573 == 3 + 26560 + 10
    identities = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048
    weights = sum(layer.weight_shape[0] * layer.weight_shape[1] for layer in network.layers)
    assert graph.edges == weights + identities
    assert total(graph) == network.nnz + identities
    merged = n2nfx.channel_graph(network, "count", "merge")
    assert merged.n == 26573 - identities


def test_the_graph_that_runs_more_layers_is_taken() -> None:
    model = Model(
        lambda m, x: (m.head(y := m.stem(x)), m.auxiliary(y)) if m.training else m.head(m.stem(x)),
        stem=conv(3, 4), head=conv(4, 2), auxiliary=conv(4, 5),
    )  # fmt: skip
    network = n2nfx.trace(model, torch.ones(2, 3, 4, 4))
    assert sizes(n2nfx.channel_graph(network)) == {
        "input_0": 3,
        "stem": 4,
        "head": 2,
        "auxiliary": 5,
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weight": "abs_sums"}, "did you mean abs_sum"),
        ({"residual": "merged"}, "did you mean merge"),
        ({"weight": "sum"}, "weight must be one of .* no weight is signed, or the Laplacian"),
    ],
)
def test_an_unknown_option_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(n2nfx.UsageError, match=told):
        graph_of(conv(2, 2), 2, 4, 4, **options)


def test_a_graph_without_shapes_is_refused() -> None:
    network = traced(nn.Sequential(conv(2, 3)), (2, 4, 4))
    for node in network.module.graph.nodes:
        node.meta.clear()
    with pytest.raises(n2nfx.CannotOperate, match="trace"):
        n2nfx.channel_graph(network)


def test_what_differs_between_two_networks_is_told() -> None:
    one, same, other = (
        graph_of(nn.Sequential(conv(2, out)), 2, 4, 4, weight=how)
        for out, how in ((3, "abs_sum"), (3, "abs_sum"), (4, "abs_sum"))
    )
    assert difference(one, same) is None
    assert difference(one, other) == (
        "group 1 of one is the layer '0' of 3 nodes, of the other the layer '0' of 4 nodes"
    )
    more = layered([2, 3, 1], [])
    assert difference(layered([2, 3], []), more) == (
        "group 2 of one is missing, of the other the layer 'layer2' of 1 nodes"
    )
    renamed = replace(one, groups=(replace(one.groups[0], name="image"), *one.groups[1:]))
    assert difference(one, renamed) is None
    squares = graph_of(nn.Sequential(conv(2, 3)), 2, 4, 4, weight="l2")
    assert difference(one, squares) == "one has weight='abs_sum', the other weight='l2'"
    folded = graph_of(nn.Sequential(conv(2, 3)), 2, 4, 4, fold_norms=True)
    assert difference(one, folded) == "one has fold_norms=False, the other fold_norms=True"


# Against what moves.


# Where channels meet others of their own layer, the graph's edges lead further than the values go.
WIDER = ("gate", "tokens", "glu", "lower rank", "where", "biased attention")


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_graph_leads_to_exactly_the_channels_that_move(name: str) -> None:
    model = Model(
        lambda m, x: m.after(OPERATIONS[name](m.before(x))),
        before=conv(6, 12, 3, bias=False),
        after=conv(12, 5, bias=False),
    )
    network = thinned(model, torch.ones(2, 6, 8, 8))
    x = torch.rand(2, 6, 8, 8, generator=torch.Generator().manual_seed(1)).double() + 0.5
    (before,) = (layer for layer in network.layers if layer.name == "before")
    found = list(probes(network, x, [(before, channel) for channel in range(12)]))
    assert len(found) == 12
    assert all(probe.moved <= probe.reached for probe in found)
    if name not in WIDER:
        assert all(probe.moved == probe.reached for probe in found)


EXACT = ("n2nfx:vgg19_cifar", "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5")
SMALL = ("timm:seresnet18", "timm:mobilevitv2_050", "timm:deit_tiny_patch16_224")


@pytest.mark.parametrize("name", [*EXACT, *SMALL])
def test_what_moves_in_a_network_is_what_its_graph_leads_to(name: str) -> None:
    check(name, starts=2, exact=name in EXACT)


MORE_EXACT = (
    "n2nfx:resnet50_cifar", "torchvision:alexnet", "torchvision:densenet121",
    "torchvision:googlenet", "torchvision:inception_v3", "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v2", "torchvision:regnet_x_400mf", "torchvision:resnext50_32x4d",
    "torchvision:squeezenet1_1", "timm:convmixer_768_32", "timm:cspresnet50", "timm:dla34",
    "timm:hrnet_w18_small", "timm:poolformer_s12", "timm:repvgg_a0", "timm:selecsls42",
    "timm:vovnet39a",
)  # fmt: skip
FAMILIES = (Path(__file__).parent / "zoo" / "families.txt").read_text().split()
NOT_PROBED = {
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": "how many boxes there are is no channel",
    "torchvision:ssdlite320_mobilenet_v3_large": "how many boxes there are is no channel",
    "torchvision:raft_small": "it makes tensors in single precision, and so cannot run in double",
    "timm:gemma4_vit_167m": "768 x 768 in double precision takes over 9 GB, and minutes a start",
    "timm:deepseek_vit_412m": "its weights in double precision take 3.3 GB, and each copy as much",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*MORE_EXACT, *FAMILIES} - NOT_PROBED.keys()))
def test_what_moves_in_any_family_is_what_its_graph_leads_to(name: str) -> None:
    check(name, starts=3, exact=name in MORE_EXACT)


def check(name: str, starts: int, exact: bool) -> None:
    """Perturb a channel of some layers of a model: what moves is what the graph leads to, or less.

    Gates let a graph lead further than values go, and so does what saturates.
    """
    built = build(name)
    assert isinstance(built.example, Tensor)
    network = thinned(built.module, built.example)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, *built.example.shape[1:], generator=generator).double() + 0.5
    layers = once_called(network)
    order = [layers[at] for at in torch.randperm(len(layers), generator=generator).tolist()]
    chosen = [(layer, min(1, layer.weight_shape[0] - 1)) for layer in order]
    found: list[Probe] = []
    while chosen and not any(probe.moved for probe in found):  # a dead layer shows nothing
        found += probes(network, x, chosen[:starts])
        del chosen[:starts]
    assert any(probe.moved for probe in found)
    assert all(probe.moved <= probe.reached for probe in found)
    if exact:
        assert all(probe.moved == probe.reached for probe in found)
