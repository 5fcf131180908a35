"""What one run of a model's forward did, as plain data: a list of entries that name each other."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Op = Literal["placeholder", "get_attr", "call_module", "call_function", "call_method", "output"]


@dataclass(frozen=True)
class Ref:
    """The value of entry `index` of the tape, or the element of it that `path` leads to."""

    index: int
    path: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class InputDevice:
    """The device of the first input, so that a traced model can move to another device."""


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor, without the tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Entry:
    """One step: tensors among the arguments are `Ref`s; `value` has a `Spec` for each tensor.

    `scope` is the path of the innermost module that the step was taken in.
    """

    op: Op
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    scope: str


@dataclass
class Tape:
    """All entries of one run, in order."""

    entries: list[Entry] = field(default_factory=list)

    def write(self, entry: Entry) -> Ref:
        """Append an entry and give the reference to its value."""
        self.entries.append(entry)
        return Ref(len(self.entries) - 1)
