"""Pruning in rounds: score what is left, drop some of it, and score again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass
class _Contest:
    """The entries of one weight that may still be kept, by place, with the values they had.

    `flat` is the weight as the workbench runs it, `keys` the final scores of all its entries.
    """

    ranked: Ranked
    flat: Tensor
    places: Tensor
    values: Tensor
    keys: Tensor


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

    In every round the weights are scored by `score(weight, gradient)`, the gradients being those
    of the network as pruned so far, and the best `totals[round]` are kept as `allocation` says.
    With `revive`, those dropped take part again, by the value that they had and the gradient at
    zero; but where a layer computes further with a weight, they have none. The best `totals[-1]`
    by the scores given are those that the last round keeps. Changes the workbench's weights.
    """
    contests = [_contest(item, bench.weights[item.weight]) for item in ranked]
    for turn, total in enumerate(totals, 1):
        found = gradients()
        scores = [score(one.values, _entries(found, one)) for one in contests]
        require_finite({one.ranked.weight: own for one, own in zip(contests, scores, strict=True)})
        if turn == 1:
            require_some(scores)
        kept = keep_best(ranked, scores, allocation, total)
        for one, own, keep in zip(contests, scores, kept, strict=True):
            _settle(one, own, keep.to(own.device), turn, len(totals), revive=revive)
        bench.restrict(
            {
                one.ranked.weight: (one.flat != 0).reshape(one.ranked.weight_shape)
                for one in contests
                if one.ranked.weight in bench.computed
            }
        )
    return {one.ranked.weight: one.keys.reshape(one.ranked.weight_shape) for one in contests}


def _contest(ranked: Ranked, weight: Tensor) -> _Contest:
    weight.data = weight.data.contiguous()  # so that it has a flat view
    flat = weight.data.view(-1)
    return _Contest(
        ranked=ranked,
        flat=flat,
        places=torch.arange(flat.numel(), device=flat.device),
        values=flat.clone(),
        keys=torch.empty_like(flat, dtype=torch.float64),
    )


def _entries(gradients: Mapping[str, Tensor], contest: _Contest) -> Tensor:
    """The gradient of the entries that take part."""
    gradient = gradients[contest.ranked.weight].detach().reshape(-1)
    return gradient.index_select(0, contest.places)


def _settle(
    contest: _Contest, scores: Tensor, kept: Tensor, turn: int, turns: int, *, revive: bool
) -> None:
    """Write down when entries were dropped, and let the others go on."""
    dropped, left = _chosen(contest.places, ~kept), _chosen(contest.places, kept)
    values = _chosen(contest.values, kept)
    contest.keys[dropped] = _keys(turn, _chosen(scores, ~kept), turns)
    contest.flat[dropped] = 0
    if revive:
        contest.flat[left] = values
    if turn == turns:
        contest.keys[left] = _keys(turn + 1, _chosen(scores, kept), turns)
    elif not revive:
        contest.places, contest.values = left, values


def _chosen(entries: Tensor, mask: Tensor) -> Tensor:
    """The entries where the mask is True; on the CPU by numpy, which is four times as fast."""
    if entries.device.type != "cpu":
        return entries[mask]
    return torch.from_numpy(entries.numpy()[mask.numpy()])


def _keys(turn: int, scores: Tensor, turns: int) -> Tensor:
    """Numbers in the order of the turn first and the score next: whole, so that none is rounded.

    A float64 read as an integer has the order of its value, if it is positive, so that its upper
    bits will do: 30 of its mantissa for up to a thousand turns, and a float32 has but 24.
    """
    bits = (scores.double() + 0.0).view(torch.int64)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 63) & (2**63 - 1))
    width = 52 - (turns + 1).bit_length()
    return (turn * 2**width + (ordered >> (64 - width))).double()
