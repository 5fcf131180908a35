"""What kind of value a graph takes: parts of a model say so when they are called with another."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from n2nfx.errors import CannotOperate
from n2nfx.precision import precision_of
from n2nfx.tracing.tape import Spec
from n2nfx.tracing.values import with_specs


def of_kind(value: Any, kind: str, sized: bool, name: str) -> Any:
    """The value, if it is of the kind that its graph was traced with."""
    found = kind_of(value, sized)
    if found != kind:
        raise CannotOperate(
            f"the input {name} of a part is {found}, and its graph was traced with {kind}: trace "
            "the model with an example for which the part is called so"
        )
    return value


def kind_of(value: Any, sized: bool = False) -> str:
    """How tensors, or specs, lie in a value: "[4d, 4d]"; `sized` tells their sizes too."""
    if isinstance(value, Tensor | Spec):
        rank = len(value.shape)
        return "x".join(map(str, value.shape[1:])) if sized and rank > 2 else f"{rank}d"
    if isinstance(value, list | tuple):
        inner = ", ".join(kind_of(item, sized) for item in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, Mapping):
        pairs = (f"{key!r}: {kind_of(item, sized)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    return repr(value)


def fix_kinds(graph: fx.Graph, arguments: Mapping[str, Any], sized: bool) -> None:
    """Let a part's graph refuse what it would take for something else, or leave out.

    A single tensor is what it is; lists have lengths, mappings keys, and constants are written
    into the graph, as the tensors' sizes are if it is `sized`.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, (name, value) in zip(placeholders, arguments.items(), strict=True):
        node.meta["given"] = value
        if isinstance(value, Spec) and not sized:
            continue
        with graph.inserting_after(node):
            checked = graph.call_function(of_kind, (node, kind_of(value, sized), sized, name))
        checked.meta.update(node.meta)
        node.replace_all_uses_with(
            checked, delete_user_cb=lambda user, own=checked: user is not own
        )


def traced_inputs(module: fx.GraphModule, make: Callable[..., Tensor]) -> list[Any]:
    """Inputs as those that a graph was traced with, one example of them.

    `make` gives a tensor of a shape, its dtype by keyword: of the module's precision, for it may
    have been moved to another than it was traced in. Those that may be left out are.
    """
    precision = precision_of(module)

    def made(spec: Spec) -> Tensor:
        moved = precision if spec.dtype.is_floating_point else None
        return make(spec.shape, dtype=moved or spec.dtype)

    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    return [with_specs(_given(node), made) for node in placeholders if not node.args]


def _given(node: fx.Node) -> Any:
    return node.meta["given"] if "given" in node.meta else node.meta["spec"][0]
