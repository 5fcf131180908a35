"""Modules that several test files use."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """A forward that is a function of the module and the inputs, over the given parts.

    A tensor among the parts is a buffer.
    """

    def __init__(self, body: Callable[..., Any], /, **parts: Any) -> None:
        super().__init__()
        self._body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._body(self, *inputs, **named)


class Tied(nn.Module):
    """Two linear layers that have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))
