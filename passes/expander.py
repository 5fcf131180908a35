"""Expander pruning (Prabhu, Varma and Namboodiri, Deep Expander Networks, ECCV 2018)."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from n2nfx.masks import Ranked, Ranking
from n2nfx.network import Network, Probe
from n2nfx.pruning import Pruning
from n2nfx.seeds import generator

_AT_ONCE = 2**22  # keys that are drawn and sorted together


@dataclass(frozen=True)
class Expander(Pruning):
    """Keep whole kernels, as many for every channel: a random graph of fixed degree.

    Every channel on a layer's narrower side (the inputs', where both are as wide) is joined to
    channels on the other side that it draws at random, as in the authors' code. The number of
    weights is exact all the same: degrees differ by one kernel at most, and one kernel a layer may
    be kept in part. `allocation`, `floor` and `ends`: see `n2nfx.budget.Allocation`.
    """

    name: ClassVar[str] = "expander"

    allocation: Literal["uniform", "er", "erk"] = "uniform"

    def rank(self, network: Network, probe: Probe) -> Ranking:
        return ExpanderRanking(probe.seed)


@dataclass(frozen=True)
class ExpanderRanking:
    """Kernels in rounds: in each, every channel of the narrower side draws one more partner.

    Keyed by (seed, weight name); nothing is stored, and fewer weights are a subset of more.
    """

    seed: int

    def best(self, layer: Ranked, count: int) -> Tensor:
        rows, columns, *kernel = layer.weight_shape
        taps = prod(kernel)
        whole, part = divmod(count, taps)
        kept = np.zeros((rows, columns, taps), dtype=bool)
        by_rows = kept if columns > rows else kept.swapaxes(0, 1)
        own, partners = self._kernels(layer.weight, *by_rows.shape[:2], count=whole + (part > 0))
        by_rows[own[:whole], partners[:whole]] = True
        by_rows[own[whole:], partners[whole:], :part] = True
        return torch.from_numpy(kept.reshape(-1))

    def _kernels(
        self, weight: str, own: int, others: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` kernels in order, each as a channel and its partner."""
        drawn = generator(self.seed, "expander", weight).bit_generator
        order = drawn.random_raw(own).argsort(kind="stable")
        turns = -(-count // own)
        partners = np.empty((own, turns), dtype=np.int64)
        step = max(1, _AT_ONCE // others)
        for start in range(0, own, step):
            rows = partners[start : start + step]
            keys = drawn.random_raw(len(rows) * others).reshape(len(rows), others)
            rows[:] = keys.argsort(axis=1, kind="stable")[:, :turns]
        places = np.arange(count)
        channels = order[places % own]
        return channels, partners[channels, places // own]
