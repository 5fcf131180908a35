"""From a module and an example input to the reference Network."""

import copy
import inspect
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from n2nfx.errors import CannotOperate, N2nfxError
from n2nfx.graphmodule import WholeGraphModule
from n2nfx.network import InputSpec, Network, blank_inputs
from n2nfx.tracing.layers import find_layers
from n2nfx.tracing.leaves import is_leaf
from n2nfx.tracing.recorder import Recorder
from n2nfx.tracing.tape import Tape
from n2nfx.tracing.unify import GraphWriter, Run, unify

# Two sizes tell a number that depends on the batch from one that does not. Neither is 1, which
# batch norm refuses in training and broadcasting treats apart.
_BATCHES = (2, 3)

Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def trace(model: nn.Module, example: Example) -> Network:
    """The reference Network of a module: a copy of it as a graph, and its prunable layers.

    `example` is what the module is called with: a tensor, several, or a mapping of keyword names
    to tensors; their first dimension is the batch, and the graph takes any batch size. The module
    itself, its buffers and the random generators stay exactly as they were. Raises
    `CannotOperate` with module, file and line where the forward cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise CannotOperate(f"only an nn.Module can be traced, not a {type(model).__name__}")
    try:
        own = copy.deepcopy(model)
    except Exception as error:
        raise CannotOperate(
            f"{type(model).__name__} cannot be copied ({error}), and only a copy is operated on"
        ) from error
    return record(own, example)


def record(model: nn.Module, example: Example) -> Network:
    """`trace` without the copy: the network's module shares the given one's parts."""
    inputs = _input_specs(model, example)
    _refuse_lost_hooks(model)
    tape = unify(_tapes(model, inputs))
    writer = GraphWriter(tape)
    module = WholeGraphModule(model, writer.write(), type(model).__name__)
    for name, switch in writer.switches.items():
        module.add_module(name, switch.train(model.training))
    module.recompile()
    return Network(module=module, layers=find_layers(module), inputs=inputs)


def _input_specs(model: nn.Module, example: Example) -> tuple[InputSpec, ...]:
    """Names, shapes and dtypes of the example's tensors, in the order forward takes them."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if isinstance(example, Mapping):
        named = [(p.name, example[p.name]) for p in parameters if p.name in example]
        unknown = set(example) - {name for name, _ in named}
        if unknown:
            raise CannotOperate(f"forward of {type(model).__name__} takes no {sorted(unknown)}")
    else:
        tensors = [example] if isinstance(example, Tensor) else list(example)
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        names += [f"input_{index}" for index in range(len(names), len(tensors))]
        named = list(zip(names, tensors, strict=False))
    for name, value in named:
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise CannotOperate(f"the example input {name} must be a tensor with a batch dimension")
    if not named:
        raise CannotOperate("an example input is needed to trace a model")
    return tuple(
        InputSpec(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in named
    )


def _refuse_lost_hooks(model: nn.Module) -> None:
    """A graph calls the leaves of a model only, so a hook on a block would never be called."""
    for name, module in model.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if hooked and name and not is_leaf(module):
            raise CannotOperate(
                f"{name} ({type(module).__name__}) has a hook, which its graph would never call, "
                "since it calls the layers inside directly; remove the hook, or put it on a layer"
            )


def _tapes(model: nn.Module, inputs: tuple[InputSpec, ...]) -> dict[Run, Tape]:
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _random_untouched(), torch.enable_grad():
        try:
            fake = _fake_copy(model, fake_mode)
        except Exception as error:
            raise CannotOperate(
                f"{type(model).__name__} cannot be copied for tracing: {error}"
            ) from error
        runs = [Run(training, batch) for training in (False, True) for batch in _BATCHES]
        return {run: _record_one(fake, fake_mode, inputs, run) for run in runs}


def _fake_copy(model: nn.Module, fake_mode: FakeTensorMode) -> nn.Module:
    """A copy with fake tensors for real ones, and without hooks: they are not ours to call."""
    with FakeCopyMode(fake_mode):
        fake = copy.deepcopy(model)
    for module in fake.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return fake


def _record_one(
    fake: nn.Module, fake_mode: FakeTensorMode, inputs: tuple[InputSpec, ...], run: Run
) -> Tape:
    recorder = Recorder(fake.train(run.training))
    with fake_mode:
        args = blank_inputs(inputs, run.batch)
        try:
            return recorder.run(args, [spec.name for spec in inputs])
        except Exception as error:
            raise CannotOperate(_explain(error, fake, recorder.scope, args)) from error


def _explain(error: Exception, model: nn.Module, scope: list[str], args: tuple[Any, ...]) -> str:
    """Where a forward stopped, why, and what to try."""
    modules = dict(model.named_modules())
    module = f"{scope[-1] or 'the model'} ({type(modules[scope[-1]]).__name__})"
    shapes = ", ".join(str(tuple(arg.shape)) for arg in args)
    if isinstance(error, N2nfxError):
        reason = str(error)
    elif type(error).__name__ == "DataDependentOutputException":
        reason = "the forward looks at the values of a tensor, which a graph cannot follow"
    else:
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        )
    return (
        f"the forward of {type(model).__name__} cannot be traced: {reason} "
        f"[in {module}, {_line_at_fault(error)}; inputs {shapes}]. "
        "Try an example input of the right shape and dtype, or trace a part of the model"
    )


def _line_at_fault(error: Exception) -> str:
    """File and line of the model's own code where it stopped: the last outside torch and us."""
    ours = Path(__file__).parent
    torchs = Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(ours)
        and not Path(frame.filename).is_relative_to(torchs)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "in torch's own code"


@contextmanager
def _random_untouched() -> Iterator[None]:
    """Leave every random generator that a forward may draw from as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
