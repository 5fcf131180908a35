"""The CIFAR networks and the MLP are those of the paper, to the last weight."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from n2nfx import zoo


def prunable(network: nn.Module) -> list[torch.Tensor]:
    layers = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return [layer.weight.detach() for layer in layers]


def prunable_count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable(network))


def output_of(network: nn.Module, *shape: int) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.zeros(shape))


@pytest.mark.parametrize(("classes", "weights"), [(10, 20_024_000), (100, 20_070_080)])
def test_vgg19_has_twenty_million_prunable_weights(classes: int, weights: int) -> None:
    assert prunable_count(zoo.vgg19_cifar(classes)) == weights


def test_the_channel_graph_of_vgg19_has_5517_nodes() -> None:
    weights = prunable(zoo.vgg19_cifar())
    inputs, hidden, outputs = 3, sum(len(w) for w in weights[:-1]), len(weights[-1])
    assert (inputs, hidden, outputs) == (3, 5504, 10)


def test_vgg19_is_sixteen_convolutions_five_pools_and_one_linear_layer() -> None:
    kinds = [type(m).__name__ for m in zoo.vgg19_cifar().modules()]
    counts = {kind: kinds.count(kind) for kind in ("Conv2d", "BatchNorm2d", "MaxPool2d", "Linear")}
    assert counts == {"Conv2d": 16, "BatchNorm2d": 16, "MaxPool2d": 5, "Linear": 1}


def test_the_convolutions_of_vgg19_have_no_bias() -> None:
    network = zoo.vgg19_cifar()
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", ["vgg19_cifar", "resnet50_cifar"])
def test_convolutions_start_with_the_spread_of_he_et_al(name: str) -> None:
    torch.manual_seed(0)
    for weight in prunable(zoo.NETWORKS[name].builder())[:-1]:
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        assert float(weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("classes", "weights"), [(10, 23_467_712), (100, 23_652_032)])
def test_resnet50_has_twenty_three_million_prunable_weights(classes: int, weights: int) -> None:
    assert prunable_count(zoo.resnet50_cifar(classes)) == weights


@pytest.mark.parametrize("name", ["vgg19_cifar", "resnet50_cifar"])
def test_at_quarter_width_every_channel_stands_for_four(name: str) -> None:
    full, quarter = (
        dict(zoo.NETWORKS[n].builder().named_parameters()) for n in (name, f"{name}_quarter")
    )
    assert full.keys() == quarter.keys()
    ends = [key for key in full if key.startswith(("fc.", "classifier."))]
    for key in full.keys() - ends:
        assert full[key].shape[0] == 4 * quarter[key].shape[0], key
    assert [quarter[key].shape[0] for key in ends] == [10, 10]
    assert output_of(zoo.NETWORKS[f"{name}_quarter"].builder(100, 1), 2, 1, 32, 32).shape == (
        2,
        100,
    )


def test_resnet50_first_shrinks_the_picture_in_its_second_stage() -> None:
    network = zoo.resnet50_cifar()
    sizes: list[int] = []
    for stage in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(stage).register_forward_hook(
            lambda _module, _inputs, output: sizes.append(output.shape[-1])
        )
    output_of(network, 1, 3, 32, 32)
    assert sizes == [32, 32, 16, 8, 4]


def test_the_mlp_has_five_layers_of_neurons_and_only_weights() -> None:
    network = zoo.mlp()
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert shapes == [(512, 3072), (256, 512), (128, 256), (64, 128)]
    assert prunable_count(network) == 1_744_896


@pytest.mark.parametrize(("name", "classes"), [("vgg19_cifar", 10), ("resnet50_cifar", 10)])
def test_the_networks_take_the_input_that_the_table_says(name: str, classes: int) -> None:
    entry = zoo.NETWORKS[name]
    assert output_of(entry.builder(), 2, *entry.input_shape).shape == (2, classes)


def test_the_mlp_takes_the_input_that_the_table_says() -> None:
    assert output_of(zoo.mlp(), 2, *zoo.NETWORKS["mlp"].input_shape).shape == (2, 64)


def test_the_table_cannot_be_changed() -> None:
    entry = zoo.NETWORKS["mlp"]
    with pytest.raises(TypeError):
        zoo.NETWORKS["mine"] = entry  # pyright: ignore[reportIndexIssue]
    with pytest.raises(FrozenInstanceError):
        entry.input_shape = (1,)  # pyright: ignore[reportAttributeAccessIssue]
