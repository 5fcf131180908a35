"""What the modules of a network are set to: strides, paddings, slopes, what a norm adds.

The text of a graph has none of it. It is what torch's own classes declare as their constants, by
name, and not what they print, as that is worded otherwise in another release. What only training
asks for (a rate of dropout, a momentum) is left out: it is one's own to change.
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

_OF_TRAINING = {"dropout", "inplace", "momentum", "p"}

Settings = dict[str, dict[str, Any]]


def settings_of(module: nn.Module) -> Settings:
    """What each module inside is set to, as JSON data, by the module's name."""
    found = {name: dict(_settings(part)) for name, part in module.named_modules()}
    return {name: own for name, own in found.items() if own}


def difference(here: Settings, there: Settings) -> str | None:
    """The first setting that both know and that is another there, as a sentence, or None."""
    for name, own in there.items():
        for key, value in own.items():
            found = here.get(name, {}).get(key, value)
            if found != value:
                return f"{name} has {key} {found}, and is recorded with {value}"
    return None


def _settings(part: nn.Module) -> Iterator[tuple[str, Any]]:
    bases = [base for base in type(part).__mro__ if base.__module__.startswith("torch.nn.")]
    declared = {key for base in bases for key in vars(base).get("__constants__", ())}
    for key in sorted(declared - _OF_TRAINING):
        value = getattr(part, key, ...)
        if _is_plain(value):
            yield key, _as_data(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_data(value: Any) -> Any:
    """As JSON gives it back: it has no tuples, and no infinity."""
    if isinstance(value, tuple | list):
        return [_as_data(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
