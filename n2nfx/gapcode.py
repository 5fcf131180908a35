"""What a mask keeps of a weight, as a few flat tensors, without loss of a bit, and back.

Usually it is `val`, the values that are kept, and `gap`, a byte for each that says how many
dropped ones stand before it in flattened order (255: skip 255 and go on; the code runs to less
than 255 elements of the end). Where that is no smaller, it is `dense`, the weight itself, and
`bits`, the mask packed with the lowest bit first; or `dense` alone where everything is kept.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SKIP = 255


class CodeError(ValueError):
    """What is wrong with a code: the end of a sentence about the weight."""


def encode(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The smaller code of what is kept, by the names of its tensors, none of them the weight.

    Both are on the CPU and of one shape, and the mask is bool.
    """
    flat, keep = weight.reshape(-1), mask.reshape(-1).numpy()
    positions = np.flatnonzero(keep)
    if len(positions) == len(keep):
        return {"dense": weight.clone(memory_format=torch.contiguous_format)}
    values = flat[positions]
    gaps = torch.from_numpy(_gaps(positions, len(keep)))
    bits = torch.from_numpy(np.packbits(keep, bitorder="little"))
    if gaps.nbytes + values.nbytes <= flat.nbytes + bits.nbytes:
        return {"gap": gaps, "val": values}
    kept = torch.zeros_like(flat)
    kept[positions] = values
    return {"dense": kept.reshape(weight.shape), "bits": bits}


def decode(
    code: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weight and its mask from whatever claims to be the code of one; +0 where dropped.

    The code's length bounds what is made of it, whatever `shape` says. Raises CodeError for what
    is not the code of a weight of this shape and dtype.
    """
    match sorted(code):
        case ["gap", "val"]:
            return _from_gaps(code["gap"], code["val"], shape, dtype)
        case ["bits", "dense"]:
            return _from_bits(_checked(code["dense"], shape, dtype), code["bits"])
        case ["dense"]:
            return _checked(code["dense"], shape, dtype), torch.ones(shape, dtype=torch.bool)
        case forms:
            raise CodeError(f"has {', '.join(forms) or 'nothing'} stored")


def _gaps(positions: NDArray[np.intp], total: int) -> NDArray[np.uint8]:
    """One byte for each position, the gap before it, with a 255 for each 255 that are skipped.

    It skips on behind the last one as well, so that a code's length bounds the weight's size.
    """
    gaps = np.diff(positions, prepend=-1, append=total) - 1
    ends = np.cumsum(gaps // _SKIP + 1)
    code = np.full(ends[-1], _SKIP, dtype=np.uint8)
    code[ends - 1] = gaps % _SKIP
    return code[:-1]


def _from_gaps(
    gap: Tensor, val: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    if (gap.dtype, gap.ndim, val.dtype, val.ndim) != (torch.uint8, 1, dtype, 1):
        raise CodeError("has gaps or values of a wrong dtype or shape")
    steps = (gap.long() + 1).clamp(max=_SKIP)  # 254 and one that is kept, or 255 and none
    covered, total = int(steps.sum()), math.prod(shape)
    if not covered <= total < covered + _SKIP:
        raise CodeError(f"has {total} elements, and its gap code runs to {covered}")
    at = steps.cumsum(0)[gap != _SKIP] - 1
    if len(at) != len(val):
        raise CodeError(f"has {len(at)} positions and {len(val)} values")
    weight, mask = torch.zeros(total, dtype=dtype), torch.zeros(total, dtype=torch.bool)
    weight[at] = val
    mask[at] = True
    return weight.reshape(shape), mask.reshape(shape)


def _checked(dense: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dense.dtype != dtype or tuple(dense.shape) != shape:
        stored = f"{dense.dtype} of shape {list(dense.shape)}"
        raise CodeError(f"is stored as {stored}, and declared as {dtype} of shape {list(shape)}")
    return dense


def _from_bits(dense: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (math.ceil(dense.numel() / 8),):
        raise CodeError("has a packed mask of a wrong dtype or length")
    keep = torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little")).bool()
    if keep[dense.numel() :].any():
        raise CodeError("has a mask that runs beyond its end")
    mask = keep[: dense.numel()].reshape(dense.shape)
    if dense[~mask].view(torch.uint8).any():  # its bytes, for -0 is refused too
        raise CodeError("is not zero everywhere where its mask drops it")
    return dense, mask
