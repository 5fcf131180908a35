"""Graphs that have an input's size written into them say so when they get another."""

from collections.abc import Sequence

from torch import Tensor, fx

from n2nfx.errors import CannotOperate
from n2nfx.network import InputSpec


def of_size(value: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    """The value, if it has the size (without the batch) that its network was traced with."""
    if tuple(value.shape[1:]) != size:
        raise CannotOperate(
            f"the input {name} is {_times(value.shape[1:])}, and this network's graph has "
            f"{_times(size)} written into it: trace the model again with an example of the new size"
        )
    return value


def add(value: Tensor, branch: Tensor) -> Tensor:
    """The sum of what a layer gives and what a branch to it gives, which must have one shape.

    They had when the branch was laid; at another size of the input its stride may not fit, and a
    map of one place would be added to all. A layer in another's place may have other outputs.
    """
    if value.shape != branch.shape:
        raise CannotOperate(
            f"a branch gives {_times(branch.shape[1:])} and its target has "
            f"{_times(value.shape[1:])}: for an input of another size, trace the model again with "
            "an example of it; a layer that was replaced is to be replaced before tracing"
        )
    return value + branch


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def fix_sizes(graph: fx.Graph, inputs: Sequence[InputSpec]) -> None:
    """Let a graph refuse inputs of other sizes than those that it was recorded with."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, inputs, strict=True):
        if len(spec.shape) < 2:
            continue
        with graph.inserting_after(node):
            checked = graph.call_function(of_size, (node, spec.shape[1:], spec.name))
        checked.meta.update(node.meta)
        node.replace_all_uses_with(
            checked, delete_user_cb=lambda user, own=checked: user is not own
        )
