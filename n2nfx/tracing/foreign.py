"""Calls that no torch-function mode sees: custom autograd functions, TorchScript functions, and
the question whether gradients are enabled."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
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
def grad_mode_matters(report: Callable[[str], None]) -> Iterator[None]:
    """Tell of what a forward, not torch's own or ours, does about whether gradients are enabled.

    That it asks, or enables them. That it disables them is seen by what its calls give.
    """
    get_overridable_functions()  # torch keeps what it finds, and with ours all that it leads to
    ask, enable = torch.is_grad_enabled, torch.enable_grad.__enter__

    def is_grad_enabled() -> bool:
        if _is_foreign(sys._getframe(1)):
            report("asks whether gradients are enabled")
        return ask()

    def enter(self: torch.enable_grad) -> None:
        if _is_foreign(sys._getframe(1)):
            report("enables gradients")
        enable(self)

    torch.is_grad_enabled, torch.enable_grad.__enter__ = is_grad_enabled, enter
    try:
        yield
    finally:
        torch.is_grad_enabled, torch.enable_grad.__enter__ = ask, enable


def _is_foreign(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] not in ("torch", "n2nfx")
