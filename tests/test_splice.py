"""Surgery by example: the graph's text before and after, compared with golden files.

Run with --update-golden to write the files anew, and read the difference before committing it.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import CannotOperate
from n2nfx.network import Network
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


class Residual(nn.Module):
    """Two convolutions around an identity, all nonlinearities in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


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
CASES = {
    "chain_paper": (chain, N2NSkip(ratio=0.5, hops=(2,))),
    "chain_linear_norm": (
        chain,
        N2NSkip(ratio=0.5, hops=(2,), wiring="linear", branch_norm="batch"),
    ),
    "chain_joint": (chain, N2NSkip(ratio=0.5, hops=(2,), wiring="joint")),
    "chain_two_hops": (chain, N2NSkip(ratio=0.5, hops=(2, 3))),
    "chain_resskip": (chain, ResSkip(hops=(2,))),
    "residual_paper": (residual, N2NSkip(ratio=0.5, hops=(3,))),
    "residual_joint": (residual, N2NSkip(ratio=0.5, hops=(3,), wiring="joint")),
    "fused_paper": (fused, N2NSkip(ratio=0.5, hops=(1, 2))),
    "reread_linear": (Reread, N2NSkip(ratio=0.5, hops=(2,), wiring="linear")),
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


def spliced(module: nn.Module, operation: N2NSkip | ResSkip, density: float = 1.0) -> Network:
    network = n2nfx.trace(module, IMAGE)
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


def test_every_node_of_a_branch_knows_its_shape() -> None:
    network = spliced(chain(), N2NSkip(ratio=0.4, hops=(2, 3), branch_norm="batch"))
    x = torch.randn(1, 3, 8, 8)
    shapes: dict[str, torch.Size] = {}

    class Shapes(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n.name] = value.shape
            return value

    Shapes(network.module.eval()).run(x)
    for node in network.module.graph.nodes:
        if node.op != "output":
            assert tuple(shapes[node.name]) == node.meta["spec"][0].shape, node.name
