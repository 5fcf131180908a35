"""Records a model's forward as it runs on fake tensors; model code never sees a proxy.

A torch-function mode sees every torch call and the model's modules are taught to report
themselves, so Python's control flow, `isinstance`, `len` and `int` work as they always do:
only what touched a tensor is written down. The model recorded is always a fake copy, so nothing
that happens to it (buffers, caches, hooks) happens to the user's.

A module whose forward cannot be written down is one call of the graph: it is kept whole.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from n2nfx.errors import CannotOperate
from n2nfx.tracing.constants import ASKED
from n2nfx.tracing.devices import RealDevice
from n2nfx.tracing.foreign import foreign_calls_report, grad_mode_matters
from n2nfx.tracing.inventory import Inventory
from n2nfx.tracing.scribe import Arguments, Scribe
from n2nfx.tracing.shapes import of_call, of_module
from n2nfx.tracing.tape import Op, Tape, is_inside
from n2nfx.tracing.values import tensors
from n2nfx.tracing.weights import Reporting
from n2nfx.tracing.witness import Witness

# Runs a module of the model on real tensors: its path, its arguments (fake), what to watch with.
Really = Callable[[str, Arguments, bool], tuple[Any, Witness]]


# What is known of a tensor of any size.
_SIZELESS = {
    *("dim", "ndim", "ndimension", "dtype", "device", "layout", "requires_grad", "__setitem__"),
    *("is_floating_point", "is_complex", "is_cuda", "is_mkldnn", "is_nested", "is_sparse"),
}

_is_method = cache(is_tensor_method_or_property)  # asking torch takes as long as many calls do

_NONE: Mapping[str, Any] = MappingProxyType({})


class KeepsState(CannotOperate):
    """Forward leaves something in a module, its `owner`, that a graph would not leave there."""

    def __init__(self, owner: str, reason: str) -> None:
        self.owner = owner
        super().__init__(reason)


class Altered(CannotOperate):
    """A layer is called otherwise than it is: who changed it, only the whole model's forward knows.

    A graph calls layers as they are, and so would the graph of whatever is inside that forward.
    """


@dataclass(frozen=True)
class Fault:
    """Where a forward stopped: the error, and the modules that it was in, outermost first."""

    error: Exception
    scope: tuple[str, ...]


class Recorder(TorchFunctionMode):
    """One run of a (fake) model, written on a tape. A recorder is used once.

    `inventory` is the model's as it is now. `wholes` are the paths of modules to keep whole, with
    the faults that are the reason; those that this run finds are added. `really` runs a module
    where fake tensors do not do; without it nothing new is kept whole, and what cannot be traced is
    an error. `device` is where the model really is, and what it is told where it asks. `altered`
    says what of a layer is not as it was when the run began.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Inventory,
        wholes: dict[str, Fault] | None = None,
        really: Really | None = None,
        device: RealDevice | None = None,
        altered: Callable[[nn.Module], str] | None = None,
    ) -> None:
        super().__init__()
        self.fault: Fault | None = None
        self._model = model
        self._inventory = inventory
        self._wholes = {} if wholes is None else wholes
        self._really = really
        self._altered = altered or (lambda module: "")
        self._paused = False
        self._witness: Witness | None = None
        self._device = device or RealDevice(torch.device("cpu"))
        self._kind = self._device.real.type
        self._may_autocast = torch.amp.is_autocast_available(self._kind)
        self._autocast = False
        self._scribe = Scribe(inventory.tensors, self._device.real)
        self._met: list[Exception] = []

    def run(
        self, inputs: Mapping[str, Any], by_name: bool = False, defaults: Mapping[str, Any] = _NONE
    ) -> Tape:
        """Run the model's forward on fake inputs, given in order or by name, and give the tape.

        Those with `defaults` may be left out when the graph is called. Where the run fails,
        `fault` says in which module.
        """
        self._autocast = self._autocasts()
        for name, value in inputs.items():
            default = (defaults[name],) if name in defaults else ()
            self._scribe.write("placeholder", name, default, {}, value)
        try:
            with self._modules_report(), self._calls_unseen_report(), self:
                result = self._model(**inputs) if by_name else self._model(*inputs.values())
            self._scribe.write("output", "output", (self._scribe.encode(result),), {}, None)
            self._refuse_replaced()
        except Exception as error:
            self._note(error)
            raise
        return self._scribe.tape

    def _note(self, error: Exception) -> None:
        """Remember where an error came from; on its way up it is the same error."""
        if self.fault is None or self.fault.error is not error:
            self.fault = Fault(error, tuple(self._scribe.scope))

    def _refuse_replaced(self) -> None:
        """A graph assigns nothing, so what forward assigned would not be there at its next call.

        Only where that matters: a cache, neither saved nor read before it is made anew, does not.
        """
        for name, tensor in self._inventory.tensors:
            matters = id(tensor) in self._inventory.saved or self._scribe.has_read(tensor)
            if not matters or operator.attrgetter(name)(self._model) is tensor:
                continue
            if not any(is_inside(name, whole) for whole in self._wholes):
                raise KeepsState(
                    name.rpartition(".")[0],
                    f"it puts another tensor in the place of {name}, which a graph cannot: "
                    f"change it in place ({name}.copy_(...))",
                )

    # What torch calls become.

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            return self._torch_call(func, args, dict(kwargs or {}))
        except Exception as error:
            self._met.append(error)  # model code gets to see it, and may catch it
            raise

    def _torch_call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = getattr(func, "__name__", "")
        if self._paused:
            return self._call(func, name, args, kwargs)
        if func is torch.nn.functional.multi_head_attention_forward:
            return self._through_attention(func, args, kwargs)
        self._refuse_contexts()
        if name in ASKED and (constant := self._scribe.constant(args[0])) is not None:
            self._scribe.tape.asked = True  # the answer may depend on a size
            with torch._C.DisableTorchFunction():
                return func(constant, *args[1:], **kwargs)
        result = self._call(func, name, args, kwargs)
        if name == "__set__":
            attribute = getattr(getattr(func, "__self__", None), "__name__", "an attribute")
            raise CannotOperate(f"assigning to the tensor attribute .{attribute} cannot be traced")
        if name == "register_hook":
            raise CannotOperate("a hook on a tensor cannot be traced, its graph would not have it")
        if not isinstance(result, Tensor) and _asked_for(func, name) not in _SIZELESS:
            self._scribe.tape.asked = True  # for a number, or for several tensors: how many?
        if name == "__setitem__" or any(True for _ in tensors(result)):
            result = self._scribe.own(result)
            self._scribe.write(*_call(func, name, args, kwargs, self._scribe.encode), result)
        return result

    def _call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a call of torch gives, nothing written down."""
        result = of_call(func, args, kwargs) if self._shapes_do() else None
        return self._device.call(func, name, args, kwargs) if result is None else result

    def _shapes_do(self) -> bool:
        """Whether the shape of a result is all there is to it."""
        return self._device.quick and is_grad_enabled() and not self._autocast

    def _refuse_contexts(self) -> None:
        """A graph has no contexts, so what one does to the calls inside would be lost."""
        if torch.is_inference_mode_enabled():
            raise CannotOperate("torch.inference_mode inside forward cannot be traced")
        if self._autocasts() != self._autocast:
            raise CannotOperate(
                "torch.autocast inside forward cannot be traced; put it around the model"
            )

    def _autocasts(self) -> bool:
        return self._may_autocast and torch.is_autocast_enabled(self._kind)

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
            encoded = self._scribe.encode(args), self._scribe.encode(kwargs)
            with self._pause():
                result = self._scribe.own(call(*args, **kwargs))
            self._scribe.write("call_function", target, *encoded, result)
        return result

    @contextmanager
    def _calls_unseen_report(self) -> Iterator[None]:
        with foreign_calls_report(self._foreign), grad_mode_matters(self._refuse_to_tell):
            yield

    def _refuse_to_tell(self, what: str) -> None:
        """Whether gradients are enabled is known when the graph runs, and not before."""
        if not self._paused:
            told = f"it {what}, and a graph would keep what that gave while it was traced"
            self._met.append(CannotOperate(told))
            raise self._met[-1]

    # What module calls become.

    @contextmanager
    def _modules_report(self) -> Iterator[None]:
        """Let every module of the model report its own calls while it runs."""
        for name, module in self._inventory.modules:
            report = Reporting(self._forward, module, name, module.forward)
            report.own = vars(module).get("forward")
            vars(module)["forward"] = report
        try:
            yield
        finally:
            for _, module in self._inventory.modules:
                own = vars(module).pop("forward").own
                if own is not None:
                    vars(module)["forward"] = own

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
        self._scribe.scope.append(name)  # stays there when the call fails, to say where it did
        try:
            if name in self._wholes:
                result = self._keep_whole(module, name, forward, (args, kwargs))
            elif name and id(module) in self._inventory.leaves:
                result = self._call_leaf(module, name, forward, (args, kwargs))
            else:
                result = self._go_through(module, name, forward, (args, kwargs))
        except Exception as error:
            self._met.append(error)
            raise
        self._scribe.scope.pop()
        return result

    def _call_leaf(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> Any:
        """A module that is one call of the graph, as most of torch's own are."""
        if altered := self._altered(module):
            raise Altered(
                f"forward changes {altered} of {name} and calls it so, which no graph does"
            )
        with torch._C.DisableTorchFunction():
            self._refuse_contexts()
            encoded = self._scribe.encode(arguments[0]), self._scribe.encode(arguments[1])
            result = of_module(module, *arguments) if self._shapes_do() else None
        if result is None:
            with self._pause():
                result = forward(*arguments[0], **arguments[1])
        with torch._C.DisableTorchFunction():
            if not getattr(module, "inplace", False):
                result = self._scribe.own(result)
            self._scribe.write_call(name, encoded, result)
            if not is_grad_enabled() and _learns(module):
                self._scribe.detach(result)
        return result

    def _go_through(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> Any:
        """A module that is traced through, or kept whole where that fails."""
        mark, met = self._scribe.mark(), len(self._met)
        self._scribe.tape.visits.append((mark.entries, name))
        try:
            result = forward(*arguments[0], **arguments[1])
            if len(self._met) > met:
                raise self._met[met]  # caught by model code: on real tensors there may be none
            return result
        except Exception as error:
            self._note(error)
            if not name or self._really is None or isinstance(error, Altered):
                raise
            fault = self.fault
            self._scribe.go_back(mark)
            try:
                result = self._keep_whole(module, name, forward, arguments)
            except Exception:
                self.fault = fault
                raise error from None  # the first is the one that says why
            assert fault is not None
            self._wholes[name] = fault
            del self._met[met:]
            return result

    def _keep_whole(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> Any:
        """One call of the graph, however much happens inside."""
        with torch._C.DisableTorchFunction():
            encoded = self._scribe.encode(arguments[0]), self._scribe.encode(arguments[1])
        with self._pause():
            result, witness = self._watched(module, name, forward, arguments)
        with torch._C.DisableTorchFunction():
            if not any(True for _ in tensors(result)):
                raise CannotOperate(f"{name} gives no tensor")
            result = self._scribe.own(result)
            self._scribe.write_call(name, encoded, result, witness)
            if not is_grad_enabled() and _learns(module):
                self._scribe.detach(result)
        return result

    def _watched(
        self, module: nn.Module, name: str, forward: Callable[..., Any], arguments: Arguments
    ) -> tuple[Any, Witness]:
        """What a module gives, on fake tensors or else on real ones, and what it did."""
        self._witness, met = Witness(module, name), len(self._met)
        try:
            with self._witness.watching():
                result = forward(*arguments[0], **arguments[1])
            if len(self._met) > met:
                raise self._met[met]
            return result, self._witness
        except Exception:
            if self._really is None:
                raise
            del self._met[met:]
            return self._really(name, arguments, module.training)
        finally:
            self._witness = None


def _asked_for(func: Callable[..., Any], name: str) -> str:
    """The name of an attribute of a tensor that is read, or of a function that is called."""
    return func.__self__.__name__ if name == "__get__" else name  # type: ignore[attr-defined]


def _learns(module: nn.Module) -> bool:
    """Whether a module has weights that get a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def _call(
    func: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    encode: Callable[[Any], Any],
) -> tuple[Op, Any, tuple[Any, ...], dict[str, Any]]:
    """The call as an fx node would make it."""
    if name == "__get__":
        return "call_function", getattr, (encode(args[0]), _asked_for(func, name)), {}
    encoded = tuple(encode(arg) for arg in args), encode(kwargs)
    if not _is_method(func):
        return "call_function", func, *encoded
    if hasattr(operator, name) and name.startswith("__"):
        return "call_function", getattr(operator, name), *encoded
    return "call_method", name, *encoded
