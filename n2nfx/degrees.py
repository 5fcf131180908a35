"""Neurons with lognormal degrees: few that many connections join, and many that few do.

The number of synapses and their strengths are distributed so in the cortex (Song et al. 2005,
Buzsaki and Mizuseki 2014), which is what the N2NSkip paper takes for its motivation. Integers only,
so that the order is the same on every machine.
"""

import numpy as np

_POINT = 20  # binary digits behind the point of a logarithm
_NATURAL = round(2**_POINT / np.log(2))  # one standard deviation: a natural logarithm of 1

# The logarithms of 1, 1 + 2^-12, ..., 2; none is so near the middle of two numbers that another
# machine could round it the other way.
_TABLE = np.rint(np.log2(1 + np.arange(2**12 + 1) / 2**12) * 2**_POINT).astype(np.int64)


def lognormal_order(shape: tuple[int, ...], key: int) -> np.ndarray:
    """A number for every entry of a weight (out, in, *kernel): the highest are joined first.

    Every neuron draws a weight of its own, lognormal with a standard deviation of 1 of its natural
    logarithm. The `n` highest numbers are a sample of exactly `n` entries, without replacement, in
    which each has a chance in proportion to the product of its two neurons' weights, so that the
    expected degrees are lognormal while few of the entries are taken. A smaller `n` gives a subset.
    Source: Rosen, Asymptotic theory for order sampling, 1997 (Pareto sampling).
    """
    out, into, *kernel = shape
    stream = np.random.Philox(key=key)
    writers, readers = (_normal(stream, count) for count in (out, into))
    sides = (writers[:, None] + readers).reshape(out, into, *(1 for _ in kernel))
    return sides - _logit(stream.random_raw(shape))


def _normal(stream: np.random.Philox, count: int) -> np.ndarray:
    """Logarithms (base 2) of lognormal weights: a sum of twelve uniform numbers is close to normal.

    It has a variance of 1 and no value beyond 6.
    """
    uniform = (stream.random_raw((count, 12)) >> np.uint64(32)).astype(np.int64)
    return (uniform.sum(axis=1) - (6 << 32)) * _NATURAL >> 32


def _logit(raw: np.ndarray) -> np.ndarray:
    """log2(u / (1 - u)) of uniform numbers u, given as 64 random bits each."""
    odd = raw >> np.uint64(31) | np.uint64(1)  # 2^33 u, which is never 0 nor 2^33
    return _log2(odd) - _log2(np.uint64(2**33) - odd)


def _log2(values: np.ndarray) -> np.ndarray:
    """The binary logarithms of positive numbers below 2^33, by a table and straight lines."""
    mantissa, exponent = np.frexp(values.astype(np.float64))  # exact: there are bits to spare
    digits = (mantissa * 2**33).astype(np.int64) - 2**32
    place, rest = digits >> 20, digits & (2**20 - 1)
    below, above = _TABLE[place], _TABLE[place + 1]
    return (exponent.astype(np.int64) - 1 << _POINT) + below + ((above - below) * rest >> 20)
