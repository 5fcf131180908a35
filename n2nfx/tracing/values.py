"""What is inside a value: tensors in lists, tuples, mappings and dataclasses, and their shapes."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from n2nfx.tracing.tape import Field, Spec


def items(value: Any) -> list[tuple[int | str | Field, Any]]:
    """The elements of a container, each with the key that leads to it; none for anything else."""
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if is_dataclass(value):
        return [(Field(f.name), getattr(value, f.name)) for f in dataclasses.fields(value)]
    return list(value.items()) if isinstance(value, Mapping) else []


def is_dataclass(value: Any) -> bool:
    """Whether a value is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value."""
    if isinstance(value, Tensor):
        yield value
    for _, item in items(value):
        yield from tensors(item)


def as_specs(value: Any) -> Any:
    """The value, a copy of its lists and mappings, with the spec of each tensor in its place."""
    if isinstance(value, Tensor):
        return Spec(tuple(value.shape), value.dtype)
    return _copied(value, as_specs)


def with_specs(value: Any, change: Callable[[Spec], Any]) -> Any:
    """What `as_specs` gave, with something else in the place of each spec."""
    if isinstance(value, Spec):
        return change(value)
    return _copied(value, lambda item: with_specs(item, change))


def _copied(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(change, value))
    if type(value) in (dict, OrderedDict):
        return type(value)((key, change(item)) for key, item in value.items())
    return value


def specs_in(value: Any) -> Iterator[Spec]:
    """Every spec in what `as_specs` gave."""
    if isinstance(value, Spec):
        yield value
    else:
        for _, item in items(value):
            yield from specs_in(item)


def specs(value: Any) -> Any:
    """The value with the spec of each tensor in its place, and None for all that is no tensor."""
    if isinstance(value, Tensor):
        return Spec(tuple(value.shape), value.dtype)
    if isinstance(value, Mapping) or is_dataclass(value):
        return {key: specs(item) for key, item in items(value)}
    return [specs(item) for _, item in items(value)] if items(value) else None
