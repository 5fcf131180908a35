"""What a module does that is kept whole: what it calls inside, and what it uses besides."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from n2nfx.graphmodule import join
from n2nfx.tracing.leaves import is_larger
from n2nfx.tracing.tape import Inner, Seen, Visit
from n2nfx.tracing.values import as_specs, tensors
from n2nfx.tracing.weights import is_weighted


class Witness(TorchFunctionMode):
    """Watches one call of a module, on fake or on real tensors, and changes nothing.

    Seen are the calls of torch's own layers inside, where a mask can act, and of larger modules,
    which may have graphs of their own; and the parameters that anything else used directly.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self._calls: list[Inner] = []
        self._visits: list[Visit] = []
        self._touched: set[tuple[str, str]] = set()
        self._path = path
        self._module = module
        self._names = {id(p): join(path, name) for name, p in module.named_parameters()}
        self._in_layers = 0
        self._inside: list[str] = [path]

    def seen(self, batch: int = 1) -> Seen:
        """What was seen, where the module was called with `batch` examples."""
        return Seen(tuple(self._calls), frozenset(self._touched), tuple(self._visits), batch)

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
            self._touched.update((name, self._inside[-1]) for name in known if name is not None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is done meanwhile."""
        handles: list[Any] = []
        for name, inside in self._module.named_modules():
            if is_weighted(inside):
                handles += self._watch(join(self._path, name), inside)
            elif name and is_larger(inside):
                handles += self._follow(join(self._path, name), inside)
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
            self._calls.append(Inner(path, tuple(read.shape), tuple(result.shape)))

        return layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)

    def _follow(self, path: str, module: nn.Module) -> Sequence[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._visits.append(Visit(path, as_specs(args), as_specs(kwargs)))
            self._inside.append(path)

        def leave(*_: Any) -> None:
            self._inside.pop()

        return (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, always_call=True),
        )
