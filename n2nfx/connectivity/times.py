"""Diffusion times: as they are given by people, and several lists of them as one."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from n2nfx.errors import UsageError


def checked_times(times: ArrayLike) -> np.ndarray:
    """(T,) float64 times. Raises `UsageError` for none, and for negative or NaN ones."""
    try:
        found = np.atleast_1d(np.asarray(times, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise UsageError(f"times must be numbers: {error}") from None
    if found.ndim != 1 or not found.size:
        raise UsageError(f"times must be one number or a list of them, not {found.shape}")
    wrong = found[~(found >= 0)]
    if wrong.size:
        raise UsageError(f"a time must be 0 or more, not {wrong[0]:g}")
    return found


def spans(each: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Where every one of some arrays is, once they are one array."""
    ends = np.cumsum([0, *(one.size for one in each)]).tolist()
    return tuple(slice(start, end) for start, end in pairwise(ends))
