"""Random pruning at initialization (RP): keep weights drawn at random."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from n2nfx.budget import Allocation, budget, require_density
from n2nfx.errors import CannotOperate
from n2nfx.masks import RandomRanking, select
from n2nfx.network import Network, Probe


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
        if not network.layers:
            raise CannotOperate("; ".join(("the model has no prunable layer", *network.notes)))
        if network.skips:
            raise CannotOperate("prune before skips are added: their weights come out of the same")
        allocation = Allocation(self.allocation, self.floor, self.ends)
        ranking = RandomRanking(probe.seed)
        total = budget(self.density, network.size)
        masks = select(network.layers, ranking, allocation, total)
        revived = [name for name, old in network.masks.items() if (masks[name] & ~old).any()]
        if revived:
            raise CannotOperate(
                f"{revived[0]} was pruned already, and what was dropped cannot come back: prune "
                "the network as it was before, or further by the same seed and allocation"
            )
        return replace(network, masks=masks, scores=ranking, allocation=allocation)
