"""Random pruning at initialization (RP): keep weights drawn at random."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from n2nfx.masks import RandomRanking
from n2nfx.network import Network, Probe
from n2nfx.pruning import Pruning


@dataclass(frozen=True)
class RandomPruning(Pruning):
    """Keep `round(density * N)` weights, drawn at random by (seed, weight name).

    `allocation`, `floor` and `ends` say how they are shared over the layers: see
    `n2nfx.budget.Allocation`.
    """

    name: ClassVar[str] = "random"

    allocation: Literal["uniform", "er", "erk"] = "uniform"

    def rank(self, network: Network, probe: Probe) -> RandomRanking:
        return RandomRanking(probe.seed)
