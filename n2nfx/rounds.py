"""Pruning in rounds: score what is left, drop some of it, and score again."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from n2nfx.budget import Allocation
from n2nfx.masks import Ranked, keep_best
from n2nfx.saliency import Workbench, require_finite, require_some

MOST_ROUNDS = 1000


def exponential(size: int, total: int, rounds: int) -> tuple[int, ...]:
    """How many of `size` weights are left after each round: the same share goes every time.

    The last is `total` exactly. Sources: Tanaka et al. 2020 and de Jorge et al. 2021.
    """
    left = (round(size * (total / size) ** (turn / rounds)) for turn in range(1, rounds))
    return (*left, total)


def rank_in_rounds(
    bench: Workbench,
    ranked: Sequence[Ranked],
    allocation: Allocation,
    totals: Sequence[int],
    gradients: Callable[[], Mapping[str, Tensor]],
    score: Callable[[Tensor, Tensor], Tensor],
    *,
    revive: bool = False,
) -> dict[str, Tensor]:
    """Scores that order weights by the round in which they were dropped, then by their last score.

    In every round the weights are scored by `score(weight, gradient)`, which may overwrite the
    gradient, that of the network as pruned so far; the best `totals[round]` are kept as
    `allocation` says. With `revive`, those dropped take part again, by the value that they had and
    the gradient at zero; but where a layer computes further with a weight, they have none. The
    best `totals[-1]` by the scores given are those that the last round keeps. Changes the
    workbench's weights.
    """
    contest = _Contest(bench, ranked)
    for turn, total in enumerate(totals, 1):
        scores = score(contest.values, contest.entries(gradients()))
        if turn == 1:
            require_some([scores])
        require_finite(contest.named(scores))
        kept = keep_best(ranked, scores, contest.sizes, allocation, total).to(scores.device)
        gone = _places(~kept)
        contest.drop(gone, _keys(turn, scores[gone], len(totals)), revive=revive)
        if turn == len(totals):
            contest.finish(kept, _keys(turn + 1, scores[kept], turn))
        elif not revive:
            contest.go_on(kept)
        bench.restrict(contest.masks(bench.computed))
    return contest.final()


class _Contest:
    """The entries of all weights that may still be kept, one after the other.

    `places` are where they are in `_flat`, which the workbench's weights are views of, `values`
    what they were at first, and `sizes` how many each weight has of them.
    """

    def __init__(self, bench: Workbench, ranked: Sequence[Ranked]) -> None:
        self._ranked = ranked
        self._whole = [item.size for item in ranked]
        weights = [bench.weights[item.weight] for item in ranked]
        self._flat = torch.cat([weight.detach().reshape(-1) for weight in weights])
        for weight, part in zip(weights, self._flat.split(self._whole), strict=True):
            weight.data = part.view(weight.shape)
        self.places = torch.arange(len(self._flat), device=self._flat.device)
        self.values = self._flat.clone()
        self.sizes = self._whole
        self._found = torch.empty_like(self._flat)
        self._keys = torch.empty_like(self._flat, dtype=torch.float64)

    def entries(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The gradients by the entries, good until the next call."""
        found, start = self._found[: len(self.places)], 0
        parts = zip(
            self._ranked, found.split(self.sizes), self.places.split(self.sizes), strict=True
        )
        for item, part, places in parts:
            gradient = gradients[item.weight].detach().reshape(-1)
            torch.index_select(gradient, 0, places - start, out=part)
            start += item.size
        return found

    def named(self, scores: Tensor) -> dict[str, Tensor]:
        """The scores of the entries by the names of their weights."""
        names = (item.weight for item in self._ranked)
        return dict(zip(names, scores.split(self.sizes), strict=True))

    def drop(self, gone: Tensor, keys: Tensor, *, revive: bool) -> None:
        """Set some entries to zero, and with `revive` all others to what they were."""
        if revive:
            self._flat.copy_(self.values)
        places = self.places[gone]
        self._flat[places] = 0
        self._keys[places] = keys

    def go_on(self, kept: Tensor) -> None:
        """Let only those take part that are kept.

        They move up within the same memory, a weight at a time: fresh memory costs more than that.
        """
        left, start = [], 0
        lots = (self.places.split(self.sizes), self.values.split(self.sizes))
        for mask, places, values in zip(kept.split(self.sizes), *lots, strict=True):
            chosen = _chosen(places, mask)
            end = start + len(chosen)
            self.places[start:end], self.values[start:end] = chosen, _chosen(values, mask)
            left.append(end - start)
            start = end
        self.sizes, self.places, self.values = left, self.places[:start], self.values[:start]

    def finish(self, kept: Tensor, keys: Tensor) -> None:
        """Write down the keys of those that are left."""
        self._keys[self.places[kept]] = keys

    def masks(self, names: Collection[str]) -> dict[str, Tensor]:
        """Which entries of the weights with these names are not zero."""
        return {
            item.weight: (part != 0).reshape(item.weight_shape)
            for item, part in zip(self._ranked, self._flat.split(self._whole), strict=True)
            if item.weight in names
        }

    def final(self) -> dict[str, Tensor]:
        """The keys of every weight's entries."""
        return {
            item.weight: part.reshape(item.weight_shape)
            for item, part in zip(self._ranked, self._keys.split(self._whole), strict=True)
        }


def _chosen(entries: Tensor, mask: Tensor) -> Tensor:
    """The entries where the mask is True; on the CPU by numpy, which is four times as fast.

    It has no bfloat16.
    """
    if entries.device.type != "cpu" or entries.dtype == torch.bfloat16:
        return entries[mask]
    return torch.from_numpy(entries.numpy()[mask.numpy()])


def _places(mask: Tensor) -> Tensor:
    """Where the mask is True, likewise."""
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _keys(turn: int, scores: Tensor, turns: int) -> Tensor:
    """Numbers in the order of the turn first and the score next: whole, so that none is rounded.

    A float64 read as an integer has the order of its value, if it is positive, so that its upper
    bits will do: 30 of its mantissa for up to a thousand turns, and a float32 has but 24.
    """
    bits = (scores.double() + 0.0).view(torch.int64)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 63) & (2**63 - 1))
    width = 52 - (turns + 1).bit_length()
    return (turn * 2**width + (ordered >> (64 - width))).double()
