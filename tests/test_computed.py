"""Masks of weights that a layer computes: what is dropped is zero in use, and has no effect."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import n2nfx
from n2nfx.network import Network
from n2nfx.passes import N2NSkip, RandomPruning


class ByHand(nn.Conv2d):
    """Weight standardization written out, as people do."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(input, (self.weight - mean) / (std + 1e-5), self.bias)


class Halved(nn.Linear):
    """A linear layer whose weight is a part of another."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.both = nn.Parameter(torch.randn(2 * out, into))

    def forward(self, input: Tensor) -> Tensor:
        first, second = self.both.chunk(2)
        return functional.linear(input, first) * functional.linear(input, second, self.bias)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "standardized": lambda: StdConv2d(6, 8, 3, padding=1),
    "standardized same": lambda: StdConv2dSame(6, 8, 3),
    "scaled": lambda: ScaledStdConv2d(6, 8, 3, padding=1),
    "scaled same": lambda: ScaledStdConv2dSame(6, 8, 3),
    "by hand": lambda: ByHand(6, 8, 3, padding=1),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 3, padding=1)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(6, 8, 3, padding=1)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 8)),
    "a part": lambda: Halved(6, 8),
    "attention": lambda: Attention(),
}


class Attention(nn.MultiheadAttention):
    """Cross attention, its projections parts of one weight."""

    def __init__(self) -> None:
        super().__init__(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens = x.flatten(2).mT
        return super().forward(tokens[:, :3], tokens, tokens, need_weights=False)[0]


def pruned(make: Callable[[], nn.Module]) -> tuple[Network, Network]:
    """A traced network with the layer between others, and the same pruned by half."""
    torch.manual_seed(0)
    layer = make()
    linear = isinstance(layer, nn.Linear)
    before: list[nn.Module] = [nn.Conv2d(3, 6, 1), nn.ReLU()]
    model = nn.Sequential(*before, *([nn.Flatten(2), Swap()] if linear else []), layer)
    network = n2nfx.trace(model, torch.rand(1, 3, 5, 5))
    return network, n2nfx.Pipeline([RandomPruning(0.5)])(network).network


class Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


@contextmanager
def watched() -> Iterator[list[Tensor]]:
    """The weights that convolutions and linear layers are called with meanwhile."""
    seen: list[Tensor] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in (torch.conv2d, functional.linear):
                seen.append(args[1].detach())
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def computed(network: Network) -> str:
    """The weight that is not used as it is."""
    return next(layer.weight for layer in network.layers if layer.name != "0")


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_dropped_weight_is_zero_where_it_is_used_and_changes_no_bit(
    make: Callable[[], nn.Module], training: bool
) -> None:
    _, network = pruned(make)
    name = computed(network)
    mask = network.masks[name]
    assert 0 < mask.sum() < mask.numel()
    module = network.module.train(training)
    x = torch.rand(2, 3, 5, 5)
    state = copy.deepcopy(module.state_dict())
    with watched() as seen:
        before = module(x)
    before.square().sum().backward()
    whole = [weight for weight in seen if weight.shape == mask.shape]
    parts = torch.cat([w for w in seen if w.shape[1:] == mask.shape[1:]])[: len(mask)]
    assert len(parts) == len(mask) or whole
    for used in whole or [parts]:
        assert (used[~mask] == 0).all()
    weight = module.get_parameter(name)
    assert weight.grad is not None
    assert (weight.grad[~mask] == 0).all()
    module.load_state_dict(state)
    with torch.no_grad():
        weight[~mask] = 1e3
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_names_copies_and_baking_are_as_for_any_layer(make: Callable[[], nn.Module]) -> None:
    reference, network = pruned(make)
    x = torch.rand(2, 3, 5, 5)
    want = network.module.eval()(x)
    assert set(reference.module.state_dict()) <= set(network.module.state_dict())
    assert torch.equal(copy.deepcopy(network.module)(x), want)
    baked = n2nfx.bake(network)
    assert torch.equal(baked.module.eval()(x), want)
    again = n2nfx.Pipeline([])(network).network  # masks taken out and put in again
    assert again.nnz == network.nnz
    assert torch.equal(again.module.eval()(x), want)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("weight norm", "orthogonal")])
def test_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make = LAYERS[name]
    reference, _ = pruned(make)
    outcome = n2nfx.Pipeline([RandomPruning(0.5)])(reference)
    outcome.save(tmp_path / "saved")
    torch.manual_seed(1)
    model = pruned(make)[0].module
    loaded = n2nfx.load(tmp_path / "saved", model)
    x = torch.rand(2, 3, 5, 5)
    assert loaded.nnz == outcome.network.nnz
    assert torch.equal(loaded.module.eval()(x), outcome.network.module.eval()(x))


@pytest.mark.parametrize("scaled", [False, True])
def test_standardization_has_the_statistics_of_the_kept_weights_alone(scaled: bool) -> None:
    make = (lambda: ScaledStdConv2d(6, 8, 3, padding=1)) if scaled else LAYERS["standardized"]
    _, network = pruned(make)
    name = computed(network)
    mask, weight = network.masks[name], network.module.get_parameter(name).detach()
    with watched() as seen:
        network.module.eval()(torch.rand(2, 3, 5, 5))
    used = seen[-1]
    eps = 1e-6
    for channel in range(8):
        kept = weight[channel][mask[channel]]
        want = (kept - kept.mean()) / (kept.var(unbiased=False) + eps).sqrt()
        if scaled:
            layer: Any = network.module.get_submodule("2")
            want = want * layer.gain[channel].item() * 1.0 / len(kept) ** 0.5
        assert torch.allclose(used[channel][mask[channel]], want, atol=1e-5)


def test_a_full_mask_leaves_a_standardized_layer_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ScaledStdConv2d(3, 8, 3), nn.ReLU(), ScaledStdConv2d(8, 8, 3))
    network = n2nfx.trace(model, torch.rand(1, 3, 9, 9))
    whole = n2nfx.Pipeline([RandomPruning(1.0)])(network).network
    x = torch.rand(2, 3, 9, 9)
    assert torch.equal(whole.module(x), model(x))
    assert whole.text() == network.text()


def test_a_network_of_standardized_layers_takes_skips_and_an_exact_budget() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(5) for part in (ScaledStdConv2d(8, 8, 3, padding=1), nn.SiLU())]
    network = n2nfx.trace(nn.Sequential(*layers), torch.rand(1, 8, 6, 6))
    passes = [RandomPruning(0.3), N2NSkip(0.4, hops=(2,))]
    outcome = n2nfx.Pipeline(passes)(network)
    assert outcome.counts.kept == round(0.3 * network.size)
    assert outcome.counts.skip == round(0.4 * outcome.counts.kept)
    outcome.network.module(torch.rand(2, 8, 6, 6)).sum().backward()
