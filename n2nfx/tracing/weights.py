"""Which modules hold a prunable weight, and which have a forward that is not their class's."""

from functools import partial
from typing import Any

from torch import nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


STOCK = (*CONVOLUTIONS, nn.Linear)


def is_weighted(module: nn.Module) -> bool:
    """Whether a module is one of torch's own convolutions or linear layers, with its own weight.

    Exactly torch's own: a subclass, or a forward put on the instance, may convolve with something
    other than its weight.
    """
    return (
        type(module) in STOCK
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and not is_patched(module)
    )


class Reporting(partial[Any]):
    """A forward that reports its calls while a model is recorded; `own` is what it stands for.

    That is None where the module's forward is its class's.
    """

    own: Any = None


def is_patched(module: nn.Module) -> bool:
    """Whether a forward was put on the instance."""
    forward = vars(module).get("forward")
    return (forward.own if isinstance(forward, Reporting) else forward) is not None
