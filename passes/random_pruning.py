"""Random pruning at initialization (RP): keep weights drawn at random."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from n2nfx.budget import Allocation, require_density
from n2nfx.masks import RandomRanking
from n2nfx.network import Network, Probe
from n2nfx.pruning import prune


@dataclass(frozen=True)
class RandomPruning:
    """Keep `round(density * N)` weights, drawn at random by (seed, weight name).

    `allocation`, `floor` and `ends` say how they are shared over the layers: see
    `n2nfx.budget.Allocation`.
    """

    name: ClassVar[str] = "random"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "outputs"})

    density: float
    allocation: Literal["uniform", "er", "erk"] = "uniform"
    floor: int | Literal["channels"] = "channels"
    ends: Literal["pruned", "dense"] = "pruned"

    def __post_init__(self) -> None:
        require_density(self.density)
        Allocation(self.allocation, self.floor, self.ends)

    def __call__(self, network: Network, probe: Probe) -> Network:
        allocation = Allocation(self.allocation, self.floor, self.ends)
        return prune(network, self.density, allocation, lambda: RandomRanking(probe.seed))
