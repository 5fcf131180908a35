"""Which weights of a traced network are prunable, by which name, and how often each is used."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import n2nfx
from n2nfx.network import Layer


class Model(nn.Module):
    """A forward that is a function of the module and its input, over the given parts."""

    def __init__(self, body: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def layers(model: nn.Module, *shape: int) -> tuple[Layer, ...]:
    return n2nfx.trace(model, torch.ones(1, *shape, device=device_of(model))).layers


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """What torch's own counter counts for one example (it counts an addition apart)."""
    counter = FlopCounterMode(display=False)
    with counter:
        model.eval()(torch.ones(1, *shape, device=device_of(model)))
    return counter.get_total_flops() // 2


def counted(model: nn.Module, *shape: int) -> int:
    return sum(layer.size * layer.uses for layer in layers(model, *shape))


# Names.


def test_layers_come_in_order_of_execution_with_module_path_weight_and_shapes() -> None:
    convolution, linear = layers(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)),
        3,
        8,
        8,
    )
    assert convolution == Layer("0", "conv", "0.weight", (8, 3, 3, 3), (3, 8, 8), (8, 3, 3), 9)
    assert linear == Layer("3", "linear", "3.weight", (5, 72), (72,), (5,), 1)


def test_a_squeeze_that_would_take_a_batch_of_one_along_does_not_change_the_shapes() -> None:
    model = Model(
        lambda m, x: m.layer(x.mean((2, 3), keepdim=True).squeeze()), layer=nn.Linear(8, 6)
    )
    (layer,) = layers(model, 8, 4, 4)
    assert (layer.reads, layer.writes, layer.uses) == ((8,), (6,), 1)


def test_a_weight_that_a_function_uses_goes_by_the_parameters_name() -> None:
    model = Model(
        lambda m, x: functional.linear(functional.conv1d(x, m.kernel), m.inner.matrix),
        kernel=weight(4, 3, 2),
        inner=Model(print, matrix=weight(5, 7)),
    )
    found = layers(model, 3, 8)
    assert [(layer.name, layer.weight, layer.kind) for layer in found] == [
        ("kernel", "kernel", "conv"),
        ("inner.matrix", "inner.matrix", "linear"),
    ]


def test_the_operands_of_a_function_may_come_by_name_in_any_order() -> None:
    model = Model(lambda m, x: functional.linear(weight=m.matrix, input=x), matrix=weight(5, 4))
    (layer,) = layers(model, 4)
    assert (layer.reads, layer.writes) == ((4,), (5,))


def test_tied_weights_are_one_layer_by_the_first_name_and_their_uses_add_up() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    (layer,) = layers(nn.Sequential(first, second), 6, 4)
    assert (layer.name, layer.weight, layer.uses) == ("0", "0.weight", 12)


def test_a_layer_that_is_called_again_is_one_and_its_uses_add_up() -> None:
    model = Model(lambda m, x: m.layer(m.layer(x)[..., 1:]), layer=nn.Conv1d(4, 4, 1))
    (layer,) = layers(model, 4, 6)
    assert (layer.reads, layer.uses) == ((4, 6), 6 + 5)


def test_a_layer_that_forward_never_calls_is_none() -> None:
    model = Model(lambda m, x: m.used(x), used=nn.Linear(4, 4), unused=nn.Linear(4, 4))
    assert [layer.name for layer in layers(model, 4)] == ["used"]


def test_a_layer_whose_weight_is_frozen_is_one_all_the_same() -> None:
    assert len(layers(nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), 4)) == 1


class MyConv(nn.Conv2d):
    """A convolution by another name."""


class Padded(nn.Conv2d):
    """A convolution with a forward of its own, but its own weight."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (1, 1, 1, 1)))


@pytest.mark.parametrize("convolution", [MyConv, Padded, Conv2dSame])
def test_the_weight_of_a_subclassed_convolution_is_reached(convolution: type[nn.Conv2d]) -> None:
    (layer,) = layers(nn.Sequential(convolution(3, 4, 3)), 3, 8, 8)
    assert (layer.weight, layer.kind) == ("0.weight", "conv")


@pytest.mark.parametrize(
    "layer",
    [StdConv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(3, 4, 3))],
    ids=["weight-standardized", "parametrized"],
)
def test_a_convolution_with_something_else_than_its_weight_is_no_layer(layer: nn.Module) -> None:
    assert layers(nn.Sequential(layer), 3, 8, 8) == ()


def test_a_weight_that_is_computed_is_no_layer() -> None:
    model = Model(lambda m, x: functional.linear(x, m.matrix * 2), matrix=weight(5, 4))
    assert layers(model, 4) == ()


def test_the_projections_of_attention_are_layers() -> None:
    model = Model(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True))
    assert [layer.weight for layer in layers(model, 5, 4)] == [
        "a.in_proj_weight",
        "a.out_proj.weight",
    ]


# Uses, against torch's own count.


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_the_multiply_adds_of_a_network_are_those_that_torch_counts(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert counted(model, 3, 224, 224) == multiply_adds(model, 3, 224, 224)


def test_the_multiply_adds_of_grouped_and_pooled_stages_are_those_that_torch_counts() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnext26ts")
    assert counted(model, 3, 64, 64) == multiply_adds(model, 3, 64, 64)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(8, 6, 3, groups=2), (8, 9, 7)),
        (nn.Conv2d(8, 8, 3, groups=8, padding=1), (8, 9, 7)),
        (nn.Conv2d(8, 6, 3, dilation=2), (8, 9, 7)),
        (nn.Conv2d(8, 6, (3, 1), stride=(2, 3), padding="valid"), (8, 9, 7)),
        (nn.Conv2d(8, 6, 3, padding=2, padding_mode="reflect"), (8, 9, 7)),
        (nn.Conv1d(8, 6, 3, stride=2), (8, 9)),
        (nn.Conv3d(8, 6, 3), (8, 5, 6, 7)),
        (nn.ConvTranspose1d(8, 6, 3, stride=2), (8, 9)),
        (nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), (8, 9, 7)),
        (nn.ConvTranspose2d(8, 6, 3, groups=2), (8, 9, 7)),
        (nn.ConvTranspose3d(8, 6, 2), (8, 3, 4, 5)),
        (nn.Linear(8, 6), (8,)),
        (nn.Linear(8, 6), (5, 8)),
        (nn.Linear(8, 6), (3, 5, 8)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_the_multiply_adds_of_a_layer_are_those_that_torch_counts(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(layer)
    assert counted(model, *shape) == multiply_adds(model, *shape) > 0


def test_a_transposed_function_is_counted_like_the_module() -> None:
    model = Model(
        lambda m, x: functional.conv_transpose2d(x, m.kernel, stride=2), kernel=weight(8, 6, 3, 3)
    )
    assert counted(model, 8, 9, 7) == multiply_adds(model, 8, 9, 7) > 0


def folded(model: Any, x: Tensor) -> Tensor:
    batch, tokens, channels = x.shape
    return model.layer(x.reshape(batch * tokens, channels)).reshape(batch, tokens, -1)


def sequence_first(model: Any, x: Tensor) -> Tensor:
    return model.layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("body", [folded, sequence_first])
def test_uses_are_counted_for_one_example_wherever_the_batch_is(
    body: Callable[..., Tensor],
) -> None:
    model = Model(body, layer=nn.Linear(8, 6))
    assert counted(model, 5, 8) == multiply_adds(model, 5, 8) == 5 * 48


def test_a_layer_that_does_not_see_the_batch_is_used_as_often_as_it_computes() -> None:
    model = Model(lambda m, x: x + m.layer(m.table), layer=nn.Linear(8, 4), table=weight(5, 8))
    (layer,) = layers(model, 5, 4)
    assert layer.uses == 5


def test_layers_that_compute_their_weight_are_told_in_a_note() -> None:
    model = timm.create_model("resnetv2_50x1_bit", num_classes=0)
    network = n2nfx.trace(model, torch.zeros(1, 3, 32, 32))
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    (note,) = network.notes
    assert note.startswith(
        f"{len(convolutions)} layers compute the weight that they use (stem.conv"
    )
    assert network.layers == ()
    assert n2nfx.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 4, 4)).notes == ()
