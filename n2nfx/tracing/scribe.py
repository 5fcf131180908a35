"""Writes the steps of a run on a tape, and knows which step gave each tensor.

Tensors are known by identity: model code may keep them, put them into lists or hand them around,
and what it does to them is still written down as done to them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, is_grad_enabled

from n2nfx.errors import CannotOperate
from n2nfx.tracing.constants import value_of
from n2nfx.tracing.tape import Built, Entry, InputDevice, Op, Ref, Tape
from n2nfx.tracing.values import is_dataclass, items, specs, tensors
from n2nfx.tracing.witness import Witness

_PLAIN = frozenset({int, float, bool, str, type(None)})
_CONSTANTS = (
    int | float | complex | bool | str | bytes | torch.dtype | torch.layout | torch.memory_format
)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Mark:
    """A place on the tape to go back to."""

    entries: int
    visits: int
    journal: int
    scope: int


class Scribe:
    """The tape of one run of a model that has `held` tensors.

    `scope` are the modules that the run is in, outermost first.
    """

    def __init__(self, held: Sequence[tuple[str, Tensor]], device: torch.device) -> None:
        self.tape = Tape()
        self.scope: list[str] = [""]
        self._device = device
        self._names = {id(tensor): name for name, tensor in held}
        self._versions = {id(tensor): tensor._version for _, tensor in held}
        self._refs: dict[int, Ref] = {}
        self._journal: list[tuple[int, Ref | None]] = []
        self._detached: dict[Ref, Ref] = {}
        # The list keeps the tensors alive, so that no id is used twice.
        self._alive = [tensor for _, tensor in held]

    def write(
        self, op: Op, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """A step with encoded arguments, and the tensors that it gave."""
        entry = Entry(op, target, args, kwargs, specs(result), self.scope[-1])
        self._bind(result, self.tape.write(entry))

    def write_call(
        self, name: str, encoded: Arguments, result: Any, witness: Witness | None = None
    ) -> None:
        """A call of the innermost module, in the scope of the module that called it."""
        entry = Entry("call_module", name, *encoded, specs(result), self.scope[-2])
        if witness is not None:
            entry = dataclasses.replace(entry, seen=witness.seen())
        self._bind(result, self.tape.write(entry))

    def own(self, result: Any) -> Any:
        """The result, or an alias of it where a call gave back a tensor that it did not change.

        Dropout does so in evaluation only, and the two modes have to name the same tensors.
        """
        known = isinstance(result, Tensor) and id(result) in self._versions
        if known and self._versions[id(result)] == result._version:
            return result.view_as(result)
        return result

    def has_read(self, tensor: Tensor) -> bool:
        """Whether a step has read the tensor, or given it."""
        return id(tensor) in self._refs

    def constant(self, tensor: Tensor) -> Tensor | None:
        """A tensor's values, where they depend on nothing but numbers."""
        ref = self._refs.get(id(tensor))
        return None if ref is None else value_of(self.tape.entries, ref)

    def detach(self, result: Any) -> None:
        """Let the tensors of a result get no gradient, as `torch.no_grad` has it."""
        for tensor in tensors(result):
            self._bind(tensor, self._without_gradient(self._refs[id(tensor)], tensor))

    def mark(self) -> Mark:
        """Where the tape is now."""
        tape = self.tape
        return Mark(len(tape.entries), len(tape.visits), len(self._journal), len(self.scope))

    def go_back(self, mark: Mark) -> None:
        """Forget what was written since."""
        del self.tape.entries[mark.entries :]
        del self.tape.visits[mark.visits :]
        del self.scope[mark.scope :]
        while len(self._journal) > mark.journal:
            key, before = self._journal.pop()
            if before is None:
                self._refs.pop(key, None)
            else:
                self._refs[key] = before
        self._detached = {
            ref: alias for ref, alias in self._detached.items() if alias.index < mark.entries
        }

    def encode(self, value: Any) -> Any:
        """The value with every tensor replaced by its reference; refuses what cannot be written."""
        if isinstance(value, Tensor):
            return self._reference(value)
        kind = type(value)
        if kind in _PLAIN:  # the commonest, and the quickest to see
            return value
        if kind is tuple:
            return tuple(map(self.encode, value))
        if isinstance(value, np.generic):
            return value.item()
        if value is None or value is Ellipsis or isinstance(value, _CONSTANTS):
            return value
        if isinstance(value, torch.device):
            return InputDevice() if value == self._device else value
        if isinstance(value, slice):
            return slice(*(self.encode(end) for end in (value.start, value.stop, value.step)))
        return self._encode_container(value)

    def _encode_container(self, value: Any) -> Any:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.encode(item) for item in value))
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self.encode, value))
        if is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return Built(type(value), (), {name: self.encode(v) for name, v in fields.items()})
        if isinstance(value, Mapping):
            encoded = {key: self.encode(item) for key, item in value.items()}
            plain = type(value) is dict or not isinstance(value, dict)
            return encoded if plain else Built(type(value), (list(encoded.items()),), {})
        raise CannotOperate(f"a {type(value).__name__} among the arguments cannot be traced")

    def _bind(self, result: Any, ref: Ref) -> None:
        """From now on the tensors of a result are known by this entry.

        An in-place call gives the tensor it changed, so later reads are of the changed value;
        without gradients it changed an alias, and the tensor keeps the gradient it had.
        """
        if isinstance(result, Tensor):
            known = id(result) in self._refs
            if not (known and result.requires_grad and not is_grad_enabled()):
                self._journal.append((id(result), self._refs.get(id(result))))
                self._refs[id(result)] = ref
            self._versions[id(result)] = result._version
            self._alive.append(result)
            return
        for key, item in items(result):
            self._bind(item, Ref(ref.index, (*ref.path, key)))

    def _reference(self, tensor: Tensor) -> Ref:
        ref = self._refs.get(id(tensor))
        if ref is None:
            ref = self._attribute(tensor)
        if tensor.requires_grad and not is_grad_enabled():
            return self._without_gradient(ref, tensor)
        return ref

    def _attribute(self, tensor: Tensor) -> Ref:
        """The reference of a tensor that a module holds."""
        name = self._names.get(id(tensor))
        if name is None:
            raise CannotOperate(
                f"a tensor of shape {tuple(tensor.shape)} comes from outside the model: make it a "
                "buffer (register_buffer) or create it with torch inside forward"
            )
        ref = self.tape.write(Entry("get_attr", name, (), {}, specs(tensor), self.scope[-1]))
        self._bind(tensor, ref)
        self._refs[id(tensor)] = ref  # whether gradients are enabled here or not
        return ref

    def _without_gradient(self, ref: Ref, tensor: Tensor) -> Ref:
        """What `torch.no_grad` makes of a tensor: a graph has no contexts, so it is detached."""
        if ref not in self._detached:
            entry = Entry("call_method", "detach", (ref,), {}, specs(tensor), self.scope[-1])
            self._detached[ref] = self.tape.write(entry)
        return self._detached[ref]
