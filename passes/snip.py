"""SNIP (Lee, Ajanthan and Torr, ICLR 2019): connection sensitivity at initialization."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from n2nfx.network import Network, Probe
from n2nfx.pruning import DataPruning
from n2nfx.saliency import Workbench, checked


@dataclass(frozen=True)
class SNIP(DataPruning):
    """Keep the weights with the largest |w * dL/dw|, at initialization.

    Over several batches, L is the loss over their union: gradients are averaged before the
    absolute value is taken.
    """

    name: ClassVar[str] = "snip"

    def score(self, network: Network, probe: Probe) -> Mapping[str, Tensor]:
        batches, loss = self.data(network, probe)
        bench = Workbench(network, self.norm, probe.seed)
        gradients = bench.mean_gradients(batches, loss)
        return checked(
            {name: (weight * gradients[name]).abs() for name, weight in bench.weights.items()}
        )
