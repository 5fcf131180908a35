"""Masks as data: which weights are kept, chosen exactly and the same on every machine.

Pruning has three parts that know nothing of each other: a *ranking* orders the weights of a
layer, an *allocation* (`n2nfx.budget`) says how many each layer keeps, and `select` keeps exactly
that many. A smaller budget keeps a subset of a larger one's weights, so a network is rebalanced
by asking the same ranking for fewer.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from n2nfx.budget import Allocation, Sized, allocate, bounds
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.seeds import derive


class Masks(Mapping[str, Tensor]):
    """An immutable mapping of weight names to bool tensors, True where the weight is kept."""

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self._masks = dict(masks or {})
        for name, mask in self._masks.items():
            if mask.dtype != torch.bool:
                raise UsageError(f"the mask of {name} must be a bool tensor, not {mask.dtype}")

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} weights, nnz={self.nnz})"

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Kept weights by name, counted on mask bits."""
        return {
            name: int(np.count_nonzero(mask.cpu().numpy())) for name, mask in self._masks.items()
        }

    @property
    def nnz(self) -> int:
        """Kept weights of all masks together."""
        return sum(self.counts.values())


def revived(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The weights of which `after` keeps something that `before` had dropped."""
    return [name for name, old in before.items() if (after[name] & ~old).any()]


class Ranked(Sized, Protocol):
    """A layer as a ranking sees it: `Sized`, and the name of its weight."""

    @property
    def weight(self) -> str: ...


class Ranking(Protocol):
    """Orders a layer's weights from the most to the least worth keeping."""

    def best(self, layer: Ranked, count: int) -> Tensor:
        """The mask, flat, of the `count` best weights of a layer."""
        ...


@dataclass(frozen=True)
class RandomRanking:
    """A random order of every layer's weights, keyed by (seed, weight name); nothing is stored."""

    seed: int

    def best(self, layer: Ranked, count: int) -> Tensor:
        return torch.from_numpy(
            permuted_prefix(layer.size, count, derive(self.seed, "mask", layer.weight))
        )


@dataclass(frozen=True, eq=False)
class ScoreRanking:
    """An order by score: one real number for every weight, higher is kept first.

    `saliency` is the criterion itself, where there is one: called with any network and a probe, it
    scores every prunable weight of that network, those of skip branches included, so that one
    ranking can be made over them all.
    """

    scores: Mapping[str, Tensor]
    saliency: Callable[[Any, Any], Mapping[str, Tensor]] | None = None

    def best(self, layer: Ranked, count: int) -> Tensor:
        return top_k(self.scores[layer.weight].reshape(-1), count)


def select(layers: Sequence[Ranked], ranking: Ranking, allocation: Allocation, total: int) -> Masks:
    """Masks that keep exactly `total` weights of the layers.

    Nested: for the same ranking and allocation, a smaller total keeps a subset.
    """
    if allocation.method == "global":
        kept = _select_globally(layers, ranking, allocation, total)
    else:
        counts = allocate(layers, total, allocation)
        kept = [ranking.best(layer, count) for layer, count in zip(layers, counts, strict=True)]
    return Masks(
        {
            layer.weight: mask.reshape(layer.weight_shape)
            for layer, mask in zip(layers, kept, strict=True)
        }
    )


def _select_globally(
    layers: Sequence[Ranked], ranking: Ranking, allocation: Allocation, total: int
) -> Sequence[Tensor]:
    """The flat mask of every layer, by one ranking over all."""
    if not isinstance(ranking, ScoreRanking):
        raise CannotOperate(
            "a global allocation compares scores across layers, and a random order has none; "
            "allocate by uniform, er or erk"
        )
    scores = torch.cat(
        [ranking.scores[layer.weight].detach().reshape(-1).cpu() for layer in layers]
    )
    sizes = [layer.size for layer in layers]
    return [
        part.clone() for part in keep_best(layers, scores, sizes, allocation, total).split(sizes)
    ]


def keep_best(
    layers: Sequence[Ranked],
    scores: Tensor,
    sizes: Sequence[int],
    allocation: Allocation,
    total: int,
) -> Tensor:
    """The mask of the `total` best of `scores`, which are flat, `sizes` of each layer in turn.

    They may be the scores of some of a layer's weights only, in the order of their indices: of
    those that an earlier call with a larger total kept, say.
    """
    if allocation.method == "global":
        return _keep_best_of_all(scores, sizes, bounds(layers, total, allocation), total)
    counts = allocate(layers, total, allocation)
    parts = scores.split(list(sizes))
    return torch.cat([top_k(part, count) for part, count in zip(parts, counts, strict=True)])


def _keep_best_of_all(
    scores: Tensor, sizes: Sequence[int], floors: Sequence[int], total: int
) -> Tensor:
    """One ranking over all layers, after each layer's floor: its own best are kept whatever.

    All take part in one ranking first; then layers that fall short get their floor, and the
    others pay with the lowest that they kept, as long as they have more than their own floor.
    """
    kept = top_k(scores, total)
    parts = list(zip(kept.split(list(sizes)), scores.split(list(sizes)), floors, strict=True))
    spare = np.array([np.count_nonzero(part) - floor for part, _, floor in parts])
    missing = -int(spare.clip(max=0).sum())
    if missing:
        # Of the lowest so many are passed over at most as floors protect.
        lowest = _lowest_kept(_as_array(scores), kept.numpy(), missing + sum(floors))
        kept[_payers(*lowest, sizes, spare)[:missing]] = False
        for index in np.flatnonzero(spare < 0).tolist():
            part, own, floor = parts[index]
            part.copy_(top_k(own, floor))
    return kept


def _lowest_kept(values: np.ndarray, kept: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the `count` lowest that are kept, and ties, in order of place.

    They are looked for below a sampled value, if there are enough, or else among all.
    """
    stride = max(1, len(values) // _SAMPLE)
    sample = np.sort(values[::stride][kept[::stride]])
    near = count // stride + 4 * int(len(sample) ** 0.5) + 1
    places = np.flatnonzero(kept & (values <= sample[near])) if near < len(sample) else kept[:0]
    if len(places) < count:
        places = np.flatnonzero(kept)
    found = values[places]
    if len(places) > count:
        low = found <= np.partition(found, count)[count]
        places, found = places[low], found[low]
    return places, found


def _payers(
    places: np.ndarray, values: np.ndarray, sizes: Sequence[int], spare: np.ndarray
) -> np.ndarray:
    """Those of the places that their layers can spare, the lowest first, ties from the end."""
    lowest = places[::-1][values[::-1].argsort(kind="stable")]
    layers = np.searchsorted(np.cumsum(sizes), lowest, side="right")
    narrow = layers.astype(np.uint16) if len(sizes) < 2**16 else layers  # sorted in linear time
    by_layer = narrow.argsort(kind="stable")
    counts = np.bincount(layers, minlength=len(sizes))
    turns = np.empty_like(layers)
    turns[by_layer] = np.arange(len(layers)) - np.repeat(np.cumsum(counts) - counts, counts)
    return lowest[turns < spare[layers]]


def top_k(scores: Tensor, count: int) -> Tensor:
    """The mask of exactly `count` highest of flat `scores`; among equals the lower index wins.

    Raises `UsageError` for a count out of range and `CannotOperate` for scores that are NaN.
    """
    size = scores.numel()
    if not 0 <= count <= size:
        raise UsageError(f"cannot keep {count} of {size} weights")
    values = _as_array(scores)
    if size and np.isnan(values.max()):  # a NaN is the maximum of whatever has one
        raise CannotOperate("a score is NaN: the loss or its gradient is not finite")
    if count in (0, size):
        return torch.full((size,), count == size, dtype=torch.bool)
    threshold = _in_order(values, size - count)
    kept = values >= threshold
    over = int(np.count_nonzero(kept)) - count
    if over:
        kept[np.flatnonzero(values == threshold)[-over:]] = False
    return torch.from_numpy(kept)


def _as_array(scores: Tensor) -> np.ndarray:
    """The scores for numpy, which has no bfloat16."""
    wide = scores.float() if scores.dtype == torch.bfloat16 else scores
    return wide.detach().cpu().numpy()


def _in_order(values: np.ndarray, place: int) -> Any:
    """The value that would be at a place if the values were in order, the lowest at 0.

    A sample tells between which two values to look (Floyd and Rivest 1975); if it misled, one
    looks at all of them.
    """
    if len(values) > _MANY:
        sample = np.sort(values[:: len(values) // _SAMPLE])
        near, margin = place * len(sample) // len(values), 4 * int(len(sample) ** 0.5)
        low = sample[max(near - margin, 0)] if near > margin else values.min()
        high = sample[near + margin] if near + margin < len(sample) else values.max()
        pieces = np.array_split(values, len(values) // _SAMPLE)  # each stays in the cache
        below = sum(int(np.count_nonzero(piece < low)) for piece in pieces)
        between = np.concatenate([p[(p >= low) & (p <= high)] for p in pieces])
        if 0 <= place - below < len(between):
            values, place = between, place - below
    return np.partition(values, place)[place]


def permuted_prefix(size: int, count: int, key: int) -> np.ndarray:
    """The mask of the first `count` of `size` indices under the permutation that `key` names.

    The permutation is computed index by index, so a short prefix costs no more than its length,
    and only integers are involved, so that it is the same on every machine.
    """
    if not 0 <= count <= size:
        raise UsageError(f"cannot keep {count} of {size} weights")
    kept = np.full(size, 2 * count > size)
    if 2 * count > size:
        kept[_permute(np.arange(count, size, dtype=np.uint64), size, key)] = False
    else:
        kept[_permute(np.arange(count, dtype=np.uint64), size, key)] = True
    return kept


_MANY = 2**17
_SAMPLE = 2**14

# Four rounds make a Feistel network of random functions pseudorandom (Luby and Rackoff 1988), if
# its halves have more than a few bits: of 5 indices, six rounds keep some 10% more often.
_ROUNDS = 6
_FEW = 1024


def _permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends the positions.

    A Feistel network permutes the next power of two; what falls outside range(size) walks on
    along its cycle until it is inside (fewer than two steps on average). A few are shuffled whole.
    """
    if size <= _FEW:
        return np.random.Philox(key=key).random_raw(size).argsort(kind="stable")[positions]
    bits = (size - 1).bit_length()
    where = _feistel(positions, bits, key)
    outside = np.flatnonzero(where >= size)
    while outside.size:
        where[outside] = _feistel(where[outside], bits, key)
        outside = outside[where[outside] >= size]
    return where


def _feistel(values: np.ndarray, bits: int, key: int) -> np.ndarray:
    """A keyed permutation of the numbers of that many bits: each half in turn mixes the other."""
    low_bits = bits // 2
    low_mask = np.uint32((1 << low_bits) - 1)
    high_mask = np.uint32((1 << (bits - low_bits)) - 1)
    low = values.astype(np.uint32) & low_mask
    high = (values >> np.uint64(low_bits)).astype(np.uint32)
    round_keys = np.frombuffer(hashlib.sha256(str(key).encode()).digest(), dtype="<u4")
    for turn, round_key in enumerate(round_keys[:_ROUNDS]):
        if turn % 2:
            low ^= _scramble(high, round_key) & low_mask
        else:
            high ^= _scramble(low, round_key) & high_mask
    return (high.astype(np.uint64) << np.uint64(low_bits)) | low


def _scramble(values: np.ndarray, key: np.uint32) -> np.ndarray:
    """A 32-bit integer hash (multiply and shift, wrapping), one pass of MurmurHash3's finalizer."""
    mixed = values + key
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
