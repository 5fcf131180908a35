"""Functions that a model holds as attributes, copied together with what they enclose.

`copy.deepcopy` takes a function as it is, so a forward that was put on an instance by a closure
(`old = block.forward; block.forward = lambda x: old(x) * 2`) would, in a copy of the model, still
run the layers of the original.
"""

import copy
import functools
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn


class Closure:
    """A function that a deep copy copies with the modules and tensors that it encloses."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Closure":
        return Closure(_copied(self._function, memo))


def deep_copy(model: nn.Module) -> nn.Module:
    """A copy of a model, whose functions refer to the copy where they did to the model.

    Raises whatever a copy of a part may raise.
    """
    memo: dict[int, Any] = {}
    own = copy.deepcopy(model, memo)
    for module, name, function in _functions(own):
        vars(module)[name] = _copied(function, memo)
    return own


def make_copyable(model: nn.Module) -> None:
    """Let any later deep copy of a model copy its functions as `deep_copy` does, in place."""
    for module, name, function in _functions(model):
        vars(module)[name] = Closure(function)


def _functions(model: nn.Module) -> Iterator[tuple[nn.Module, str, FunctionType]]:
    """The attributes that are functions and enclose something that a copy has a copy of."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and _encloses(value):
                yield module, name, value


def _encloses(function: FunctionType) -> bool:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return any(map(_is_copied, (*cells, *defaults)))


def _is_copied(value: Any) -> bool:
    """Whether a copy of a model has another for what a function encloses; the rest it shares."""
    owner = value.__self__ if isinstance(value, MethodType) else value
    return isinstance(owner, nn.Module | Tensor | FunctionType | Closure)


def _is_filled(cell: CellType) -> bool:
    try:
        return bool([cell.cell_contents])
    except ValueError:
        return False


def _copied(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The function over copies of what it encloses; what no copy is known of, it shares."""
    if id(function) in memo:
        return memo[id(function)]
    closure = tuple(map(CellType, [None] * len(function.__closure__ or ())))
    made = FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
    memo[id(function)] = made  # first, as it may enclose itself
    made.__dict__.update(vars(function))
    made.__qualname__ = function.__qualname__
    made.__defaults__ = function.__defaults__ and tuple(
        _value(value, memo) for value in function.__defaults__
    )
    made.__kwdefaults__ = function.__kwdefaults__ and {
        name: _value(value, memo) for name, value in function.__kwdefaults__.items()
    }
    for cell, original in zip(closure, function.__closure__ or (), strict=True):
        if _is_filled(original):
            cell.cell_contents = _value(original.cell_contents, memo)
        else:
            del cell.cell_contents
    return made


def _value(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, FunctionType):
        return _copied(value, memo)
    return copy.deepcopy(value, memo) if _is_copied(value) else value
