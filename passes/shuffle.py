"""A control: the same number of weights in every layer and branch, but in other places."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from n2nfx.errors import CannotOperate
from n2nfx.masks import Masks, permuted_prefix
from n2nfx.network import Network, Probe
from n2nfx.seeds import derive
from n2nfx.splice import fill


@dataclass(frozen=True)
class Shuffle:
    """Keep as many weights of every layer and every branch, drawn at random by (seed, name).

    What a result owes to the places of the kept weights is lost, and what it owes to how many each
    layer has is not. Layers have their initial weights at the new places; a branch, which has
    none there, takes its own along. Sources: Frankle et al. 2021, Su et al. 2020.
    """

    name: ClassVar[str] = "shuffle"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "nnz", "outputs"})

    def __call__(self, network: Network, probe: Probe) -> Network:
        _require_initial(network)
        masks = {
            name: torch.from_numpy(
                permuted_prefix(
                    mask.numel(), network.masks.counts[name], derive(probe.seed, "shuffle", name)
                )
            ).reshape(mask.shape)
            for name, mask in network.masks.items()
        }
        for skip in network.skips:
            if skip.size:
                weight = network.module.get_parameter(skip.weight)
                values = weight.detach()[network.masks[skip.weight].to(weight.device)]
                torch.nn.init.zeros_(weight)
                fill(network, skip, masks[skip.weight], values)
        return replace(network, masks=Masks(masks), scores=None, allocation=None)


def _require_initial(network: Network) -> None:
    """Raise `CannotOperate` where there is nothing to shuffle, or nothing to find elsewhere."""
    if not network.masks:
        raise CannotOperate("there are no masks to shuffle: prune before")
    if network.dropped_before:
        raise CannotOperate(
            "what an earlier pipeline dropped is zero, so that a shuffled mask would keep zeros; "
            "prune and shuffle in one pipeline"
        )
