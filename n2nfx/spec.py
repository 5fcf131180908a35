"""A pass as one line of text, and back: `resskip{hops=2,3 placement=every}`.

Every argument is written, those at their default too: a record must mean the same after a
default has changed.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from n2nfx.errors import UsageError, did_you_mean

_LINE = re.compile(r"(?P<name>[\w-]+)\s*(?:\{(?P<fields>[^{}]*)\})?")


def to_text(operation: Any) -> str:
    """The line for a pass, which is a frozen dataclass with a `name`."""
    fields = [
        f"{field.name}={_value(getattr(operation, field.name))}"
        for field in dataclasses.fields(operation)
    ]
    return f"{operation.name}{{{' '.join(fields)}}}"


def _value(value: object) -> str:
    if isinstance(value, Real) and not isinstance(value, int):
        return repr(float(value))
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def from_text(text: str, known: Mapping[str, type]) -> Any:
    """The pass that a line names, among the `known` classes by name.

    Raises `UsageError` naming the pass or argument that is wrong and the nearest right one.
    """
    match = _LINE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a pass; write name{{argument=value argument=value}}")
    name = match["name"]
    if name not in known:
        raise UsageError(f"there is no pass {name!r}{did_you_mean(name, known)}")
    return _build(known[name], name, map(_split, (match["fields"] or "").split()))


def _split(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise UsageError(f"{pair!r} is not argument=value")
    return key, value


def _build(cls: type, name: str, given: Iterable[tuple[str, str]]) -> Any:
    types = get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {}
    for key, value in given:
        if key not in fields:
            raise UsageError(f"{name} takes no argument {key!r}{did_you_mean(key, fields)}")
        if key in arguments:
            raise UsageError(f"{name}: {key} is given twice")
        parts = value.split(",") if get_origin(types[key]) is tuple else value
        try:
            arguments[key] = TypeAdapter(types[key]).validate_python(parts)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UsageError(f"{name}: {key}={value}: {reason}") from error
    try:
        return cls(**arguments)
    except TypeError as error:
        missing = sorted(
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.name not in arguments
        )
        raise UsageError(f"{name} needs {', '.join(missing)}") from error
