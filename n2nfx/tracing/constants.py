"""Values that depend on nothing but numbers, so that what forward asks of them has an answer.

A causal mask is the same in every call of one size: a forward that looks whether it has one does
not look at data.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from n2nfx.tracing.tape import Built, Entry, InputDevice, Ref
from n2nfx.tracing.values import items

ASKED = frozenset({"__bool__", "item", "__int__", "__float__", "__index__", "tolist"})
"""What a tensor is asked for its values by."""

_MOST = 10_000_000  # elements of a value that is computed to answer
_UNDEFINED = ("rand", "empty", "normal", "bernoulli", "multinomial", "poisson", "dropout")
_DRAWING = ("uniform_", "random_", "exponential_", "cauchy_", "geometric_")
_CPU = torch.device("cpu")


class _Unknown(Exception):
    """A value depends on more than numbers."""


def value_of(entries: Sequence[Entry], wanted: Ref) -> Tensor | None:
    """The tensor that a reference means; None where it depends on inputs, weights or chance."""
    known: dict[int, Any] = {}
    try:
        with unset_fake_temporarily(), torch._C.DisableTorchFunction(), torch.no_grad():
            for index, entry in enumerate(entries):
                if _is_known(entry, known):
                    known[index] = _computed(entry, known)
            return _decoded(wanted, known)
    except Exception:  # whatever it is, then there is no answer
        return None


def _is_known(entry: Entry, known: dict[int, Any]) -> bool:
    """Whether an entry's value follows from known ones; raises where it changes one of these."""
    name = str(getattr(entry.target, "__name__", entry.target))
    inputs = [*_refs((entry.args, entry.kwargs))]
    follows = (
        (entry.op == "call_method" or _is_torchs(entry.target))
        and all(ref.index in known for ref in inputs)
        and not name.startswith(_UNDEFINED)
        and name not in _DRAWING
    )
    changes = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    if changes and not follows and any(ref.index in known for ref in inputs[:1]):
        raise _Unknown
    return follows and bool(entry.op == "call_function" or inputs)


def _is_torchs(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    return target is getattr or module.partition(".")[0] in ("torch", "_operator")


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Built):
        yield from _refs((value.args, value.kwargs))
    elif isinstance(value, slice):
        yield from _refs((value.start, value.stop, value.step))
    else:
        for _, item in items(value):
            yield from _refs(item)


def _computed(entry: Entry, known: dict[int, Any]) -> Any:
    args = [_decoded(arg, known) for arg in entry.args]
    kwargs = {key: _decoded(value, known) for key, value in entry.kwargs.items()}
    if entry.op == "call_method":
        value = getattr(args[0], entry.target)(*args[1:], **kwargs)
    else:
        value = entry.target(*args, **kwargs)
    if isinstance(value, Tensor) and value.numel() > _MOST:
        raise _Unknown
    return value


def _decoded(value: Any, known: dict[int, Any]) -> Any:
    """An argument with values for references, on the CPU."""
    match value:
        case Ref():
            found = known[value.index]
            for key in value.path:
                found = found[key]
            return found
        case InputDevice() | torch.device():
            return _CPU
        case slice():
            return slice(*(_decoded(v, known) for v in (value.start, value.stop, value.step)))
        case list() | tuple():
            return type(value)(_decoded(item, known) for item in value)
        case _:
            return value
