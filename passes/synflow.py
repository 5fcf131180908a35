"""SynFlow (Tanaka et al., NeurIPS 2020): iterative synaptic flow pruning, without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from n2nfx.budget import budget
from n2nfx.flow import flow_of
from n2nfx.network import Network, Probe, blank_inputs
from n2nfx.pruning import ScoredPruning, require_count
from n2nfx.rounds import MOST_ROUNDS, exponential, rank_in_rounds
from n2nfx.saliency import Workbench, prunable


@dataclass(frozen=True)
class SynFlow(ScoredPruning):
    """Keep the weights with the largest |w| * dR/d|w|, taken again and again at what is left.

    R is the sum of the outputs for one input of ones, in float64, where every weight and gain has
    its absolute value: for a network of linear layers and ReLUs the sum over all paths of the
    product of their weights. Biases and running means, which lie on no path from the input, are
    zero; batch norms scale by their running variance. The number of weights falls by the same
    share in each of `rounds` rounds. Layers that only training runs have no flow and score zero.
    Of a model that is kept whole R is the sum of what its last parts give: see `flow_of`.
    """

    name: ClassVar[str] = "synflow"

    rounds: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("rounds", self.rounds, MOST_ROUNDS)

    def score(self, network: Network, probe: Probe) -> Mapping[str, Tensor]:
        bench = Workbench(network, "running", probe.seed, torch.float64)
        _make_positive(bench.module)
        ranked, total = prunable(network), budget(self.density, network.size)
        flow = flow_of(bench, _ones(network))
        return rank_in_rounds(
            bench,
            ranked,
            self.sharing,
            exponential(sum(item.size for item in ranked), total, self.rounds),
            lambda: bench.gradients(flow()),
            lambda weight, gradient: gradient.mul_(weight),
        )


@torch.no_grad()
def _make_positive(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.abs_()
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()


def _ones(network: Network) -> tuple[Tensor, ...]:
    """One example of ones, in float64 where the network takes floating-point numbers."""
    device = next(network.module.parameters()).device
    blank = blank_inputs(network.inputs, 1, device)
    return tuple(
        torch.ones_like(one, dtype=torch.float64 if one.is_floating_point() else None)
        for one in blank
    )
