"""N2NSkip (Subramaniam & Sharma, BMVC 2020): sparse learnable skips inside the same budget."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from n2nfx.budget import Allocation, apportion, split
from n2nfx.candidates import score_candidates, share_by_scores, share_with_layers
from n2nfx.doctor.machine import bytes_of_memory
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.fitting import Kernel, Resolution
from n2nfx.masks import Masks, RandomRanking, Ranking, ScoreRanking, revived, select
from n2nfx.network import Network, Probe, Skip
from n2nfx.patterns import IdentityRanking, LognormalRanking, diagonal
from n2nfx.seeds import generator
from n2nfx.shortcuts import beside_shortcuts, into_bypassed
from n2nfx.splice import fill, prepare, splice
from n2nfx.wiring import INNER, Branches, Options, Placement, Wiring, find_branches

_BYTES = 4 + 1 + 1  # of a branch weight in memory: itself, its mask, and the mask that acts
_SCORED = 4 + 3 * 8  # while it is scored: a copy, and another with gradient and score, in float64
_FURTHEST = 8  # hops that an error looks through for one that would do


@dataclass(frozen=True)
class N2NSkip:
    """Spend `round(ratio * nnz)` of the network's weights on skip branches, and the rest as before.

    The sequential weights are chosen again by the same ranking and allocation, only fewer. The
    branches lie on every legal pair of layers `hops` apart, or as far as the next layer whose
    shape can be met (`placement`, `wiring`, `kernel` and `resolution`: see
    `n2nfx.wiring.Options`).
    `share` says what each branch gets: `uniform`, the same density, or `global`, as many as it has
    among the best of all branches' weights by the scores of the pruner.
    `pattern` says which neurons a branch joins: `identity`, channel c to channel c first, with
    weight 1, as far as the branch's share lasts, and then some drawn at random; all drawn at
    `random` by (seed, branch), as in the paper, with `degrees` either `uniform` or `lognormal`; or
    `scored`, the best by the pruner's scores. The paper's wiring (Eq. 2) is `paper`, with
    `random`; the defaults are what measured best (docs/decisions/0019). With
    `scored` and `global` the `ratio` can be `learned`: layers' and branches' weights are ranked
    together, at the same budget.
    `init` is `kaiming` on the branch's real fan-in, or `zero`, which leaves the network's function
    as it is; by `identity` a branch starts at zero where shortcuts go around its target.
    `branch_norm="batch"` puts a batch norm behind every branch.
    """

    name: ClassVar[str] = "n2nskip"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "nnz", "outputs"})

    ratio: float | Literal["learned"]
    hops: tuple[int, ...] = (3,)
    placement: Placement = "every"
    wiring: Wiring = "linear"
    kernel: Kernel = "target"
    resolution: Resolution = "stride"
    share: Literal["uniform", "global"] = "uniform"
    pattern: Literal["random", "identity", "scored"] = "identity"
    degrees: Literal["uniform", "lognormal"] = "uniform"
    branch_norm: Literal["none", "batch"] = "none"
    init: Literal["kaiming", "zero"] = "kaiming"

    def __post_init__(self) -> None:
        self._options()
        if self.ratio != "learned":
            split(1, self.ratio)
        for field, known in (
            ("share", ("uniform", "global")),
            ("pattern", ("random", "identity", "scored")),
            ("degrees", ("uniform", "lognormal")),
            ("branch_norm", ("none", "batch")),
            ("init", ("kaiming", "zero")),
        ):
            if getattr(self, field) not in known:
                raise UsageError(
                    f"{field} must be {' or '.join(known)}, not {getattr(self, field)!r}"
                )
        self._require_together()

    def _require_together(self) -> None:
        """Raise `UsageError` for arguments that contradict each other."""
        if self.init == "zero" and self.wiring in INNER:
            raise UsageError(
                f"behind the inner nonlinearity of wiring {self.wiring!r} a zero branch may never "
                "get a gradient; init 'zero' goes with wiring 'linear' or 'joint'"
            )
        if self.branch_norm == "batch" and self.wiring == "released-vgg":
            raise UsageError(
                "the branches of wiring 'released-vgg' share their targets' norms; branch_norm "
                "'batch' goes with the other wirings"
            )
        if self.ratio == "learned" and (self.pattern, self.share) != ("scored", "global"):
            raise UsageError("a ratio that is 'learned' goes with pattern 'scored', share 'global'")
        if self.pattern == "scored" and self.degrees != "uniform":
            raise UsageError(
                f"pattern 'scored' draws no neurons; degrees {self.degrees!r} goes with 'random' "
                "or 'identity'"
            )
        if self._scores and self.init == "zero":
            raise UsageError(
                "branches whose weights are all zero cannot be told apart by scores; pattern "
                "'scored' and share 'global' go with init 'kaiming'"
            )

    @property
    def _scores(self) -> bool:
        """Whether branches are scored."""
        return self.pattern == "scored" or self.share == "global"

    @property
    def _may_be_silent(self) -> bool:
        """Whether branches may start at zero where the network itself carries what they would."""
        return self.pattern == "identity" and self.wiring not in INNER

    def __call__(self, network: Network, probe: Probe) -> Network:
        _require_ready(network)
        wanted = 1 if self.ratio == "learned" else split(network.nnz, self.ratio).skip
        if wanted == 0:
            return network
        options = self._options()
        prepare(network)
        branches = find_branches(network, options)
        _require_room(network, branches, options, wanted)
        candidates = self._candidates(branches)
        scores = self._score(network, candidates, probe) if self._scores else None
        skips = self._decide(network, candidates, scores)
        _require_memory(skips, _BYTES)
        silent = _silent(network, skips) if self._may_be_silent else frozenset()
        splice(network, skips)
        ranking = scores if self.ratio == "learned" else network.scores
        ranking = ranking or RandomRanking(probe.seed)
        allocation = network.allocation or Allocation()
        left = network.nnz - sum(skip.nnz for skip in skips)
        masks = dict(select(network.layers, ranking, allocation, left))
        _require_still_there(network, masks)
        neurons = self._neurons(probe.seed, scores)
        for skip in skips:
            mask = neurons.best(skip, skip.nnz).reshape(skip.weight_shape)
            if skip.name not in silent:
                fill(network, skip, mask, self._values(skip, mask, probe.seed))
            masks[skip.weight] = mask
        return replace(
            network,
            masks=Masks(masks),
            skips=skips,
            scores=ranking,
            allocation=allocation,
            refused=branches.refused,
        )

    def _options(self) -> Options:
        return Options(self.hops, self.placement, self.wiring, self.kernel, self.resolution)

    def _candidates(self, branches: Branches) -> tuple[Skip, ...]:
        """The branches as they would be, nothing kept yet."""
        norm = self.branch_norm == "batch"
        unfit = [skip.target for skip in branches.skips if len(skip.places) > 3]
        if norm and unfit:
            raise CannotOperate(
                f"{unfit[0]} has more dimensions of places than a batch norm takes; branch_norm "
                "'none' would do"
            )
        return tuple(replace(skip, branch_norm=norm) for skip in branches.skips)

    def _score(self, network: Network, candidates: Sequence[Skip], probe: Probe) -> ScoreRanking:
        """The scores of every weight there could be, branches at their initialization."""
        _require_memory(candidates, _BYTES + _SCORED)

        def whole(skip: Skip) -> Tensor:
            return self._values(skip, torch.ones(skip.weight_shape, dtype=torch.bool), probe.seed)

        return score_candidates(network, candidates, whole, probe)

    def _decide(
        self, network: Network, candidates: Sequence[Skip], scores: ScoreRanking | None
    ) -> tuple[Skip, ...]:
        """The branches with what each keeps; an empty branch is none."""
        counts = self._counts(network, candidates, scores)
        if not any(counts):
            raise CannotOperate(
                f"ranked together with all branches, the best {network.nnz:,} weights are all the "
                "layers' own, so that no branch would keep any; a ratio that is a number gives "
                "them a share"
            )
        pairs = zip(candidates, counts, strict=True)
        return tuple(replace(skip, nnz=count) for skip, count in pairs if count)

    def _counts(
        self, network: Network, candidates: Sequence[Skip], scores: ScoreRanking | None
    ) -> tuple[int, ...]:
        """How many weights each branch keeps."""
        if self.ratio == "learned":
            assert scores is not None
            allocation = network.allocation or Allocation()
            return share_with_layers(network.layers, candidates, scores, allocation, network.nnz)
        total = split(network.nnz, self.ratio).skip
        if self.share == "global":
            assert scores is not None
            return share_by_scores(candidates, scores, total)
        sizes = [skip.size for skip in candidates]
        return apportion(sizes, total, [0] * len(sizes), sizes)

    def _neurons(self, seed: int, scores: ScoreRanking | None) -> Ranking:
        """The order in which a branch's weights are kept."""
        if self.pattern == "scored":
            assert scores is not None
            return scores
        drawn = LognormalRanking(seed) if self.degrees == "lognormal" else RandomRanking(seed)
        return IdentityRanking(seed, drawn) if self.pattern == "identity" else drawn

    def _values(self, skip: Skip, mask: Tensor, seed: int) -> Tensor:
        """The branch's weights at initialization, in the order of their indices.

        What was scored keeps the numbers that it was scored with, scaled to the real fan-in.
        """
        if self.init == "zero":
            return torch.zeros(skip.nnz)
        kept = np.flatnonzero(mask.numpy())
        normal = generator(seed, "init", skip.weight).standard_normal
        drawn = normal(skip.size)[kept] if self.pattern == "scored" else normal(skip.nnz)
        values = drawn * skip.spread
        if self.pattern == "identity":
            values[np.isin(kept, diagonal(skip.weight_shape))] = 1.0
        return torch.from_numpy(values)


def _silent(network: Network, skips: Sequence[Skip]) -> frozenset[str]:
    """The branches that start at zero, as the network needs none for signals to pass there."""
    return into_bypassed(network, skips) | beside_shortcuts(network, skips)


def _require_ready(network: Network) -> None:
    """Raise `CannotOperate` for a network that has skips, or masks that cannot be made smaller."""
    if network.skips:
        raise CannotOperate("the network has skips already; give N2NSkip all hops at once")
    if network.masks and network.scores is None:
        raise CannotOperate(
            "the network's masks came without the ranking that chose them, so that it cannot "
            "be asked for fewer; prune and add skips in one pipeline"
        )


def _require_still_there(network: Network, masks: Mapping[str, Tensor]) -> None:
    """Raise `CannotOperate` where a weight would come back that an earlier pipeline set to zero."""
    if not network.dropped_before:
        return
    if back := revived(network.masks, masks):
        raise CannotOperate(
            f"ranked together with the branches, other weights of {back[0]} are kept than "
            "before, and what an earlier pipeline dropped is gone; prune and add skips in one "
            "pipeline"
        )


def _require_room(network: Network, branches: Branches, options: Options, wanted: int) -> None:
    """Raise `CannotOperate` where the legal branches cannot hold the skip weights."""
    if wanted <= branches.capacity:
        return
    if not branches.skips:
        raise CannotOperate(
            f"no legal pair of layers is {_words(options.hops)} apart{_because(branches)}. "
            f"{_elsewhere(network, options, wanted)}"
        )
    raise CannotOperate(
        f"{wanted:,} skip weights were asked for, but the legal branches with hops "
        f"{_words(options.hops)} ({len(branches.skips)}) hold at most {branches.capacity:,}"
        f"{_because(branches)}. {_elsewhere(network, options, wanted)}"
    )


def _require_memory(skips: Sequence[Skip], each: int) -> None:
    """Raise `CannotOperate` where the branches, which are dense in memory, are more than it.

    `each` is how many bytes one of their weights takes.
    """
    needed, (_, total) = each * sum(skip.size for skip in skips), bytes_of_memory()
    if total is not None and needed > total:
        raise CannotOperate(
            f"{len(skips):,} branches take {needed / 2**30:.1f} GiB, as the few weights that they "
            f"keep lie in dense tensors, and this machine has {total / 2**30:.1f} GiB; fewer hops, "
            "or kernel=1, would do"
        )


def _because(branches: Branches) -> str:
    """The commonest reasons why pairs were refused, as a clause, or nothing."""
    reasons = Counter(refusal.reason for refusal in branches.refused).most_common(3)
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons)
    return f" (refused: {told})" if told else ""


def _words(hops: Sequence[int]) -> str:
    return " or ".join(map(str, hops))


def _elsewhere(network: Network, options: Options, wanted: int) -> str:
    """What other hops would hold."""
    room = {
        hop: find_branches(network, replace(options, hops=(hop,))).capacity
        for hop in range(1, _FURTHEST + 1)
        if hop not in options.hops
    }
    fitting = [hop for hop, capacity in room.items() if capacity >= wanted]
    if fitting:
        return f"Hops that would do: {', '.join(map(str, fitting))}"
    held = ", ".join(f"{hop} holds {capacity:,}" for hop, capacity in room.items() if capacity)
    if not held:
        return f"No other hop up to {_FURTHEST} would do"
    return f"No other hop up to {_FURTHEST} holds as many alone ({held})"
