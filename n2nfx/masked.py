"""Layers that compute with the kept part of their weight only.

A masked layer is its own class with the mask beside the weight: names, hooks, deepcopy, pickle,
compile and export work as for the plain layer, and a checkpoint of the plain layer loads. The
masked part is selected away rather than multiplied by zero, so that nothing in it, not even an
infinity, reaches the output, and its gradient is exactly zero.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MASK = "weight_mask"


def keep(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight where the mask is True, and zero elsewhere."""
    return torch.where(mask, weight, 0.0)


class _KeepForward(torch.autograd.Function):
    """`keep`, but the gradient of what is dropped is that of the zero which stands for it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return keep(weight, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


@contextmanager
def dense_gradients(module: nn.Module) -> Iterator[None]:
    """Let gradients reach the dropped weights of a module too; its outputs stay, to the last bit.

    The gradient of a dropped weight then says how the loss would move with what stands in its
    place where the layer computes, which is zero.
    """
    masked = [part for part in module.modules() if isinstance(part, _Masking)]
    for part in masked:
        part.gradients_pass = True
    try:
        yield
    finally:
        for part in masked:
            del part.gradients_pass


class _Masking(nn.Module):
    """What all that has a mask shares.

    A dense checkpoint knows no masks: loading one keeps those that are there.
    """

    @property
    def mask_name(self) -> str:
        """What the mask is called among the buffers."""
        return MASK if MASK in self._buffers else "mask"

    gradients_pass = False

    def _kept(self, weight: Tensor, mask: Tensor) -> Tensor:
        """`keep`; within `dense_gradients`, one that gradients pass whole."""
        if self.gradients_pass:
            return _KeepForward.apply(weight, mask)  # type: ignore[return-value]
        return keep(weight, mask)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = self._buffers[self.mask_name]
        assert own is not None
        state_dict.setdefault(prefix + self.mask_name, own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def missing_masks(module: nn.Module, state: Mapping[str, Any], prefix: str) -> list[str]:
    """The masks in a module that a state does not bring, if it brings some of them.

    One that brings none is of a dense network; others are of a network with other masks.
    """
    parts = module.named_modules(remove_duplicate=False)  # a state has each of a layer's names
    masked = ((name, part) for name, part in parts if isinstance(part, _Masking))
    own = [f"{prefix}{name}.{part.mask_name}" for name, part in masked]
    missing = [name for name in own if name not in state]
    return missing if len(missing) < len(own) else []


class MaskedLinear(_Masking, nn.Linear):
    """`nn.Linear` with a mask."""

    weight_mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self._kept(self.weight, self.weight_mask), self.bias)


class _MaskedConvolution(_Masking):
    """What the masked convolutions share: `_conv_forward` takes its weight as an argument."""

    weight: Any
    weight_mask: Any
    bias: Any
    _conv_forward: Any

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self._kept(self.weight, self.weight_mask), self.bias)


class MaskedConv1d(_MaskedConvolution, nn.Conv1d):
    """`nn.Conv1d` with a mask."""


class MaskedConv2d(_MaskedConvolution, nn.Conv2d):
    """`nn.Conv2d` with a mask."""


class MaskedConv3d(_MaskedConvolution, nn.Conv3d):
    """`nn.Conv3d` with a mask."""


class _MaskedTransposed(_Masking):
    """What the masked transposed convolutions share, one for each number of dimensions."""

    weight: Any
    weight_mask: Any
    bias: Any
    kernel_size: Any
    _convolve: Any
    _output_padding: Any

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size,
            len(self.kernel_size), self.dilation,
        )  # fmt: skip
        return type(self)._convolve(
            input, self._kept(self.weight, self.weight_mask), self.bias, self.stride, self.padding,
            extra, self.groups, self.dilation,
        )  # fmt: skip


class MaskedConvTranspose1d(_MaskedTransposed, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with a mask."""

    _convolve = staticmethod(functional.conv_transpose1d)


class MaskedConvTranspose2d(_MaskedTransposed, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a mask."""

    _convolve = staticmethod(functional.conv_transpose2d)


class MaskedConvTranspose3d(_MaskedTransposed, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with a mask."""

    _convolve = staticmethod(functional.conv_transpose3d)


class MaskedWeight(_Masking):
    """The kept part of a weight that a function uses directly: a node between the two."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return self._kept(weight, self.mask)


class MaskedStandardization(_Masking):
    """`batch_norm` over a weight (1, channels, fan-in), as in weight-standardized convolutions.

    Mean and variance are those of the kept weights alone, and what is dropped stays zero, so that
    nothing depends on a dropped weight. Where a gain divides by the root of the fan-in (Brock et
    al. 2021, Eq. 1), that is the fan-in of the kept ones.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(
        self,
        input: Tensor,
        running_mean: None = None,
        running_var: None = None,
        weight: Tensor | None = None,
        bias: None = None,
        training: bool = True,
        momentum: float = 0.0,
        eps: float = 1e-5,
    ) -> Tensor:
        mask = self.mask.reshape(input.shape)
        count = mask.sum(-1, keepdim=True).clamp(min=1)
        mean = keep(input, mask).sum(-1, keepdim=True) / count
        centred = self._kept(input - mean, mask)
        variance = centred.square().sum(-1, keepdim=True) / count
        standard = centred * torch.rsqrt(variance + eps)
        if weight is not None:
            standard = standard * weight.reshape(1, -1, 1) * (mask.shape[-1] / count).sqrt()
        return standard.to(input.dtype)


MASKED_CLASS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
    nn.ConvTranspose1d: MaskedConvTranspose1d,
    nn.ConvTranspose2d: MaskedConvTranspose2d,
    nn.ConvTranspose3d: MaskedConvTranspose3d,
}
PLAIN_CLASS = {masked: plain for plain, masked in MASKED_CLASS.items()}
