"""Hooks by which a model hands something to itself: a hook leaves it, forward finds it.

A graph calls the hooks of its layers, and reads nothing that they leave in attributes.
"""

import os.path
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import HOOKS
from n2nfx.tracing.memory import UNCHANGED

Holders = dict[int, str]


def holders(model: nn.Module) -> Holders:
    """The path of the module that holds it, for each module and each object of an attribute."""
    found: Holders = {}
    for path, module in model.named_modules():
        found[id(module)] = path
        for name, value in vars(module).items():
            if name not in UNCHANGED and _can_keep(value):
                found.setdefault(id(value), path)
    return found


def whole_for_hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths of modules inside which a hook hands something on, and why they are kept whole.

    Raises `CannotOperate` for a hook whose copy would hand it to the model that was copied.
    """
    for path, _, owner in _handed_on(model):
        reason = f"a hook of {path} leaves something in it, which no graph would find"
        yield _common(owner, path), reason


def refuse_closures(model: nn.Module) -> None:
    """Raise `CannotOperate` for a hook that no copy of the model takes along: it is a function."""
    for path, hook, _ in _handed_on(model):
        if isinstance(hook, FunctionType):
            raise CannotOperate(
                f"a hook of {path} is a function around an object of the model, and in a copy it "
                "would be that of the original: make it a method of the model"
            )


def is_own(hook: Any, known: Holders) -> bool:
    """Whether a hook belongs to the model, and a copy of it to the copy."""
    return not isinstance(hook, FunctionType) and any(True for _ in _owners(hook, known))


def _handed_on(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Every hook that reaches what another module holds: whose it is, the hook, and that module."""
    hooks = [
        (path, hook)
        for path, module in model.named_modules()
        for table in HOOKS
        for hook in getattr(module, table).values()
    ]
    known = holders(model) if hooks else {}
    for path, hook in hooks:
        yield from ((path, hook, owner) for owner in _owners(hook, known) if owner != path)


def _owners(hook: Any, known: Holders) -> Iterator[str]:
    """The modules that hold what a hook reaches."""
    for thing in _reached(hook):
        if id(thing) in known:
            yield known[id(thing)]


def _reached(hook: Any) -> Iterator[Any]:
    match hook:
        case MethodType():
            yield hook.__self__
        case partial():
            yield from _reached(hook.func)
            yield from (*hook.args, *hook.keywords.values())
        case FunctionType():
            for cell in hook.__closure__ or ():
                try:
                    yield cell.cell_contents
                except ValueError:  # not filled yet
                    continue
            yield from hook.__defaults__ or ()
        case _:
            yield hook


def _can_keep(value: Any) -> bool:
    """Whether something can be left in an object, and the object is nobody else's."""
    plain = (Tensor, nn.Module, type, FunctionType, MethodType, str, bytes, int, float, tuple)
    return value is not None and not isinstance(value, plain)


def _common(one: str, other: str) -> str:
    """The path of the module that both are in."""
    paths = [path.replace(".", "/") for path in (one, other)]
    return os.path.commonpath(paths).replace("/", ".") if all(paths) else ""
