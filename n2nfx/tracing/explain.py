"""Why a forward cannot be traced, for a person: the reason, the module, the file and the line."""

import traceback
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from n2nfx.errors import N2nfxError, first_line
from n2nfx.tracing.example import Call
from n2nfx.tracing.recorder import Fault


def explain(fault: Fault, alone: Exception, model: nn.Module, call: Call) -> str:
    """Why a forward can neither be traced nor run as it is on the example, and what to try.

    `alone` is the error of the run on the example.
    """
    shapes = ", ".join(str(spec.shape) for spec in call.inputs)
    also = f"; run as it is: {_reason(alone)}" if _reason(alone) != _reason(fault.error) else ""
    return (
        f"the forward of {type(model).__name__} cannot be traced: {_reason(fault.error)}{also}; "
        f"try an example input of the right shape and dtype, or trace a part of the model "
        f"[{where(fault, model)}; inputs {shapes}]"
    )


def why_whole(fault: Fault, model: nn.Module) -> str:
    """Why a module is kept whole, and where in it tracing stopped."""
    return f"{_reason(fault.error)} [{where(fault, model)}]"


def where(fault: Fault, model: nn.Module) -> str:
    """The module that stopped, with its class, and the line of the model's own code."""
    path = fault.scope[-1]
    module = f"in {path or 'the model'} ({type(model.get_submodule(path)).__name__})"
    return ", ".join(filter(None, (module, _line(fault.error))))


def _reason(error: Exception) -> str:
    if isinstance(error, N2nfxError):
        return str(error)
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return "it looks at the values of a tensor, which a graph cannot follow"
    return f"{type(error).__name__}: {first_line(error) or 'no message'}"


def _line(error: Exception) -> str:
    """File and line of the model's own code where it stopped: the last outside torch and us."""
    ours = Path(__file__).parent
    torchs = Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(ours)
        and not Path(frame.filename).is_relative_to(torchs)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
