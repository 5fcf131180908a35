"""What the commonest calls give where no value counts: a tensor of the right shape and dtype.

Most of tracing would go into the shapes of convolutions, norms, activations, sums and linear
layers, which are plain to see. Every rule here is exact in shape and dtype, and gives None wherever
it is not sure: then the call is made. Strides can differ from the real ones; where a `view` fails
because of that, tracing is done again without these rules.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ACTIVATIONS = (
    *(nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.Mish, nn.ELU, nn.LeakyReLU, nn.Hardtanh, nn.CELU, nn.SELU),
)
_POINTWISE = {
    *(functional.gelu, functional.relu, functional.relu6, functional.silu, functional.hardswish),
    *(functional.hardsigmoid, functional.sigmoid, functional.tanh, functional.mish),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.sqrt, torch.square, torch.neg),
    *(Tensor.relu, Tensor.sigmoid, Tensor.tanh, Tensor.exp, Tensor.sqrt, Tensor.square, Tensor.neg),
}
_ARITHMETIC = {
    *(torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div),
    *(Tensor.__add__, Tensor.__radd__, Tensor.__sub__, Tensor.__mul__, Tensor.__rmul__),
    *(Tensor.__truediv__, Tensor.__pow__, torch.pow, Tensor.pow),
    *(torch.clamp_min, torch.clamp_max, Tensor.clamp_min, Tensor.clamp_max),
}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
_SOFTMAXES = {functional.softmax, torch.softmax, Tensor.softmax}


def of_module(module: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a call of a module gives, or None where it has to be made."""
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    rule = _MODULES.get(type(module))
    if rule is None or not _gives_gradients(args[0], module.parameters(recurse=False)):
        return None
    return rule(module, args[0])


def of_call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """What a call of a function or method of torch gives, or None where it has to be made."""
    rule = _FUNCTIONS.get(func)
    if rule is None or not args or not isinstance(args[0], Tensor):
        return None
    with torch._C.DisableTorchFunction():  # what the rules do is not for any mode
        return rule(*args, **kwargs) if args[0].is_floating_point() else None


def _gives_gradients(value: Tensor, others: Any) -> bool:
    """Whether the result needs a gradient exactly where the value does."""
    return value.requires_grad or not any(other.requires_grad for other in others)


def _batch_norm(module: Any, value: Tensor) -> Tensor | None:
    module._check_input_dim(value)
    fits = value.shape[1] == module.num_features and value.is_contiguous()
    return value.clone() if fits else None


def _convolution(module: Any, value: Tensor) -> Tensor | None:
    axes = len(module.kernel_size)
    fits = value.dim() == axes + 2 and value.shape[1] == module.in_channels
    if not (fits and _same_dtype(module.weight, value) and value.is_contiguous()):
        return None
    sizes = [_places(module, axis, value.shape[axis + 2]) for axis in range(axes)]
    if module.padding_mode != "zeros" or min(sizes) < 1:
        return None
    one = value[(slice(None), *[slice(1)] * (axes + 1))]
    return _contiguous(one.expand(len(value), module.out_channels, *sizes))


def _places(module: Any, axis: int, size: int) -> int:
    """How often a kernel can be placed along an axis."""
    if module.padding == "same":
        return size
    span = module.dilation[axis] * (module.kernel_size[axis] - 1)
    padding = 0 if module.padding == "valid" else 2 * module.padding[axis]
    return (size + padding - span - 1) // module.stride[axis] + 1


def _group_norm(module: Any, value: Tensor) -> Tensor | None:
    fits = value.dim() > 1 and value.shape[1] == module.num_channels and value.is_contiguous()
    return value.clone() if fits and _same_dtype(module.weight, value) else None


def _layer_norm(module: Any, value: Tensor) -> Tensor | None:
    shape = module.normalized_shape
    fits = tuple(value.shape[-len(shape) :]) == shape
    return _contiguous(value) if fits and _same_dtype(module.weight, value) else None


def _contiguous(value: Tensor) -> Tensor:
    """A new tensor like it, as linear layers and layer norms make theirs."""
    return value.clone(memory_format=torch.contiguous_format)


def _same_dtype(weight: Tensor | None, value: Tensor) -> bool:
    return weight is None or weight.dtype == value.dtype


def _activation(module: Any, value: Tensor) -> Tensor | None:
    if not value.is_floating_point():
        return None
    return _changed(value) if getattr(module, "inplace", False) else value.clone()


def _changed(value: Tensor) -> Tensor | None:
    """The value itself, as changed in place; what a leaf says to that is its own."""
    return None if value.is_leaf else value.mul_(1.0)


def _dropout(module: Any, value: Tensor) -> Tensor | None:
    return _activation(module, value) if module.training and module.p > 0 else value


def _linear_layer(module: Any, value: Tensor) -> Tensor | None:
    return _linear(value, module.weight, module.bias)


def _linear(input: Tensor, weight: Any = None, bias: Any = None, **more: Any) -> Tensor | None:
    if more or not isinstance(weight, Tensor) or weight.dim() != 2 or input.dim() < 1:
        return None
    out, into = weight.shape
    fits = input.shape[-1] == into > 0 and (bias is None or bias.shape == (out,))
    if not (fits and _follow(input, weight, bias)):
        return None
    return _contiguous(input[..., :1].expand(*input.shape[:-1], out))


def _lstm(module: Any, value: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
    """Outputs and last states, from states of zero; torch would go through it step by step."""
    fits = value.dim() == 3 and value.numel() > 0 and value.shape[-1] == module.input_size
    if not fits or module.proj_size or not _same_dtype(module.weight_ih_l0, value):
        return None
    ways = 2 if module.bidirectional else 1
    states = ways * module.num_layers, value.shape[0 if module.batch_first else 1]
    one = value.flatten()[:1]
    outputs, *last = (
        _contiguous(one.expand(*places, width))
        for places, width in (
            (value.shape[:-1], ways * module.hidden_size),
            (states, module.hidden_size),
            (states, module.hidden_size),
        )
    )
    return outputs, (last[0], last[1])


def _pointwise(input: Tensor, *more: Any, **named: Any) -> Tensor | None:
    if more or "out" in named:
        return None
    return _changed(input) if named.get("inplace") else input.clone()


def _arithmetic(input: Tensor, other: Any = None, **more: Any) -> Tensor | None:
    if more:
        return None
    if type(other) in (int, float):
        return input.clone()
    if not isinstance(other, Tensor) or other.dtype != input.dtype:
        return None
    larger, smaller = (input, other) if input.dim() >= other.dim() else (other, input)
    sizes = zip(reversed(larger.shape), reversed(smaller.shape), strict=False)
    if any(small not in (1, large) for large, small in sizes):
        return None
    fits = larger.requires_grad or not smaller.requires_grad
    return (larger if fits else smaller.expand(larger.shape)).clone()


def _product(input: Tensor, other: Any = None, **more: Any) -> Tensor | None:
    if more or not isinstance(other, Tensor) or input.dim() < 2 or input.dim() != other.dim():
        return None
    *batch, into = input.shape
    fits = (*batch[:-1], into) == tuple(other.shape[:-1]) and into > 0
    if not (fits and _follow(input, other)):
        return None
    return _contiguous(input[..., :1].expand(*batch, other.shape[-1]))


def _softmax(input: Tensor, dim: Any = None, **more: Any) -> Tensor | None:
    fits = not more and type(dim) is int and -input.dim() <= dim < input.dim()
    return _contiguous(input) if fits else None


def _softmax_layer(module: Any, value: Tensor) -> Tensor | None:
    return _softmax(value, module.dim) if value.is_floating_point() else None


def _normalized(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor | None:
    fits = tuple(input.shape[-len(normalized_shape) :]) == tuple(normalized_shape)
    return _contiguous(input) if fits and _follow(input, weight, bias) else None


def _normalized_over_batch(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    *more: Any,
    **named: Any,
) -> Tensor | None:
    parts = [part for part in (running_mean, running_var, weight, bias) if part is not None]
    fits = input.dim() > 1 and all(part.shape == (input.shape[1],) for part in parts)
    several = fits and input.numel() > input.shape[1]  # of one value there is no variance
    several = several and input.is_contiguous()
    return input.clone() if several and _gives_gradients(input, parts) else None


def _follow(value: Tensor, *parts: Tensor | None) -> bool:
    """Whether the result has the value's dtype, and needs a gradient where the value does."""
    given = [part for part in parts if part is not None]
    return all(part.dtype == value.dtype for part in given) and _gives_gradients(value, given)


def _attention(
    query: Tensor,
    key: Any = None,
    value: Any = None,
    attn_mask: Any = None,
    *more: Any,
    **named: Any,
) -> Tensor | None:
    if attn_mask is not None or not (isinstance(key, Tensor) and isinstance(value, Tensor)):
        return None
    same = query.shape[:-2] == key.shape[:-2] and key.shape == value.shape
    fits = same and query.dim() > 2 and query.shape[-1] == key.shape[-1]
    return query.clone() if fits and _follow(query, key, value) else None


_MODULES: dict[type, Callable[[Any, Tensor], Any]] = {
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    nn.Dropout: _dropout,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Linear: _linear_layer,
    nn.LSTM: _lstm,
    nn.Softmax: _softmax_layer,
}
_FUNCTIONS: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_SOFTMAXES, _softmax),
    functional.linear: _linear,
    functional.layer_norm: _normalized,
    functional.batch_norm: _normalized_over_batch,
    functional.scaled_dot_product_attention: _attention,
}
