"""What is told of a call without making it is what making it gives."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from n2nfx.tracing.shapes import of_call, of_module
from n2nfx.tracing.values import specs


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("layers", "both", "bias"), [*itertools.product((1, 2), (True, False), (True, False))]
)
def test_a_recurrent_layers_outputs_and_last_states(
    layers: int, both: bool, bias: bool, first: bool
) -> None:
    module = nn.LSTM(4, 3, layers, bias, batch_first=first, bidirectional=both)
    value = torch.zeros(2, 5, 4, requires_grad=True)
    told = of_module(module, (value,), {})
    assert specs(told) == specs(module(value))
    assert all(tensor.requires_grad for tensor in (told[0], *told[1]))


@pytest.mark.parametrize(
    ("module", "value"),
    [
        (nn.LSTM(4, 3, proj_size=2), torch.zeros(2, 5, 4)),
        (nn.LSTM(4, 3), torch.zeros(5, 4)),
        (nn.LSTM(4, 3), torch.zeros(2, 5, 7)),
        (nn.LSTM(4, 3).double(), torch.zeros(2, 5, 4)),
    ],
)
def test_a_recurrent_layer_is_called_where_that_is_not_sure(
    module: nn.LSTM, value: torch.Tensor
) -> None:
    assert of_module(module, (value.requires_grad_(),), {}) is None


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution of one, two or three dimensions, and what it is called with."""
    axes = draw(st.integers(1, 3))
    several = st.tuples(*[st.integers(1, 3)] * axes)
    stride = draw(several)
    padding = draw(st.one_of(st.sampled_from(("same", "valid")), several))
    if padding == "same":
        stride = (1,) * axes
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    module = kind(
        *(2 * draw(st.integers(1, 2)), 2 * draw(st.integers(1, 3)), draw(several)),
        stride=stride,
        padding=padding,
        dilation=draw(several),
        groups=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
    )
    sizes = draw(st.tuples(*[st.integers(1, 9)] * axes))
    return module, torch.zeros(3, module.in_channels, *sizes)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # it costs a copy
@given(convolutions())
def test_a_convolutions_output(drawn: tuple[nn.Module, torch.Tensor]) -> None:
    module, value = drawn
    told = of_module(module, (value.requires_grad_(),), {})
    try:
        made = module(value)
    except RuntimeError:  # there is no place for the kernel
        assert told is None
    else:
        assert specs(told) == specs(made)
        assert told.requires_grad
        assert told.stride() == made.stride()


@pytest.mark.parametrize(
    ("module", "value"),
    [
        (nn.Conv2d(4, 3, 1), torch.zeros(4, 5, 5)),
        (nn.Conv2d(4, 3, 1), torch.zeros(2, 3, 5, 5)),
        (nn.Conv2d(4, 3, 1).double(), torch.zeros(2, 4, 5, 5)),
        (nn.Conv2d(4, 3, 1, padding=2, padding_mode="reflect"), torch.zeros(2, 4, 5, 5)),
        (nn.Conv2d(4, 3, 1), torch.zeros(2, 4, 5, 5).to(memory_format=torch.channels_last)),
    ],
)
def test_a_convolution_is_called_where_that_is_not_sure(
    module: nn.Module, value: torch.Tensor
) -> None:
    assert of_module(module, (value.requires_grad_(),), {}) is None


@pytest.mark.parametrize("dim", [-3, -1, 0, 2])
def test_a_softmax_layer(dim: int) -> None:
    module, value = nn.Softmax(dim), torch.zeros(2, 3, 4, requires_grad=True).transpose(0, 1)
    told = of_module(module, (value,), {})
    assert specs(told) == specs(module(value))
    assert told.requires_grad


def test_a_softmax_layer_is_called_where_that_is_not_sure() -> None:
    value = torch.zeros(2, 3)
    assert of_module(nn.Softmax(2), (value,), {}) is None
    assert of_module(nn.Softmax(0), (value.int(),), {}) is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_gives_its_input_itself_where_it_drops_nothing(rate: float, training: bool) -> None:
    module, value = nn.Dropout(rate).train(training), torch.zeros(2, 3, requires_grad=True)
    told, made = of_module(module, (value,), {}), module(value)
    assert specs(told) == specs(made)
    assert (told is value) == (made is value)


_SIZES = st.integers(0, 3)
_SHAPES = st.lists(_SIZES, max_size=4)
_PRODUCTS = [torch.matmul, Tensor.matmul, Tensor.__matmul__]
_OTHERS: list[Any] = [
    *(torch.add, torch.pow, Tensor.pow, Tensor.__pow__, Tensor.__truediv__),
    *(torch.clamp_min, torch.clamp_max, Tensor.clamp_min, Tensor.clamp_max),
    *(torch.softmax, Tensor.softmax, functional.softmax),
]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, tuple[Any, ...]]:
    """A function of one tensor and another value, which is a tensor or a number."""
    func = draw(st.sampled_from([*_PRODUCTS, *_OTHERS]))
    shape = draw(_SHAPES)
    dtypes = st.sampled_from((torch.float32, torch.float64))
    value = torch.zeros(shape, dtype=draw(dtypes), requires_grad=draw(st.booleans()))
    if draw(st.booleans()) and draw(st.booleans()):
        return func, (value, draw(st.sampled_from((-1, 0, 1, 2, 0.5))))
    ends = [*shape[:-2], shape[-1], draw(_SIZES)] if len(shape) > 1 else shape
    other = [draw(st.sampled_from((size, 1))) if draw(st.booleans()) else size for size in ends]
    return func, (value, torch.ones(draw(st.sampled_from((other, shape))), dtype=draw(dtypes)))


@settings(max_examples=400)
@given(calls())
def test_a_call_of_a_function(drawn: tuple[Any, tuple[Any, ...]]) -> None:
    func, args = drawn
    told = of_call(func, args, {})
    try:
        made = func(*args)
    except (RuntimeError, TypeError, IndexError):
        assert told is None
        return
    if told is not None:
        assert specs(told) == specs(made)
        assert told.requires_grad == made.requires_grad


@pytest.mark.parametrize(
    ("func", "other"),
    [*((func, torch.zeros(2, 4, 3)) for func in _PRODUCTS), *((func, 1) for func in _OTHERS)],
)
def test_a_function_is_told_where_it_is_sure(func: Any, other: Any) -> None:
    value = torch.zeros(2, 3, 4, requires_grad=True)
    told = of_call(func, (value, other), {})
    assert told is not None
    assert specs(told) == specs(func(value, other))
