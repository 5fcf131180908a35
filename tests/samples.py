"""Modules that several test files use."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class Mixed(nn.Module):
    """Channels first, last, tokens behind a class token, a smaller map, a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)
        self.tokens = nn.Linear(5, 6)
        self.more = nn.Linear(6, 7)
        self.down = nn.Conv2d(7, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 2)
        self.cls = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.last(x.permute(0, 2, 3, 1)))
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1)
        x = functional.relu(self.more(functional.relu(self.tokens(x))))
        x = functional.relu(self.down(x[:, 1:].transpose(1, 2).unflatten(2, (8, 8))))
        return self.head(x.flatten(2).transpose(1, 2).mean(1))


class Net(nn.Module):
    """Convolutions, norms, and a weight that a function uses."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.w = nn.Parameter(torch.randn(6, 8))
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        return self.classifier(functional.linear(x, self.w).relu())
