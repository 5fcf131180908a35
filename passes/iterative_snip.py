"""Iterative SNIP and FORCE (de Jorge et al., ICLR 2021): SNIP in rounds of exponential size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from n2nfx.budget import budget
from n2nfx.errors import UsageError
from n2nfx.network import Network, Probe
from n2nfx.pruning import DataPruning, require_count
from n2nfx.rounds import MOST_ROUNDS, exponential, rank_in_rounds
from n2nfx.saliency import Workbench, prunable


@dataclass(frozen=True)
class IterativeSNIP(DataPruning):
    """Keep the weights with the largest |w * dL/dw|, taken again and again at what is left.

    The number of weights falls by the same share in each of `rounds` rounds (60, as in the
    authors' code), all of which look at the same batches. With `revive`, a weight that was dropped
    comes back where its sensitivity at the pruned network is high enough: FORCE, progressive
    skeletonization. Without, it is their Iterative SNIP.
    """

    name: ClassVar[str] = "iterative-snip"

    rounds: int = 60
    revive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("rounds", self.rounds, MOST_ROUNDS)
        if type(self.revive) is not bool:
            raise UsageError(f"revive must be True or False, not {self.revive!r}")

    def score(self, network: Network, probe: Probe) -> Mapping[str, Tensor]:
        batches, loss = self.data(network, probe)
        bench, ranked = Workbench(network, self.norm, probe.seed), prunable(network)
        total = budget(self.density, network.size)
        return rank_in_rounds(
            bench,
            ranked,
            self.sharing,
            exponential(sum(item.size for item in ranked), total, self.rounds),
            lambda: bench.mean_gradients(batches, loss),
            lambda weight, gradient: gradient.mul_(weight).abs_(),
            revive=self.revive,
        )
