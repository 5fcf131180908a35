"""Where a model's forward is recorded: each run as if it were the first, on one fake copy."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import HOOKS
from n2nfx.tracing.devices import META, MetaInstead, RealDevice
from n2nfx.tracing.fake import (
    fake_copy,
    lay_bare,
    meta_copy,
    quiet,
    random_untouched,
)
from n2nfx.tracing.hooked import whole_for_hooks
from n2nfx.tracing.inventory import Inventory
from n2nfx.tracing.leaves import is_leaf
from n2nfx.tracing.memory import Change, Memory
from n2nfx.tracing.partcall import AnyCall
from n2nfx.tracing.recorder import Fault, KeepsState, Really, Recorder
from n2nfx.tracing.scribe import Arguments
from n2nfx.tracing.tape import Tape, is_inside
from n2nfx.tracing.unify import Run
from n2nfx.tracing.witness import Witness

# Batches that tell what depends on the batch. Without data the larger costs nothing, and shows a
# forward that does something else from some number of examples on (in chunks of 64, say).
_MANY, _SOME = 1031, 61


class NoLongerQuick(Exception):
    """The meta device does not do after all: what was recorded of many examples is void."""


class Stopped(Exception):
    """A run that cannot be recorded, whatever is kept whole."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault.error))
        self.fault = fault


@dataclass(frozen=True)
class Alone:
    """What a module did when it ran on real tensors."""

    result: Any
    witness: Witness


class Stage:
    """A copy of a model without data, and how it is run."""

    def __init__(self, copied: nn.Module, device: RealDevice, mode: Any, where: Any) -> None:
        self.model = copied
        self.device = device
        self.mode = mode  # the context that its tensors live in
        self.where = where  # the device that its inputs are made on
        self._memory = Memory(copied)
        self._inventory = Inventory.of(copied)
        self._untouched: bool | None = None  # the mode in which nothing was changed since

    def record(
        self, call: AnyCall, run: Run, wholes: dict[str, Fault], really: Really | None
    ) -> Tape:
        """The tape of one run, as if it were the first.

        Raises `Stopped` with the place where it fails, and `KeepsState` where a second run would
        do something else.
        """
        self._set_back(run.training)
        before = self._memory.versions()
        tape = self._run(call, run, wholes, really, self._inventory)
        changes = [*self._memory.changes()]
        kept = [change for change in changes if not _is_in_any(change.owner, wholes)]
        if kept:
            written = self._memory.written(before)
            self._refuse_state(kept, tape, written, partial(self._again, call, run, wholes))
        if not changes and self._memory.modes_are_kept():
            self._untouched = run.training
        return tape

    def _set_back(self, training: bool) -> None:
        """Let the model be in a mode as it was at first, if it is not."""
        if self._untouched is not training:
            self._memory.put_back()
            self._memory.keep_modes(self.model.train(training))
        self._untouched = None

    def _again(self, call: AnyCall, run: Run, wholes: dict[str, Fault]) -> Tape:
        """A run of the model as the last one left it."""
        self.model.train(run.training)
        return self._run(call, run, wholes, None, Inventory.of(self.model))

    def _refuse_state(
        self, kept: list[Change], first: Tape, written: set[str], again: Callable[[], Tape]
    ) -> None:
        """Refuse what makes the next run another: a counter is refused, a cache is not.

        That is made by the first run and found by all others, which do nothing else otherwise.
        """
        plain = [change for change in kept if change.plain]
        before = self._memory.versions()
        try:
            second = again()
            if second == first:
                return
            cached = len(plain) < len(kept) and self._memory.written(before) == written
            if cached and again() == second:
                return
        except (KeepsState, Stopped):
            pass  # what the first run left is in the way of the second
        change = (plain or kept)[0]
        raise KeepsState(
            change.owner,
            f"it keeps {change.name} from one call to the next and does something else then, where "
            "a graph would do every time what the first call does",
        )

    def _run(
        self,
        call: AnyCall,
        run: Run,
        wholes: dict[str, Fault],
        really: Really | None,
        inventory: Inventory,
    ) -> Tape:
        altered = self._memory.altered
        recorder = Recorder(self.model, inventory, wholes, really, self.device, altered)
        try:
            with self.mode:
                blanks = call.blanks(run.batch, run.grown, self.where)
                return recorder.run(blanks, by_name=call.by_name, defaults=call.defaults)
        except KeepsState:
            raise
        except Exception as error:
            raise Stopped(recorder.fault or Fault(error, ("",))) from error


def _is_in_any(name: str, paths: Iterable[str]) -> bool:
    return any(is_inside(name, path) for path in paths)


class Studio:
    """Records a model; `wholes` are the modules that had to be kept whole, with the reasons.

    First on the `meta` device, which is quick. Where that fails, if only since it is no real
    device, all is done with fake tensors instead, which know their device. To be used within
    `open_studio`.
    """

    def __init__(self, model: nn.Module, call: AnyCall, quick: bool = True) -> None:
        self.model = model
        self.call = call
        self.wholes: dict[str, Fault] = {
            name: Fault(CannotOperate(reason), (name,)) for name, reason in _never_through(model)
        }
        self._rootless = self.wholes.pop("", None)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._copies: dict[str, nn.Module] = {}
        self._tapes: dict[Run, tuple[int, Tape]] = {}
        self._quick = self._on_meta() if quick else None

    def _on_meta(self) -> Stage | None:
        try:
            copied = meta_copy(self.model)
        except Exception:  # whatever it is, fake tensors will tell
            return None
        return Stage(copied, MetaInstead(self.call.device), nullcontext(), META)

    @property
    def many(self) -> int:
        """The larger batch that runs are recorded with."""
        return _SOME if self._quick is None else _MANY

    @cached_property
    def _careful(self) -> Stage:
        device = RealDevice(self.call.device)
        return Stage(fake_copy(self.model, self._mode), device, self._mode, self.call.device)

    def record(self, run: Run, strict: bool = False) -> Tape:
        """The tape of one run, with the modules kept whole that are known by its end.

        What cannot be traced through is kept whole from then on, unless the run is strict. Raises
        `Stopped` where that does not help, and `NoLongerQuick` where `many` are fewer from now on.
        """
        if self._rootless is not None:
            raise Stopped(self._rootless)
        known, tape = self._tapes.get(run, (-1, Tape()))
        if known != len(self.wholes):
            tape = self._record(run, strict)
            self._tapes[run] = len(self.wholes), tape
        return tape

    def _record(self, run: Run, strict: bool) -> Tape:
        if self._quick is not None:
            try:
                return self._quick.record(self.call, run, self.wholes, None)
            except (Stopped, KeepsState) as error:
                if strict:  # at another size: a failure says nothing about the device
                    raise Stopped(Fault(error, ("",))) from error
                self._quick = None
                if any(one.batch == _MANY for one in (run, *self._tapes)):
                    raise NoLongerQuick from error
        while True:
            try:
                really = None if strict else self._really
                return self._careful.record(self.call, run, self.wholes, really)
            except KeepsState as error:
                if not error.owner or strict:
                    raise Stopped(Fault(error, (error.owner,))) from error
                self.wholes[error.owner] = Fault(error, (error.owner,))

    def _really(self, path: str, arguments: Arguments, training: bool) -> tuple[Any, Witness]:
        """Run a module of the model on ones, where the shapes of its result depend on data."""
        with unset_fake_temporarily():
            made = {id(fake): _ones(fake) for fake in _tensors(arguments)}
            real = pytree.tree_map_only(Tensor, lambda fake: made[id(fake)], arguments)
            alone = self.alone(path, real, training)
        own = {id(made[id(fake)]): fake for fake in _tensors(arguments)}

        def faked(real: Tensor) -> Tensor:
            return own[id(real)] if id(real) in own else _blank(real)

        with self._mode:
            return pytree.tree_map_only(Tensor, faked, alone.result), alone.witness

    def alone(self, path: str, arguments: Arguments, training: bool) -> Alone:
        """What a copy of a module, without hooks, does with real arguments."""
        if path not in self._copies:
            self._copies[path] = copy.deepcopy(self.model.get_submodule(path))
            lay_bare(self._copies[path])
        module = self._copies[path].train(training)
        witness = Witness(module, path)
        with witness.watching():
            return Alone(module(*arguments[0], **arguments[1]), witness)


def _tensors(arguments: Arguments) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]


def _ones(fake: Tensor) -> Tensor:
    ones = torch.ones(fake.shape, dtype=fake.dtype, device=fake.device)
    return ones.requires_grad_().clone() if fake.requires_grad else ones


def _blank(real: Tensor) -> Tensor:
    """A tensor like a real one where that has no place; no leaf, or nothing could change it."""
    blank = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=real.device)
    return blank.requires_grad_().clone() if real.requires_grad else blank


def _never_through(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Modules, by path, that cannot be traced through, which is known before."""
    yield from whole_for_hooks(model)
    for name, module in model.named_modules():
        if not name:
            continue
        if isinstance(module, torch.jit.ScriptModule):
            yield name, "it is TorchScript, which is not Python"
        elif any(getattr(module, hooks) for hooks in HOOKS) and not is_leaf(module):
            yield name, "it has a hook, which the graph of what is inside would never call"


@contextmanager
def open_studio(model: nn.Module, call: AnyCall, quick: bool = True) -> Iterator[Studio]:
    """A studio in which nothing that happens reaches the model or a random generator."""
    with random_untouched(), quiet(), torch.inference_mode(False), torch.enable_grad():
        yield Studio(model, call, quick)
