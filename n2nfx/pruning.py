"""What pruning does around its scores, the same for every pruner."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from n2nfx.batches import Batch, Loss, batches_of, cross_entropy
from n2nfx.budget import Allocation, Method, budget, require_density
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import Ranking, ScoreRanking, revived, select
from n2nfx.network import Network, Probe
from n2nfx.saliency import Norm


@dataclass(frozen=True)
class Pruning(ABC):
    """Keep the `round(density * N)` weights that a ranking puts first.

    `allocation`, `floor` and `ends` say how they are shared over the layers: see
    `n2nfx.budget.Allocation`.
    """

    name: ClassVar[str]
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "outputs"})

    density: float
    allocation: Method = "uniform"
    floor: int | Literal["channels"] = "channels"
    ends: Literal["pruned", "dense"] = "pruned"

    def __post_init__(self) -> None:
        require_density(self.density)
        Allocation(self.allocation, self.floor, self.ends)

    @property
    def sharing(self) -> Allocation:
        """How the budget is shared over the layers."""
        return Allocation(self.allocation, self.floor, self.ends)

    @abstractmethod
    def rank(self, network: Network, probe: Probe) -> Ranking:
        """The order in which weights are kept; made only if there is something to prune."""

    def __call__(self, network: Network, probe: Probe) -> Network:
        """Raises `CannotOperate` for a network without layers or with skips, and where a weight
        would come back that was dropped.
        """
        if not network.layers:
            raise CannotOperate("; ".join(("the model has no prunable layer", *network.notes)))
        if network.skips:
            raise CannotOperate("prune before skips are added: their weights come out of the same")
        total = budget(self.density, network.size)
        ranking, allocation = self.rank(network, probe), self.sharing
        masks = select(network.layers, ranking, allocation, total)
        if back := revived(network.masks, masks):
            raise CannotOperate(
                f"{back[0]} was pruned already, and what was dropped cannot come back: prune "
                "the network as it was before, or further by the same seed and allocation"
            )
        return replace(network, masks=masks, scores=ranking, allocation=allocation)


@dataclass(frozen=True)
class ScoredPruning(Pruning, ABC):
    """A pruner that gives every weight a score and keeps the `round(density * N)` highest.

    `allocation`, `floor` and `ends` say how they are shared over the layers: see
    `n2nfx.budget.Allocation`; "global" is one ranking over all layers.
    """

    allocation: Literal["uniform", "global", "er", "erk"] = "global"

    @abstractmethod
    def score(self, network: Network, probe: Probe) -> Mapping[str, Tensor]:
        """The score of every prunable weight, skip branches included, whatever the masks."""

    def rank(self, network: Network, probe: Probe) -> ScoreRanking:
        return ScoreRanking(self.score(network, probe), self.score)


@dataclass(frozen=True)
class DataPruning(ScoredPruning, ABC):
    """A pruner whose scores are derivatives of a loss over data.

    `batches` is how many batches of the probe it looks at, together. `norm="batch"` lets batch
    norms use the statistics of each batch, "running" their running ones, which stay as they are
    either way; dropout is off. The loss is the probe's, or else cross entropy of the first tensor
    of the output.
    """

    norm: Norm = "batch"
    batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("batch", "running"):
            raise UsageError(f"norm must be batch or running, not {self.norm!r}")
        require_count("batches", self.batches)

    def data(self, network: Network, probe: Probe) -> tuple[tuple[Batch, ...], Loss]:
        """The batches and the loss over them."""
        return batches_of(network, probe, self.batches, self.name), probe.loss or cross_entropy()


def require_count(name: str, value: int, most: int | None = None) -> None:
    """Raise `UsageError` unless `value` is a whole number from 1 to `most`."""
    if type(value) is not int or value < 1 or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise UsageError(f"{name} must be a whole number, at least 1{limit}, not {value!r}")
