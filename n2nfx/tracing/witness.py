"""What a module does that is kept whole: which layers it calls, and what it uses besides."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from n2nfx.tracing.tape import Inner
from n2nfx.tracing.values import tensors
from n2nfx.tracing.weights import is_weighted


class Witness(TorchFunctionMode):
    """Watches one call of a module, on fake or on real tensors, and changes nothing.

    `calls` are those of torch's own layers inside, where a mask can act; `touched` are the
    names of parameters that anything else used directly, where none can.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self.calls: list[Inner] = []
        self.touched: set[str] = set()
        self._prefix = f"{path}." if path else ""
        self._module = module
        self._names = {id(p): self._prefix + name for name, p in module.named_parameters()}
        self._in_layers = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            self.see((args, kwargs))
        return func(*args, **(kwargs or {}))

    def see(self, arguments: Any) -> None:
        """Note the parameters among the arguments of a call that no layer makes."""
        if not self._in_layers:
            known = (self._names.get(id(tensor)) for tensor in tensors(arguments))
            self.touched.update(name for name in known if name is not None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is done meanwhile."""
        handles = [
            handle
            for name, layer in self._module.named_modules()
            if is_weighted(layer)
            for handle in self._watch(self._prefix + name if name else self._prefix[:-1], layer)
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, path: str, layer: nn.Module) -> Sequence[Any]:
        def enter(*_: Any) -> None:
            self._in_layers += 1

        def leave(layer: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            self._in_layers -= 1
            read = next(tensors(args), result)
            self.calls.append(Inner(path, tuple(read.shape), tuple(result.shape)))

        return layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)
