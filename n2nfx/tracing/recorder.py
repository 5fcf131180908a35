"""Records a model's forward as it runs on fake tensors; model code never sees a proxy.

A torch-function mode sees every torch call and the model's modules are taught to report
themselves, so Python's control flow, `isinstance`, `len` and `int` work as they always do:
only what touched a tensor is written down. The model recorded is always a fake copy, so nothing
that happens to it (buffers, caches, hooks) happens to the user's.

A module whose forward cannot be written down is one call of the graph: it is kept whole.
"""

import dataclasses
import operator
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from n2nfx.errors import CannotOperate
from n2nfx.tracing.devices import RealDevice
from n2nfx.tracing.foreign import foreign_calls_report
from n2nfx.tracing.leaves import is_leaf
from n2nfx.tracing.shapes import of_call, of_module
from n2nfx.tracing.tape import Built, Entry, InputDevice, Op, Ref, Tape
from n2nfx.tracing.values import is_dataclass, items, specs, tensors
from n2nfx.tracing.witness import Witness

_CONSTANTS = (
    int | float | complex | bool | str | bytes | torch.dtype | torch.layout | torch.memory_format
)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Runs a module of the model on real tensors: its path, its arguments (fake), what to watch with.
Really = Callable[[str, Arguments, bool], tuple[Any, Witness]]


class Replaced(CannotOperate):
    """Forward put another tensor in the place of one that a module holds."""

    def __init__(self, name: str) -> None:
        self.owner = name.rpartition(".")[0]
        super().__init__(
            f"it puts another tensor in the place of {name}, which a graph cannot: "
            f"change it in place ({name}.copy_(...))"
        )


@dataclass(frozen=True)
class Fault:
    """Where a forward stopped: the error, and the modules that it was in, outermost first."""

    error: Exception
    scope: tuple[str, ...]


@dataclass(frozen=True)
class _Mark:
    """A place on the tape to go back to."""

    entries: int
    visits: int
    journal: int
    scope: int


class Recorder(TorchFunctionMode):
    """One run of a (fake) model, written on a tape. A recorder is used once.

    `wholes` are the paths of modules to keep whole, with the faults that are the reason; those
    that this run finds are added. `really` runs a module where fake tensors do not do; without it
    nothing new is kept whole, and what cannot be traced is an error. `device` is where the model
    really is, and what it is told where it asks.
    """

    def __init__(
        self,
        model: nn.Module,
        wholes: dict[str, Fault] | None = None,
        really: Really | None = None,
        device: RealDevice | None = None,
    ) -> None:
        super().__init__()
        self.tape = Tape()
        self.fault: Fault | None = None
        self._scope: list[str] = [""]
        self._model = model
        self._wholes = {} if wholes is None else wholes
        self._really = really
        self._paused = False
        self._witness: Witness | None = None
        self._device = device or RealDevice(torch.device("cpu"))
        self._autocast = False
        self._attributes = _attributes(model)
        # Tensors are known by identity; the list keeps them alive, so that no id is used twice.
        self._names = {id(tensor): name for name, tensor in self._attributes}
        self._versions = {id(tensor): tensor._version for _, tensor in self._attributes}
        self._refs: dict[int, Ref] = {}
        self._journal: list[tuple[int, Ref | None]] = []
        self._detached: dict[Ref, Ref] = {}
        self._alive = [tensor for _, tensor in self._attributes]

    def run(self, inputs: Mapping[str, Tensor], by_name: bool = False) -> Tape:
        """Run the model's forward on fake inputs, given in order or by name, and give the tape.

        Where it fails, `fault` says in which module.
        """
        self._autocast = self._autocasts()
        for name, value in inputs.items():
            self._write("placeholder", name, (), {}, value)
        state = set(map(id, self._model.state_dict(keep_vars=True).values()))
        try:
            with self._modules_report(), foreign_calls_report(self._foreign), self:
                result = self._model(**inputs) if by_name else self._model(*inputs.values())
            self._write("output", "output", (self._encode(result),), {}, None)
            self._refuse_replaced(state)
        except Exception as error:
            self._note(error)
            raise
        return self.tape

    def _note(self, error: Exception) -> None:
        """Remember where an error came from; on its way up it is the same error."""
        if self.fault is None or self.fault.error is not error:
            self.fault = Fault(error, tuple(self._scope))

    def _refuse_replaced(self, state: Container[int]) -> None:
        """A graph assigns nothing, so what forward assigned would not be there at its next call.

        Only where that matters: a cache, neither saved nor read before it is made anew, does not.
        """
        for name, tensor in self._attributes:
            matters = id(tensor) in state or id(tensor) in self._refs
            if not matters or operator.attrgetter(name)(self._model) is tensor:
                continue
            if not any(is_inside(name, whole) for whole in self._wholes):
                raise Replaced(name)

    # What torch calls become.

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if self._paused:
            return self._call(func, name, args, kwargs)
        if func is torch.nn.functional.multi_head_attention_forward:
            return self._through_attention(func, args, kwargs)
        self._refuse_contexts()
        result = self._call(func, name, args, kwargs)
        if name == "__set__":
            attribute = getattr(getattr(func, "__self__", None), "__name__", "an attribute")
            raise CannotOperate(f"assigning to the tensor attribute .{attribute} cannot be traced")
        if name == "register_hook":
            raise CannotOperate("a hook on a tensor cannot be traced, its graph would not have it")
        if name == "__setitem__" or any(True for _ in tensors(result)):
            result = self._own(result)
            self._write(*_call(func, name, args, kwargs, self._encode), result)
        return result

    def _call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a call of torch gives, nothing written down."""
        result = of_call(func, args, kwargs) if self._shapes_do() else None
        return self._device.call(func, name, args, kwargs) if result is None else result

    def _shapes_do(self) -> bool:
        """Whether the shape of a result is all there is to it."""
        return self._device.quick and torch.is_grad_enabled() and not self._autocast

    def _refuse_contexts(self) -> None:
        """A graph has no contexts, so what one does to the calls inside would be lost."""
        if torch.is_inference_mode_enabled():
            raise CannotOperate("torch.inference_mode inside forward cannot be traced")
        if self._autocasts() != self._autocast:
            raise CannotOperate(
                "torch.autocast inside forward cannot be traced; put it around the model"
            )

    def _autocasts(self) -> bool:
        kind = self._device.real.type
        return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)

    def _own(self, result: Any) -> Any:
        """The result, or an alias of it where a call gave back a tensor that it did not change.

        Dropout does so in evaluation only, and the two modes have to name the same tensors.
        """
        known = isinstance(result, Tensor) and id(result) in self._versions
        if known and self._versions[id(result)] == result._version:
            return result.view_as(result)
        return result

    def _through_attention(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run attention's Python body under this mode, so that its projections are seen."""
        functional: Any = torch.nn.functional
        guard = functional.has_torch_function
        functional.has_torch_function = lambda *_: False
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            functional.has_torch_function = guard

    def _foreign(
        self,
        target: Callable[..., Any],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A call that no mode sees inside of is one call of the graph."""
        if self._paused:
            if self._witness is not None:
                self._witness.see((args, kwargs))
            return call(*args, **kwargs)
        self._refuse_contexts()
        with torch._C.DisableTorchFunction():
            encoded = self._encode(args), self._encode(kwargs)
            with self._pause():
                result = self._own(call(*args, **kwargs))
            self._write("call_function", target, *encoded, result)
        return result

    # What module calls become.

    @contextmanager
    def _modules_report(self) -> Iterator[None]:
        """Let every module of the model report its own calls while it runs."""
        own = [(module, vars(module).get("forward")) for module in self._model.modules()]
        for name, module in self._model.named_modules():
            vars(module)["forward"] = partial(self._forward, module, name, module.forward)
        try:
            yield
        finally:
            for module, forward in own:
                del vars(module)["forward"]
                if forward is not None:
                    vars(module)["forward"] = forward

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Write nothing down meanwhile."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _forward(
        self, module: nn.Module, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self._paused:
            return forward(*args, **kwargs)
        self._scope.append(name)  # stays there when the call fails, to say where it did
        if name in self._wholes:
            result = self._keep_whole(module, name, forward, (args, kwargs))
        elif name and is_leaf(module):
            result = self._call_leaf(module, name, forward, (args, kwargs))
        else:
            result = self._go_through(module, name, forward, (args, kwargs))
        self._scope.pop()
        return result

    def _call_leaf(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> Any:
        """A module that is one call of the graph, as most of torch's own are."""
        with torch._C.DisableTorchFunction():
            self._refuse_contexts()
            encoded = self._encode(arguments[0]), self._encode(arguments[1])
            result = of_module(module, *arguments) if self._shapes_do() else None
        if result is None:
            with self._pause():
                result = forward(*arguments[0], **arguments[1])
        with torch._C.DisableTorchFunction():
            if not getattr(module, "inplace", False):
                result = self._own(result)
            self._write_call(name, encoded, result)
            self._detach_where_no_gradient(module, result)
        return result

    def _go_through(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> Any:
        """A module that is traced through, or kept whole where that fails."""
        tape = self.tape
        mark = _Mark(len(tape.entries), len(tape.visits), len(self._journal), len(self._scope))
        tape.visits.append((len(tape.entries), name))
        try:
            return forward(*arguments[0], **arguments[1])
        except Exception as error:
            self._note(error)
            if not name or self._really is None:
                raise
            fault = self.fault
            self._go_back(mark)
            try:
                result = self._keep_whole(module, name, forward, arguments)
            except Exception:
                self.fault = fault
                raise error from None  # the first is the one that says why
            assert fault is not None
            self._wholes[name] = fault
            return result

    def _go_back(self, mark: _Mark) -> None:
        """Forget what was written since."""
        del self.tape.entries[mark.entries :]
        del self.tape.visits[mark.visits :]
        del self._scope[mark.scope :]
        while len(self._journal) > mark.journal:
            key, before = self._journal.pop()
            if before is None:
                self._refs.pop(key, None)
            else:
                self._refs[key] = before
        self._detached = {
            ref: alias for ref, alias in self._detached.items() if alias.index < mark.entries
        }

    def _keep_whole(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> Any:
        """One call of the graph, however much happens inside."""
        with torch._C.DisableTorchFunction():
            encoded = self._encode(arguments[0]), self._encode(arguments[1])
        with self._pause():
            result, witness = self._watched(module, name, forward, arguments)
        with torch._C.DisableTorchFunction():
            if not any(True for _ in tensors(result)):
                raise CannotOperate(f"{name} gives no tensor")
            result = self._own(result)
            self._write_call(name, encoded, result, witness)
            self._detach_where_no_gradient(module, result)
        return result

    def _watched(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> tuple[Any, Witness]:
        """What a module gives, on fake tensors or else on real ones, and what it did."""
        self._witness = witness = Witness(module, name)
        try:
            with witness.watching():
                return forward(*arguments[0], **arguments[1]), witness
        except Exception:
            if self._really is None:
                raise
            return self._really(name, arguments, module.training)
        finally:
            self._witness = None

    # What tensors become.

    def _write(
        self, op: Op, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        entry = Entry(op, target, args, kwargs, specs(result), self._scope[-1])
        self._bind(result, self.tape.write(entry))

    def _write_call(
        self, name: str, encoded: Arguments, result: Any, witness: Witness | None = None
    ) -> None:
        """A module's call, in the scope of the module that called it."""
        entry = Entry("call_module", name, *encoded, specs(result), self._scope[-2])
        if witness is not None:
            inner, touched = tuple(witness.calls), frozenset(witness.touched)
            entry = replace(entry, inner=inner, touched=touched)
        self._bind(result, self.tape.write(entry))

    def _bind(self, result: Any, ref: Ref) -> None:
        """From now on the tensors of a result are known by this entry.

        An in-place call gives the tensor it changed, so later reads are of the changed value;
        without gradients it changed an alias, and the tensor keeps the gradient it had.
        """
        if isinstance(result, Tensor):
            known = id(result) in self._refs
            if not (known and result.requires_grad and not torch.is_grad_enabled()):
                self._journal.append((id(result), self._refs.get(id(result))))
                self._refs[id(result)] = ref
            self._versions[id(result)] = result._version
            self._alive.append(result)
            return
        for key, item in items(result):
            self._bind(item, Ref(ref.index, (*ref.path, key)))

    def _encode(self, value: Any) -> Any:
        """The value with every tensor replaced by its reference; refuses what cannot be written."""
        if isinstance(value, np.generic):
            return value.item()
        if value is None or value is Ellipsis or isinstance(value, _CONSTANTS):
            return value
        if isinstance(value, Tensor):
            return self._reference(value)
        if isinstance(value, torch.device):
            return InputDevice() if value == self._device.real else value
        if isinstance(value, slice):
            return slice(*(self._encode(end) for end in (value.start, value.stop, value.step)))
        return self._encode_container(value)

    def _encode_container(self, value: Any) -> Any:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._encode(item) for item in value))
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self._encode, value))
        if is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return Built(type(value), (), {name: self._encode(v) for name, v in fields.items()})
        if isinstance(value, Mapping):
            encoded = {key: self._encode(item) for key, item in value.items()}
            plain = type(value) is dict or not isinstance(value, dict)
            return encoded if plain else Built(type(value), (list(encoded.items()),), {})
        raise CannotOperate(f"a {type(value).__name__} among the arguments cannot be traced")

    def _reference(self, tensor: Tensor) -> Ref:
        ref = self._refs.get(id(tensor))
        if ref is None:
            ref = self._attribute(tensor)
        if tensor.requires_grad and not torch.is_grad_enabled():
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
        ref = self.tape.write(Entry("get_attr", name, (), {}, specs(tensor), self._scope[-1]))
        self._bind(tensor, ref)
        self._refs[id(tensor)] = ref  # whether gradients are enabled here or not
        return ref

    def _without_gradient(self, ref: Ref, tensor: Tensor) -> Ref:
        """What `torch.no_grad` makes of a tensor: a graph has no contexts, so it is detached."""
        if ref not in self._detached:
            entry = Entry("call_method", "detach", (ref,), {}, specs(tensor), self._scope[-1])
            self._detached[ref] = self.tape.write(entry)
        return self._detached[ref]

    def _detach_where_no_gradient(self, module: nn.Module, result: Any) -> None:
        """A module's own weights get no gradient either when it is called under `no_grad`."""
        if torch.is_grad_enabled() or not any(p.requires_grad for p in module.parameters()):
            return
        for tensor in tensors(result):
            self._bind(tensor, self._without_gradient(self._refs[id(tensor)], tensor))


def is_inside(name: str, path: str) -> bool:
    """Whether a module or parameter is a module, or lies inside of it."""
    return not path or name == path or name.startswith(f"{path}.")


def _call(
    func: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    encode: Callable[[Any], Any],
) -> tuple[Op, Any, tuple[Any, ...], dict[str, Any]]:
    """The call as an fx node would make it."""
    if name == "__get__":
        return "call_function", getattr, (encode(args[0]), func.__self__.__name__), {}  # type: ignore[attr-defined]
    encoded = tuple(encode(arg) for arg in args), encode(kwargs)
    if not is_tensor_method_or_property(func):
        return "call_function", func, *encoded
    if hasattr(operator, name) and name.startswith("__"):
        return "call_function", getattr(operator, name), *encoded
    return "call_method", name, *encoded


def _attributes(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensor attributes with their paths; the first path of tied."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        tables = (module._parameters, module._buffers, vars(module))
        for name, value in (item for table in tables for item in table.items()):
            if isinstance(value, Tensor):
                path = f"{prefix}.{name}" if prefix else name
                found.setdefault(id(value), (path, value))
    return list(found.values())
