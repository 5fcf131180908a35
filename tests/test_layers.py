"""Which weights of a traced network are prunable, by which name, and how often each is used."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from samples import Model
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import n2nfx
from n2nfx.network import Layer
from n2nfx.passes import RandomPruning


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


class Standardized(nn.Conv2d):
    """Weight standardization written out, as people do."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(input, (self.weight - mean) / (std + 1e-5), self.bias)


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        (StdConv2d(3, 4, 3), "0.weight"),
        (ScaledStdConv2d(3, 4, 3), "0.weight"),
        (ScaledStdConv2dSame(3, 4, 3), "0.weight"),
        (Standardized(3, 4, 3), "0.weight"),
        (
            parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
            "0.parametrizations.weight.original1",
        ),
        (parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), "0.parametrizations.weight.original"),
        (parametrizations.orthogonal(nn.Linear(8, 4)), "0.parametrizations.weight.original"),
    ],
    ids=["standardized", "scaled", "scaled same", "by hand", "norm", "spectral", "orthogonal"],
)
def test_a_weight_that_is_computed_from_one_parameter_is_prunable(
    layer: nn.Module, weight: str
) -> None:
    (found,) = layers(nn.Sequential(layer), 3, 8, 8)
    assert (found.name, found.weight) == (weight, weight)


def test_a_weight_that_is_computed_goes_by_the_parameters_name() -> None:
    model = Model(lambda m, x: functional.linear(x, m.matrix * 2), matrix=weight(5, 4))
    (layer,) = layers(model, 4)
    assert (layer.name, layer.weight_shape, layer.uses) == ("matrix", (5, 4), 1)


def experts(model: Any, x: Tensor) -> Tensor:
    routing = model.router(x.mean((2, 3))).sigmoid()
    kernels = (routing @ model.experts.flatten(1)).reshape(-1, 3, 3, 3)
    return functional.conv2d(x.reshape(1, -1, 8, 8), kernels, groups=x.shape[0])


NOT_PRUNABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mixed for each input": (
        lambda: Model(experts, router=nn.Linear(3, 4), experts=weight(4, 4, 3, 3, 3)),
        "it mixes its weight anew for every input",
    ),
    "of several parameters": (
        lambda: Model(
            lambda m, x: functional.conv2d(x, m.one + m.other), one=weight(4, 3, 3, 3),
            other=weight(4, 3, 3, 3),
        ),
        "its weight is made of several parameters",
    ),
    "in another shape": (
        lambda: Model(lambda m, x: functional.conv2d(x, m.part.repeat(2, 1, 1, 1)),
                      part=weight(2, 3, 3, 3)),
        "or in another shape",
    ),
    "quantized": (
        lambda: Model(
            lambda m, x: m.quantized(m.plain(x)),
            plain=nn.Conv2d(3, 4, 3),
            quantized=QuantizedLinear(6, 5),
        ),
        "it is quantized, so its weight is packed away",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), NOT_PRUNABLE.values(), ids=NOT_PRUNABLE)
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore::DeprecationWarning")
def test_what_is_not_prunable_is_told_with_its_reason(
    make: Callable[[], nn.Module], reason: str
) -> None:
    network = n2nfx.trace(nn.Sequential(make()), torch.zeros(1, 3, 8, 8))
    assert any(note.startswith("0") and reason in note for note in network.notes)
    assert "experts" not in {layer.name for layer in network.layers}


MULTIPLIED: dict[str, tuple[Callable[[], Model], str]] = {
    "an LSTM": (
        lambda: Model(lambda m, x: m.own(x)[0], own=nn.LSTM(8, 8, batch_first=True)),
        "0.own: not prunable, and not counted: LSTM multiplies by its weights itself",
    ),
    "a cell": (
        lambda: Model(lambda m, x: m.own(x[:, 0]), own=nn.GRUCell(8, 8)),
        "0.own: not prunable, and not counted: GRUCell multiplies by its weights itself",
    ),
    "a bilinear layer": (
        lambda: Model(lambda m, x: m.own(x, x), own=nn.Bilinear(8, 8, 8)),
        "0.own: not prunable, and not counted: Bilinear multiplies by its weights itself",
    ),
    "an operator": (
        lambda: Model(lambda m, x: x @ m.own.t(), own=weight(8, 8)),
        "0.own: not prunable, and not counted: matmul multiplies by it, which is no layer",
    ),
    "addmm": (
        lambda: Model(lambda m, x: torch.addmm(m.b, x[:, 0], m.own), b=weight(8), own=weight(8, 8)),
        "0.own: not prunable, and not counted: addmm multiplies by it, which is no layer",
    ),
    "einsum": (
        lambda: Model(lambda m, x: torch.einsum("btc,cd->btd", x, m.own), own=weight(8, 8)),
        "0.own: not prunable, and not counted: einsum multiplies by it, which is no layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "note"), MULTIPLIED.values(), ids=MULTIPLIED)
def test_a_matrix_of_no_layer_is_told(make: Callable[[], Model], note: str) -> None:
    network = n2nfx.trace(nn.Sequential(make(), nn.Linear(8, 4)), torch.zeros(1, 5, 8))
    assert note in network.notes
    assert [layer.name for layer in network.layers] == ["1"]


def test_a_layers_weight_that_a_product_reads_too_needs_no_note() -> None:
    tied = Model(lambda m, x: m.own(x) @ m.own.weight, own=nn.Linear(8, 6))
    read = Model(lambda m, x: functional.linear(x, m.own) @ m.own, own=weight(6, 8))
    network = n2nfx.trace(nn.Sequential(tied, read), torch.zeros(1, 5, 8))
    assert [layer.name for layer in network.layers] == ["0.own", "1.own"]
    assert network.notes == ()


def test_a_linear_layer_that_shares_an_embeddings_weight_is_not_prunable() -> None:
    embedding, linear = nn.Embedding(9, 4), nn.Linear(4, 9)
    linear.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(4, 4), linear)
    network = n2nfx.trace(model, torch.zeros(1, 5, dtype=torch.int64))
    assert [layer.name for layer in network.layers] == ["1"]
    assert network.notes == (
        "2: not prunable, and not counted: 0 (Embedding) uses its weight too, where no mask acts",
    )
    assert n2nfx.Pipeline([RandomPruning(0.5)])(network).network.nnz == 8


def test_a_fixed_filter_is_no_layer_and_needs_no_note() -> None:
    model = Model(lambda m, x: functional.conv2d(x, m.blur), blur=torch.ones(3, 3, 2, 2))
    network = n2nfx.trace(nn.Sequential(model, nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 8, 8))
    assert [layer.name for layer in network.layers] == ["1"]
    assert network.notes == ()


def test_the_projections_of_cross_attention_are_one_layer_used_as_often_as_its_parts_are() -> None:
    model = Model(
        lambda m, x: m.a(x[:, :2], x, x)[0], a=nn.MultiheadAttention(6, 2, batch_first=True)
    )
    projections, _ = layers(model, 5, 6)
    assert projections.weight == "a.in_proj_weight"
    assert projections.size * projections.uses == 6 * 6 * 2 + 2 * 6 * 6 * 5


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
