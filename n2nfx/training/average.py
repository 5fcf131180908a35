"""A moving average of a network's weights (Polyak and Juditsky 1992), measured in its place."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a module whose floats follow the module's, each step by `1 - decay` of the way.

    The first steps follow faster, by (1 + step) / (10 + step), so that a short training averages
    too. What is no float, such as masks and counters, is copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module)
        self.decay = decay
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the module after that many steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, theirs = ([pair[at] for pair in self._floats] for at in (0, 1))
        torch._foreach_lerp_(own, theirs, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for own, theirs in self._others:
            own.copy_(theirs)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
