"""What one run of a model's forward did, as plain data: a list of entries that name each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import torch

Op = Literal["placeholder", "get_attr", "call_module", "call_function", "call_method", "output"]


@dataclass(frozen=True)
class Field:
    """An element that is reached by its name as an attribute, as those of a dataclass are."""

    name: str


@dataclass(frozen=True)
class Ref:
    """The value of entry `index` of the tape, or the element of it that `path` leads to."""

    index: int
    path: tuple[int | str | Field, ...] = ()


@dataclass(frozen=True)
class Built:
    """A value of a type that a graph has to call for: a dataclass, or an ordered mapping."""

    type: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class InputDevice:
    """The device of the first input, so that a traced model can move to another device."""


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor, without the tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Inner:
    """A call of a layer inside a module that is kept whole: no entry of the tape, but counted.

    `name` is the layer's path; the shapes have the batch, until the runs are unified.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    def per_example(self, batch: int) -> "Inner":
        """The call for one example, where it was made for `batch` of them."""
        shapes = ((s[0] // batch or 1, *s[1:]) for s in (self.reads, self.writes))
        return Inner(self.name, *shapes)


def is_inside(name: str, path: str) -> bool:
    """Whether a module or parameter is a module, or lies inside of it."""
    return not path or name == path or name.startswith(f"{path}.")


@dataclass(frozen=True)
class Visit:
    """A call of a module inside of one that is kept whole, a `Spec` in each tensor's place."""

    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What was seen of a module that is kept whole while it ran.

    `inner` are the layers that it called, `visits` its calls of larger modules inside, `touched`
    the parameters that it used otherwise, each with the path of the innermost of these modules
    that used it (its own where none did); all this for `batch` examples. `parts` are the modules
    inside that have graphs of their own, each with how many examples it gets for one.
    """

    inner: tuple[Inner, ...]
    touched: frozenset[tuple[str, str]]
    visits: tuple[Visit, ...] = field(compare=False)  # arguments can be anything
    batch: int = 1
    parts: Mapping[str, Fraction] = field(default_factory=dict)

    def per_example(self) -> "Seen":
        """The same, with the shapes of the layers' calls for one example."""
        return replace(self, inner=tuple(call.per_example(self.batch) for call in self.inner))

    @property
    def taken(self) -> frozenset[str]:
        """The parameters that something else than a layer or a part uses."""
        return frozenset(
            name
            for name, where in self.touched
            if not any(is_inside(where, part) for part in self.parts)
        )


@dataclass(frozen=True)
class Entry:
    """One step: tensors among the arguments are `Ref`s; `value` has a `Spec` for each tensor.

    `scope` is the path of the innermost module that the step was taken in. `seen` is there for a
    module that is kept whole, and None for every other step. `grown` is the value at two
    other sizes, where the graph follows its input's.
    """

    op: Op
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    scope: str
    seen: Seen | None = None
    grown: Any = None


@dataclass
class Tape:
    """All entries of one run, in order.

    `visits` are the modules that were traced through, each with the number of entries before it.
    `asked` says whether forward was told something that a size can have a part in; if it was not,
    it does the same at every size.
    """

    entries: list[Entry] = field(default_factory=list)
    visits: list[tuple[int, str]] = field(default_factory=list)
    asked: bool = False

    def write(self, entry: Entry) -> Ref:
        """Append an entry and give the reference to its value."""
        self.entries.append(entry)
        return Ref(len(self.entries) - 1)
