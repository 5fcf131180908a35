"""Chains, hops, legal pairs and refusals."""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import prod
from typing import Literal

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Model
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import UsageError
from n2nfx.models import build
from n2nfx.network import Network
from n2nfx.sites import Sites
from n2nfx.wiring import Branches, Options, find_branches

eq_2 = partial(Options, wiring="paper")


def network(*layers: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> Network:
    return n2nfx.trace(nn.Sequential(*layers), torch.zeros(1, *shape))


def conv(into: int, out: int, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(into, out, kernel, stride, padding=(kernel - 1) // 2), nn.ReLU()


def ends(branches: Branches) -> list[tuple[str, str]]:
    return [(skip.source, skip.target) for skip in branches.skips]


def test_the_input_is_layer_zero_and_every_pair_of_the_hop_is_there() -> None:
    branches = find_branches(build_mlp(), eq_2(hops=(3,)))
    assert ends(branches) == [("input", "4"), ("0", "6")]
    assert [skip.weight_shape for skip in branches.skips] == [(128, 3072), (64, 512)]
    assert [skip.inner for skip in branches.skips] == [True, False]


def build_mlp() -> Network:
    return n2nfx.trace(build("n2nfx:mlp").module, torch.zeros(1, 3072))


@pytest.mark.parametrize("hop", [1, 2, 3, 4, 5])
def test_a_chain_of_n_layers_has_n_minus_hop_plus_one_pairs(hop: int) -> None:
    chain = network(*conv(3, 4), *conv(4, 5), *conv(5, 6), *conv(6, 7))
    assert len(find_branches(chain, eq_2(hops=(hop,))).skips) == max(0, 4 - hop + 1)


def test_a_hop_is_the_longest_path_so_identities_make_no_shortcuts() -> None:
    resnet = n2nfx.trace(build("torchvision:resnet18").module, torch.zeros(1, 3, 64, 64))
    sites = Sites(resnet.module, resnet.layers)
    names = [site.name for site in sites.sites]
    hops = {
        (names[source], names[target]): hop
        for source in sites.sources()
        for hop, targets in sites.within(source, 18).items()
        for target in targets
    }
    assert hops["conv1", "layer1.0.conv1"] == 1
    assert hops["conv1", "layer1.1.conv1"] == 3  # not 1, over the identity of layer1.0
    assert hops["input", "fc"] == 18


def test_two_layers_that_share_an_activation_give_one_branch() -> None:
    resnet = n2nfx.trace(build("torchvision:resnet18").module, torch.zeros(1, 3, 64, 64))
    branches = find_branches(resnet, eq_2(hops=(3,)))
    sources = [skip.source for skip in branches.skips if skip.target == "layer3.0.conv1"]
    assert sources == ["layer2.0.conv2"]
    twins = [refusal for refusal in branches.refused if refusal.reason.startswith("the same")]
    assert ("layer2.0.downsample.0", "layer3.0.conv1") in {(r.source, r.target) for r in twins}


@given(
    size=st.integers(4, 40),
    kernel=st.sampled_from([1, 2, 3, 4, 5, 7]),
    stride=st.integers(1, 4),
    second=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_branch_meets_its_targets_shape_exactly(
    size: int, kernel: int, stride: int, second: int
) -> None:
    chain = network(
        *(nn.Conv2d(3, 4, kernel, stride, padding=kernel // 2), nn.ReLU()),
        *(nn.Conv2d(4, 5, kernel, second, padding=kernel // 2), nn.ReLU()),
        shape=(3, size, size),
    )
    for skip in find_branches(chain, eq_2(hops=(1, 2))).skips:
        at = {"input": (3, size, size)} | {layer.name: layer.writes for layer in chain.layers}
        x = torch.zeros(1, *at[skip.source])
        if skip.pool is not None:
            x = nn.AdaptiveAvgPool2d(skip.pool)(x)  # type: ignore[arg-type]
        weight = torch.zeros(skip.weight_shape)
        assert (
            functional.conv2d(x, weight, None, skip.stride, skip.padding).shape[1:]
            == (at[skip.target])
        )
        assert all(side in (kernel, kernel - 1) for side in skip.weight_shape[2:])


def test_sizes_that_do_not_divide_are_averaged_first() -> None:
    chain = network(*conv(3, 4), nn.AdaptiveAvgPool2d(3), *conv(4, 5))
    (skip,) = find_branches(chain, eq_2(hops=(2,))).skips
    assert (skip.pool, skip.stride, skip.padding) == ((3, 3), (1, 1), (1, 1))


def test_a_vector_target_reads_the_average_over_all_places() -> None:
    chain = network(*conv(3, 4), *conv(4, 5), nn.Flatten(), nn.Linear(5 * 64, 6))
    (skip,) = [s for s in find_branches(chain, eq_2(hops=(2,))).skips if s.target == "5"]
    assert (skip.source, skip.kind, skip.pool, skip.weight_shape) == ("0", "linear", (1, 1), (6, 4))


def test_a_larger_target_reads_the_nearest_place_or_the_average_of_those() -> None:
    chain = network(*conv(3, 4, stride=2), nn.Upsample(scale_factor=2), *conv(4, 5))
    (_, skip) = find_branches(chain, eq_2(hops=(1,))).skips
    assert (skip.pool, skip.stride, skip.uses) == ((8, 8), (1, 1), 64)


def test_a_layer_called_twice_is_an_end_at_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(functional.relu(self.conv(x)))

    branches = find_branches(n2nfx.trace(Twice(), torch.zeros(1, 3, 4, 4)), eq_2(hops=(1, 2)))
    found = [(skip.source, skip.target, skip.hop, skip.calls) for skip in branches.skips]
    assert found == [
        ("input", "conv", 1, ((0, 0),)),
        ("conv", "conv", 1, ((0, 1),)),
        ("input", "conv", 2, ((0, 1),)),
    ]
    assert not branches.refused


def test_a_squeeze_excite_gate_counts_for_nothing_and_ends_no_branch() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.first(x))
            gate = functional.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
            return functional.relu(self.second(x * torch.sigmoid(self.excite(gate))))

    gated = n2nfx.trace(Gated(), torch.zeros(1, 3, 6, 6))
    branches = find_branches(gated, eq_2(hops=(1, 2)))
    assert sorted(ends(branches)) == [("first", "second"), ("input", "first"), ("input", "second")]


@pytest.mark.parametrize(
    ("nonlinearity", "legal"),
    [(nn.ReLU(), True), (nn.GELU(), True), (nn.PReLU(4), True), (nn.Sigmoid(), False)],
)
def test_eq_2_needs_a_nonlinearity_that_is_zero_at_zero(
    nonlinearity: nn.Module, legal: bool
) -> None:
    chain = network(nn.Conv2d(3, 4, 1), nonlinearity)
    paper = find_branches(chain, eq_2(hops=(1,)))
    assert bool(paper.skips) == legal
    assert legal or "not 0 at 0" in paper.refused[0].reason
    assert find_branches(chain, Options(hops=(1,), wiring="linear")).skips
    assert find_branches(chain, Options(hops=(1,), wiring="joint")).skips


def test_a_batch_that_is_folded_out_of_sight_is_refused() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            seen = functional.relu(self.conv(x)).permute(0, 2, 3, 1).flip(1)
            return self.head(seen.reshape(-1, 4))

    branches = find_branches(n2nfx.trace(Folded(), torch.zeros(1, 3, 4, 4)), eq_2(hops=(1,)))
    reasons = {(r.source, r.target): r.reason for r in branches.refused}
    assert "folded in a way that cannot be followed" in reasons["conv", "head"]


def test_blocks_lie_end_to_end_and_stages_take_each_change_of_resolution_once() -> None:
    vgg = n2nfx.trace(build("n2nfx:vgg19_cifar").module, torch.zeros(1, 3, 32, 32))
    order = {"input": 0} | {layer.name: index + 1 for index, layer in enumerate(vgg.layers)}
    blocks = find_branches(vgg, eq_2(hops=(3,), placement="blocks"))
    spans = [(order[skip.source], order[skip.target]) for skip in blocks.skips]
    assert spans[0][0] == 0
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    stages = find_branches(vgg, eq_2(hops=(3,), placement="stages"))
    assert len({skip.places for skip in stages.skips}) == len(stages.skips) == 5
    every = find_branches(vgg, eq_2(hops=(3,)))
    for fewer in (blocks, stages):
        assert len(fewer.skips) + len(fewer.refused) == len(every.skips) + len(every.refused)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hops": ()},
        {"hops": (0,)},
        {"hops": 3},
        {"hops": [3]},
        {"hops": (2.0,)},
        {"placement": "all"},
        {"wiring": "papper"},
        {"kernel": 2},
    ],
)
def test_an_option_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Options(**wrong)  # type: ignore[arg-type]


def test_no_pair_is_both_legal_and_refused_or_told_twice() -> None:
    placements: tuple[Literal["every", "blocks", "stages"], ...] = ("every", "blocks", "stages")
    resnet = n2nfx.trace(build("timm:resnet18").module, torch.zeros(1, 3, 64, 64))
    for placement in placements:
        branches = find_branches(resnet, eq_2(hops=(1, 2, 3), placement=placement))
        told = ends(branches) + [(refusal.source, refusal.target) for refusal in branches.refused]
        assert len(told) == len(set(told))


def named(**layers: nn.Module) -> Network:
    """A chain of layers with names of one's own."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x: Tensor) -> Tensor:
            for name in layers:
                x = functional.relu(getattr(self, name)(x))
            return x

    return n2nfx.trace(Named(), torch.zeros(1, 3, 6, 6))


def test_branches_have_names_of_their_own_whatever_the_layers_are_called() -> None:
    layers = {name: nn.Conv2d(3, 3, 1) for name in ("a", "a__b", "b__c", "c", "skips", "skips_")}
    branches = find_branches(named(**layers), eq_2(hops=(1, 2, 3)))
    names = [skip.name for skip in branches.skips]
    assert len(names) == len(set(names))
    assert all(name.startswith("skips__.") for name in names)


def test_a_nonlinearity_that_draws_is_refused_inside_a_branch() -> None:
    branches = find_branches(network(nn.Conv2d(3, 4, 1), nn.RReLU()), eq_2(hops=(1,)))
    assert "draws at random" in branches.refused[0].reason


def test_a_nonlinearity_is_tried_in_any_precision_and_without_its_hooks() -> None:
    prelu = nn.PReLU(4).double()
    prelu.register_forward_hook(lambda *_: pytest.fail("it was called"))
    double = nn.Sequential(nn.Conv2d(3, 4, 1).double(), prelu)
    traced = n2nfx.trace(double, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    assert find_branches(traced, eq_2(hops=(1,))).skips


def test_a_batch_that_is_squeezed_away_for_one_example_is_refused_not_stumbled_over() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            pooled = functional.adaptive_avg_pool2d(functional.relu(self.conv(x)), 1).squeeze()
            return functional.relu(self.head(pooled))

    branches = find_branches(n2nfx.trace(Squeezed(), torch.zeros(2, 3, 4, 4)), eq_2(hops=(1,)))
    assert ends(branches) == [("input", "conv")]
    assert [(r.source, r.target) for r in branches.refused] == [("conv", "head")]


def in_turns(*names: str, then: Callable[[Tensor], Tensor] = functional.relu) -> Network:
    """A chain of maps and cubes: a layer named w... sees its (B, C, 4, 4) as (B, C, 4, 2, 2)."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        for name in names:
            seen = x.unflatten(3, (2, 2)) if name.startswith("w") else x
            x = then(getattr(module, name)(seen)).reshape(x.shape)
        return x

    layers = {True: nn.Conv3d, False: nn.Conv2d}
    return n2nfx.trace(
        Model(forward, **{name: layers[name.startswith("w")](3, 3, 1) for name in names}),
        torch.zeros(1, 3, 4, 4),
    )


def spans(branches: Branches) -> list[tuple[str, str, int]]:
    return [(skip.source, skip.target, skip.hop) for skip in branches.skips]


def told(branches: Branches) -> set[tuple[str, str, int]]:
    return {(refusal.source, refusal.target, refusal.hop) for refusal in branches.refused}


def test_where_shapes_forbid_a_pair_the_chain_goes_on_to_the_next_layer_that_fits() -> None:
    branches = find_branches(in_turns("a", "w1", "b", "w2"), eq_2(hops=(1,)))
    assert spans(branches) == [("input", "a", 1), ("a", "b", 2), ("w1", "w2", 2)]
    assert told(branches) == {("a", "w1", 1), ("w1", "b", 1), ("b", "w2", 1)}
    assert all("cannot be laid onto" in refusal.reason for refusal in branches.refused)


def test_a_chain_goes_on_up_to_twice_the_hop() -> None:
    network = in_turns("a", "w1", "w2", "w3", "b", "c", "d")
    one, two = (find_branches(network, eq_2(hops=(hop,))) for hop in (1, 2))
    assert not [span for span in spans(one) if span[0] == "a"]  # b is 4 away
    assert ("a", "w2", 2) in told(one)
    assert [span for span in spans(two) if span[0] == "a"] == [("a", "b", 4)]
    assert {("a", "w2", 2), ("a", "w3", 3)} <= told(two)
    assert [span for span in spans(two) if span[0] == "b"] == [("b", "d", 2)]


def test_a_pair_that_fits_ends_the_search_and_no_branch_is_there_twice() -> None:
    network = in_turns("a", "w1", "b", "w2", "c")
    each = [spans(find_branches(network, eq_2(hops=(hop,)))) for hop in (1, 2)]
    both = find_branches(network, eq_2(hops=(1, 2)))
    assert ("a", "b", 2) in each[0]
    assert ("a", "b", 2) in each[1]
    assert sorted(spans(both)) == sorted({*each[0], *each[1]})
    pairs = ends(both) + [(refusal.source, refusal.target) for refusal in both.refused]
    assert len(pairs) == len(set(pairs))


def test_a_chain_does_not_go_on_for_other_reasons_than_shape() -> None:
    network = in_turns("a", "b", "c", then=torch.sigmoid)
    branches = find_branches(network, eq_2(hops=(1,)))
    assert not branches.skips
    assert told(branches) == {("input", "a", 1), ("a", "b", 1), ("b", "c", 1)}
    linear = find_branches(network, Options(hops=(1,), wiring="linear"))
    assert len(linear.skips) == 3


def test_attention_with_its_sequence_first_is_no_gate() -> None:
    """Its output projection writes (N * B, C), which looks like one place."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a sequence first is slow
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    network = n2nfx.trace(
        Model(lambda m, x: m.body(x.transpose(0, 1)), body=encoder), torch.zeros(1, 5, 8)
    )
    sites = Sites(network.module, network.layers)
    depths = {sites.sites[number].name: depth for number, depth in sites.depths().items()}
    assert max(depths.values()) == 8
    found = {
        (skip.source, skip.target): skip for skip in find_branches(network, eq_2(hops=(4,))).skips
    }
    out = found[
        "body.layers.0.self_attn.out_proj.weight", "body.layers.1.self_attn.out_proj.weight"
    ]
    assert (out.kind, out.fold, out.places, out.uses) == ("linear", 5, (), 5)


def test_ends_with_other_numbers_than_floats_of_one_kind_are_refused() -> None:
    def mixed(m: nn.Module, x: Tensor) -> Tensor:
        return m.c(m.b(functional.relu(m.a(x)).double()).to(torch.complex64))  # type: ignore[operator]

    layers = {
        "a": nn.Linear(3, 3),
        "b": nn.Linear(3, 3, dtype=torch.float64),
        "c": nn.Linear(3, 3, dtype=torch.complex64),
    }
    branches = find_branches(
        n2nfx.trace(Model(mixed, **layers), torch.zeros(1, 3)), eq_2(hops=(1,))
    )
    reasons = {refusal.target: refusal.reason for refusal in branches.refused}
    assert reasons == {
        "b": "a is torch.float32, and b torch.float64",
        "c": "c is not a floating-point tensor",
    }


def test_layers_that_are_called_together_share_a_branch() -> None:
    def shared(m: nn.Module, x: Tensor) -> Tensor:
        for _ in range(3):
            x = functional.relu(m.b(functional.relu(m.a(x))))  # type: ignore[operator]
        return x

    layers = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
    network = n2nfx.trace(Model(shared, **layers), torch.zeros(1, 3))
    branches = find_branches(network, eq_2(hops=(1,)))
    found = {(skip.source, skip.target): skip.calls for skip in branches.skips}
    assert found == {
        ("input", "a"): ((0, 0),),
        ("a", "b"): ((0, 0), (1, 1), (2, 2)),
        ("b", "a"): ((0, 1), (1, 2)),
    }
    assert [skip.uses for skip in branches.skips] == [1, 3, 2]


@pytest.mark.parametrize(
    ("nonlinearity", "legal"),
    [(nn.GELU(), True), (nn.PReLU(5), True), (nn.Softplus(), False), (nn.Sigmoid(), False)],
)
def test_eq_2s_nonlinearity_is_tried_on_tokens_and_maps_alike(
    nonlinearity: nn.Module, legal: bool
) -> None:
    tokens = network(nn.Linear(4, 6), nonlinearity, shape=(5, 4))
    last = network(nn.Linear(4, 6), nonlinearity, shape=(5, 2, 4))
    for each in (tokens, last):
        assert bool(find_branches(each, eq_2(hops=(1,))).skips) == legal


def test_stages_are_changes_of_resolution_whatever_the_layout() -> None:
    pyramid = n2nfx.trace(timm.create_model("pvt_v2_b0", num_classes=3), torch.zeros(1, 3, 32, 32))
    stages = find_branches(pyramid, eq_2(hops=(3,), placement="stages", wiring="linear"))
    assert [prod(skip.places) for skip in stages.skips] == [64, 16, 4, 1]
