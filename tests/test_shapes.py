"""What is told of a call without making it is what making it gives."""

import itertools

import pytest
import torch
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
