"""Calls that no torch-function mode sees: custom autograd functions, TorchScript functions, and
the question whether gradients are enabled."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import Function
from torch.overrides import get_overridable_functions
from torch.utils.checkpoint import CheckpointFunction

# Told of a call: the target that a graph calls, what to call now, and the arguments.
Report = Callable[[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_apply = Function.__dict__["apply"]
_call_script = torch.jit.ScriptFunction.__call__


@dataclass(frozen=True)
class Applied:
    """A custom autograd function as the target of a node: fx cannot write its `apply` down."""

    function: Any

    @property
    def __name__(self) -> str:
        return f"{self.function.__name__}.apply"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)


@dataclass(frozen=True)
class Scripted:
    """A TorchScript function as the target of a node: fx takes the function itself for a class."""

    function: Any

    @property
    def __name__(self) -> str:
        return self.function.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@contextmanager
def foreign_calls_report(report: Report) -> Iterator[None]:
    """Let every such call be made through `report` meanwhile.

    A custom function is called as itself, so that it keeps its backward. Checkpointing in its
    reentrant form is such a function too; what it runs is called directly: the same numbers, and
    the same gradients.
    """

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:
            run, _, *inputs = args
            return run(*inputs)
        return report(Applied(cls), _apply.__get__(None, cls), args, kwargs)

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return report(Scripted(function), partial(_call_script, function), args, kwargs)

    functions, scripts = Function, torch.jit.ScriptFunction
    functions.apply, scripts.__call__ = classmethod(apply), call  # type: ignore[method-assign]
    try:
        yield
    finally:
        functions.apply, scripts.__call__ = _apply, _call_script  # type: ignore[method-assign]


@contextmanager
def grad_mode_is_asked_for(report: Callable[[], None]) -> Iterator[None]:
    """Tell of every question whether gradients are enabled that is not torch's own, or ours."""
    get_overridable_functions()  # torch keeps what it finds, and with ours all that it leads to
    ask = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        asker = sys._getframe(1).f_globals.get("__name__", "")
        if asker.partition(".")[0] not in ("torch", "n2nfx"):
            report()
        return ask()

    torch.is_grad_enabled = is_grad_enabled
    try:
        yield
    finally:
        torch.is_grad_enabled = ask
