"""From a module and an example input to the reference Network."""

import copy
import inspect
import logging
import random
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)

from n2nfx.errors import CannotOperate, N2nfxError, did_you_mean
from n2nfx.graphmodule import HOOKS, WholeGraphModule
from n2nfx.masked import PLAIN_CLASS, MaskedWeight
from n2nfx.network import InputSpec, Network, blank_inputs
from n2nfx.tracing.layers import find_layers, not_prunable
from n2nfx.tracing.leaves import is_leaf
from n2nfx.tracing.recorder import Recorder
from n2nfx.tracing.tape import Tape
from n2nfx.tracing.unify import GraphWriter, Run, unify

# Three sizes tell a number that depends on the batch by a line (a * B + c) from any other (B // 2,
# B % 2, B * B); two in each mode tell it from one that depends on the mode. Size 1 shows a forward
# that treats a single example apart; not in training, where batch norm refuses it. It comes first:
# the first of a node's specs is that of one example.
_RUNS = (Run(False, 1), Run(False, 61), Run(True, 61), Run(True, 2))

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
        with torch.inference_mode(False):  # the copy is to be trained, wherever it is made
            own = copy.deepcopy(model)
    except Exception as error:
        raise CannotOperate(
            f"{type(model).__name__} cannot be copied ({error}), and only a copy is operated on"
        ) from error
    return record(own, example)


def record(model: nn.Module, example: Example) -> Network:
    """`trace` without the copy: the network's module shares the given one's parts."""
    named = _named(model, example)
    _refuse_lost_hooks(model)
    _refuse_taken_names(model)
    _refuse_masks_at_work(model)
    call = _Call(
        tuple(_spec(name, value) for name, value in named.items()),
        next(iter(named.values())).device,
        by_name=isinstance(example, Mapping),
    )
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _random_untouched(), _quiet(), torch.inference_mode(False), torch.enable_grad():
        fake = _fake_copy(model, fake_mode)
        put_back = _remember(fake)
        tapes = {}
        for run in _RUNS:
            tapes[run] = _record_one(fake, fake_mode, call, run)
            put_back()
    writer = GraphWriter(unify(tapes))
    graph = writer.write()
    for path, switch in writer.switches.items():
        owner, _, name = path.rpartition(".")
        module = model.get_submodule(owner)
        module.add_module(name, switch.train(module.training))
    module = WholeGraphModule(model, graph, type(model).__name__)
    return Network(
        module=module, layers=find_layers(module), inputs=call.inputs, notes=_notes(module)
    )


def _notes(module: WholeGraphModule) -> tuple[str, ...]:
    computed = not_prunable(module)
    if not computed:
        return ()
    return (
        f"{len(computed)} layers compute the weight that they use ({computed[0]} is one): they are "
        "not prunable, and not counted",
    )


@dataclass(frozen=True)
class _Call:
    """What a model is called with: its inputs, where they are, and whether they go by name."""

    inputs: tuple[InputSpec, ...]
    device: torch.device
    by_name: bool


def _named(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """The example's tensors by name, in the order forward takes them."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except ValueError as error:
        raise CannotOperate(
            f"the forward of {type(model).__name__} is not written in Python, so it has no trace"
        ) from error
    if isinstance(example, Mapping):
        named = {p.name: example[p.name] for p in parameters if p.name in example}
        unknown = [str(name) for name in example if name not in named]
        if unknown:
            near = did_you_mean(unknown[0], [p.name for p in parameters])
            raise CannotOperate(
                f"forward of {type(model).__name__} takes no {', '.join(unknown)}{near}"
            )
    else:
        tensors: list[Any] = list(example) if isinstance(example, list | tuple) else [example]
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        names += [f"input_{index}" for index in range(len(names), len(tensors))]
        named = dict(zip(names, tensors, strict=False))
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise CannotOperate(f"the example input {name} must be a tensor with a batch dimension")
    if not named:
        raise CannotOperate("an example input is needed to trace a model")
    return named


def _spec(name: str, value: Tensor) -> InputSpec:
    return InputSpec(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _refuse_lost_hooks(model: nn.Module) -> None:
    """A graph calls the leaves of a model only, so a hook on a block would never be called."""
    for name, module in model.named_modules():
        hooked = any(getattr(module, hooks) for hooks in HOOKS)
        if hooked and name and not is_leaf(module):
            raise CannotOperate(
                f"{name} ({type(module).__name__}) has a hook, which its graph would never call, "
                "since it calls the layers inside directly; remove the hook, or put it on a layer"
            )


def _refuse_taken_names(model: nn.Module) -> None:
    """A GraphModule has attributes of its own (graph, code) that nothing else can be called."""
    for name in (*model._modules, *model._parameters, *model._buffers):
        if hasattr(WholeGraphModule, name):
            raise CannotOperate(
                f"{type(model).__name__} calls a part of it {name}, as every graph module calls "
                "something else; rename it"
            )


def _refuse_masks_at_work(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module) in PLAIN_CLASS or isinstance(module, MaskedWeight):
            raise CannotOperate(
                f"{name} has a mask at work: give the network itself to a pipeline, or trace "
                "n2nfx.bake(network).module"
            )


def _record_one(fake: nn.Module, fake_mode: FakeTensorMode, call: _Call, run: Run) -> Tape:
    recorder = Recorder(fake.train(run.training))
    with fake_mode:
        blanks = blank_inputs(call.inputs, run.batch, call.device)
        inputs = {spec.name: blank for spec, blank in zip(call.inputs, blanks, strict=True)}
        try:
            return recorder.run(inputs, by_name=call.by_name)
        except Exception as error:
            raise CannotOperate(_explain(error, fake, recorder.scope, blanks)) from error


def _fake_copy(model: nn.Module, fake_mode: FakeTensorMode) -> nn.Module:
    """A copy with fake tensors for real ones, and without hooks: they are not ours to call."""
    real = [*model.parameters(), *model.buffers()]
    try:
        fakes: dict[int, Any] = {id(tensor): _fake(tensor, fake_mode) for tensor in real}
        with FakeCopyMode(fake_mode):  # for tensors that are neither parameters nor buffers
            fake = copy.deepcopy(model, fakes)
    except Exception as error:
        raise CannotOperate(
            f"{type(model).__name__} cannot be copied for tracing: {error}"
        ) from error
    for module in fake.modules():
        for hooks in HOOKS:
            getattr(module, hooks).clear()
    return fake


def _fake(tensor: Tensor, fake_mode: FakeTensorMode) -> Tensor:
    """A fake tensor like a real one. Plain ones are made anew, five times faster than converted."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return fake_mode.from_tensor(tensor, static_shapes=True)
    with fake_mode:
        fake = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)


def _remember(model: nn.Module) -> Callable[[], None]:
    """Gives what puts a model's attributes back: what one run leaves (a cache), no other finds."""
    kept = [(vars(module), _unshared(vars(module))) for module in model.modules()]

    def put_back() -> None:
        for attributes, before in kept:
            attributes.clear()
            attributes.update(_unshared(before))

    return put_back


def _unshared(value: Any) -> Any:
    """A copy of nested containers; what is in them stays the same."""
    kind: Any = type(value)
    if kind in (dict, OrderedDict):
        return kind([(key, _unshared(item)) for key, item in value.items()])
    if kind in (list, set, tuple):
        return kind(map(_unshared, value))
    return copy.copy(value) if isinstance(value, dict) else value


def _explain(error: Exception, model: nn.Module, scope: list[str], inputs: Sequence[Tensor]) -> str:
    """Where a forward stopped, why, and what to try."""
    stopped_in = f"{scope[-1] or 'the model'} ({type(model.get_submodule(scope[-1])).__name__})"
    shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
    where = ", ".join(filter(None, (f"in {stopped_in}", _line_at_fault(error))))
    return (
        f"the forward of {type(model).__name__} cannot be traced: {_reason(error)} "
        f"[{where}; inputs {shapes}]"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, N2nfxError):
        return str(error)
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return (
            "it looks at the values of a tensor, which a graph cannot follow; compute with tensors "
            "throughout (torch.where), or trace a part of the model"
        )
    first_line = next(iter(str(error).strip().splitlines()), "no message")
    return (
        f"{type(error).__name__}: {first_line}; try an example input of the right shape and dtype, "
        "or trace a part of the model"
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
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Let torch not log the traceback of what `_explain` says in a sentence."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextmanager
def _random_untouched() -> Iterator[None]:
    """Leave every random generator as it was, and refuse draws that a graph would freeze."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
            same = map(np.array_equal, numpy, np.random.get_state())
            if random.getstate() != python or not all(same):
                raise CannotOperate(
                    "forward draws from the generator of Python or numpy, and the graph would keep "
                    "what it drew while traced; draw with torch"
                )
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
