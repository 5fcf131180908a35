"""The pass library: what each pass promises, tried on chains and on residual and fused networks."""

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.budget import Allocation, allocate
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import Masks
from n2nfx.models import build
from n2nfx.network import Network, Skip
from n2nfx.outcome import Outcome
from n2nfx.passes import N2NSkip, RandomPruning, Reinit, ResSkip, SmallInputStem, n2nskip
from n2nfx.pipeline import Pass, Pipeline
from n2nfx.shortcuts import beside_shortcuts
from n2nfx.splice import prepare
from n2nfx.wiring import Options, find_branches

# Networks


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in ((3, 8), (8, 8), (8, 16), (16, 16), (16, 24)):
        layers += [
            nn.Conv2d(into, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
        if into != out:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10))


def thin(name: str, **stem: Any) -> nn.Module:
    """A timm network with fewer channels, none of whose norms starts at zero."""
    channels = (16, 16, 32, 32)
    return timm.create_model(name, num_classes=10, channels=channels, zero_init_last=False, **stem)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: build("n2nfx:mlp").module, (3072,)),
    "vgg": (vgg, (3, 16, 16)),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (3, 32, 32)),
    "timm resnet18": (lambda: thin("resnet18", stem_width=16), (3, 32, 32)),
    "fused resnetv2": (lambda: thin("resnetv2_18", stem_chs=16), (3, 32, 32)),
    "fused efficientnet": (lambda: timm.create_model("test_efficientnet"), (3, 32, 32)),
}
SMALL = ["mlp", "vgg", "timm resnet18", "fused resnetv2", "fused efficientnet"]


def built(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name][0]()


@cache
def network(name: str) -> Network:
    return n2nfx.trace(built(name), torch.zeros(2, *NETWORKS[name][1]))


def inputs(name: str) -> Tensor:
    return torch.randn(4, *NETWORKS[name][1], generator=torch.Generator().manual_seed(1))


def chain(*layers: nn.Module, shape: tuple[int, ...] = (3, 8, 8)) -> Network:
    with torch.random.fork_rng():
        return n2nfx.trace(nn.Sequential(*layers), torch.zeros(2, *shape))


def conv(into: int, out: int, stride: int = 1, kernel: int = 3) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(into, out, kernel, stride, padding=(kernel - 1) // 2), nn.ReLU()


def dense(into: int, out: int, then: type[nn.Module] = nn.ReLU) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(into, out), then()


# What is compared


def run(module: nn.Module, x: Tensor, training: bool) -> Tensor:
    torch.manual_seed(2)  # for dropout
    return module.train(training)(x)


def assert_same_function(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Equal to the bit in evaluation and in training, which also moves the buffers equally."""
    with torch.no_grad():
        for training in (False, True):
            assert torch.equal(run(one, x, training), run(other, x, training))
    buffers = dict(other.named_buffers())
    moved = [name for name, buffer in one.named_buffers() if not torch.equal(buffer, buffers[name])]
    assert moved == []


def gradients(module: nn.Module, x: Tensor, training: bool) -> dict[str, Tensor | None]:
    module.zero_grad()
    run(module, x, training).square().sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def transformed(name: str, density: float = 0.3, ratio: float = 0.3, **options: Any) -> Outcome:
    passes = [RandomPruning(density), N2NSkip(ratio, **options)]
    return Pipeline(passes)(network(name))


def without_skips(name: str, skipped: Network) -> Network:
    """The reference network pruned to the sequential weights of a network with skips."""
    masks = {layer.weight: skipped.masks[layer.weight] for layer in skipped.layers}
    return Pipeline([])(replace(network(name), masks=Masks(masks))).network


def branches(skipped: Network) -> dict[str, Tensor]:
    return {skip.weight: skipped.module.get_parameter(skip.weight) for skip in skipped.skips}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return [*one] == [*other] and all(torch.equal(one[name], other[name]) for name in one)


WIRINGS: list[dict[str, Any]] = [
    {"wiring": "paper"},
    {"wiring": "linear"},
    {"wiring": "joint"},
    {"wiring": "paper", "branch_norm": "batch"},
    {"wiring": "joint", "branch_norm": "batch"},
]


@pytest.mark.parametrize("options", WIRINGS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("name", [*SMALL, "torchvision resnet18"])
def test_branches_of_zeros_leave_the_pruned_network_to_the_bit(
    name: str, options: dict[str, Any]
) -> None:
    skipped = transformed(name, **options).network
    for weight in branches(skipped).values():
        nn.init.zeros_(weight)
    assert_same_function(without_skips(name, skipped).module, skipped.module, inputs(name))


@pytest.mark.parametrize("options", WIRINGS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("name", SMALL)
def test_every_branch_acts(name: str, options: dict[str, Any]) -> None:
    """So that the test above says something: each branch alone changes what is computed."""
    skipped = transformed(name, density=0.6, **options).network
    for weight in branches(skipped).values():
        nn.init.zeros_(weight)
    silent = run(skipped.module, inputs(name), training=True)
    for each, weight in branches(skipped).items():
        nn.init.constant_(weight, 0.5)
        assert not torch.equal(run(skipped.module, inputs(name), training=True), silent), each
        nn.init.zeros_(weight)


@pytest.mark.parametrize("wiring", ["linear", "joint"])
@pytest.mark.parametrize("pattern", ["random", "identity"])
@pytest.mark.parametrize("name", ["vgg", "fused resnetv2"])
def test_init_zero_leaves_the_pruned_networks_function_as_it_is(
    name: str, pattern: str, wiring: str
) -> None:
    skipped = transformed(name, init="zero", pattern=pattern, wiring=wiring).network
    assert_same_function(without_skips(name, skipped).module, skipped.module, inputs(name))


@pytest.mark.parametrize("wiring", ["linear", "joint"])
def test_branches_of_zeros_get_gradients_and_can_be_trained(wiring: str) -> None:
    skipped = transformed("vgg", init="zero", wiring=wiring).network
    moved = gradients(skipped.module, inputs("vgg"), training=True)
    assert all(cast(Tensor, moved[name]).any() for name in branches(skipped))


def traced(name: str, model: nn.Module) -> Network:
    return n2nfx.trace(model, torch.zeros(2, *NETWORKS[name][1]))


def at_density_1(name: str, model: nn.Module) -> Network:
    return Pipeline([RandomPruning(density=1.0), N2NSkip(ratio=0.0)])(traced(name, model)).network


@pytest.mark.parametrize("surgery", [traced, at_density_1])
@pytest.mark.parametrize("name", [*SMALL, "torchvision resnet18"])
def test_tracing_and_density_1_without_skips_are_the_identity(
    name: str, surgery: Callable[[str, nn.Module], Network]
) -> None:
    model, x = built(name), inputs(name)
    changed = surgery(name, model).module
    assert same(dict(changed.state_dict()), dict(model.state_dict()))
    for training in (False, True):
        expected = gradients(model, x, training)
        found = gradients(changed, x, training)
        assert [*found] == [*expected]
        different = [
            name
            for name, grad in expected.items()
            if not (
                grad is found[name] is None
                or torch.equal(cast(Tensor, grad), cast(Tensor, found[name]))
            )
        ]
        assert different == []
    assert_same_function(model, changed, x)


# Counts, and what they depend on


@settings(deadline=None, max_examples=20)
@given(density=st.floats(1e-4, 1), room=st.floats(0, 1))
def test_skips_are_paid_for_exactly_out_of_the_same_budget(density: float, room: float) -> None:
    reference = network("mlp")
    budget = round(density * reference.size)
    options = Options(hops=(1, 2, 3))
    ratio = room * min(0.99, find_branches(reference, options).capacity / budget)
    result = Pipeline([RandomPruning(density), N2NSkip(ratio, hops=options.hops)])(reference)
    masks, skips = result.network.masks, result.network.skips
    share = round(ratio * budget)
    assert result.network.nnz == masks.nnz == budget
    assert sum(skip.nnz for skip in skips) == share
    assert sum(masks.counts[layer.weight] for layer in reference.layers) == budget - share
    assert all(masks.counts[skip.weight] == skip.nnz > 0 for skip in skips)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("pattern", ["random", "identity"])
def test_skips_are_paid_for_exactly_on_every_network(name: str, pattern: str) -> None:
    budget = round(0.05 * network(name).size)
    counts = transformed(name, 0.05, 0.5, pattern=pattern).counts
    assert (counts.kept, counts.skip) == (budget, round(budget / 2))


@pytest.mark.parametrize("name", SMALL)
def test_the_sequential_weights_are_the_pruned_networks_only_fewer(name: str) -> None:
    pruned = Pipeline([RandomPruning(0.3)])(network(name)).network
    skipped = transformed(name).network
    assert not any(bool((skipped.masks[at] & ~pruned.masks[at]).any()) for at in pruned.masks)


def draw_from_every_global_generator() -> None:
    random.random()
    np.random.random()
    torch.rand(1)


@contextmanager
def global_generators_unmoved() -> Iterator[None]:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    yield
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


LIBRARY: list[list[Pass]] = [
    [RandomPruning(0.3), N2NSkip(0.3)],
    [RandomPruning(0.3), N2NSkip(0.3, pattern="identity", branch_norm="batch")],
    [SmallInputStem(), RandomPruning(0.3), ResSkip()],
]
alone = pytest.mark.parametrize("passes", LIBRARY, ids=["random", "identity", "stem"])


@alone
def test_only_the_seed_decides(passes: list[Pass]) -> None:
    one = Pipeline(passes)(network("timm resnet18"), seed=1).network
    draw_from_every_global_generator()
    again = Pipeline(passes)(network("timm resnet18"), seed=1).network
    assert same(dict(one.masks), dict(again.masks))
    assert same(dict(one.module.state_dict()), dict(again.module.state_dict()))


@alone
def test_the_global_generators_are_not_moved(passes: list[Pass]) -> None:
    reference = network("timm resnet18")
    with global_generators_unmoved():
        Pipeline(passes)(reference)


def test_another_seed_gives_other_masks_and_other_branch_weights() -> None:
    pipeline = Pipeline([RandomPruning(0.3), N2NSkip(0.3, pattern="random")])
    one, other = (pipeline(network("vgg"), seed=seed).network for seed in (1, 2))
    assert [*one.masks] == [*other.masks]
    assert not any(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    drawn = [{name: w[w != 0].tolist() for name, w in branches(it).items()} for it in (one, other)]
    assert not any(drawn[0][name][0] == drawn[1][name][0] for name in drawn[0])


def test_layers_and_branches_of_the_same_shape_have_masks_of_their_own() -> None:
    passes = [RandomPruning(0.3), N2NSkip(0.3, hops=(1,))]
    masks = Pipeline(passes)(alike(8, layers=4)).network.masks
    first_rows = {tuple(mask.reshape(-1)[:200].tolist()) for mask in masks.values()}
    assert len(first_rows) == len(masks) == 8


# RandomPruning


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-3, 1))
def test_a_density_keeps_its_share_of_all_weights_rounded(density: float) -> None:
    pruned = Pipeline([RandomPruning(density)])(network("vgg")).network
    assert pruned.nnz == pruned.masks.nnz == round(density * pruned.size)


def test_a_density_that_keeps_no_weight_is_refused_with_one_that_does() -> None:
    reference = network("vgg")
    least = 1 / reference.size
    with pytest.raises(UsageError, match=f"keeps none of {reference.size} .*{least:.3g} keeps one"):
        Pipeline([RandomPruning(least / 3)])(reference)


@pytest.mark.parametrize(
    "options", [{}, {"allocation": "erk"}, {"allocation": "er", "floor": 5}, {"ends": "dense"}]
)
def test_each_layer_keeps_what_the_allocation_gives_it(options: dict[str, Any]) -> None:
    pruned = Pipeline([RandomPruning(0.2, **options)])(network("vgg")).network
    allocation = Allocation(**{"method": options.pop("allocation", "uniform"), **options})
    expected = allocate(pruned.layers, round(0.2 * pruned.size), allocation)
    assert tuple(pruned.masks.counts.values()) == expected


@pytest.mark.parametrize("after", [RandomPruning(0.1), N2NSkip(0.1), ResSkip()])
@pytest.mark.parametrize("skips", [N2NSkip(0.1), ResSkip()])
def test_skips_come_last_and_once(skips: Pass, after: Pass) -> None:
    with pytest.raises(CannotOperate, match="skips"):
        Pipeline([skips, after])(network("vgg"))


def test_a_random_order_cannot_be_shared_by_one_global_ranking() -> None:
    globally: Any = {"allocation": "global"}
    with pytest.raises(CannotOperate, match="uniform, er or erk"):
        Pipeline([RandomPruning(0.1, **globally)])(network("vgg"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0}, {"density": -0.1}, {"density": 1.1}, {"density": math.nan},
        {"density": "0.5"}, {"density": True}, {"density": None},
        {"density": 0.5, "allocation": "erkk"}, {"density": 0.5, "floor": -1},
        {"density": 0.5, "floor": "chanels"}, {"density": 0.5, "floor": 1.5},
        {"density": 0.5, "ends": "kept"},
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_that_random_pruning_cannot_take_is_named(wrong: dict[str, Any]) -> None:
    *_, argument = wrong
    with pytest.raises(UsageError, match=argument):
        RandomPruning(**wrong)


# N2NSkip: which pairs


def pairs(skipped: Network) -> list[tuple[str, str, int]]:
    return [(skip.source, skip.target, skip.hop) for skip in skipped.skips]


def test_several_hops_give_the_branches_of_each() -> None:
    each = [pairs(transformed("vgg", hops=(hop,)).network) for hop in (2, 3)]
    both = pairs(transformed("vgg", hops=(2, 3)).network)
    assert sorted(both) == sorted(each[0] + each[1])
    assert {hop for _, _, hop in both} == {2, 3}


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_blocks_lie_end_to_end(hop: int) -> None:
    placed = transformed("vgg", 0.3, 0.1, hops=(hop,), placement="blocks").network
    depth = {"input": 0} | {layer.name: at for at, layer in enumerate(placed.layers, 1)}
    spans = [(depth[source], depth[target]) for source, target, _ in pairs(placed)]
    assert spans == [(at, at + hop) for at in range(0, 6 - hop + 1, hop)]


def test_stages_take_one_branch_over_each_change_of_resolution() -> None:
    placed = transformed("vgg", hops=(2,), placement="stages").network
    sizes = {"input": (16, 16)} | {layer.name: layer.writes[1:] for layer in placed.layers}
    found = [(sizes[skip.source], skip.places) for skip in placed.skips]
    assert all(here != there for here, there in found)
    assert [there for _, there in found] == [(8, 8), (4, 4), ()]


@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_kernel_of_any_odd_size_fits_every_branch(kernel: int, wiring: str) -> None:
    skipped = transformed("vgg", ratio=0.1, kernel=kernel, wiring=wiring).network
    kernels = {skip.weight_shape[2:] for skip in skipped.skips if skip.kind == "conv"}
    assert kernels == {(kernel, kernel)}
    assert skipped.module(inputs("vgg")).shape == (4, 10)


def test_a_branch_has_its_targets_kernel_where_none_is_given() -> None:
    mixed = chain(*conv(3, 4), *conv(4, 4, kernel=5), *conv(4, 4, kernel=1))
    skipped = Pipeline([RandomPruning(0.5), N2NSkip(0.3, hops=(1,))])(mixed).network
    assert [skip.weight_shape[2:] for skip in skipped.skips] == [(3, 3), (5, 5), (1, 1)]


def test_every_branch_is_equally_dense() -> None:
    skips = transformed("vgg", hops=(1, 2, 3)).network.skips
    density = sum(skip.nnz for skip in skips) / sum(skip.size for skip in skips)
    assert all(abs(skip.nnz - density * skip.size) < 1 for skip in skips)


def test_a_branch_that_would_get_no_weight_is_not_there() -> None:
    few = transformed("vgg", 0.1, 0.005, hops=(1, 2, 3)).network
    assert 0 < len(few.skips) <= round(0.005 * few.nnz) + 1
    assert all(skip.nnz > 0 for skip in few.skips)
    assert {*few.masks} == {layer.weight for layer in few.layers} | {s.weight for s in few.skips}


# N2NSkip: which weights


def diagonal(skip: Skip) -> Tensor:
    """True from channel c to channel c at the kernel's centre, told place by place."""
    found = torch.zeros(skip.weight_shape, dtype=torch.bool)
    centre = [size // 2 for size in skip.weight_shape[2:]]
    for channel in range(min(skip.weight_shape[:2])):
        found[(channel, channel, *centre)] = True
    return found


def alike(channels: int, layers: int) -> Network:
    """A chain of convolutions all of the same shape."""
    pairs = [part for _ in range(layers) for part in conv(channels, channels)]
    return chain(*pairs, shape=(channels, 4, 4))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("ratio", "is_scarce"), [(0.005, True), (0.1, False)])
def test_the_identity_pattern_gives_each_channel_its_weight_first(
    kernel: int, ratio: float, is_scarce: bool
) -> None:
    passes = [RandomPruning(0.5), N2NSkip(ratio, (2,), kernel=kernel, pattern="identity")]
    skipped = Pipeline(passes)(alike(16, layers=4)).network
    for skip in skipped.skips:
        kept, weight = skipped.masks[skip.weight], skipped.module.get_parameter(skip.weight)
        on, off = kept & diagonal(skip), kept & ~diagonal(skip)
        assert (skip.nnz < 16) is is_scarce
        assert int(on.sum()) == min(skip.nnz, 16)
        assert int(off.sum()) == max(skip.nnz - 16, 0)
        assert bool((weight[on] == 1).all())
        assert not bool((weight[off] == 1).any())


def test_scarce_identity_weights_fall_to_every_channel_in_turn() -> None:
    passes = [RandomPruning(0.5), N2NSkip(4 / 2304, (2,), pattern="identity")]
    reference = alike(16, layers=2)
    drawn = [Pipeline(passes)(reference, seed=seed).network for seed in range(25)]
    masks = [it.masks[it.skips[0].weight] for it in drawn]
    used = torch.stack([mask.sum(dim=(1, 2, 3)) for mask in masks])
    assert used.sum(dim=1).tolist() == [4] * 25
    assert bool((used.sum(dim=0) > 0).all())


@pytest.mark.parametrize(("stride", "kernel"), [(1, 1), (1, 3), (1, 5), (2, 3), (2, 1)])
def test_an_identity_branch_passes_the_activation_on(stride: int, kernel: int) -> None:
    square = chain(*conv(6, 6), *conv(6, 6, stride), *conv(6, 6), shape=(6, 8, 8))
    share = 12 / round(0.5 * square.size)  # two branches, six channels each
    passes = [RandomPruning(0.5), N2NSkip(share, hops=(2,), kernel=kernel, pattern="identity")]
    skipped = Pipeline(passes)(square).network
    assert [skip.nnz for skip in skipped.skips] == [6, 6]
    activation = torch.randn(2, 6, 8, 8)
    for skip in skipped.skips:
        passed = skipped.module.get_submodule(skip.name)(activation)
        assert torch.equal(passed, activation[..., ::stride, ::stride])


@pytest.mark.parametrize("pattern", ["random", "identity"])
@pytest.mark.parametrize("ratio", [0.02, 0.2, 0.5])
def test_branches_start_with_the_spread_of_their_real_fan_in(ratio: float, pattern: str) -> None:
    skipped = transformed("mlp", 0.3, ratio, pattern=pattern).network
    for skip in skipped.skips:
        mask = skipped.masks[skip.weight]
        drawn = skipped.module.get_parameter(skip.weight)[mask].detach()
        drawn = drawn[drawn != 1]
        fan_in = max(skip.nnz / skip.weight_shape[0], 1)
        error = 4 / math.sqrt(len(drawn))  # four standard deviations
        assert drawn.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=error)
        assert drawn.mean().item() == pytest.approx(0, abs=error * math.sqrt(2 / fan_in))


def test_every_kept_weight_of_a_branch_is_drawn_and_no_other_is_set() -> None:
    skipped = transformed("vgg").network
    for name, weight in branches(skipped).items():
        assert torch.equal(weight != 0, skipped.masks[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_branch_is_of_the_networks_type_and_mode(dtype: torch.dtype) -> None:
    model = nn.Sequential(*dense(8, 8), *dense(8, 8), *dense(8, 8)).to(dtype).eval()
    passes = [RandomPruning(0.5), N2NSkip(0.2, hops=(2,), branch_norm="batch")]
    skipped = Pipeline(passes)(n2nfx.trace(model, torch.zeros(2, 8, dtype=dtype))).network
    assert {weight.dtype for weight in branches(skipped).values()} == {dtype}
    norms = [part for part in skipped.module.modules() if isinstance(part, nn.BatchNorm1d)]
    assert [norm.training for norm in norms] == [False, False]
    assert skipped.module(torch.randn(3, 8, dtype=dtype)).dtype == dtype


# N2NSkip: what it cannot do


def refused(passes: list[Pass], reference: Network) -> str:
    with pytest.raises(CannotOperate) as caught:
        Pipeline(passes)(reference)
    return str(caught.value)


def test_too_many_skip_weights_are_refused_with_what_the_branches_hold_and_what_would_do() -> None:
    reference = network("mlp")
    passes = [RandomPruning(1.0), N2NSkip(0.5, hops=(3,))]
    told = refused(passes, reference)
    capacity = find_branches(reference, Options(hops=(3,))).capacity
    assert f"{round(0.5 * reference.size):,} skip weights were asked for" in told
    assert f"the legal branches with hops 3 (2) hold at most {capacity:,}" in told
    hops = re.search(r"Hops that would do: ([\d, ]+)", told)
    assert hops is not None
    would_do = {int(hop) for hop in hops[1].split(", ")}
    assert would_do  # and so they do, and no others
    for hop in range(1, 6):
        lane = [passes[0], N2NSkip(0.5, hops=(hop,))]
        if hop in would_do:
            assert Pipeline(lane)(reference).network.nnz == reference.size
        else:
            refused(lane, reference)


def test_as_many_skip_weights_as_the_branches_hold_are_not_too_many() -> None:
    reference = chain(*dense(8, 8), *dense(8, 8), shape=(8,))
    full = Pipeline([N2NSkip(64 / 128, hops=(2,))])(reference).network
    assert [(skip.nnz, skip.size) for skip in full.skips] == [(64, 64)]
    assert "hold at most 64" in refused([N2NSkip(65 / 128, hops=(2,))], reference)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (2, "No other hop up to 8 holds as many alone (2 holds 64)"),
        (1, "No other hop up to 8 would do"),
    ],
)
def test_where_no_other_hop_would_do_it_is_said_what_each_holds(layers: int, told: str) -> None:
    assert refused([N2NSkip(0.5, hops=(1,), kernel=1)], alike(8, layers)).endswith(f". {told}")


def test_a_hop_without_pairs_is_refused_and_those_with_pairs_are_named() -> None:
    told = refused([N2NSkip(0.1, hops=(7, 8))], chain(*dense(8, 8), *dense(8, 8), shape=(8,)))
    assert told == "no legal pair of layers is 7 or 8 apart. Hops that would do: 1, 2"


def test_pairs_that_are_not_legal_are_refused_with_the_reasons_and_their_counts() -> None:
    cubes = chain(*conv(3, 4), nn.Unflatten(3, (4, 2)), nn.Conv3d(4, 4, 1))
    told = refused([N2NSkip(0.1, hops=(2,))], cubes)
    assert told.startswith(
        "no legal pair of layers is 2 apart (refused: a 8x8 map of 3 channels (first) cannot be "
        "laid onto a 8x4x2 map of 4 channels (first) (1)). "
    )


@pytest.mark.parametrize("nonlinearity", [nn.Sigmoid, nn.Softplus])
def test_eq_2_is_refused_behind_a_nonlinearity_that_is_not_0_at_0(
    nonlinearity: type[nn.Module],
) -> None:
    reference = chain(*dense(8, 8, nonlinearity), *dense(8, 8, nonlinearity), shape=(8,))
    told = refused([N2NSkip(0.1, hops=(2,), wiring="paper")], reference)
    assert "the nonlinearity of 2 is not 0 at 0" in told
    assert "wiring linear or joint would do" in told
    for wiring in ("linear", "joint"):
        skipped = Pipeline([N2NSkip(0.1, hops=(2,), wiring=wiring)])(reference).network
        assert len(skipped.skips) == 1


@pytest.mark.parametrize("nonlinearity", [nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU])
def test_eq_2_works_behind_every_nonlinearity_that_is_0_at_0(
    nonlinearity: type[nn.Module],
) -> None:
    reference = chain(*dense(8, 8, nonlinearity), *dense(8, 8, nonlinearity), shape=(8,))
    operation = N2NSkip(0.1, hops=(2,), wiring="paper")
    assert len(Pipeline([operation])(reference).network.skips) == 1


def test_masks_of_unknown_origin_are_not_replaced_by_others() -> None:
    pruned = Pipeline([RandomPruning(0.3)])(network("vgg")).network
    told = refused([N2NSkip(0.3)], replace(pruned, scores=None))
    assert "ranking" in told


@pytest.mark.parametrize("reference", [network("vgg"), network("fused resnetv2")])
def test_no_skip_weights_leave_the_network_as_it_is(reference: Network) -> None:
    result = Pipeline([RandomPruning(0.3), N2NSkip(ratio=0)])(reference)
    pruned = Pipeline([RandomPruning(0.3)])(reference).network
    assert result.network.skips == ()
    assert result.network.text() == pruned.text()
    assert same(dict(result.network.masks), dict(pruned.masks))
    assert result.record[1].nnz == (pruned.nnz, pruned.nnz)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 1}, {"ratio": -0.1}, {"ratio": math.nan}, {"ratio": "0.5"}, {"ratio": True},
        {"hops": ()}, {"hops": (0,)}, {"hops": (-1,)}, {"hops": (1.5,)}, {"hops": ("3",)},
        {"hops": (True,)}, {"hops": 3}, {"hops": [3]}, {"placement": "all"}, {"placement": None},
        {"wiring": "papper"}, {"wiring": None},
        {"kernel": 2}, {"kernel": 0}, {"kernel": 3.0}, {"kernel": "own"}, {"kernel": True},
        {"pattern": "diagonal"}, {"branch_norm": True}, {"branch_norm": "layer"},
        {"init": "zeros"}, {"init": None},
        {"kernel": -1},
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_that_n2nskip_cannot_take_is_named(wrong: dict[str, Any]) -> None:
    (argument,) = wrong
    with pytest.raises(UsageError, match=argument):
        N2NSkip(**{"ratio": 0.5, **wrong})


def test_init_zero_is_refused_with_eq_2_and_it_is_said_what_goes_with_it() -> None:
    with pytest.raises(UsageError, match="'linear' or 'joint'"):
        N2NSkip(0.5, wiring="paper", init="zero")


@pytest.mark.parametrize("wrong", [{"hops": ()}, {"hops": (0,)}, {"placement": "all"}], ids=str)
def test_an_argument_that_resskip_cannot_take_is_named(wrong: dict[str, Any]) -> None:
    (argument,) = wrong
    with pytest.raises(UsageError, match=argument):
        ResSkip(**wrong)


# Tokens and channels last


def tokens() -> Network:
    return chain(*dense(6, 8), *dense(8, 10), *dense(10, 8), shape=(5, 6))


@pytest.mark.parametrize(
    "skips",
    [
        N2NSkip(0.2, hops=(1,)),
        ResSkip(hops=(1,)),
    ],
)
def test_skips_work_on_tokens(skips: Pass) -> None:
    skipped = Pipeline([RandomPruning(0.5), skips])(tokens()).network
    assert len(skipped.skips) == 3
    assert skipped.module(torch.randn(3, 5, 6)).shape == (3, 5, 8)


# ResSkip


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("placement", ["every", "blocks"])
def test_resskip_joins_the_pairs_of_n2nskip_and_costs_no_weight(name: str, placement: Any) -> None:
    options = Options((2, 3), placement, "linear")
    pruned = Pipeline([RandomPruning(0.3)])(network(name)).network
    prepared = Pipeline([])(network(name)).network
    prepare(prepared)
    residual = Pipeline([RandomPruning(0.3), ResSkip((2, 3), placement)])(network(name)).network
    found = find_branches(prepared, options).skips
    there = beside_shortcuts(prepared, found)
    expected = [skip for skip in found if skip.name not in there]
    assert pairs(residual) == [(skip.source, skip.target, skip.hop) for skip in expected]
    assert {skip.nnz for skip in residual.skips} == {0}
    assert residual.nnz == pruned.nnz
    assert same(dict(residual.masks), dict(pruned.masks))
    assert same(dict(residual.module.state_dict()), dict(pruned.module.state_dict()))


def test_resskip_adds_the_activation_pooled_cropped_and_padded() -> None:
    reference = chain(
        *conv(3, 4), *conv(4, 6, stride=2), nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4),
        nn.ReLU(), *conv(4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    result = Pipeline([ResSkip(hops=(2,))])(reference).network
    x = torch.randn(2, 3, 8, 8)
    at: Callable[[int], nn.Module] = lambda place: reference.module.get_submodule(str(place))  # noqa: E731
    halved: Callable[[Tensor], Tensor] = lambda value: functional.adaptive_avg_pool2d(value, 4)  # noqa: E731
    a1 = at(0)(x).relu()
    a2 = (at(2)(a1) + torch.cat([halved(x), torch.zeros(2, 3, 4, 4)], dim=1)).relu()
    a3 = (at(5)(at(4)(a2)) + halved(a1)).relu()
    a4 = (at(7)(a3) + a2[:, :5]).relu()
    out = at(11)(a4.mean(dim=(2, 3))) + a3.mean(dim=(2, 3))[:, :3]
    assert pairs(result) == [("input", "2", 2), ("0", "4", 2), ("2", "7", 2), ("4", "11", 2)]
    torch.testing.assert_close(result.module(x), out)


def test_resskip_without_a_legal_pair_is_refused() -> None:
    assert "apart" in refused([ResSkip(hops=(9,))], network("vgg"))


# SmallInputStem


@cache
def stemmed(name: str) -> tuple[Network, Outcome]:
    model = build(name, num_classes=10, input_shape=(3, 32, 32))
    reference = n2nfx.trace(model.module, model.example)
    return reference, Pipeline([SmallInputStem()])(reference)


RESNETS = ["torchvision:resnet18", "timm:resnet18"]


@pytest.mark.parametrize("name", RESNETS)
def test_the_small_stem_is_3x3_with_stride_1_and_without_max_pool(name: str) -> None:
    reference, outcome = stemmed(name)
    stem = outcome.network.module.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert "maxpool" in reference.text()
    assert "maxpool" not in outcome.network.text()


@pytest.mark.parametrize("name", RESNETS)
def test_the_small_stem_changes_n_and_every_map_behind_it(name: str) -> None:
    reference, outcome = stemmed(name)
    size = 11_172_032  # resnet18 for ten classes; its stem has 3 * 64 * 7 * 7 weights
    assert outcome.record[0].nnz == (size, size - 64 * 3 * (49 - 9))
    assert outcome.network.size == size - 7_680
    assert outcome.network.layers[0].weight_shape == (64, 3, 3, 3)
    before = [layer.writes for layer in reference.layers[:-1]]
    after = [layer.writes for layer in outcome.network.layers[:-1]]
    assert (before[0], after[0]) == ((64, 16, 16), (64, 32, 32))
    assert (before[1], after[1]) == ((64, 8, 8), (64, 32, 32))
    assert (before[-1], after[-1]) == ((512, 1, 1), (512, 4, 4))
    assert outcome.network.module.eval()(torch.randn(3, 3, 32, 32)).shape == (3, 10)


def test_the_small_stem_is_drawn_by_seed_alone_and_leaves_all_other_weights() -> None:
    reference, outcome = stemmed("torchvision:resnet18")
    again = Pipeline([SmallInputStem()])(reference, seed=0).network
    other = Pipeline([SmallInputStem()])(reference, seed=1).network
    name = "conv1.weight"
    ours = outcome.network.module.state_dict()
    assert same(dict(again.module.state_dict()), dict(ours))
    assert not torch.equal(other.module.get_parameter(name), ours[name])
    assert ours[name].std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)
    rest = {key: tensor for key, tensor in reference.module.state_dict().items() if key != name}
    assert same(rest, {key: tensor for key, tensor in ours.items() if key != name})


def test_a_network_with_a_small_stem_is_pruned_and_gets_skips_like_any_other() -> None:
    passes = [SmallInputStem(), RandomPruning(0.1), N2NSkip(0.5)]
    result = Pipeline(passes)(network("timm resnet18")).network
    assert result.nnz == round(0.1 * result.size)
    assert result.module(inputs("timm resnet18")).shape == (4, 10)


def test_a_small_stem_keeps_what_was_done_before_it_its_padding_and_what_is_frozen() -> None:
    first = nn.Conv2d(3, 8, 7, 2, 3, padding_mode="circular").requires_grad_(False)
    reference = n2nfx.trace(nn.Sequential(first, nn.Conv2d(8, 8, 3)), torch.zeros(1, 3, 16, 16))
    before = Pipeline([Reinit()])(reference, seed=3).network
    after = Pipeline([SmallInputStem()])(before).network
    assert [step.spec for step in after.history] == ["reinit{}", "small-input-stem{}"]
    stem = after.module.get_submodule("0")
    assert isinstance(stem, nn.Conv2d)
    assert stem.padding_mode == "circular"
    assert not any(parameter.requires_grad for parameter in stem.parameters())


def test_a_small_stem_keeps_groups_bias_type_and_mode() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 8, 7, 2, 3, groups=4), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
    reference = n2nfx.trace(grouped.double().eval(), torch.zeros(2, 4, 16, 16).double())
    stem = Pipeline([SmallInputStem()])(reference).network.module.get_submodule("0")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.weight.shape, stem.groups) == ((8, 1, 3, 3), 4)
    assert stem.bias is not None
    assert not stem.bias.any()
    assert (stem.weight.dtype, stem.training) == (torch.float64, False)


def test_only_the_max_pool_right_behind_the_stem_is_dropped() -> None:
    deep = chain(*conv(3, 4, 2), *conv(4, 4), nn.MaxPool2d(2), *conv(4, 4))
    assert [layer.writes for layer in deep.layers] == [(4, 4, 4), (4, 4, 4), (4, 2, 2)]
    changed = Pipeline([SmallInputStem()])(deep).network
    assert [layer.writes for layer in changed.layers] == [(4, 8, 8), (4, 8, 8), (4, 4, 4)]


class FunctionalStem(nn.Module):
    """Convolves with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight)


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        (nn.Linear(8, 8), (8,)),
        (nn.Conv1d(3, 4, 7), (3, 16)),
        (FunctionalStem(), (3, 16, 16)),
        (nn.ReLU(), (3, 16, 16)),
    ],
    ids=["linear", "1d", "functional", "none"],
)
def test_a_first_layer_that_is_no_2d_convolution_is_refused(
    first: nn.Module, shape: tuple[int, ...]
) -> None:
    assert "2-d convolution" in refused([SmallInputStem()], chain(first, shape=shape))


@pytest.mark.parametrize("before", [RandomPruning(0.5), N2NSkip(0.1), ResSkip()])
def test_the_stem_is_not_changed_after_pruning_or_skips(before: Pass) -> None:
    assert "before pruning" in refused([before, SmallInputStem()], network("vgg"))


def test_branches_that_fit_in_no_memory_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = n2nfx.trace(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), torch.zeros(1, 8))
    passes = [RandomPruning(0.5), N2NSkip(0.2, hops=(2,))]
    needed = 6 * 3 * 64
    for total, fits in ((needed, True), (needed - 1, False), (None, True)):
        monkeypatch.setattr(n2nskip, "bytes_of_memory", lambda total=total: (None, total))
        if fits:
            assert len(n2nfx.Pipeline(passes)(reference).network.skips) == 3
            continue
        with pytest.raises(CannotOperate, match=r"3 branches take 0\.0 GiB.*fewer hops"):
            n2nfx.Pipeline(passes)(reference)
