"""Batches of data as a pruner needs them: checked against the network, and the loss over them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from n2nfx.errors import CannotOperate, UsageError, kinds
from n2nfx.network import InputSpec, Network, Probe
from n2nfx.precision import precision_of
from n2nfx.tracing.values import tensors

Loss: TypeAlias = Callable[[Any, Tensor], Tensor]

_NO_DATA = "; random, magnitude and expander need no data"  # and can prune whatever has layers


@dataclass(frozen=True, eq=False)
class Batch:
    """The network's inputs for some examples, on its device, and the targets for the loss."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.inputs[0].shape[0]


def batches_of(network: Network, probe: Probe, count: int, pruner: str) -> tuple[Batch, ...]:
    """The first `count` batches of a probe, checked, on the network's device.

    Raises `CannotOperate` where there are fewer, or where one does not fit the network.
    """
    if not probe.batches:
        raise CannotOperate(
            f"{pruner} needs a batch: batch=(inputs, targets) or --data NAME; random, magnitude, "
            "expander and synflow need none"
        )
    if len(probe.batches) < count:
        raise CannotOperate(
            f"{pruner} was asked to look at {count} batches and was given {len(probe.batches)}"
        )
    return tuple(_checked(network, batch) for batch in probe.batches[:count])


def _checked(network: Network, batch: Any) -> Batch:
    match batch:
        case (inputs, Tensor() as targets) if (given := _tensors(inputs)) is not None:
            inputs = inputs_of(network, given)
            return Batch(inputs, targets.to(inputs[0].device))
    raise UsageError(
        f"a batch is (inputs, targets), both of them tensors, not {kinds(batch)}{_NO_DATA}"
    )


def inputs_of(network: Network, given: object) -> tuple[Tensor, ...]:
    """A network's inputs for some examples, as it takes them, on its device.

    They are given as one tensor, or as a tuple or a list with one for each input. Raises
    `UsageError` for what is no tensor, and `CannotOperate` where one does not fit the network.
    """
    found = _tensors(given)
    if found is None:
        raise UsageError(f"inputs are a tensor, or one for each input, not {kinds(given)}")
    if len(found) != len(network.inputs):
        raise CannotOperate(f"the network has {len(network.inputs)} inputs, the batch {len(found)}")
    for tensor, spec in zip(found, network.inputs, strict=True):
        _check_input(tensor, spec)
    device, precision = next(network.module.parameters()).device, precision_of(network.module)
    return tuple(
        one.detach().to(device, precision if one.is_floating_point() else None) for one in found
    )


def _tensors(given: object) -> tuple[Tensor, ...] | None:
    """The tensors that are given, one or several, or None where there is anything else."""
    listed = given if isinstance(given, tuple | list) else [given]
    found = tuple(one for one in listed if isinstance(one, Tensor))
    return found if len(found) == len(listed) else None


def _check_input(tensor: Tensor, spec: InputSpec) -> None:
    if tensor.shape[1:] != torch.Size(spec.shape[1:]) or tensor.ndim != len(spec.shape):
        raise CannotOperate(
            f"the batch's {spec.name} is {_by(tensor.shape)}, the network was traced with "
            f"{_by(spec.shape)}; trace it with the data's shape (--input on the command line)"
        )
    if not len(tensor):
        raise CannotOperate(f"the batch's {spec.name} has no example")
    if tensor.is_floating_point() != spec.torch_dtype.is_floating_point:
        told = str(tensor.dtype).removeprefix("torch.")
        raise CannotOperate(f"the batch's {spec.name} is {told}, the network takes {spec.dtype}")
    if not torch.isfinite(tensor).all():
        raise CannotOperate(f"the batch's {spec.name} has values that are NaN or infinite")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def cross_entropy(temperature: float = 1.0) -> Loss:
    """Cross entropy of the logits over `temperature`.

    The logits are the network's output, or the first tensor in it; the targets are labels, or
    probabilities of the logits' shape. Calling it raises `CannotOperate` for targets that do not
    fit, and for what detectors give.
    """

    def loss(output: Any, targets: Tensor) -> Tensor:
        if isinstance(output, list) and any(isinstance(found, Mapping) for found in output):
            raise CannotOperate(
                "cross entropy needs scores of classes, and the network gives a list of dicts with "
                "what it found, as detectors do: give a loss of your own over that (loss= in "
                f"Python){_NO_DATA}"
            )
        logits = next(tensors(output), None)
        if logits is None:
            raise CannotOperate("the network's output has no tensor to take the loss of")
        return functional.cross_entropy(logits / temperature, _targets(logits, targets))

    return loss


def _targets(logits: Tensor, targets: Tensor) -> Tensor:
    """The targets as cross entropy takes them."""
    if logits.ndim < 2:
        raise CannotOperate(
            f"cross entropy needs a score for every class, the output is {_by(logits.shape)}; "
            "give a loss of your own"
        )
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise CannotOperate(
                f"the targets are {_by(targets.shape)} and not whole numbers, so they should be "
                f"probabilities of the output's shape {_by(logits.shape)}"
            )
        return targets
    expected = (logits.shape[0], *logits.shape[2:])
    if targets.shape != torch.Size(expected):
        raise CannotOperate(
            f"the targets are {_by(targets.shape)}, for an output of {_by(logits.shape)} they "
            f"must be {_by(expected)}"
        )
    low, high, classes = int(targets.min()), int(targets.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise CannotOperate(
            f"the labels run from {low} to {high}, and the network's {classes} classes from 0 to "
            f"{classes - 1}; build it with the data's number of classes (num_classes)"
        )
    return targets.long()
