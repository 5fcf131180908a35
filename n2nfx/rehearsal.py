"""Runs a network once, on zeros, to see whether its branches do what their records say.

Whoever can write a plan can also name the graph that it gives; and a branch of another stride or
padding can still add up: a map of one place is spread over any other.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from n2nfx.errors import first_line
from n2nfx.graphmodule import join
from n2nfx.network import Network, Skip
from n2nfx.partwise import by_part
from n2nfx.tracing.kinds import traced_inputs


def misfits(network: Network) -> Iterator[str]:
    """What does not fit where the network runs: in evaluation, for one example.

    A part runs alone, as it does not have to run whenever the network does. The network's module
    is left in evaluation mode.
    """
    network.module.eval()
    for path, part in by_part(network):
        if part.skips or not path:
            yield from _misfits(part, path)


def _misfits(network: Network, path: str) -> Iterator[str]:
    shapes: dict[str, tuple[int, ...]] = {}
    module = network.module
    branches = [skip for skip in network.skips if skip.kind != "identity"]
    hooks = [
        module.get_submodule(skip.name).register_forward_hook(_remembered(shapes, skip.name))
        for skip in branches
    ]
    device = next(module.parameters()).device
    try:
        with torch.no_grad():  # not by a call of the module, which prints where fx code fails
            module.forward(*traced_inputs(module, partial(torch.zeros, device=device)))
    except Exception as error:
        last, told = next(reversed(shapes), "the input"), first_line(error)
        where = f"{path} of the network" if path else "the network"
        yield f"{where} cannot run; after {last}: {told or type(error).__name__}"
        return
    finally:
        for hook in hooks:
            hook.remove()
    for skip in branches:
        if (found := _places(skip, shapes[skip.name])) != skip.computed:
            name = join(path, skip.name)
            yield f"skip {name!r} gives {list(found)} places, not {list(skip.computed)}"


def _remembered(
    shapes: dict[str, tuple[int, ...]], name: str
) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        shapes[name] = tuple(output.shape)

    return hook


def _places(skip: Skip, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if skip.kind == "conv" else shape[1:-1]
