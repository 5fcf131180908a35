"""Magnitude pruning: keep the largest weights, after training or before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from n2nfx.network import Network, Probe
from n2nfx.pruning import ScoredPruning
from n2nfx.saliency import checked, prunable


@dataclass(frozen=True)
class Magnitude(ScoredPruning):
    """Keep the weights with the largest |w|."""

    name: ClassVar[str] = "magnitude"

    def score(self, network: Network, probe: Probe) -> Mapping[str, Tensor]:
        weights = (item.weight for item in prunable(network))
        return checked({name: network.module.get_parameter(name).abs() for name in weights})
