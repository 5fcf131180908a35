"""Which weight a convolution or linear call computes with, and how many of it are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import fx, nn

from n2nfx.connectivity.relations import Weighted
from n2nfx.connectivity.rules import Call
from n2nfx.network import Network
from n2nfx.tracing.ops import name_of

_FUNCTIONS = {
    *("linear", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}


@dataclass(frozen=True)
class Use:
    """One call of a convolution or linear layer, whatever it takes its weight from.

    `weight` is the weight's name where it is prunable; `places` the number of dimensions behind
    the one that it reads and writes.
    """

    weight: str | None
    shape: tuple[int, ...]
    places: int
    groups: int
    transposed: bool


class Weights:
    """The prunable weights of a network, found at their calls whether masks are bound or not."""

    def __init__(self, network: Network) -> None:
        self._module = network.module
        self._masks = network.masks
        self._names = {id(weight): name for name, weight in network.module.named_parameters()}
        prunable = (*network.layers, *(skip for skip in network.skips if skip.size))
        self._prunable: Mapping[str, tuple[int, ...]] = {
            item.weight: item.weight_shape for item in prunable
        }

    def use_at(self, call: Call) -> Use | None:
        """How a call uses a weight, or None where it is no convolution or linear layer."""
        if isinstance(call.module, nn.modules.conv._ConvNd | nn.Linear):
            return self._use_of_module(call.module)
        if call.node.op != "call_function" or name_of(call.node) not in _FUNCTIONS:
            return None
        return self._use_of_function(call)

    def _use_of_module(self, called: Any) -> Use:
        shape = tuple(called.weight.shape)
        name = self._names.get(id(called.weight), "")
        return Use(
            weight=name if name in self._prunable else None,
            shape=shape,
            places=len(shape) - 2,
            groups=getattr(called, "groups", 1),
            transposed=getattr(called, "transposed", False),
        )

    def _use_of_function(self, call: Call) -> Use:
        name, shape = name_of(call.node), call.argument(1, "weight").shape
        groups = 1 if name == "linear" else call.argument(6, "groups", 1)
        return Use(
            weight=self._name_behind(call.node, shape),
            shape=shape,
            places=len(shape) - 2,
            groups=groups,
            transposed="transpose" in name,
        )

    def _name_behind(self, node: fx.Node, shape: tuple[int, ...]) -> str | None:
        """The prunable weight that an operand is, or is computed from (by its mask, say)."""
        operand = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        found: set[str] = set()
        nodes = [operand] if isinstance(operand, fx.Node) else []
        seen = set(nodes)
        while nodes:
            at = nodes.pop()
            if at.op == "get_attr":
                found.add(self._names.get(id(_attribute(self._module, str(at.target))), ""))
            new = [read for read in at.all_input_nodes if read not in seen]
            seen.update(new)
            nodes += new
        fitting = [name for name in found if self._prunable.get(name) == shape]
        return fitting[0] if len(fitting) == 1 else None

    def relation(self, use: Use) -> Weighted:
        """What the kept part of a weight joins; all of it where there is no mask."""
        *entries, kernel = *use.shape[:2], prod(use.shape[2:])
        counted = np.uint8 if kernel < 256 else np.uint32
        if use.weight is None or use.weight not in self._masks:
            counts = np.broadcast_to(counted(kernel), entries)
        else:
            kept = self._masks[use.weight].cpu().numpy().view(np.uint8)
            counts = np.einsum("oik->oi", kept.reshape(*entries, kernel), dtype=counted)
        return Weighted(use.weight, counts, use.groups, use.transposed)


def _attribute(module: nn.Module, path: str) -> Any:
    prefix, _, name = path.rpartition(".")
    return getattr(module.get_submodule(prefix), name)
