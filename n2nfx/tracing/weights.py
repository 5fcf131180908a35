"""Which modules and calls hold a prunable weight, and how their shapes are read."""

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

    Exactly torch's own: a subclass may convolve with something other than its weight.
    """
    return type(module) in STOCK and isinstance(module._parameters.get("weight"), nn.Parameter)
