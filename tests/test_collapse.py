"""Collapse: dead networks are told, with the layers at fault; default floors keep others alive."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import Model
from torch import Tensor, nn
from torchvision.models import resnet18

import n2nfx
from n2nfx.connectivity import count_effective, find_collapse
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import Masks
from n2nfx.models import build
from n2nfx.network import Network, Probe
from n2nfx.passes import SNIP, RandomPruning
from n2nfx.pipeline import Pipeline

IMAGE = (3, 8, 8)


def network_of(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> Network:
    return n2nfx.trace(module, torch.zeros(2, *shape))


def chain() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        )


def without(network: Network, *names: str) -> Network:
    """The network with nothing kept in the named layers, and everything elsewhere."""
    masks = {
        layer.weight: torch.full(layer.weight_shape, layer.name not in names)
        for layer in network.layers
    }
    return replace(network, masks=Masks(masks))


def test_a_whole_network_is_alive() -> None:
    assert find_collapse(network_of(chain())) is None


def test_a_cut_is_told_with_the_layer_where_it_ends() -> None:
    network = without(network_of(chain()), "3")
    collapse = find_collapse(network)
    assert collapse is not None
    assert collapse.layers == ("3",)
    assert str(collapse).endswith("leads from its input to its output; it ends at 3")


def test_a_layer_is_at_fault_where_channels_do_not_meet() -> None:
    network = network_of(chain())
    masks = {name: torch.ones_like(mask) for name, mask in without(network).masks.items()}
    masks["0.weight"][3:], masks["3.weight"][:, :3] = False, False
    collapse = find_collapse(replace(network, masks=Masks(masks)))
    assert collapse is not None
    assert collapse.layers == ("3",)
    assert count_effective(replace(network, masks=Masks(masks))).empty_layers == ()


def test_what_a_residual_leads_past_is_no_cut() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return self.last((x + self.inner(x)).flatten(1))

    module = Model(body, inner=nn.Conv2d(3, 3, 3, padding=1), last=nn.Linear(3 * 64, 4))
    network = network_of(module)
    assert find_collapse(without(network, "inner")) is None
    collapse = find_collapse(without(network, "inner", "last"))
    assert collapse is not None
    assert collapse.layers == ("inner", "last")


@pytest.mark.parametrize("behind", ["0", "3"])
def test_an_output_that_does_not_move_is_told_though_all_paths_are_there(behind: str) -> None:
    """ReLUs that never open: no weight is missing, and no number arrives."""
    module = chain()
    norm = module.get_submodule(str(int(behind) + 1))
    nn.init.constant_(norm.bias, -100.0)  # pyright: ignore[reportArgumentType]
    network = network_of(module)
    assert count_effective(network).connected
    collapse = find_collapse(network)
    assert collapse is not None
    assert "does not move" in str(collapse)
    assert collapse.layers == (behind,)


def test_a_layer_that_moves_nothing_on_is_at_fault() -> None:
    module = chain()
    nn.init.zeros_(module.get_parameter("3.weight"))
    collapse = find_collapse(network_of(module))
    assert collapse is not None
    assert collapse.layers == ("3",)


def test_running_statistics_that_hide_all_movement_do_not_hide_it_here() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = resnet18(num_classes=4)
    pruned = Pipeline([RandomPruning(density=0.02)])(network_of(module, (3, 32, 32))).network
    outputs = pruned.module.eval()(torch.randn(2, 3, 32, 32))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-3 * outputs.abs().max()
    assert find_collapse(pruned) is None


def test_given_inputs_are_those_that_must_move_it() -> None:
    network = network_of(chain())
    same = torch.ones(4, *IMAGE)
    assert find_collapse(network, [same]) is not None
    assert find_collapse(network, [same * torch.arange(4).reshape(4, 1, 1, 1)]) is None
    assert find_collapse(network, same * torch.arange(4).reshape(4, 1, 1, 1)) is None


@pytest.mark.parametrize(
    ("inputs", "error", "told"),
    [
        (3, UsageError, "a tensor, or one for each input, not int"),
        ([1.0], UsageError, r"not \[float\]"),
        (torch.ones(1, *IMAGE), UsageError, "of one example"),
        (torch.ones(2, 5), CannotOperate, "is 2x5, the network was traced with"),
        ([torch.ones(2, *IMAGE)] * 2, CannotOperate, "has 1 inputs, the batch 2"),
    ],
)
def test_given_inputs_that_can_tell_nothing_are_refused(
    inputs: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        find_collapse(network_of(chain()), inputs)


def test_the_judged_network_stays_as_it_is() -> None:
    outcome = Pipeline([RandomPruning(density=0.5)])(network_of(chain()))
    module = outcome.network.module.train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    randomness = torch.get_rng_state()
    assert find_collapse(outcome.network) is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert module.training
    assert torch.equal(torch.get_rng_state(), randomness)
    assert not any(part._forward_hooks for part in module.modules())


def test_a_network_that_takes_no_float64_is_judged_by_its_paths() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return self.last(x.float().flatten(1))

    module = Model(body, last=nn.Linear(3 * 64, 4))
    assert find_collapse(network_of(module)) is None
    assert find_collapse(without(network_of(module), "last")) is not None


def snip(name: str, density: float, floor: int | str) -> Network:
    """Single-shot SNIP on images of noise with labels at random."""
    built = build(name)
    assert isinstance(built.example, Tensor)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, *built.example.shape[1:], generator=generator)
    probe = Probe(batches=[(inputs, torch.randint(10, (64,), generator=generator))])
    pruner = SNIP(density=density, floor=floor)  # pyright: ignore[reportArgumentType]
    return pruner(n2nfx.trace(built.module, built.example), probe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "density"),
    [
        ("n2nfx:resnet50_cifar", 0.05),
        ("n2nfx:resnet50_cifar", 0.02),
        ("n2nfx:vgg19_cifar", 0.02),
        ("n2nfx:vgg19_cifar", 0.005),
    ],
)
def test_the_default_floor_keeps_alive_what_snip_would_kill(name: str, density: float) -> None:
    assert find_collapse(snip(name, density, "channels")) is None


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.05, 0.02])
def test_without_a_floor_snip_kills_resnet50(density: float) -> None:
    collapse = find_collapse(snip("n2nfx:resnet50_cifar", density, 0))
    assert collapse is not None
    assert collapse.layers
