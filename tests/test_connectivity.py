"""Effective weights and dead channels: against real changes, against paths, and on real networks.

The oracle: in a network of positive weights on a positive input, where more in is more out, a
kept weight lies on a path exactly where what it reads changes with the input, and the output with
what it writes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import OPERATIONS, deep_index, shuffled, through_a_view
from samples import Model
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.bind import bind, unbind
from n2nfx.connectivity import Effective, count_effective
from n2nfx.connectivity.channels import channel_map
from n2nfx.connectivity.relations import Pairs
from n2nfx.masks import Masks
from n2nfx.models import build
from n2nfx.network import Layer, Network
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip

SHAPE = (6, 8, 8)


def conv(into: int, out: int, kernel: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False, **settings)


def linear(into: int, out: int) -> nn.Linear:
    return nn.Linear(into, out, bias=False)


def traced(model: nn.Module, shape: Sequence[int] = SHAPE) -> Network:
    """A network of positive weights, in double precision."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    model = model.double().eval()
    return n2nfx.trace(model, torch.ones(2, *shape, dtype=torch.float64))


def pruned(network: Network, density: float, seed: int = 0) -> Network:
    """The network with every weight kept or dropped by chance."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        layer.weight: torch.rand(layer.weight_shape, generator=generator) < density
        for layer in network.layers
    }
    return replace(network, masks=Masks(masks))


class Seen(NamedTuple):
    """What a layer's module read and gave in one run of its network."""

    read: Tensor
    gave: Tensor


def watched(module: nn.Module, layers: Iterable[Layer], x: Tensor) -> tuple[Any, dict[str, Seen]]:
    """The network's output, and what every layer saw."""
    seen: dict[str, Seen] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = Seen(inputs[0].detach(), output)

        return keep

    handles = [
        module.get_submodule(layer.name).register_forward_hook(hook(layer.name)) for layer in layers
    ]
    result = module(x)
    for handle in handles:
        handle.remove()
    return result, seen


def by_change(network: Network, shape: Sequence[int] = SHAPE) -> list[tuple[str, int, int]]:
    """Name, effective weights and dead channels of every layer: modules that are called once."""
    module = n2nfx.bake(network).module
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(2, *shape, generator=generator, dtype=torch.float64) + 0.5
    _, before = watched(module, network.layers, low)
    result, after = watched(module, network.layers, 2 * low)
    loss = (result * torch.rand(result.shape, generator=generator)).sum()
    outputs = [after[layer.name].gave for layer in network.layers]
    slopes = torch.autograd.grad(loss, outputs, materialize_grads=True)
    rows = []
    for layer, slope in zip(network.layers, slopes, strict=True):
        change = after[layer.name].read - before[layer.name].read
        own = module.get_submodule(layer.name)
        (paths,) = torch.autograd.grad(own(change), own.get_parameter("weight"), slope)
        kept = network.masks.get(layer.weight, torch.ones(layer.weight_shape, dtype=torch.bool))
        axis = 1 if layer.kind == "conv" else slope.dim() - 1
        rest = [dim for dim in range(slope.dim()) if dim != axis]
        changed = (after[layer.name].gave - before[layer.name].gave != 0).sum(rest).bool()
        dead = ~(changed & (slope != 0).sum(rest).bool())
        rows.append((layer.name, int(((paths != 0) & kept).sum()), int(dead.sum())))
    return rows


def counted(network: Network) -> list[tuple[str, int, int]]:
    return [(row.name, row.effective, row.dead) for row in count_effective(network).layers]


# Against brute force.


@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    density=st.floats(0.1, 1.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_weight_is_effective_where_some_path_goes_over_it(
    widths: list[int], density: float, seed: int
) -> None:
    model = nn.Sequential(*(linear(*ends) for ends in pairwise(widths)))
    network = pruned(traced(model, (widths[0],)), density, seed)
    masks = [network.masks[layer.weight] for layer in network.layers]
    used = [torch.zeros_like(mask) for mask in masks]
    for path in product(*map(range, widths)):
        steps = list(pairwise(path))
        if all(mask[to, at] for mask, (at, to) in zip(masks, steps, strict=True)):
            for mask, (at, to) in zip(used, steps, strict=True):
                mask[to, at] = True
    rows = count_effective(network).layers
    assert [row.effective for row in rows] == [int(mask.sum()) for mask in used]
    assert [row.dead for row in rows] == [int((~mask.any(dim=1)).sum()) for mask in used]


def test_one_dead_channel_by_hand() -> None:
    network = traced(nn.Sequential(conv(6, 3), nn.ReLU(), conv(3, 2)))
    first, second = torch.ones(3, 6, 1, 1) > 0, torch.ones(2, 3, 1, 1) > 0
    first[1] = False  # nothing leads to channel 1, which both outputs read
    found = count_effective(replace(network, masks=Masks({"0.weight": first, "2.weight": second})))
    assert [(row.kept, row.effective, row.channels, row.dead) for row in found.layers] == [
        (12, 12, 3, 1),
        (6, 4, 2, 0),
    ]
    assert (found.effective_nnz, found.dead_channels, found.channels) == (16, 1, 5)
    assert found.effective_density == 16 / 24
    assert found.connected


def test_a_channel_that_nobody_reads_is_dead() -> None:
    network = traced(nn.Sequential(conv(6, 3), conv(3, 2)))
    second = torch.ones(2, 3, 1, 1) > 0
    second[:, 2] = False
    found = count_effective(replace(network, masks=Masks({"1.weight": second})))
    assert [(row.kept, row.effective, row.dead) for row in found.layers] == [(18, 12, 1), (4, 4, 0)]


def test_a_network_that_is_cut_has_no_effective_weight() -> None:
    network = traced(nn.Sequential(conv(6, 3), conv(3, 3), conv(3, 2)))
    found = count_effective(
        replace(network, masks=Masks({"1.weight": torch.zeros(3, 3, 1, 1) > 0}))
    )
    assert not found.connected
    assert found.empty_layers == ("1",)
    assert (found.effective_nnz, found.effective_density) == (0, 0.0)
    assert found.dead_channels == found.channels == 8


# Against what changes: every operation that has a rule, between two sparse layers.


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("density", [0.1, 0.3])
def test_an_operation_joins_exactly_the_channels_that_move_each_other(
    name: str, density: float
) -> None:
    model = Model(
        lambda m, x: m.after(OPERATIONS[name](m.before(x))),
        before=conv(6, 12, 3),
        after=conv(12, 5),
    )
    network = pruned(traced(model), density)
    assert counted(network) == by_change(network)
    assert count_effective(network).hubs == ()


LAYERS: dict[str, nn.Module] = {
    "grouped": conv(12, 12, 3, groups=3),
    "depthwise": conv(12, 12, 3, groups=12),
    "depthwise multiplier": conv(12, 24, groups=12),
    "strided": conv(12, 12, 3, stride=2),
    "transposed": nn.ConvTranspose2d(12, 9, 3, bias=False),
    "transposed groups": nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4, bias=False),
    "one channel": nn.Sequential(conv(12, 1), conv(1, 12)),
    "flatten": nn.Sequential(nn.Flatten(), linear(12 * 64, 7), nn.Unflatten(1, (7, 1, 1))),
    "pixel shuffle": nn.Sequential(conv(12, 12), nn.PixelShuffle(2), conv(3, 4)),
    "upsample": nn.Sequential(nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(3), conv(12, 4)),
    "norms": nn.Sequential(nn.BatchNorm2d(12), nn.Dropout2d(), nn.ZeroPad2d(1), conv(12, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("density", [0.15, 0.5])
def test_every_kind_of_layer_joins_what_its_kept_weights_join(name: str, density: float) -> None:
    middle = LAYERS[name]
    with torch.no_grad():
        wide = middle(torch.ones(1, 12, 8, 8, dtype=next(middle.parameters()).dtype)).shape[1]
    network = traced(nn.Sequential(conv(6, 12), middle, conv(wide, 4)))
    network = pruned(network, density)
    assert counted(network) == by_change(network)
    assert count_effective(network).hubs == ()


def test_a_squeeze_that_would_take_a_batch_of_one_along_is_followed() -> None:
    squeezed = Model(
        lambda m, x: m.after(m.before(x).mean((2, 3), keepdim=True).squeeze()),
        before=conv(6, 12),
        after=linear(12, 5),
    )
    network = pruned(traced(squeezed), 0.2)
    assert counted(network) == by_change(network)
    assert count_effective(network).hubs == ()


def test_tokens_and_one_and_three_dimensional_maps() -> None:
    one = nn.Sequential(nn.Conv1d(6, 8, 3, bias=False), nn.Conv1d(8, 4, 1, bias=False))
    three = nn.Sequential(
        nn.Conv3d(2, 6, 2, bias=False), nn.AvgPool3d(2), nn.Conv3d(6, 3, 1, bias=False)
    )
    tokens = nn.Sequential(linear(6, 9), nn.ReLU(), linear(9, 4))
    for model, shape in ((one, (6, 9)), (three, (2, 6, 6, 6)), (tokens, (5, 6))):
        network = pruned(traced(model, shape), 0.2)
        assert counted(network) == by_change(network, shape)
        assert count_effective(network).hubs == ()


BLOCKS = ("conv", "grouped", "residual", "concat", "gate", "shuffle", "crop", "branches")


class Random(nn.Module):
    """A convolutional network of blocks drawn at random; every block reads and writes 8 maps."""

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.stem = conv(6, 8)
        self.first = nn.ModuleList(
            conv(8, 8, 3, groups=4 if block == "grouped" else 1) for block in blocks
        )
        self.second = nn.ModuleList(conv(16 if b == "concat" else 8, 8) for b in blocks)
        self.head = linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, first, second in zip(self.blocks, self.first, self.second, strict=True):
            x = self.run(block, first, second, x)
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))

    def run(self, block: str, first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        y = first(x)
        if block == "residual":
            return x + second(functional.relu(y))
        if block == "concat":
            return second(torch.cat([x, y], dim=1))
        if block == "gate":
            return (x + 1) * (second(y.mean((2, 3), keepdim=True)) + 1)
        if block == "shuffle":
            return second(y.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2))
        if block == "crop":
            return second(functional.pad(y[:, 2:], (0, 0, 0, 0, 0, 2)))
        if block == "branches":
            left, right = y.chunk(2, 1)
            return torch.cat([right, left], 1) + second(x)
        return second(y)


random_networks = st.tuples(
    st.lists(st.sampled_from(BLOCKS), max_size=4), st.floats(0.05, 0.7), st.integers(0, 10_000)
)


@given(random_networks)
@settings(max_examples=40, deadline=None)
def test_random_networks_agree_with_what_changes_in_them(
    drawn: tuple[list[str], float, int],
) -> None:
    blocks, density, seed = drawn
    network = pruned(traced(Random(blocks)), density, seed)
    assert counted(network) == by_change(network)


@given(random_networks, st.floats(0.1, 0.9))
@settings(max_examples=20, deadline=None)
def test_more_weights_never_mean_less_reach(
    drawn: tuple[list[str], float, int], share: float
) -> None:
    blocks, density, seed = drawn
    more = pruned(traced(Random(blocks)), density, seed)
    dropped = pruned(more, share, seed + 1).masks
    less = replace(more, masks=Masks({name: m & dropped[name] for name, m in more.masks.items()}))
    for low, high in zip(counted(less), counted(more), strict=True):
        assert low[1] <= high[1]
        assert low[2] >= high[2]


# Upper bounds: what is not followed never makes less of the network than there is.


def test_what_is_empty_depends_on_nothing() -> None:
    model = Model(
        lambda m, x: m.after(torch.cat([m.before(x), x[:, :0]], 1)), before=conv(6, 4),
        after=conv(4, 2),
    )  # fmt: skip
    network = pruned(traced(model), 0.5)
    assert counted(network) == by_change(network)


HUBS: dict[str, Callable[[Tensor], Tensor]] = {
    "einsum": lambda x: torch.einsum("bchw->bhcw", x).movedim(1, 2) + x.flip(1),
    "numbers that cannot be moved": lambda x: (
        x.float().view(torch.int32).view(torch.float32).to(torch.float64)
    ),
    "sort": lambda x: x.sort(dim=1).values,
    "gather": lambda x: x[:, x.mean((0, 2, 3)).argsort()],
    "deep index": deep_index,
    "view": through_a_view,
    "windows of channels": lambda x: (
        functional.avg_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1)
        .transpose(1, 2)
        .unflatten(2, (8, 8))
    ),
}


@pytest.mark.parametrize("name", HUBS)
def test_an_operation_without_a_rule_is_told_and_never_understates(name: str) -> None:
    model = Model(
        lambda m, x: m.after(HUBS[name](m.before(x))), before=conv(6, 12), after=conv(12, 5)
    )
    network = pruned(traced(model), 0.3)
    found = count_effective(network)
    assert found.hubs
    for (_, low, dead), row in zip(by_change(network), found.layers, strict=True):
        assert row.effective >= low
        assert row.dead <= dead


def test_a_convolution_over_the_channels_themselves_is_an_upper_bound() -> None:
    model = Model(
        lambda m, x: m.after(m.over(m.before(x).mean((2, 3))[:, None])[:, 0]),
        before=conv(6, 12),
        over=nn.Conv1d(1, 1, 3, padding=1, bias=False),
        after=linear(12, 5),
    )
    network = pruned(traced(model), 0.4)
    found = count_effective(network)
    assert found.hubs == ("over",)
    for (_, low, dead), row in zip(by_change(network), found.layers, strict=True):
        assert row.effective >= low
        assert row.dead <= dead


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.cat([x, x.roll(1, 1)], dim=2),
        lambda x: functional.pad(x, (1, 1, 1, 1)),
        lambda x: torch.cat([torch.ones_like(x)[:, :, :1], x], dim=2),
    ],
    ids=["tokens", "padding", "a learned token"],
)
def test_places_are_not_mistaken_for_channels(operation: Callable[[Tensor], Tensor]) -> None:
    model = Model(
        lambda m, x: m.after(operation(m.before(x))), before=conv(6, 12), after=conv(12, 5)
    )
    assert max(channel_map(traced(model)).sizes) == 12


def test_what_every_block_moves_alike_is_followed_once() -> None:
    def moves(blocks: int) -> int:
        """Different ones that the links of so many blocks have."""
        many = nn.Sequential(
            *(Model(lambda m, x: shuffled(m.one(x)), one=conv(12, 12)) for _ in range(blocks))
        )
        links = channel_map(traced(many, (12, 8, 8))).links
        assert len(links) == 2 * blocks
        return len({id(link.relation) for link in links if isinstance(link.relation, Pairs)})

    assert moves(1) == moves(5) == 1


def test_a_module_that_is_called_whole_is_a_hub_by_its_path() -> None:
    model = Model(
        lambda m, x: m.after(m.lstm(x)[0]), lstm=nn.LSTM(6, 8, batch_first=True), after=linear(8, 3)
    )
    found = count_effective(pruned(n2nfx.trace(model, torch.ones(1, 5, 6)), 0.5))
    assert found.hubs == ("lstm",)
    assert found.effective_nnz == sum(row.kept for row in found.layers)


# Weights by whatever way they are used.


def test_a_tied_weight_is_effective_where_any_of_its_calls_makes_it_so() -> None:
    model = Model(
        lambda m, x: m.fc(x)[:, :2] @ torch.ones(2, 4, dtype=x.dtype) + x, fc=linear(4, 4)
    )
    twice = Model(lambda m, x: m.fc(m.fc(x)[:, :2].repeat(1, 2)), fc=linear(4, 4))
    once = count_effective(traced(model, (4,))).layers[0]
    both = count_effective(traced(twice, (4,))).layers[0]
    assert (once.effective, once.channels, once.dead) == (8, 4, 2)
    assert (both.effective, both.channels, both.dead) == (16, 4, 0)
    last = Model(lambda m, x: m.fc(m.fc(x))[:, :2], fc=linear(4, 4))
    assert count_effective(traced(last, (4,))).layers[0].effective == 16


def test_a_weight_that_a_function_uses_is_masked_as_any_other() -> None:
    model = Model(
        lambda m, x: functional.linear(functional.conv1d(x, m.kernel).flatten(1), m.matrix),
        kernel=nn.Parameter(torch.ones(4, 6, 1)),
        matrix=nn.Parameter(torch.ones(3, 8)),
    )
    network = traced(model, (6, 2))
    kernel = torch.ones(4, 6, 1) > 0
    kernel[0] = False
    found = count_effective(replace(network, masks=Masks({"kernel": kernel})))
    assert [(row.name, row.effective, row.dead) for row in found.layers] == [
        ("kernel", 18, 1),
        ("matrix", 18, 0),
    ]


def test_parts_of_one_weight_are_counted_apart() -> None:
    """As attention does with its three projections."""

    def body(m: Any, x: Tensor) -> Tensor:
        first, second = m.matrix.transpose(0, 1).split([3, 5], dim=1)
        return functional.linear(
            functional.linear(x, first.transpose(0, 1)), second[:3].transpose(0, 1)
        )

    network = traced(Model(body, matrix=nn.Parameter(torch.ones(8, 6))), (6,))
    layer = Layer("matrix", "linear", "matrix", (8, 6), (6,), (3,), 1)
    mask = torch.ones(8, 6) > 0
    mask[1] = False  # one of the three that the second part reads
    mask[3, 0] = False
    network = replace(network, layers=(layer,), masks=Masks({"matrix": mask}))
    (row,) = count_effective(network).layers
    assert (row.kept, row.channels, row.dead) == (41, 3 + 5, 1)
    assert row.effective == 2 * 6 + (5 * 2 - 1)
    bind(network)
    assert count_effective(network).layers == (row,)


def test_a_weight_that_is_computed_is_masked_as_any_other() -> None:
    model = Model(
        lambda m, x: functional.linear(x, m.matrix * m.gain),
        matrix=nn.Parameter(torch.ones(5, 6)),
        gain=nn.Parameter(torch.ones(5, 1)),
    )
    network = traced(model, (6,))
    layer = Layer("matrix", "linear", "matrix", (5, 6), (6,), (5,), 1)
    mask = torch.ones(5, 6) > 0
    mask[1] = False
    found = count_effective(replace(network, layers=(layer,), masks=Masks({"matrix": mask})))
    assert [(r.effective, r.channels, r.dead) for r in found.layers] == [(24, 5, 1)]


def test_a_weight_that_is_mixed_from_the_input_leads_from_there() -> None:
    model = Model(
        lambda m, x: functional.linear(m.fc(x), m.mixing(x).mean(0).view(5, 4)),
        fc=linear(6, 4),
        mixing=linear(6, 20),
    )
    network = traced(model, (6,))
    assert count_effective(network).effective_nnz == 6 * 4 + 6 * 20


def test_a_layer_inside_a_module_that_is_called_whole_counts_as_effective() -> None:
    network = traced(nn.Sequential(conv(6, 3), conv(3, 2)))
    hidden = Layer("hidden", "linear", "2.weight", (4, 5), (5,), (4,), 1)
    network.module.add_module("2", linear(5, 4))
    found = count_effective(replace(network, layers=(*network.layers, hidden)))
    assert (found.layers[2].kept, found.layers[2].effective, found.layers[2].channels) == (
        20,
        20,
        0,
    )
    cut = replace(
        network,
        layers=(*network.layers, hidden),
        masks=Masks({"1.weight": torch.zeros(2, 3, 1, 1) > 0}),
    )
    assert count_effective(cut).effective_nnz == 0


@dataclass
class Case:
    """What a model may give its outputs in."""

    all: Any


def test_what_is_given_in_a_case_is_an_output() -> None:
    model = Model(
        lambda m, x: {"maps": [m.first(x)], "more": (m.second(x), None)},
        first=conv(6, 3),
        second=conv(6, 2),
    )
    network = traced(model)
    found = count_effective(network)
    assert (found.effective_nnz, found.dead_channels) == (30, 0)
    graph = network.module.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        case = graph.call_function(Case, (), {"all": output.args[0]})
    case.meta.update(spec=None, scope="")
    output.args = (case,)
    assert count_effective(network) == found


def test_shapes_that_are_known_for_one_batch_only_will_do() -> None:
    network = pruned(traced(nn.Sequential(conv(6, 8), nn.PixelShuffle(2), conv(2, 3))), 0.3)
    found = count_effective(network)
    for node in network.module.graph.nodes:
        if node.op != "output":
            node.meta["spec"] = (node.meta["spec"][1],) * 2
    assert count_effective(network) == found


def test_what_reads_a_learned_table_reads_an_input() -> None:
    model = Model(
        lambda m, x: m.fc(x) + m.table_fc(m.table),
        fc=linear(4, 3),
        table_fc=linear(5, 3),
        table=nn.Parameter(torch.ones(1, 5)),
    )
    network = traced(model, (4,))
    assert count_effective(network).effective_nnz == network.size


def test_masks_at_work_in_the_module_make_no_difference() -> None:
    model = Model(
        lambda m, x: functional.conv2d(m.first(x), m.kernel).mean((2, 3)),
        first=conv(6, 8),
        kernel=nn.Parameter(torch.ones(4, 8, 1, 1)),
    )
    outcome = n2nfx.Pipeline([RandomPruning(density=0.2)])(traced(model), seed=3)
    apart = replace(traced(model), masks=outcome.network.masks)
    assert counted(outcome.network) == counted(apart)
    assert count_effective(outcome.network).effective_nnz < outcome.network.size


def test_a_graph_without_shapes_is_refused() -> None:
    network = traced(nn.Sequential(conv(6, 3)))
    for node in network.module.graph.nodes:
        node.meta.clear()
    with pytest.raises(n2nfx.CannotOperate, match="trace"):
        count_effective(network)


# Skips.


@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
def test_skips_raise_reach_or_leave_it(wiring: Any) -> None:
    model = nn.Sequential(
        conv(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), conv(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), linear(8, 4),
    )  # fmt: skip
    passes = [RandomPruning(density=0.06), N2NSkip(ratio=0.5, hops=(2, 3), wiring=wiring)]
    network = n2nfx.Pipeline(passes)(traced(model), seed=1).network
    silent = {skip.weight: torch.zeros(skip.weight_shape) > 0 for skip in network.skips}
    with_skips = count_effective(network)
    unbind(network.module)
    without = count_effective(replace(network, masks=Masks({**network.masks, **silent})))
    assert sum(row.effective for row in without.skips) == 0
    assert sum(row.effective for row in with_skips.skips) > 0
    assert with_skips.effective_nnz <= network.nnz
    pairs = list(zip(with_skips.layers, without.layers, strict=True))
    assert all(a.effective >= b.effective and a.dead <= b.dead for a, b in pairs)
    assert any(a.effective > b.effective for a, b in pairs)
    assert with_skips.hubs == ()


def test_a_residual_skip_carries_channels_past_an_empty_layer() -> None:
    model = nn.Sequential(conv(6, 8), nn.ReLU(), conv(8, 5), nn.ReLU(), conv(5, 7), nn.ReLU())
    network = n2nfx.Pipeline([ResSkip(hops=(2,))])(traced(model), seed=0).network
    empty = Masks({"2.weight": torch.zeros(5, 8, 1, 1) > 0})
    found = count_effective(replace(network, masks=empty))
    assert found.connected
    assert found.empty_layers == ("2",)
    assert found.layers[2].effective == 7 * 5  # the input's first five of six channels come by
    assert found.skips == ()


# The rules on real networks: nothing is missing where nothing was pruned.


@pytest.mark.parametrize(
    "name",
    [
        *("n2nfx:vgg19_cifar", "torchvision:resnet18", "torchvision:densenet121"),
        *("torchvision:mobilenet_v3_small", "torchvision:efficientnet_b0"),
        *("torchvision:shufflenet_v2_x1_0", "torchvision:convnext_tiny"),
        *("torchvision:vit_b_32", "torchvision:swin_t", "timm:resnest14d"),
    ],
)
def test_a_dense_network_is_all_effective_and_followed_channel_by_channel(name: str) -> None:
    model = build(name)
    network = n2nfx.trace(model.module, model.example)
    found = count_effective(network)
    assert found.effective_nnz == network.size
    assert found.dead_channels == 0
    assert found.connected
    assert found.hubs == ()


def test_vgg19_has_the_5517_channels_of_the_paper_but_the_inputs_three() -> None:
    model = build("n2nfx:vgg19_cifar")
    assert count_effective(n2nfx.trace(model.module, model.example)).channels == 5517 - 3


def test_an_empty_ledger_is_all_effective() -> None:
    assert Effective((), (), 0, True, ()).effective_density == 1.0
