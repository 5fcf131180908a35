"""Which neurons a branch joins, as rankings of its weights: beside the uniformly random one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from n2nfx.degrees import lognormal_order
from n2nfx.masks import Ranked, Ranking, permuted_prefix, top_k
from n2nfx.seeds import derive


@dataclass(frozen=True)
class LognormalRanking:
    """A random order, keyed by (seed, weight name), in which neurons have lognormal degrees."""

    seed: int

    def best(self, layer: Ranked, count: int) -> Tensor:
        order = lognormal_order(layer.weight_shape, derive(self.seed, "mask", layer.weight))
        return top_k(torch.from_numpy(order.reshape(-1)), count)


@dataclass(frozen=True)
class IdentityRanking:
    """Channel c to channel c first, in a random order, and then by another ranking."""

    seed: int
    others: Ranking

    def best(self, layer: Ranked, count: int) -> Tensor:
        own = diagonal(layer.weight_shape)
        first = min(count, len(own))
        key = derive(self.seed, "diagonal", layer.weight)
        chosen = own[permuted_prefix(len(own), first, key)]
        kept = self._off(layer, own, count - first)
        kept[torch.from_numpy(chosen)] = True
        return kept

    def _off(self, layer: Ranked, own: np.ndarray, count: int) -> Tensor:
        """The mask of the `count` best of the other ranking that are not on the diagonal."""
        asked = count
        while True:
            kept = self.others.best(layer, asked)
            kept[torch.from_numpy(own)] = False
            missing = count - int(kept.count_nonzero())
            if not missing:
                return kept
            asked += missing


def diagonal(shape: tuple[int, ...]) -> np.ndarray:
    """Flat indices of channel c to channel c at the kernel's centre, of a weight (out, in, *)."""
    out, into, *kernel = shape
    channels = np.arange(min(out, into))
    centre = [np.full_like(channels, size // 2) for size in kernel]
    return np.ravel_multi_index((channels, channels, *centre), shape)
