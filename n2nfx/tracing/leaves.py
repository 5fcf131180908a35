"""Which modules stay one node of the graph, and which are traced through."""

import torch
from torch import nn

from n2nfx.tracing.weights import is_patched, is_weighted

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.dropout._DropoutNd,
)
# Stochastic depth by another name: they draw in training only, so the two modes would differ.
_DROPS = {"DropPath", "StochasticDepth", "DropBlock2d"}


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is recorded as one call.

    torch's own modules and norms are, unless a weight would be hidden inside. A convolution or
    linear layer whose forward is its own (a subclass, a parametrization) is traced through, so
    that what it really convolves with is seen; so is whatever has a forward put on the instance.
    """
    if isinstance(module, (*_CONTAINERS, nn.MultiheadAttention)) or is_patched(module):
        return False
    if is_weighted(module):
        return True
    if _is_convolution_or_linear(module):
        return False
    inside = [child for child in module.modules() if child is not module]
    if any(_is_convolution_or_linear(child) for child in inside):
        return False
    stock = type(module).__module__.startswith("torch.nn.modules")
    return stock or isinstance(module, _NORMS) or type(module).__name__ in _DROPS


def is_larger(module: nn.Module) -> bool:
    """Whether a module has layers inside, and a forward in Python that calls them."""
    if is_opaque(module) or is_leaf(module) or is_weighted(module):
        return False
    return any(_is_convolution_or_linear(child) for child in module.modules())


def is_opaque(module: nn.Module) -> bool:
    """Whether what a module runs was made of its parts before: no other could take their place."""
    compiled = type(module).__module__.startswith("torch._dynamo")
    return compiled or isinstance(module, torch.jit.ScriptModule)


def _is_convolution_or_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.MultiheadAttention)
