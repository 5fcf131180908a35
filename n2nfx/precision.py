"""In which precision a module computes: that of its trace, until it is moved to another."""

import torch
from torch import nn


def precision_of(module: nn.Module) -> torch.dtype | None:
    """The floating-point type of a module's parameters; None where there are several, or none."""
    found = {one.dtype for one in module.parameters() if one.is_floating_point()}
    return found.pop() if len(found) == 1 else None
