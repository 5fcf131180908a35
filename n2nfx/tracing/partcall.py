"""How a part of a model is called: seen once, and made again for other batches and sizes."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from n2nfx.tracing.example import MORE, Call, Growth, grown_shape, sizes
from n2nfx.tracing.kinds import kind_of
from n2nfx.tracing.tape import Spec, Visit
from n2nfx.tracing.values import specs_in, with_specs


@dataclass(frozen=True)
class PartCall:
    """What a part of a model is called with: by parameter, a `Spec` in the place of each tensor.

    The first dimension of the first tensor is the batch, and that of every other as long there.
    """

    arguments: Mapping[str, Any]
    defaults: Mapping[str, Any]
    device: torch.device
    by_name: bool = True

    @property
    def first(self) -> Spec:
        """The first tensor's."""
        return next(specs_in(self.arguments))

    def blanks(self, batch: int, grown: Growth, device: torch.device) -> dict[str, Any]:
        """Arguments by name, the tensors' values undefined, for a batch and a size."""
        # Those of different sizes (maps of several levels) stay different.
        order = {size: at for at, size in enumerate(dict.fromkeys(self._sizes(grown)))}

        def blank(spec: Spec) -> Tensor:
            more = 2 * order[_size(spec, grown)]
            shape = grown_shape(spec.shape, tuple((d, by + more) for d, by in grown))
            return torch.empty(shape, dtype=spec.dtype, device=device)

        return {name: with_specs(value, blank) for name, value in self.of(batch).items()}

    def of(self, batch: int) -> dict[str, Any]:
        """The arguments for a batch."""
        own = self.first.shape[:1]

        def resized(spec: Spec) -> Spec:
            return replace(spec, shape=(batch, *spec.shape[1:])) if spec.shape[:1] == own else spec

        return {name: with_specs(value, resized) for name, value in self.arguments.items()}

    def _sizes(self, grown: Growth) -> Iterator[tuple[int, ...]]:
        return (_size(spec, grown) for spec in specs_in(self.arguments))

    @property
    def growths(self) -> tuple[tuple[Growth, ...], ...]:
        """What a size can mean, the likeliest first: two other sizes for each.

        The second is all ones in binary, and odd however often it is halved and rounded down: there
        a stride parts from pooling that rounds down.
        """
        shape = self.first.shape
        meanings = sizes(len(shape), self.first.dtype)
        if len(shape) > 3:  # or the channels come last
            meanings = (*meanings, tuple(range(1, len(shape) - 1)))
        return tuple(
            (tuple(zip(dims, MORE, strict=False)), _to_ones(shape, dims)) for dims in meanings
        )


def _to_ones(shape: Sequence[int], dimensions: Sequence[int]) -> Growth:
    """Up to sizes that are all ones in binary, each dimension to its own."""
    bits, grown = 0, list[tuple[int, int]]()
    for dimension in dimensions:
        bits = max(bits, shape[dimension].bit_length()) + 1
        grown.append((dimension, 2**bits - 1 - shape[dimension]))
    return tuple(grown)


AnyCall = Call | PartCall


def _size(spec: Spec, grown: Growth) -> tuple[int, ...]:
    return tuple(spec.shape[dimension] for dimension, _ in grown if dimension < len(spec.shape))


def part_call(module: nn.Module, visits: Sequence[Visit], device: torch.device) -> PartCall | None:
    """How a part is called, by the calls that were seen; None where no graph could take these.

    They have to be of one kind: so many tensors in the same lists, of as many dimensions each.
    """
    bound = [_bound(module, visit) for visit in visits]
    first = bound[0] if bound else None
    if first is None or any(one is None or kind_of(one) != kind_of(first) for one in bound):
        return None
    spec = next(specs_in(first), None)
    if spec is None or not spec.shape:
        return None
    parameters = inspect.signature(module.forward).parameters
    defaults = {
        name: parameters[name].default for name in first if _is_plain(parameters[name].default)
    }
    return PartCall(first, defaults, device)


def _bound(module: nn.Module, visit: Visit) -> dict[str, Any] | None:
    """The arguments of a call by parameter; None where one is neither a tensor nor plain."""
    try:
        bound = inspect.signature(module.forward).bind(*visit.args, **visit.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    kinds = {name: p.kind for name, p in inspect.signature(module.forward).parameters.items()}
    found = dict(bound.arguments)
    for name in [name for name in found if kinds[name] not in named]:
        if found.pop(name):
            return None
    return found if all(map(_is_known, found.values())) else None


def _is_known(value: Any) -> bool:
    """Whether a value is made of tensors, plain constants, and lists and mappings of these."""
    if isinstance(value, list | tuple):
        return all(map(_is_known, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_known, value.values()))
    return isinstance(value, Spec) or _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
