"""From a module and an example input to the reference Network."""

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import WHOLE_MODEL, WholeGraphModule, WholeModel, join
from n2nfx.masked import PLAIN_CLASS, MaskedWeight
from n2nfx.network import Layer, Network
from n2nfx.tracing.closures import deep_copy, make_copyable
from n2nfx.tracing.example import Call, Example, call_of, named
from n2nfx.tracing.explain import explain, why_whole
from n2nfx.tracing.hooked import refuse_closures
from n2nfx.tracing.kinds import fix_kinds
from n2nfx.tracing.layers import find_layers
from n2nfx.tracing.partcall import AnyCall, PartCall, part_call
from n2nfx.tracing.parts import with_parts
from n2nfx.tracing.recorder import Fault
from n2nfx.tracing.rootless import whole_root
from n2nfx.tracing.sizes import fix_sizes
from n2nfx.tracing.studio import NoLongerQuick, Stopped, Studio, open_studio
from n2nfx.tracing.tape import Tape, Visit, is_inside
from n2nfx.tracing.unify import Confounded, Parted, Run, unify
from n2nfx.tracing.unprunable import notes_on
from n2nfx.tracing.writer import GraphWriter

# Three sizes tell a number that depends on the batch by a line (a * B + c) from any other (B // 2,
# B % 2, B * B); two in each mode tell it from one that depends on the mode. Size 1 shows a forward
# that treats a single example apart; not in training, where batch norm refuses it.
_FIRST, _LAST = Run(False, 1), Run(True, 2)
_ALONE = (Run(False, 7), Run(True, 7))  # the third sizes, where each mode has a graph of its own


def trace(model: nn.Module, example: Example) -> Network:
    """The reference Network of a module: a copy of it as a graph, and its prunable layers.

    `example` is what the module is called with: a tensor, several, or a mapping of keyword names
    to tensors, or a list of them where forward takes one; their first dimension is the batch, and
    the graph takes any batch size. The module itself, its buffers and the random generators stay
    exactly as they were; what its forward prints goes to stderr. A part that cannot be traced is
    kept whole, as a call of the module that it is; the network's notes name it, with file and line.
    Raises `CannotOperate` with module, file and line where the forward cannot run.
    """
    if not isinstance(model, nn.Module):
        raise CannotOperate(f"only an nn.Module can be traced, not a {type(model).__name__}")
    _refuse_uncopyable(model)
    refuse_closures(model)
    try:
        with torch.inference_mode(False):  # the copy is to be trained, wherever it is made
            own = deep_copy(model)
    except Exception as error:
        raise CannotOperate(
            f"{type(model).__name__} cannot be copied ({error}), and only a copy is operated on"
        ) from error
    with _untouched(model):
        network = record(own, example)
    return replace(network, notes=(*network.notes, *_without_hooks(model)))


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put the buffers of a model back if its copy changes them, which is refused."""
    before = [(n, buffer, buffer._version, buffer.clone()) for n, buffer in model.named_buffers()]
    try:
        yield
    finally:
        changed = [name for name, buffer, version, _ in before if buffer._version != version]
        if changed:
            for _, buffer, _, value in before:  # batch norm changes some without telling
                buffer.copy_(value)
    if changed:
        raise CannotOperate(
            f"a copy of {type(model).__name__} still runs layers of the model itself, since it "
            f"changed {changed[0]}: they are in a global variable; let forward find them in self"
        )


def _without_hooks(model: nn.Module) -> Iterator[str]:
    """What no copy of a tensor has."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            yield f"{name} has a hook of its own, which a copy does not have: register it again"


def record(model: nn.Module, example: Example, quick: bool = True) -> Network:
    """`trace` without the copy: the network's module shares the given one's parts.

    The result is the same without `quick`, only later: see `Studio`.
    """
    call = call_of(model, example)
    _refuse_uncopyable(model)
    refuse_closures(model)
    _refuse_taken_names(model)
    _refuse_masks_at_work(model)
    make_copyable(model)
    with _uncollected():
        with redirect_stdout(sys.stderr), open_studio(model, call, quick) as studio:
            try:
                graphs = _graphs(studio)
            except Stopped as stopped:
                graphs = _whole(studio, stopped.fault, named(model, example))
        traced = _traced(studio, graphs, quick)
        layers = find_layers(traced.module)
    notes = (*_notes(traced.wholes, traced.module, layers), *notes_on(traced.module))
    return Network(module=traced.module, layers=layers, inputs=call.inputs, notes=notes)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage: nearly all that tracing makes is kept, and looking takes 6% of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class _Recorded:
    """What became one graph: its tape, and whether the inputs' sizes are written into it.

    `fixed` says whether the model itself takes no other sizes, as far as was tried.
    """

    tape: Tape
    sized: bool
    fixed: bool = True


@dataclass(frozen=True)
class _Whole:
    """A module that is kept whole: why, told for a person, its class, and its parts' paths."""

    made_of: str
    why: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class _Traced:
    """A model with its graphs, and the modules that are kept whole in them, by path."""

    module: WholeGraphModule
    wholes: dict[str, _Whole]


def _traced(studio: Studio, graphs: Sequence[_Recorded], quick: bool) -> _Traced:
    """The graph module of a model; in what is kept whole, what can have a graph gets one."""
    model, call, wholes = studio.model, studio.call, dict[str, _Whole]()

    def part(path: str, child: nn.Module, visits: Sequence[Visit]) -> nn.Module | None:
        found = _part(child, part_call(child, visits, call.device), quick)
        if found is None:
            return None
        wholes.update({join(path, name): whole for name, whole in found.wholes.items()})
        return found.module

    graphs = [replace(one, tape=with_parts(model, one.tape, part)) for one in graphs]
    wholes.update(_wholes(studio, graphs))
    evaluation, *training = (_written(model, recorded, call) for recorded in graphs)
    module = WholeGraphModule(model, evaluation, type(model).__name__, *training)
    return _Traced(module, wholes)


def _part(child: nn.Module, call: PartCall | None, quick: bool) -> _Traced | None:
    """A module inside one that is kept whole, as a graph; None where it cannot be one.

    The model may call it with other sizes each time, so that its graph has to take all that it
    takes itself.
    """
    if call is None:
        return None
    try:
        _refuse_taken_names(child)
        with open_studio(child, call, quick) as studio:
            graphs = _graphs(studio)
    except (Stopped, CannotOperate):
        return None
    if not all(graph.fixed for graph in graphs if graph.sized):
        return None
    vars(child)["whole_model"] = WholeModel(child)
    return _traced(studio, graphs, quick)


def _graphs(studio: Studio) -> tuple[_Recorded, ...]:
    """One graph for both modes, or one for evaluation and one for training."""
    try:
        return _graphs_of(studio)
    except NoLongerQuick:
        return _graphs_of(studio)


def _graphs_of(studio: Studio) -> tuple[_Recorded, ...]:
    asked = studio.record(_FIRST).asked
    evaluation, training = (_FIRST, Run(False, studio.many)), Run(True, studio.many)
    # Where forward sees no size, only the mode can matter.
    runs = (*evaluation, training) if asked else evaluation
    while True:
        tapes = _settled(studio, runs)
        try:
            return (_with_last(studio, tapes, _LAST),)
        except Confounded:  # in training it sees some
            runs = (*evaluation, training)
        except Parted as parted:
            if parted.cause == "mode":
                break
            _keep_whole(studio, parted)
    while True:
        tapes = _settled(studio, (*evaluation, training, _LAST))
        try:
            return tuple(_with_last(studio, _of_mode(tapes, run.training), run) for run in _ALONE)
        except Parted as parted:
            _keep_whole(studio, parted)


def _settled(studio: Studio, runs: Iterable[Run]) -> dict[Run, Tape]:
    """The tapes of the runs, all with the same modules kept whole."""
    while True:
        known = len(studio.wholes)
        tapes = {run: studio.record(run) for run in runs}
        if known == len(studio.wholes):
            return tapes


def _with_last(studio: Studio, tapes: Mapping[Run, Tape], last: Run) -> _Recorded:
    """One tape of several, and some at other sizes, if the graph can be generic in that."""
    fixed = True
    for growths in studio.call.growths:
        runs = [replace(last, grown=growth) for growth in growths]
        try:
            grown = {run: studio.record(run, strict=True) for run in runs}
            return _Recorded(unify({**tapes, **grown}), sized=False)
        except Parted:
            fixed = False
        except Stopped:
            continue
    tape = unify(_settled(studio, (*tapes, last)))
    return _Recorded(tape, sized=bool(studio.call.growths), fixed=fixed)


def _of_mode(tapes: Mapping[Run, Tape], training: bool) -> dict[Run, Tape]:
    return {run: tape for run, tape in tapes.items() if run.training is training}


def _keep_whole(studio: Studio, parted: Parted) -> None:
    """Keep the module whole that does something else for other batch sizes."""
    fault = Fault(parted, (parted.scope,))
    if not parted.scope or parted.scope in studio.wholes:
        raise Stopped(Fault(parted, ("",)))
    studio.wholes[parted.scope] = fault


def _whole(studio: Studio, fault: Fault, inputs: Mapping[str, Tensor]) -> tuple[_Recorded, ...]:
    """A model that is one call, if it runs at all."""
    model, call = studio.model, studio.call
    assert isinstance(call, Call)
    try:
        tape = whole_root(studio, inputs)
    except Exception as error:
        raise CannotOperate(explain(fault, error, model, call)) from fault.error
    studio.wholes[""] = fault
    return (_Recorded(tape, sized=False),)


def _written(model: nn.Module, recorded: _Recorded, call: AnyCall) -> fx.Graph:
    """The graph of a tape; the switches that it needs are put into the model."""
    writer = GraphWriter(recorded.tape)
    graph = writer.write()
    for path, switch in writer.switches.items():
        owner, _, name = path.rpartition(".")
        module = model.get_submodule(owner)
        module.add_module(name, switch.train(module.training))
    if isinstance(call, PartCall):
        fix_kinds(graph, call.of(1), recorded.sized)
    elif recorded.sized:
        fix_sizes(graph, call.inputs)
    return graph


def _wholes(studio: Studio, graphs: Sequence[_Recorded]) -> Iterator[tuple[str, _Whole]]:
    """The modules that the graphs call whole."""
    entries = [e for graph in graphs for e in graph.tape.entries if e.op == "call_module"]
    parts = {e.target: tuple(e.seen.parts) for e in entries if e.seen is not None}
    called = {entry.target for entry in entries}
    for path, fault in studio.wholes.items():
        if path in called or not path:
            made_of = type(studio.model.get_submodule(path)).__name__
            inside = parts.get(path or WHOLE_MODEL, ())
            yield path, _Whole(made_of, why_whole(fault, studio.model), inside)


def _notes(
    wholes: Mapping[str, _Whole], module: fx.GraphModule, layers: Sequence[Layer]
) -> Iterator[str]:
    """What a person should know of the modules that are kept whole."""
    for path, whole in wholes.items():
        prunable = any(is_inside(layer.weight, path) for layer in layers)
        inside = ", ".join(whole.parts)
        yield (
            f"{path or 'the whole model'} ({whole.made_of}) is kept as it is, "
            f"{'its layers prunable' if prunable else 'nothing in it prunable'}, "
            f"{f'skips inside of {inside} only' if inside else 'no skip inside'}: {whole.why}"
        )


def _refuse_taken_names(model: nn.Module) -> None:
    """A GraphModule has attributes of its own (graph, code) that nothing else can be called."""
    for name in (*model._modules, *model._parameters, *model._buffers):
        if hasattr(WholeGraphModule, name):
            raise CannotOperate(
                f"{type(model).__name__} calls a part of it {name}, as every graph module calls "
                "something else; rename it"
            )


def _refuse_uncopyable(model: nn.Module) -> None:
    """What is no Python, or has tensors with a history, can never be copied, and passes copy."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CannotOperate(
            "the model is TorchScript, not written in Python: trace what it was made of"
        )
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise CannotOperate(
                    f"{join(name, key)} was computed with gradients, so that no copy of the model "
                    "can be made: detach it; for torch.nn.utils.weight_norm, remove it "
                    "(remove_weight_norm) or use torch.nn.utils.parametrizations.weight_norm"
                )


def _refuse_masks_at_work(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module) in PLAIN_CLASS or isinstance(module, MaskedWeight):
            raise CannotOperate(
                f"{name} has a mask at work: give the network itself to a pipeline, or trace "
                "n2nfx.bake(network).module"
            )
