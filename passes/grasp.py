"""GraSP (Wang, Zhang and Grosse, ICLR 2020): pruning that preserves the flow of gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from n2nfx.batches import Batch, Loss, cross_entropy
from n2nfx.errors import CannotOperate, UsageError, require_number
from n2nfx.network import Network, Probe
from n2nfx.pruning import DataPruning
from n2nfx.saliency import Workbench, checked, shares


@dataclass(frozen=True)
class GraSP(DataPruning):
    """Keep the weights whose removal would most reduce the norm of the gradient.

    To first order, removing w changes the squared norm of the gradient g by -2 w * (Hg): the
    score that is kept highest is w * (Hg). g and the Hessian H are those of the prunable weights
    alone, over the union of the batches. The logits of the cross entropy are divided by
    `temperature`, as in the paper; a loss of one's own is taken as it is.
    """

    name: ClassVar[str] = "grasp"

    temperature: float = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("temperature", self.temperature)
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature must be a positive number, not {self.temperature!r}")

    def score(self, network: Network, probe: Probe) -> Mapping[str, Tensor]:
        batches, _ = self.data(network, probe)
        loss = probe.loss or cross_entropy(self.temperature)
        bench = Workbench(network, self.norm, probe.seed)
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            curved = _hessian_times_gradient(bench, batches, loss)
        return checked({name: weight * curved[name] for name, weight in bench.weights.items()})


def _hessian_times_gradient(
    bench: Workbench, batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """Hg, as the gradient of <g, gradient> where the first g is held."""
    held = bench.mean_gradients(batches, loss)
    total = {name: torch.zeros_like(own) for name, own in held.items()}
    for batch, share in shares(batches):
        with torch.enable_grad():
            found = bench.gradients(bench.loss(batch, loss), create_graph=True)
            product = torch.stack([(own * held[name]).sum() for name, own in found.items()]).sum()
        try:
            curved = bench.gradients(product)
        except RuntimeError as error:
            raise CannotOperate(
                f"grasp differentiates twice, and the network cannot be: {error}; snip would do"
            ) from error
        for name, own in curved.items():
            total[name].add_(own, alpha=share)
    return total
