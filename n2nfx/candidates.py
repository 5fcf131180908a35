"""Branches that there could be, scored before it is decided what each of them keeps.

All candidates are spliced into a copy of the network at once, dense and at their initialization,
and the criterion that chose the network's own weights scores everything there.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from n2nfx.budget import Allocation, bounds
from n2nfx.errors import CannotOperate
from n2nfx.masks import Masks, ScoreRanking, top_k
from n2nfx.network import Layer, Network, Probe, Skip
from n2nfx.splice import fill, splice


def score_candidates(
    network: Network, candidates: Sequence[Skip], values: Callable[[Skip], Tensor], probe: Probe
) -> ScoreRanking:
    """The ranking of every weight of the network with all candidates, each with all its weights.

    `values` gives a branch's weights, in the order of their indices. The network itself is left as
    it is. Raises `CannotOperate` where what ranked the network's own weights cannot score others.
    """
    ranking = network.scores
    if not isinstance(ranking, ScoreRanking) or ranking.saliency is None:
        raise CannotOperate(
            "branches can be scored only by what scored the layers, and these were not pruned by "
            "scores that can be taken again; a scored pruner, or pattern 'random', would do"
        )
    dense = tuple(replace(skip, nnz=skip.size) for skip in candidates)
    copied = replace(
        network, module=copy.deepcopy(network.module), masks=Masks(), skips=dense, scores=None
    )
    splice(copied, dense)
    copied.module.recompile()
    for skip in dense:
        fill(copied, skip, torch.ones(skip.weight_shape, dtype=torch.bool), values(skip))
    scores = ranking.saliency(copied, probe)
    missing = [row.weight for row in copied.ledger() if row.weight not in scores]
    if missing:
        raise CannotOperate(f"the pruner's saliency gives no score to {missing[0]}")
    return ScoreRanking(scores, ranking.saliency)


def share_by_scores(
    candidates: Sequence[Skip], ranking: ScoreRanking, total: int
) -> tuple[int, ...]:
    """How many of the `total` best weights of all branches belong to each."""
    return _counts([ranking.scores[skip.weight].reshape(-1) for skip in candidates], total)


def share_with_layers(
    layers: Sequence[Layer],
    candidates: Sequence[Skip],
    ranking: ScoreRanking,
    allocation: Allocation,
    total: int,
) -> tuple[int, ...]:
    """How many of the `total` best weights of layers and branches together belong to each branch.

    The layers have their floors before. Raises `CannotOperate` for an allocation that fixes how
    many weights each layer keeps.
    """
    if allocation.method != "global":
        raise CannotOperate(
            f"allocation {allocation.method!r} fixes what each layer keeps; the split is learned "
            "under allocation 'global'"
        )
    floors = bounds(layers, total, allocation)
    rest = [
        ranking.scores[layer.weight].reshape(-1)[~ranking.best(layer, floor)]
        for layer, floor in zip(layers, floors, strict=True)
    ]
    branches = [ranking.scores[skip.weight].reshape(-1) for skip in candidates]
    return _counts([*rest, *branches], total - sum(floors))[len(rest) :]


def _counts(scores: Sequence[Tensor], total: int) -> tuple[int, ...]:
    """How many of the `total` best of all belong to each."""
    flat = [own.detach().double().cpu() for own in scores]
    kept = top_k(torch.cat(flat), total)
    return tuple(int(part.count_nonzero()) for part in kept.split([len(own) for own in flat]))
