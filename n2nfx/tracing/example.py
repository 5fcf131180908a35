"""What a model is called with: the example's tensors by name, and blanks of other sizes."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from n2nfx.errors import CannotOperate, did_you_mean
from n2nfx.network import InputSpec, blank_inputs

# Each input is a tensor, or a list of some where forward takes one, as detectors do.
Example = Tensor | Sequence[Any] | Mapping[str, Any]

# The dimensions in which an input is made larger, to see what depends on its size, and by how much.
Growth = tuple[tuple[int, int], ...]

# Odd numbers, so that strides leave remainders, and different ones, so that height is not width.
MORE = (37, 53, 19)


@dataclass(frozen=True)
class Call:
    """What a model is called with: its inputs, and where they are."""

    inputs: tuple[InputSpec, ...]
    device: torch.device

    @property
    def by_name(self) -> bool:
        """Whether the inputs go by name; all do, or none."""
        return self.inputs[0].by_name

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The inputs that may be left out: none."""
        return {}

    def blanks(self, batch: int, grown: Growth, device: torch.device) -> dict[str, Tensor]:
        """Inputs by name with undefined values, for a batch, at a size `grown` by so much."""
        inputs = [_larger(spec, grown) for spec in self.inputs]
        made = blank_inputs(inputs, batch, device)
        return {spec.name: blank for spec, blank in zip(inputs, made, strict=True)}

    @property
    def growths(self) -> tuple[tuple[Growth, ...], ...]:
        """What an input's size can mean, the likeliest first: one other size for each."""
        spec = self.inputs[0]
        meanings = sizes(len(spec.shape), spec.torch_dtype)
        return tuple((tuple(zip(dims, MORE, strict=False)),) for dims in meanings)


def sizes(rank: int, dtype: torch.dtype) -> tuple[tuple[int, ...], ...]:
    """Sets of dimensions that an input's size can mean, the likeliest first.

    Of maps all dimensions behind the channels; of a sequence the last one, or the one before
    where the channels come last; of whole numbers all but the batch.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return (tuple(range(1, rank)),) if rank > 1 else ()
    if rank == 3:
        return (2,), (1,)
    return (tuple(range(2, rank)),) if rank > 3 else ()


def _larger(spec: InputSpec, grown: Growth) -> InputSpec:
    return replace(spec, shape=grown_shape(spec.shape, grown))


def grown_shape(shape: Sequence[int], grown: Growth) -> tuple[int, ...]:
    """A shape, larger by so much in the dimensions that it has."""
    more = dict(grown)
    return tuple(size + more.get(dimension, 0) for dimension, size in enumerate(shape))


def named(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """The example's tensors by name, in the order forward takes them."""
    parameters = _parameters(model)
    if isinstance(example, Mapping):
        names = [p.name for p in parameters if p.name in example]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            names += [name for name in example if name not in names]
        _refuse_unknown(model, example, [*names, *(p.name for p in parameters)])
        found = {name: example[name] for name in names}
    else:
        if isinstance(example, list) and parameters and _takes_list(parameters[0]):
            example = (example,)
        tensors: list[Any] = list(example) if isinstance(example, list | tuple) else [example]
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        names += [f"input_{index}" for index in range(len(names), len(tensors))]
        found = dict(zip(names, tensors, strict=False))
    if not found:
        raise CannotOperate("an example input is needed to trace a model")
    known = {parameter.name: parameter for parameter in parameters}
    return {name: _as_tensor(name, value, known.get(name)) for name, value in found.items()}


def _as_tensor(name: str, value: Any, parameter: inspect.Parameter | None) -> Tensor:
    """An input as a tensor; `parameter` is the one of forward that takes it, if it has a name."""
    if isinstance(value, list) and parameter is not None and _takes_list(parameter):
        return _stacked(name, value)
    if isinstance(value, Tensor) and value.dim():
        return value
    kind = "a single number" if isinstance(value, Tensor) else type(value).__name__
    spare = parameter is not None and parameter.default is not parameter.empty
    raise CannotOperate(
        f"the example input {name} must be a tensor with a batch dimension, not {kind}"
        f"{'; it can be left out' if spare else ''}"
    )


def _takes_list(parameter: inspect.Parameter) -> bool:
    """Whether forward says that it takes a list, as detectors do of their pictures."""
    told = parameter.annotation
    name = told if isinstance(told, str) else str(getattr(told, "__origin__", told))
    return name.lower().removeprefix("typing.").startswith(("list", "<class 'list'>"))


def _stacked(name: str, tensors: Sequence[Any]) -> Tensor:
    """A list of tensors as one, whose elements such a forward finds as those of the list."""
    shapes = {one.shape if isinstance(one, Tensor) else () for one in tensors}
    if len(shapes) != 1 or () in shapes:
        raise CannotOperate(
            f"the example {name} must be tensors of one size; the network will take any"
        )
    return torch.stack(list(tensors))


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except ValueError as error:
        raise CannotOperate(
            f"the forward of {type(model).__name__} is not written in Python, so it has no trace"
        ) from error


def _refuse_unknown(model: nn.Module, example: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [str(name) for name in example if name not in known]
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise CannotOperate(
            f"forward of {type(model).__name__} takes no {', '.join(unknown)}{near}"
        )


def call_of(model: nn.Module, example: Example) -> Call:
    """How an example calls a model."""
    values, by_name = named(model, example), isinstance(example, Mapping)
    inputs = tuple(
        InputSpec(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), by_name)
        for name, value in values.items()
    )
    return Call(inputs, next(iter(values.values())).device)
