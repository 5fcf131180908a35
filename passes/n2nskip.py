"""N2NSkip (Subramaniam & Sharma, BMVC 2020): sparse learnable skips inside the same budget."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from n2nfx.budget import Allocation, apportion, split
from n2nfx.doctor.machine import bytes_of_memory
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.fitting import Kernel, Resolution
from n2nfx.masks import Masks, RandomRanking, permuted_prefix, select
from n2nfx.network import Network, Probe, Skip
from n2nfx.seeds import derive, generator
from n2nfx.splice import fill, prepare, splice
from n2nfx.wiring import Branches, Options, Placement, Wiring, find_branches

_BYTES = 4 + 1 + 1  # of a branch weight in memory: itself, its mask, and the mask that acts
_FURTHEST = 8  # hops that an error looks through for one that would do


@dataclass(frozen=True)
class N2NSkip:
    """Spend `round(ratio * nnz)` of the network's weights on skip branches, and the rest as before.

    The sequential weights are chosen again by the same ranking and allocation, only fewer. The
    branches lie on every legal pair of layers `hops` apart, or as far as the next layer whose
    shape can be met (`placement`, `wiring`, `kernel` and `resolution`: see
    `n2nfx.wiring.Options`), each equally dense, on neurons drawn at random by (seed, branch).
    `pattern="identity"` joins channel c to channel c first, with weight 1, as far as the branch's
    share lasts. `init` is `kaiming` on the branch's real fan-in, or `zero`, which leaves the
    network's function as it is. `branch_norm="batch"` puts a batch norm behind every branch.
    """

    name: ClassVar[str] = "n2nskip"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "nnz", "outputs"})

    ratio: float
    hops: tuple[int, ...] = (3,)
    placement: Placement = "every"
    wiring: Wiring = "paper"
    kernel: Kernel = "target"
    resolution: Resolution = "stride"
    pattern: Literal["random", "identity"] = "random"
    branch_norm: Literal["none", "batch"] = "none"
    init: Literal["kaiming", "zero"] = "kaiming"

    def __post_init__(self) -> None:
        self._options()
        split(1, self.ratio)
        for field, known in (
            ("pattern", ("random", "identity")),
            ("branch_norm", ("none", "batch")),
            ("init", ("kaiming", "zero")),
        ):
            if getattr(self, field) not in known:
                raise UsageError(
                    f"{field} must be {' or '.join(known)}, not {getattr(self, field)!r}"
                )
        if self.init == "zero" and self.wiring == "paper":
            raise UsageError(
                "behind the inner nonlinearity of wiring 'paper' a zero branch may never get a "
                "gradient; init 'zero' goes with wiring 'linear' or 'joint'"
            )

    def __call__(self, network: Network, probe: Probe) -> Network:
        if network.skips:
            raise CannotOperate("the network has skips already; give N2NSkip all hops at once")
        if network.masks and network.scores is None:
            raise CannotOperate(
                "the network's masks came without the ranking that chose them, so that it cannot "
                "be asked for fewer; prune and add skips in one pipeline"
            )
        share = split(network.nnz, self.ratio)
        if share.skip == 0:
            return network
        options = self._options()
        prepare(network)
        branches = find_branches(network, options)
        _require_room(network, branches, options, share.skip)
        skips = self._decide(branches.skips, share.skip)
        _require_memory(skips)
        splice(network, skips)
        ranking = network.scores or RandomRanking(probe.seed)
        allocation = network.allocation or Allocation()
        masks = dict(select(network.layers, ranking, allocation, share.sequential))
        for skip in skips:
            masks[skip.weight] = self._mask(skip, probe.seed)
            fill(network, skip, masks[skip.weight], self._values(skip, masks[skip.weight], probe))
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

    def _decide(self, branches: Sequence[Skip], total: int) -> tuple[Skip, ...]:
        """Share the weights over the branches by their capacity; an empty branch is none."""
        sizes = [skip.size for skip in branches]
        shares = apportion(sizes, total, [0] * len(sizes), sizes)
        norm = self.branch_norm == "batch"
        skips = tuple(
            replace(skip, nnz=nnz, branch_norm=norm)
            for skip, nnz in zip(branches, shares, strict=True)
            if nnz > 0
        )
        unfit = [skip.target for skip in skips if len(skip.places) > 3]
        if norm and unfit:
            raise CannotOperate(
                f"{unfit[0]} has more dimensions of places than a batch norm takes; branch_norm "
                "'none' would do"
            )
        return skips

    def _mask(self, skip: Skip, seed: int) -> Tensor:
        """Which neurons a branch joins."""
        if self.pattern == "random":
            kept = permuted_prefix(skip.size, skip.nnz, derive(seed, "mask", skip.weight))
            return torch.from_numpy(kept).reshape(skip.weight_shape)
        diagonal = _diagonal(skip)
        first = min(skip.nnz, len(diagonal))
        chosen = permuted_prefix(len(diagonal), first, derive(seed, "diagonal", skip.weight))
        kept = np.zeros(skip.size, dtype=bool)
        kept[diagonal[chosen]] = True
        others = np.setdiff1d(np.arange(skip.size), diagonal)
        rest = permuted_prefix(len(others), skip.nnz - first, derive(seed, "mask", skip.weight))
        kept[others[rest]] = True
        return torch.from_numpy(kept).reshape(skip.weight_shape)

    def _values(self, skip: Skip, mask: Tensor, probe: Probe) -> Tensor:
        """The branch's weights at initialization, in the order of their indices."""
        if self.init == "zero":
            return torch.zeros(skip.nnz)
        fan_in = skip.nnz / skip.weight_shape[0]
        drawn = generator(probe.seed, "init", skip.weight).standard_normal(skip.nnz)
        values = torch.from_numpy(drawn * (2.0 / max(fan_in, 1.0)) ** 0.5)
        if self.pattern == "identity":
            on_diagonal = np.isin(np.flatnonzero(mask.numpy()), _diagonal(skip))
            values[torch.from_numpy(on_diagonal)] = 1.0
        return values


def _diagonal(skip: Skip) -> np.ndarray:
    """Flat indices of channel c to channel c at the kernel's centre."""
    out, into, *kernel = skip.weight_shape
    channels = np.arange(min(out, into))
    centre = [np.full_like(channels, size // 2) for size in kernel]
    return np.ravel_multi_index((channels, channels, *centre), skip.weight_shape)


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


def _require_memory(skips: Sequence[Skip]) -> None:
    """Raise `CannotOperate` where the branches, which are dense in memory, are more than it."""
    needed, (_, total) = _BYTES * sum(skip.size for skip in skips), bytes_of_memory()
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
