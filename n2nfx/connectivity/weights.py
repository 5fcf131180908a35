"""Which weight a convolution or linear call computes with, and how many of it are kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from n2nfx.connectivity.constants import attribute, constant_at
from n2nfx.connectivity.relations import Weighted
from n2nfx.connectivity.rules import Call
from n2nfx.network import Network
from n2nfx.tracing.ops import is_view, name_of

_FUNCTIONS = {
    *("linear", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}


@dataclass(frozen=True, eq=False)
class Kept:
    """What a call uses of a prunable weight: its mask, laid out as the call takes it.

    `part` tells apart the calls that take other parts of one weight, or it in another shape; it
    is empty for the weight as it is.
    """

    weight: str
    part: str
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a convolution or linear layer, whatever it takes its weight from.

    `shape` is that of the weight, and `kept` None where it is not prunable; `places` is the
    number of dimensions behind the one that is read and written. `tensor()` is the weight that the
    call computes with, masked or not, or None where that depends on the network's input.
    """

    kept: Kept | None
    shape: tuple[int, ...]
    groups: int
    transposed: bool
    tensor: Callable[[], Tensor | None]

    @property
    def places(self) -> int:
        return len(self.shape) - 2

    def relation(self) -> Weighted:
        """What the kept weights join; all that there are where none is prunable."""
        *entries, kernel = *self.shape[:2], prod(self.shape[2:])
        counted = np.uint8 if kernel < 256 else np.uint32
        if self.kept is None:
            counts = np.broadcast_to(counted(kernel), entries)
            return Weighted("", "", counts, self.groups, self.transposed)
        mask = self.kept.mask.cpu().contiguous().numpy().view(np.uint8)
        counts = np.einsum("oik->oi", mask.reshape(*entries, kernel), dtype=counted)
        return Weighted(self.kept.weight, self.kept.part, counts, self.groups, self.transposed)


class Weights:
    """The prunable weights of a network, found at their calls whether masks are bound or not."""

    def __init__(self, network: Network) -> None:
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
        return Use(
            kept=self._kept(called.weight, ""),
            shape=tuple(called.weight.shape),
            groups=getattr(called, "groups", 1),
            transposed=getattr(called, "transposed", False),
            tensor=lambda: called.weight.detach(),
        )

    def _use_of_function(self, call: Call) -> Use:
        node, name, weight = call.node, name_of(call.node), call.argument(1, "weight")
        operand = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        assert isinstance(operand, fx.Node)
        kept = self._shown(operand) or self._behind(operand) if weight.number is None else None
        return Use(
            kept=kept if kept is not None and kept.mask.shape == weight.shape else None,
            shape=weight.shape,
            groups=1 if name == "linear" else call.argument(6, "groups", 1),
            transposed="transpose" in name,
            tensor=lambda: constant_at(_holder(operand), operand),
        )

    def _kept(self, weight: Tensor, part: str) -> Kept | None:
        name = self._names.get(id(weight), "")
        if name not in self._prunable:
            return None
        full = torch.ones((), dtype=torch.bool, device="cpu").expand(self._prunable[name])
        return Kept(name, part, self._masks.get(name, full))

    def _shown(self, node: fx.Node) -> Kept | None:
        """What a node shows of a weight that it only views: as it is, a part, in another shape."""
        if node.op == "get_attr":
            return self._kept(attribute(_holder(node), str(node.target)), "")
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(node.all_input_nodes) != 1:
            return None
        shown = self._shown(source)
        if shown is None or not is_view(_holder(node), node) or node.op == "call_module":
            return shown if node.op == "call_module" else None  # the weight's own mask at work
        rest, settings = node.args[1:], dict(node.kwargs)
        if node.op == "call_method":
            viewed = getattr(shown.mask, str(node.target))(*rest, **settings)
        else:
            assert callable(node.target)
            viewed = node.target(shown.mask, *rest, **settings)
        return Kept(shown.weight, node.name, viewed)

    def _behind(self, operand: fx.Node) -> Kept | None:
        """The one prunable weight of the same shape that an operand is computed from."""
        found: dict[int, Kept] = {}
        ahead, seen = [operand], {operand}
        while ahead:
            at = ahead.pop()
            if at.op == "get_attr":
                weight = attribute(_holder(at), str(at.target))
                kept = self._kept(weight, "")
                if kept is not None and kept.mask.shape == operand.meta["spec"][1].shape:
                    found[id(weight)] = kept
            fresh = [read for read in at.all_input_nodes if read not in seen]
            seen.update(fresh)
            ahead += fresh
        return next(iter(found.values())) if len(found) == 1 else None


def _holder(node: fx.Node) -> fx.GraphModule:
    """The graph module that a node is in: the network's, or a part of it."""
    module = node.graph.owning_module
    assert module is not None
    return module
