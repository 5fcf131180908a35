"""What a model's modules keep in their attributes, so that every run of it can be the first."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor, nn

# The tables of hooks, which no run changes.
UNCHANGED = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_CONSTANTS = (int, float, complex, bool, str, bytes)


@dataclass(frozen=True)
class Change:
    """An attribute that a run left other than it was; `plain` if there is no tensor in it."""

    owner: str
    name: str
    plain: bool


class Memory:
    """The attributes of all modules of a model as they were at first."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (path, vars(module), _unshared_attributes(vars(module)))
            for path, module in model.named_modules()
        ]
        self._first = {
            id(module): (attributes, [*_looked_at(before)])
            for module, (_, attributes, before) in zip(model.modules(), self._kept, strict=True)
        }
        self._state = [*model.named_parameters(), *model.named_buffers()]
        self._modes: list[tuple[nn.Module, bool]] = []
        self._mode_of: dict[int, bool] = {}

    def put_back(self) -> None:
        """Let the model be as it was: what one run leaves (a cache), no other finds."""
        for _, attributes, before in self._kept:
            attributes.clear()
            attributes.update(_unshared_attributes(before))

    def changes(self) -> Iterator[Change]:
        """What is not as it was at first."""
        for path, attributes, before in self._kept:
            for name in (attributes.keys() | before.keys()) - UNCHANGED:
                now, then = attributes.get(name), before.get(name)
                if now is not then and name != "training" and not _same(now, then):
                    yield Change(path, name, not (_holds_tensor(now) or _holds_tensor(then)))

    def altered(self, module: nn.Module) -> str:
        """What of a module is not as it was when the run began; empty where all is."""
        if module.training is not self._mode_of.get(id(module), module.training):
            return "training"
        attributes, before = self._first.get(id(module), ({}, ()))
        for name, then in before:
            now = attributes.get(name)
            if now is not then and not _same(now, then):
                return name
        return ""

    def keep_modes(self, model: nn.Module) -> None:
        """Remember which modules are in training."""
        self._modes = [(module, module.training) for module in model.modules()]
        self._mode_of = {id(module): training for module, training in self._modes}

    def modes_are_kept(self) -> bool:
        """Whether no run has changed that."""
        return all(module.training is mode for module, mode in self._modes)

    def versions(self) -> dict[str, int]:
        """How often each parameter and buffer was changed in place."""
        return {name: tensor._version for name, tensor in self._state}

    def written(self, before: dict[str, int]) -> set[str]:
        """Those that were changed since."""
        return {name for name, version in self.versions().items() if version != before[name]}


def _looked_at(attributes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All but the mode, which is that of a run, and what takes the place of forward in it."""
    for name, value in attributes.items():
        if name not in UNCHANGED and name not in ("training", "forward"):
            yield name, value


def _unshared_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a module's attributes."""
    copied = dict(attributes)
    for name in copied.keys() - UNCHANGED:
        if type(copied[name]) not in _CONSTANTS:
            copied[name] = _unshared(copied[name])
    return copied


def _unshared(value: Any) -> Any:
    """A copy of nested containers; what is in them stays the same."""
    kind: Any = type(value)
    if kind in (dict, OrderedDict):
        return kind([(key, _unshared(item)) for key, item in value.items()])
    if kind in (list, set, tuple):
        return kind(map(_unshared, value))
    return copy.copy(value) if isinstance(value, dict) else value


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return False
        alike = all(map(is_, one.values(), other.values()))  # nearly always, and quickly seen
        return alike or all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, (*_CONSTANTS, set)) and one == other


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)
