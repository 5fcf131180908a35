"""Surgery by example: the graph's text before and after, compared with golden files.

Run with --update-golden to write the files anew, and read the difference before committing it.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
import torchvision
from pydantic import TypeAdapter
from samples import Mixed, Residual
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import CannotOperate
from n2nfx.masks import Masks
from n2nfx.network import Network, Skip
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip
from n2nfx.pipeline import Pipeline
from n2nfx.splice import prepare, splice
from n2nfx.wiring import Options, find_branches

GOLDEN = Path(__file__).parent / "golden"


class NormAct(nn.BatchNorm2d):
    """A norm with its nonlinearity inside, as timm has them."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


class Reread(nn.Module):
    """A convolution without nonlinearity whose output is changed in place after it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x)
        inner = self.second(out)
        out.mul_(2.0)
        return functional.relu(self.third(functional.relu(inner) + out))


def chain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def fused() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        NormAct(4, nn.ReLU(inplace=True)),
        nn.Conv2d(4, 4, 3, padding=1),
        NormAct(4, nn.SiLU()),
    )


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), Residual(4), Residual(4))


IMAGE = torch.zeros(1, 3, 8, 8)
drawn = partial(N2NSkip, pattern="random")
CASES = {
    "chain_paper": (chain, drawn(ratio=0.5, hops=(2,), wiring="paper")),
    "chain_linear_norm": (
        chain,
        drawn(ratio=0.5, hops=(2,), wiring="linear", branch_norm="batch"),
    ),
    "chain_joint": (chain, drawn(ratio=0.5, hops=(2,), wiring="joint")),
    "chain_two_hops": (chain, drawn(ratio=0.5, hops=(2, 3), wiring="paper")),
    "chain_pool": (chain, drawn(ratio=0.5, hops=(2,), resolution="pool", wiring="paper")),
    "chain_released_vgg": (chain, drawn(ratio=0.3, hops=(2,), wiring="released-vgg")),
    "chain_resskip": (chain, ResSkip(hops=(2,))),
    "residual_paper": (residual, drawn(ratio=0.5, hops=(3,), wiring="paper")),
    "residual_joint": (residual, drawn(ratio=0.5, hops=(3,), wiring="joint")),
    "fused_paper": (fused, drawn(ratio=0.5, hops=(1, 2), wiring="paper")),
    "layouts_linear": (Mixed, drawn(ratio=0.3, hops=(2,), wiring="linear")),
    "layouts_paper_norm": (Mixed, drawn(ratio=0.3, hops=(2,), branch_norm="batch", wiring="paper")),
    "layouts_resskip": (Mixed, ResSkip(hops=(2,))),
    "reread_linear": (Reread, drawn(ratio=0.5, hops=(2,), wiring="linear")),
}


@pytest.mark.parametrize("case", CASES)
def test_surgery_is_as_written_in_the_golden_file(case: str, pytestconfig: pytest.Config) -> None:
    build, operation = CASES[case]
    network = n2nfx.trace(build(), IMAGE)
    outcome = Pipeline([RandomPruning(density=0.5), operation])(network)
    text = (
        f"{outcome.record[-1].spec}\n\n-- before --\n{network.text()}\n"
        f"-- after --\n{n2nfx.bake(outcome.network).text()}"
    )
    golden = GOLDEN / f"{case}.txt"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(text)
    assert golden.read_text() == text


def spliced(
    module: nn.Module,
    operation: N2NSkip | ResSkip,
    density: float = 1.0,
    example: Tensor = IMAGE,
) -> Network:
    network = n2nfx.trace(module, example)
    return Pipeline([RandomPruning(density=density), operation])(network, seed=1).network


def part(network: Network, name: str) -> nn.Module:
    return network.module.get_submodule(name)


def by_hand(network: Network, wiring: str, x: Tensor) -> Tensor:
    """The chain with branches two layers long, written out from the definitions."""
    layer = {str(index): part(network, str(index)) for index in range(12)}
    skip = {skip.target: part(network, skip.name) for skip in network.skips}
    relu = functional.relu
    first = relu(layer["1"](layer["0"](x)))
    if wiring == "joint":
        second = relu(layer["4"](layer["3"](first) + skip["3"](x)))
        third = relu(layer["7"](layer["6"](second) + skip["6"](first)))
    else:
        inner = relu if wiring == "paper" else lambda value: value
        second = relu(layer["4"](layer["3"](first)) + inner(skip["3"](x)))
        third = relu(layer["7"](layer["6"](second)) + inner(skip["6"](first)))
    pooled = functional.adaptive_avg_pool2d(second, 1).flatten(1)
    return layer["11"](layer["10"](layer["9"](third))) + skip["11"](pooled)


@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
@pytest.mark.parametrize("training", [False, True])
def test_each_wiring_computes_its_definition(wiring: str, training: bool) -> None:
    operation = N2NSkip(ratio=0.4, hops=(2,), wiring=wiring)  # type: ignore[arg-type]
    network = spliced(chain(), operation)
    network.module.train(training)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(network.module(x), by_hand(network, wiring, x))


@pytest.mark.parametrize("training", [False, True])
def test_the_released_wiring_shares_the_targets_norm_and_is_added_behind_it(training: bool) -> None:
    network = spliced(chain(), N2NSkip(ratio=0.3, hops=(2,), wiring="released-vgg"))
    copied = replace(network, module=copy.deepcopy(network.module))
    layer = {str(index): part(copied, str(index)) for index in range(12)}
    skip = {skip.target: part(copied, skip.name) for skip in copied.skips}
    relu, halved = functional.relu, lambda value: functional.max_pool2d(value, 2)
    x = torch.randn(3, 3, 8, 8)
    network.module.train(training)
    copied.module.train(training)
    inner = halved(relu(layer["4"](skip["3"](x))))
    first = relu(layer["1"](layer["0"](x)))
    second = relu(layer["4"](layer["3"](first))) + inner
    inner = halved(relu(layer["7"](skip["6"](first))))
    third = relu(layer["7"](layer["6"](second))) + inner
    out = layer["11"](layer["10"](layer["9"](third)))
    assert torch.equal(network.module(x), out)
    buffers = dict(copied.module.named_buffers())
    assert all(torch.equal(one, buffers[name]) for name, one in network.module.named_buffers())
    assert [s.uses for s in network.skips] == [64, 64]  # the branch is as large as its source


def without_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())


def with_sum() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Residual(4))


def trained() -> nn.Module:
    module = chain()
    module(torch.randn(2, 3, 8, 8))
    return module


def sixth() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
    )


@pytest.mark.parametrize(
    ("build", "hop", "told"),
    [
        (without_norm, 1, "no batch norm right between"),
        (with_sum, 3, "layer.conv2 has no batch norm right between"),
        (trained, 2, "is not 0 at 0"),
        (sixth, 2, "max-pooling does not bring a 8x8 map"),
    ],
)
def test_the_released_wiring_is_refused_with_the_reason(
    build: Callable[[], nn.Module], hop: int, told: str
) -> None:
    network = n2nfx.trace(build(), IMAGE)
    found = find_branches(network, Options(hops=(hop,), wiring="released-vgg"))
    assert any(told.replace("layer.", "2.") in refusal.reason for refusal in found.refused)


def test_a_branch_reads_its_source_before_others_change_it() -> None:
    network = spliced(Reread(), N2NSkip(ratio=0.4, hops=(2,), wiring="linear"))
    x = torch.randn(2, 3, 8, 8)
    skip = {skip.target: part(network, skip.name) for skip in network.skips}
    first = part(network, "first")(x)
    inner = part(network, "second")(first) + skip["second"](x)
    third = part(network, "third")(functional.relu(inner) + first * 2.0)
    assert torch.equal(network.module(x), functional.relu(third + skip["third"](first)))


def test_a_source_changed_through_a_view_is_refused_with_the_reason() -> None:
    class Viewed(Reread):
        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            inner = self.second(out)
            out.view(out.shape[0], -1).mul_(2.0)
            return functional.relu(self.third(functional.relu(inner) + out))

    branches = find_branches(n2nfx.trace(Viewed(), IMAGE), Options(hops=(2,)))
    reasons = {refusal.source: refusal.reason for refusal in branches.refused}
    assert "changed in place" in reasons["first"]


def test_a_fused_norm_is_split_without_changing_a_bit() -> None:
    module = fused()
    network = n2nfx.trace(module, IMAGE)
    prepare(network)
    network.module.recompile()
    assert "_1_act = self.1_act(_1)" in network.text()
    assert list(network.module.state_dict()) == list(module.state_dict())
    x = torch.randn(3, 3, 8, 8)
    for training in (False, True):
        assert torch.equal(network.module.train(training)(x), module.train(training)(x))


class Bent(nn.Module):
    """A nonlinearity of somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


def test_a_fused_nonlinearity_of_any_class_is_one_once_it_is_split_off() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), NormAct(4, Bent()), nn.Conv2d(4, 4, 1), NormAct(4, Bent())
    )
    outcome = n2nfx.Pipeline([N2NSkip(ratio=0.5, hops=(1,))])(n2nfx.trace(module, IMAGE))
    assert len(outcome.network.skips) == 2
    assert n2nfx.channel_graph(outcome.network).hubs == ()


def test_a_fused_nonlinearity_with_weights_stays_inside_and_its_target_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4, nn.PReLU(4)))
    network = n2nfx.trace(module, IMAGE)
    before = network.text()
    prepare(network)
    assert network.text() == before
    branches = find_branches(network, Options(hops=(1,)))
    assert not branches.skips
    assert "weights of its own" in branches.refused[0].reason


def test_a_skip_to_a_layer_that_is_not_there_is_refused() -> None:
    network = n2nfx.trace(chain(), IMAGE)
    skip = find_branches(network, Options(hops=(2,))).skips[0]
    with pytest.raises(CannotOperate, match="nowhere"):
        splice(network, [replace(skip, target="nowhere")])


def assert_every_node_knows_its_shape(network: Network, x: Tensor) -> None:
    shapes: dict[str, torch.Size] = {}

    class Shapes(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n.name] = value.shape
            return value

    Shapes(network.module.eval()).run(x)
    for node in network.module.graph.nodes:
        if node.name in shapes and node.op != "output":
            assert tuple(shapes[node.name]) == node.meta["spec"][0].shape, node.name


def test_every_node_of_a_branch_knows_its_shape() -> None:
    network = spliced(chain(), drawn(ratio=0.4, hops=(2, 3), wiring="paper", branch_norm="batch"))
    assert_every_node_knows_its_shape(network, torch.randn(1, 3, 8, 8))


def test_branches_between_layouts_compute_what_is_written_by_hand() -> None:
    network = spliced(Mixed(), N2NSkip(ratio=0.3, hops=(2,), wiring="linear"))
    skip = {skip.target: part(network, skip.name) for skip in network.skips}
    at = {name: part(network, name) for name in ("stem", "last", "tokens", "more", "down", "head")}
    relu, x = functional.relu, torch.randn(3, 3, 8, 8)
    stem = relu(at["stem"](x))
    last = relu(at["last"](stem.permute(0, 2, 3, 1)) + skip["last"](x.permute(0, 2, 3, 1)))
    cls = network.module.get_parameter("cls").expand(3, 1, 5)
    tokens = at["tokens"](torch.cat([cls, last.reshape(3, 64, 5)], 1))
    tokens[:, 1:] += skip["tokens"](stem.permute(0, 2, 3, 1).reshape(3, 64, 4))
    more = at["more"](relu(tokens))
    more[:, 1:] += skip["more"](last.reshape(3, 64, 5))
    more = relu(more)
    down = at["down"](more[:, 1:].transpose(1, 2).reshape(3, 7, 8, 8))
    down = relu(down + skip["down"](relu(tokens)[:, 1:].transpose(1, 2).reshape(3, 6, 8, 8)))
    head = at["head"](down.mean((2, 3))) + skip["head"](more.transpose(1, 2).mean(2))
    assert torch.allclose(network.module(x), head, atol=1e-6)
    kinds = [(one.source, one.target, one.kind, one.uses) for one in network.skips]
    assert kinds == [
        ("input", "last", "linear", 64),
        ("stem", "tokens", "linear", 64),
        ("last", "more", "linear", 64),
        ("tokens", "down", "conv", 16),
        ("more", "head", "linear", 1),
    ]


def test_residual_skips_between_layouts_are_the_activation_itself() -> None:
    network = spliced(Mixed(), ResSkip(hops=(2,)))
    at = {name: part(network, name) for name in ("stem", "last", "tokens", "more", "down", "head")}
    relu, x = functional.relu, torch.randn(3, 3, 8, 8)
    stem = relu(at["stem"](x))
    last = at["last"](stem.permute(0, 2, 3, 1))
    last[..., :3] += x.permute(0, 2, 3, 1)
    last = relu(last)
    cls = network.module.get_parameter("cls").expand(3, 1, 5)
    tokens = at["tokens"](torch.cat([cls, last.reshape(3, 64, 5)], 1))
    tokens[:, 1:, :4] += stem.permute(0, 2, 3, 1).reshape(3, 64, 4)
    tokens = relu(tokens)
    more = at["more"](tokens)
    more[:, 1:, :5] += last.reshape(3, 64, 5)
    more = relu(more)
    down = at["down"](more[:, 1:].transpose(1, 2).reshape(3, 7, 8, 8))
    shown = tokens[:, 1:].transpose(1, 2).reshape(3, 6, 8, 8)
    down[:, :6] += functional.avg_pool2d(shown, 2)
    down = relu(down)
    head = at["head"](down.mean((2, 3))) + more.mean(1)[:, :2]
    assert torch.allclose(network.module(x), head, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_a_branchs_norm_is_over_channels_wherever_they_are(training: bool) -> None:
    network = spliced(Mixed(), N2NSkip(0.3, (2,), wiring="linear", branch_norm="batch"))
    norms = {skip.target: part(network, f"{skip.name}_norm").num_features for skip in network.skips}
    assert norms == {"last": 5, "tokens": 6, "more": 7, "down": 8, "head": 2}
    assert_every_node_knows_its_shape(network, torch.randn(1, 3, 8, 8))
    bare = spliced(Mixed(), N2NSkip(0.3, (2,), wiring="linear"))
    bare.module.load_state_dict(network.module.state_dict(), strict=False)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        for skip in network.skips:
            network.module.get_parameter(skip.weight).zero_()
            bare.module.get_parameter(skip.weight).zero_()
        one, other = network.module.train(training), bare.module.train(training)
        assert torch.equal(one(x), other(x))


def test_a_norm_for_too_many_dimensions_of_places_is_refused() -> None:
    deep = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network = n2nfx.trace(deep, torch.zeros(1, 2, 2, 2, 2, 4))
    with pytest.raises(CannotOperate, match="more dimensions of places than a batch norm takes"):
        Pipeline([N2NSkip(0.5, (1,), branch_norm="batch")])(network)
    assert Pipeline([N2NSkip(0.5, (1,))])(network).network.skips


def of_one_kind(dtype: torch.dtype) -> nn.Module:
    """A first layer of 32-bit numbers that nothing reads, then others."""
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).to(dtype)


def test_a_branch_has_its_targets_kind_of_numbers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.rest = of_one_kind(torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.first(x).double())

    network = n2nfx.trace(Two(), torch.zeros(1, 4))
    outcome = Pipeline([N2NSkip(0.2, (1,))])(network)
    kinds = {
        skip.target: outcome.network.module.get_parameter(skip.weight).dtype
        for skip in outcome.network.skips
    }
    assert kinds == {"first": torch.float32, "rest.2": torch.float64}
    outcome.network.module(torch.randn(3, 4))


@pytest.mark.parametrize("makes_tensors", [False, True])
def test_a_module_with_two_names_and_a_graph_that_makes_tensors_get_skips(
    makes_tensors: bool,
) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
            self.again = nn.Sequential(self.one)
            self.three.weight = self.two.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(x + torch.ones(4) if makes_tensors else x)
            return self.three(functional.relu(self.two(functional.relu(x))))

    network = n2nfx.trace(Shared(), torch.zeros(1, 4))
    result = Pipeline([RandomPruning(0.5), N2NSkip(0.2, (1,))])(network).network
    ends = [(skip.source, skip.target, skip.calls) for skip in result.skips]
    assert ends == [
        ("input", "one", ((0, 0),)),
        ("one", "two", ((0, 0),)),
        ("two", "two", ((0, 1),)),  # three has the weight of two
    ]
    assert dict(result.module.named_parameters()).keys() >= {"one.weight", "two.weight"}
    assert result.module(torch.randn(3, 4)).shape == (3, 4)


# Real models, made small

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=24, num_heads=3, num_classes=5
        ),
        64,
    ),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5),
        32,
    ),
    "torchvision swin": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=5
        ),
        64,
    ),
    "torchvision convnext": (
        lambda: torchvision.models.ConvNeXt(
            [
                torchvision.models.convnext.CNBlockConfig(8, 16, 2),
                torchvision.models.convnext.CNBlockConfig(16, None, 2),
            ],
            num_classes=5,
        ),
        32,
    ),
    "mixer": (
        lambda: timm.models.mlp_mixer.MlpMixer(
            img_size=64, patch_size=16, embed_dim=24, num_blocks=3, num_classes=5
        ),
        64,
    ),
    "pvt": (
        lambda: timm.create_model("pvt_v2_b0", embed_dims=(8, 16, 40, 32), num_classes=5),
        32,
    ),
    "xcit": (
        lambda: timm.create_model(
            "xcit_nano_12_p8_224", img_size=32, depth=2, embed_dim=32, num_classes=5
        ),
        32,
    ),
}


@cache
def traced(name: str) -> Network:
    """The network, no parameter of which is zero or tiny: its output shows every layer."""
    build, size = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return n2nfx.trace(module, torch.zeros(1, 3, size, size))


def outputs(network: Network, x: Tensor, training: bool) -> Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        return network.module.train(training)(x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
@pytest.mark.parametrize("hop", [2, 3])
def test_silent_branches_change_no_bit_of_any_model_and_the_budget_is_exact(
    name: str, wiring: Literal["paper", "linear", "joint"], hop: int
) -> None:
    network = traced(name)
    budget = round(0.5 * network.size)
    result = Pipeline([RandomPruning(0.5), N2NSkip(0.2, (hop,), wiring=wiring)])(network).network
    assert result.nnz == budget
    assert sum(skip.nnz for skip in result.skips) == round(0.2 * budget)
    masks = {layer.weight: result.masks[layer.weight] for layer in result.layers}
    without = Pipeline([])(replace(network, masks=Masks(masks))).network
    size = MODELS[name][1]
    x = torch.randn(2, 3, size, size)
    assert not torch.equal(outputs(result, x, False), outputs(without, x, False))
    with torch.no_grad():
        for skip in result.skips:
            result.module.get_parameter(skip.weight).zero_()
    for training in (False, True):
        assert torch.equal(outputs(result, x, training), outputs(without, x, training))
    buffers = dict(result.module.named_buffers())
    assert all(torch.equal(one, buffers[each]) for each, one in without.module.named_buffers())


@pytest.mark.parametrize("name", MODELS)
def test_a_branch_keeps_examples_apart(name: str) -> None:
    result = Pipeline([N2NSkip(0.2, (2, 3), wiring="linear")])(traced(name)).network
    size = MODELS[name][1]
    x = torch.randn(3, 3, size, size)
    together = outputs(result, x, training=False)
    alone = torch.cat([outputs(result, one, training=False) for one in x.split(1)])
    assert torch.allclose(together, alone, atol=1e-4, rtol=1e-4)


class Transposed(nn.Module):
    """Places folded into the batch behind it, then before it, as many of them."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.behind, self.before, self.again = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, x = x.shape[0], functional.relu(self.open(x))
        x = functional.relu(self.behind(x.reshape(-1, 4))).reshape(batch, 5, 4)
        x = functional.relu(self.before(x.transpose(0, 1).reshape(-1, 4)))
        return self.again(x).reshape(5, batch, 4).transpose(0, 1)


def test_folds_of_one_size_and_different_orders_are_joined_place_by_place() -> None:
    network = spliced(Transposed(), N2NSkip(ratio=0.4, hops=(1,)), example=torch.zeros(1, 5, 4))
    skip = {skip.target: part(network, skip.name) for skip in network.skips}
    x = torch.randn(3, 5, 4)
    opened = functional.relu(part(network, "open")(x) + skip["open"](x))
    behind = functional.relu(part(network, "behind")(opened) + skip["behind"](opened))
    before = functional.relu(part(network, "before")(behind) + skip["before"](behind))
    again = part(network, "again")(before) + skip["again"](before)
    assert torch.allclose(network.module(x), again, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_record_alone_gives_the_same_graph_again(name: str) -> None:
    records = TypeAdapter(tuple[Skip, ...])
    for operation in (N2NSkip(0.2, (2, 3), wiring="linear"), ResSkip(hops=(3,))):
        outcome = Pipeline([operation])(traced(name))
        again = replace(traced(name), module=copy.deepcopy(traced(name).module))
        read = records.validate_json(records.dump_json(outcome.network.skips))
        assert read == outcome.network.skips
        splice(again, read)
        assert n2nfx.bake(outcome.network).text() == again.text()
        size = MODELS[name][1]
        assert_every_node_knows_its_shape(again, torch.randn(1, 3, size, size))


@pytest.mark.parametrize("size", [5, 6, 7, 8, 9, 11, 12, 13, 16, 32, 33])
@pytest.mark.parametrize(
    ("resolution", "fits"), [("stride", {8, 12, 16, 32}), ("pool", {8, 9, 11})]
)
def test_at_another_size_a_branch_of_zeros_changes_nothing_or_is_told_not_to_fit(
    size: int, resolution: Any, fits: set[int]
) -> None:
    """A map of one place would be added to all of another, or all of another to it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    options: dict[str, Any] = {"hops": (1, 2, 3), "init": "zero", "resolution": resolution}
    outcome = n2nfx.transform(
        model, density=0.5, skip_ratio=0.5, example=torch.randn(1, 3, 8, 8), **options
    )
    kept = n2nfx.bake(outcome.network).module.state_dict()
    model.load_state_dict({name: kept[name] for name in model.state_dict()})
    spliced, x = outcome.network.module.eval(), torch.randn(3, 3, size, size)
    if size in fits:
        assert torch.equal(spliced(x), model(x))
        return
    with pytest.raises(CannotOperate, match=r"a branch gives .* and its target has"):
        spliced(x)
