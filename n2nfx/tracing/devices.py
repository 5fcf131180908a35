"""The device that a model is told it is on, whatever its tensors are on while it is recorded.

Tensors without data (on torch's `meta` device) are the quickest to trace with. Model code must not
notice: it asks for a device to make tensors on, or branches on its kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils._device import _device_constructors

META = torch.device("meta")

_KINDS = {f"is_{kind}": kind for kind in ("cpu", "cuda", "meta", "mps", "xpu", "xla", "hpu")}


class Elsewhere(Exception):
    """A call asks for a tensor on another device than the model's, which only real ones can be."""


@dataclass(frozen=True)
class RealDevice:
    """Calls torch as on the device where the tensors are, which is the real one."""

    real: torch.device
    quick: ClassVar[bool] = False  # whether the shape of a result is all that is asked for

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a call gives; `name` is that of the function."""
        return func(*args, **kwargs)


@dataclass(frozen=True)
class MetaInstead(RealDevice):
    """Calls torch on the `meta` device, and answers as if it were the real one."""

    quick = True

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What a call gives; raises `Elsewhere` where it would be on a third device."""
        if name == "__get__":
            asked = func.__self__.__name__  # type: ignore[attr-defined]
            if asked == "device":
                return self.real
            if asked in _KINDS:
                return self.real.type == _KINDS[asked]
            return func(*args, **kwargs)
        if func in _device_constructors():
            kwargs = {**kwargs, "device": kwargs.get("device") or self.real}
        if name == "to":
            args = tuple(torch.device(arg) if isinstance(arg, str) else arg for arg in args)
        args = tuple(self._moved(value) for value in args)
        kwargs = {key: self._moved(value, key) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _moved(self, value: Any, key: str = "") -> Any:
        if key == "device" and value is not None:
            value = torch.device(value)
        if not isinstance(value, torch.device):
            return value
        if value != self.real:
            raise Elsewhere
        return META
