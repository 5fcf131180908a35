"""Records a model's forward as it runs on fake tensors; model code never sees a proxy.

A torch-function mode sees every torch call and the model's modules are taught to report
themselves, so Python's control flow, `isinstance`, `len` and `int` work as they always do:
only what touched a tensor is written down. The model recorded is always a fake copy, so nothing
that happens to it (buffers, caches, hooks) happens to the user's.
"""

import operator
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from n2nfx.errors import CannotOperate
from n2nfx.tracing.leaves import is_leaf
from n2nfx.tracing.tape import Entry, InputDevice, Op, Ref, Spec, Tape

_CONSTANTS = (
    int | float | complex | bool | str | bytes | torch.dtype | torch.layout | torch.memory_format
)


class Recorder(TorchFunctionMode):
    """One run of a (fake) model, written on a tape. A recorder is used once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tape = Tape()
        self.scope: list[str] = [""]
        self._model = model
        self._paused = False
        self._device = torch.device("cpu")
        self._autocast = False
        self._attributes = _attributes(model)
        # Tensors are known by identity; the list keeps them alive, so that no id is used twice.
        self._names = {id(tensor): name for name, tensor in self._attributes}
        self._versions = {id(tensor): tensor._version for _, tensor in self._attributes}
        self._refs: dict[int, Ref] = {}
        self._alive = [tensor for _, tensor in self._attributes]

    def run(self, inputs: Mapping[str, Tensor], by_name: bool = False) -> Tape:
        """Run the model's forward on fake inputs, given in order or by name, and give the tape."""
        self._device = next(iter(inputs.values())).device
        self._autocast = self._autocasts()
        for name, value in inputs.items():
            self._write("placeholder", name, (), {}, value)
        state = set(map(id, self._model.state_dict(keep_vars=True).values()))
        with self._modules_report(), _no_custom_function(), self:
            result = self._model(**inputs) if by_name else self._model(*inputs.values())
        self._write("output", "output", (self._encode(result),), {}, None)
        self._refuse_replaced(state)
        return self.tape

    def _refuse_replaced(self, state: Container[int]) -> None:
        """A graph assigns nothing, so what forward assigned would not be there at its next call.

        Only where that matters: a cache, neither saved nor read before it is made anew, does not.
        """
        for name, tensor in self._attributes:
            matters = id(tensor) in state or id(tensor) in self._refs
            if matters and operator.attrgetter(name)(self._model) is not tensor:
                raise CannotOperate(
                    f"it puts another tensor in the place of {name}, which a graph cannot: "
                    f"change it in place ({name}.copy_(...))"
                )

    # What torch calls become.

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._paused:
            return func(*args, **kwargs)
        if func is torch.nn.functional.multi_head_attention_forward:
            return self._through_attention(func, args, kwargs)
        self._refuse_contexts()
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__set__":
            attribute = getattr(getattr(func, "__self__", None), "__name__", "an attribute")
            raise CannotOperate(f"assigning to the tensor attribute .{attribute} cannot be traced")
        if name == "register_hook":
            raise CannotOperate("a hook on a tensor cannot be traced, its graph would not have it")
        if name == "__setitem__" or _has_tensor(result):
            result = self._own(result)
            self._write(*_call(func, name, args, kwargs, self._encode), result)
        return result

    def _refuse_contexts(self) -> None:
        """A graph has no contexts, so what one does to the calls inside would be lost."""
        if torch.is_inference_mode_enabled():
            raise CannotOperate("torch.inference_mode inside forward cannot be traced")
        if self._autocasts() != self._autocast:
            raise CannotOperate(
                "torch.autocast inside forward cannot be traced; put it around the model"
            )

    def _autocasts(self) -> bool:
        kind = self._device.type
        return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)

    def _refuse_without_gradient(self, *tensors: Tensor) -> None:
        if not torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise CannotOperate(
                "torch.no_grad inside forward cannot be traced: the graph would send gradients "
                "there; use .detach() on the result, or requires_grad_(False) on the weights"
            )

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

    def _forward(
        self, module: nn.Module, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self._paused:
            return forward(*args, **kwargs)
        self.scope.append(name)  # stays there when the call fails, to say where it did
        if not name or not is_leaf(module):
            result = forward(*args, **kwargs)
            self.scope.pop()
            return result
        with torch._C.DisableTorchFunction():  # what a leaf does inside is not for this mode
            encoded = self._encode(args), self._encode(kwargs)
            result = self._leaf(module, forward, args, kwargs)
            self.scope.pop()
            self._write("call_module", name, *encoded, result)
        return result

    def _leaf(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module that is one call of the graph."""
        self._refuse_contexts()
        self._refuse_without_gradient(*module.parameters())
        self._paused = True
        try:
            result = _normed(module, args) if not kwargs else None
            if result is None:
                result = forward(*args, **kwargs)
            if not getattr(module, "inplace", False):
                result = self._own(result)
        finally:
            self._paused = False
        return result

    # What tensors become.

    def _write(
        self, op: Op, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        entry = Entry(op, target, args, kwargs, _specs(result), self.scope[-1])
        self._bind(result, self.tape.write(entry))

    def _bind(self, result: Any, ref: Ref) -> None:
        """From now on the tensors of a result are known by this entry.

        An in-place call gives the tensor it changed, so later reads are of the changed value.
        """
        if isinstance(result, Tensor):
            self._refs[id(result)] = ref
            self._versions[id(result)] = result._version
            self._alive.append(result)
            return
        for key, item in _items(result):
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
            return InputDevice() if value == self._device else value
        if isinstance(value, slice):
            return slice(*(self._encode(end) for end in (value.start, value.stop, value.step)))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._encode(item) for item in value))
        if isinstance(value, list | tuple):
            return (list if isinstance(value, list) else tuple)(map(self._encode, value))
        if isinstance(value, Mapping):
            return {key: self._encode(item) for key, item in value.items()}
        raise CannotOperate(f"a {type(value).__name__} among the arguments cannot be traced")

    def _reference(self, tensor: Tensor) -> Ref:
        self._refuse_without_gradient(tensor)
        ref = self._refs.get(id(tensor))
        if ref is not None:
            return ref
        name = self._names.get(id(tensor))
        if name is None:
            raise CannotOperate(
                f"a tensor of shape {tuple(tensor.shape)} comes from outside the model: make it a "
                "buffer (register_buffer) or create it with torch inside forward"
            )
        self._write("get_attr", name, (), {}, tensor)
        return self._refs[id(tensor)]


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


def _normed(module: Any, args: tuple[Any, ...]) -> Tensor | None:
    """What a batch norm gives where no value counts: another tensor like its input.

    Running it would be a third of all tracing. None where it might do anything else.
    """
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or len(args) != 1:
        return None
    (value,) = args
    module._check_input_dim(value)
    fits = value.requires_grad and value.shape[1] == module.num_features
    return value.clone() if fits else None


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


def _items(value: Any) -> list[tuple[int | str, Any]]:
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return list(value.items()) if isinstance(value, Mapping) else []


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or any(_has_tensor(item) for _, item in _items(value))


def _specs(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Spec(tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        return {key: _specs(item) for key, item in value.items()}
    return [_specs(item) for _, item in _items(value)] if _items(value) else None


@contextmanager
def _no_custom_function() -> Iterator[None]:
    """Refuse a custom autograd function: its backward would be lost, as no mode sees `apply`."""

    def refuse(cls: type, *args: object, **kwargs: object) -> None:
        raise CannotOperate(f"the custom autograd function {cls.__name__} cannot be traced")

    original = torch.autograd.Function.__dict__["apply"]
    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
