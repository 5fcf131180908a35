"""Runs a network once, on zeros, to see whether its branches do what their records say.

The text of a graph does not show a branch's stride or padding, and a wrong one can still add up:
a map of one place is spread over any other.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from n2nfx.errors import first_line
from n2nfx.network import Network, Skip, blank_inputs


def misfits(network: Network) -> Iterator[str]:
    """What does not fit where the network runs: in evaluation, for one example.

    The network's module is left in evaluation mode.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    module = network.module.eval()
    branches = [skip for skip in network.skips if skip.kind != "identity"]
    hooks = [
        module.get_submodule(skip.name).register_forward_hook(_remembered(shapes, skip.name))
        for skip in branches
    ]
    device = next(module.parameters()).device
    try:
        with torch.no_grad():  # not by a call of the module, which prints where fx code fails
            module.forward(*map(torch.zeros_like, blank_inputs(network.inputs, 1, device)))
    except Exception as error:
        last, told = next(reversed(shapes), "the input"), first_line(error)
        yield f"the network cannot run; after {last}: {told or type(error).__name__}"
        return
    finally:
        for hook in hooks:
            hook.remove()
    for skip in branches:
        if (found := _places(skip, shapes[skip.name])) != skip.computed:
            yield f"skip {skip.name!r} gives {list(found)} places, not {list(skip.computed)}"


def _remembered(
    shapes: dict[str, tuple[int, ...]], name: str
) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        shapes[name] = tuple(output.shape)

    return hook


def _places(skip: Skip, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if skip.kind == "conv" else shape[1:-1]
