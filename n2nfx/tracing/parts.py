"""The parts of a module that is kept whole: the largest modules inside that can be graphs.

What calls them stays Python, and so do their names: a part is put where its module was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import nn

from n2nfx.graphmodule import WHOLE_MODEL, join
from n2nfx.tracing.leaves import is_opaque
from n2nfx.tracing.tape import Seen, Tape, Visit
from n2nfx.tracing.values import specs_in

# Makes a graph of a module with a path, by the calls of it that were seen; None where that fails.
Make = Callable[[str, nn.Module, Sequence[Visit]], nn.Module | None]


def with_parts(model: nn.Module, tape: Tape, make: Make) -> Tape:
    """A tape whose modules that are kept whole know their parts, which are put into the model."""
    entries = [
        replace(entry, seen=_with_parts(model, entry.target, entry.seen, make))
        if entry.seen is not None
        else entry
        for entry in tape.entries
    ]
    return Tape(entries, tape.visits)


def _with_parts(model: nn.Module, target: str, seen: Seen, make: Make) -> Seen:
    path = "" if target == WHOLE_MODEL else target
    visits: dict[str, list[Visit]] = {}
    for visit in seen.visits:
        visits.setdefault(visit.path, []).append(visit)
    inside = _Inside(model, visits, make)
    inside.look(model.get_submodule(path), path)
    return replace(seen, parts={part: _examples(visits[part], seen.batch) for part in inside.found})


def _examples(visits: Iterable[Visit], batch: int) -> Fraction:
    """How many examples a part gets for one of the model's."""
    firsts = (next(specs_in((visit.args, visit.kwargs))) for visit in visits)
    return Fraction(sum(spec.shape[0] for spec in firsts), batch)


class _Inside:
    """Looks for parts from the outside in; the calls are those of each module by its path."""

    def __init__(self, model: nn.Module, visits: Mapping[str, Sequence[Visit]], make: Make) -> None:
        self.found: list[str] = []
        self._model = model
        self._visits = visits
        self._make = make
        self._held = set(_held_besides(model))

    def look(self, module: nn.Module, path: str) -> None:
        """Make the largest modules inside of one graphs, as far as they can be."""
        for name, child in list(module.named_children()):
            at = join(path, name)
            if not (is_opaque(child) or self._becomes_graph(at, child)):
                self.look(child, at)

    def _becomes_graph(self, path: str, child: nn.Module) -> bool:
        if path not in self._visits or id(child) in self._held:
            return False
        part = self._make(path, child, self._visits[path])
        if part is None:
            return False
        for module in self._model.modules():
            for name, other in module._modules.items():
                if other is child:
                    module._modules[name] = part
        self.found.append(path)
        return True


def _held_besides(model: nn.Module) -> Iterator[int]:
    """The ids of modules kept in attributes too, where no part would take their place."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name != "_modules":
                yield from _modules_in(value)


def _modules_in(value: Any) -> Iterator[int]:
    """The modules in a value, and those whose methods are."""
    owner = getattr(value, "__self__", value)
    if isinstance(owner, nn.Module):
        yield id(owner)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _modules_in(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _modules_in(item)
