"""The flow through a network: the sum of its outputs, to be differentiated by its weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import is_whole, parts_in
from n2nfx.saliency import Workbench
from n2nfx.tracing.values import tensors


def flow_of(bench: Workbench, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
    """What gives the flow for these inputs, by the weights as they are then.

    A model that is kept whole may give what it selects, as a detector its boxes, which is no sum
    over paths. Where it has parts, the flow is the sum of what those give that no other part reads:
    a detector's heads. Raises `CannotOperate` where no flow leads through one of the parts.
    """
    parts = _parts(bench.module)
    given = _given(bench, inputs, parts) if parts else {}
    ends = {name: parts[name] for name in given if not _is_read(name, given)}
    if not ends:  # no parts, or each is read by another
        return lambda: _sum(_floating(bench.run(inputs)))
    _require_flow(bench, parts, _sum(one for name in ends for one in given[name]))
    return lambda: _sum(one for own in _given(bench, inputs, ends).values() for one in own)


def _parts(module: fx.GraphModule) -> dict[str, nn.Module]:
    """The outermost parts of a model that is kept whole, by their paths."""
    if not is_whole(module):
        return {}
    return {path: module.get_submodule(path) for path in parts_in(module.graph)}


def _given(
    bench: Workbench, inputs: Sequence[Tensor], parts: Mapping[str, nn.Module]
) -> dict[str, list[Tensor]]:
    """What each part gives, in all of its calls, while the network runs."""
    given: dict[str, list[Tensor]] = {name: [] for name in parts}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _, __, output: given[name].extend(_floating(output))

    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    bench.run(inputs)
    for hook in hooks:
        hook.remove()
    return given


def _is_read(name: str, given: Mapping[str, list[Tensor]]) -> bool:
    """Whether what another part gives depends on what this one gives."""
    others = [one for other in given if other != name for one in given[other]]
    own = [one for one in given[name] if one.requires_grad]
    if not own or not any(one.requires_grad for one in others):
        return False
    found = torch.autograd.grad(_sum(others), own, retain_graph=True, allow_unused=True)
    return any(one is not None for one in found)


def _require_flow(bench: Workbench, parts: Iterable[str], flow: Tensor) -> None:
    """Raise `CannotOperate` where a part has prunable weights, and none of them has a gradient."""
    gradients = bench.gradients(flow)
    for path in parts:
        own = [one for name, one in gradients.items() if name.startswith(f"{path}.")]
        if own and not any(one.any() for one in own):
            raise CannotOperate(
                f"no flow leads through {path}: for an input of ones, and weights that are all "
                "positive, the Python of this model gives it nothing to work on; random, "
                "expander and magnitude need no flow"
            )


def _floating(output: Any) -> list[Tensor]:
    return [one for one in tensors(output) if one.is_floating_point()]


@torch.enable_grad()
def _sum(found: Iterable[Tensor]) -> Tensor:
    return torch.stack([one.sum() for one in found]).sum()
