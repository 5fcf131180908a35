"""What is told of a call without making it is what making it gives."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from n2nfx.tracing.shapes import of_module
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
