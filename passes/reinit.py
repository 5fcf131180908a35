"""A control: the same masks over other weights."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from n2nfx.network import Network, Probe
from n2nfx.seeds import generator
from n2nfx.splice import fill


@dataclass(frozen=True)
class Reinit:
    """Draw all prunable weights anew by (seed, name), and keep the masks as they are.

    What a result owes to the weights that were scored is lost. A layer's weights are normal, with
    the mean and the spread that they had, so that the scale of its activations is not another one
    (torch's own reset of a layer is 2.4 times smaller than what ResNets are initialized with). A
    branch's are kaiming on its real fan-in, unless they are all zero.
    """

    name: ClassVar[str] = "reinit"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "nnz", "outputs"})

    def __call__(self, network: Network, probe: Probe) -> Network:
        for layer in network.layers:
            weight = network.module.get_parameter(layer.weight).detach()
            own = weight[weight != 0].double()  # what is dropped may be zero already
            if len(own):
                drawn = _normal(probe.seed, layer.weight, layer.size).to(weight.device)
                anew = drawn * own.std(correction=0) + own.mean()
                weight.copy_(anew.reshape(weight.shape))
        for skip in network.skips:
            if skip.size and network.module.get_parameter(skip.weight).any():
                drawn = _normal(probe.seed, skip.weight, skip.nnz)
                fill(network, skip, network.masks[skip.weight], drawn * skip.spread)
        return replace(network, scores=None, allocation=None)


def _normal(seed: int, name: str, count: int) -> Tensor:
    return torch.from_numpy(generator(seed, "reinit", name).standard_normal(count))
