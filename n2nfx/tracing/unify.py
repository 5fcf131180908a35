"""Several runs of one forward, made one graph: generic in the batch, right in train and eval.

The same forward is recorded in both modes at two batch sizes. The tapes must agree step by step.
Where a number differs with the batch it becomes `a * batch + c`; where a value differs with the
mode it becomes a switch that looks at `training`; where a number differs with the input's size, and
two other sizes were recorded, it becomes the size of an earlier value. No symbolic shapes are
needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod
from typing import Any, Literal

from n2nfx.errors import CannotOperate
from n2nfx.tracing.example import Growth
from n2nfx.tracing.tape import Built, Entry, Inner, InputDevice, Ref, Seen, Spec, Tape


@dataclass(frozen=True)
class Run:
    """How a tape was recorded: in which mode, with how many examples, and at which size."""

    training: bool
    batch: int
    grown: Growth = ()


@dataclass(frozen=True)
class BatchNumber:
    """A number that depends on the batch: `factor * batch + offset`."""

    factor: int
    offset: int


@dataclass(frozen=True)
class SizeNumber:
    """A number that depends on an input's size: that of dimensions of a value, multiplied."""

    ref: Ref
    dimensions: tuple[int, ...]


@dataclass(frozen=True)
class Switched:
    """A value that depends on the mode."""

    train: Any
    eval: Any


class Runs(Sequence[Run]):
    """The runs of some tapes, and how many entries of them are known to be the same steps."""

    def __init__(self, tapes: Mapping[Run, Tape]) -> None:
        self._runs = list(tapes)
        self._tapes = list(tapes.values())
        self.known = 0
        # One other size could show a number by chance that is another one at the next.
        self.sized = len({run.grown for run in tapes}) > 2

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def size(self, numbers: Sequence[int]) -> SizeNumber | None:
        """Where the numbers of all runs stand in the shape of an earlier value, the last first."""
        if not self.sized:
            return None
        wanted = tuple(numbers)
        for width in (1, 2, 3):
            for index in reversed(range(self.known)):
                values = [tape.entries[index].value for tape in self._tapes]
                found = _find_size(values, wanted, width)
                if found is not None:
                    path, dimensions = found
                    return SizeNumber(Ref(index, path), dimensions)
        return None


def _find_size(
    values: Sequence[Any], wanted: tuple[int, ...], width: int
) -> tuple[tuple[Any, ...], tuple[int, ...]] | None:
    """Which neighbouring dimensions of a tensor among the values make the numbers, or None."""
    first = values[0]
    if isinstance(first, Spec):
        shapes = [value.shape for value in values]
        for start in range(len(first.shape) - width + 1):
            if tuple(prod(shape[start : start + width]) for shape in shapes) == wanted:
                return (), tuple(range(start, start + width))
        return None
    if isinstance(first, dict):
        keys = [key for key in first if all(key in value for value in values)]
    else:
        keys = range(min(map(len, values))) if isinstance(first, list) else ()
    for key in keys:
        found = _find_size([value[key] for value in values], wanted, width)
        if found is not None:
            return (key, *found[0]), found[1]
    return None


class Disagreement(Exception):
    """Two tapes differ in a way that no number or switch can bridge."""


class Confounded(Exception):
    """What comes of the mode may come of the batch: no size was recorded in both modes."""


class Parted(CannotOperate):
    """The runs differ in structure: because of the mode, or of the batch size.

    `scope` is the path of the module whose own forward does something else.
    """

    def __init__(self, cause: Literal["mode", "batch"], scope: str, how: str) -> None:
        self.cause, self.scope = cause, scope
        told = "the mode (train or eval)" if cause == "mode" else "the batch size"
        super().__init__(
            f"what forward does depends on {told}, and not by a whole number alone: {how}"
        )


def unify(tapes: Mapping[Run, Tape]) -> Tape:
    """One tape in which `BatchNumber` and `Switched` stand where the runs differ.

    Each tensor among the values has a pair of `Spec`: those of the smallest and of the largest
    batch, in evaluation if that was recorded. Raises `Parted` where the runs differ in structure,
    and `Confounded` where they may not be compared.
    """
    if _are_confounded(tapes):
        raise Confounded
    runs = Runs(tapes)
    one = Tape()
    # No tape ends before the others without a disagreement: the last entry of each is its output.
    for entries in zip(*(tape.entries for tape in tapes.values()), strict=False):
        try:
            one.write(_unify_entries(runs, entries))
            runs.known += 1
        except Disagreement as error:
            raise _parting(tapes, len(one.entries)) from error
    return one


def _are_confounded(tapes: Mapping[Run, Tape]) -> bool:
    """Whether some forward saw its sizes, and no batch size is there in all modes."""
    batches = [{run.batch for run in tapes if run.training is mode} for mode in (False, True)]
    known = not all(batches) or set.intersection(*batches)
    return not known and any(tape.asked for tape in tapes.values())


def _parting(tapes: Mapping[Run, Tape], index: int) -> Parted:
    """Where the runs part, and whether the batch or the mode parts them."""
    entries = {run: tape.entries[index] for run, tape in tapes.items()}
    modes = [[run for run in entries if run.training is training] for training in (False, True)]
    alone = [_meet({run: entries[run] for run in mode}) for mode in modes if mode]
    cause = "mode" if all(alone) and len(alone) == 2 else "batch"
    steps = list(dict.fromkeys(_step(entry) for entry in entries.values()))
    how = f"{steps[0]} gets other arguments" if len(steps) == 1 else f"next is {' or '.join(steps)}"
    return Parted(cause, _blamed(list(tapes.values()), index), how)


def _blamed(tapes: Sequence[Tape], index: int) -> str:
    """The innermost module that all runs entered, and that some are still in where they part."""
    scopes = [_path(tape.entries[index].scope) for tape in tapes]
    before = _path(tapes[0].entries[index - 1].scope)
    entered = [[name for at, name in tape.visits if at == index] for tape in tapes]
    candidates = [_shared(before, scope) for scope in scopes]
    candidates += [
        path
        for path in map(_path, _shared(*entered))
        if any(scope[: len(path)] == path for scope in scopes)
    ]
    return ".".join(max([_shared(*scopes), *candidates], key=len))


def _path(scope: str) -> list[str]:
    return scope.split(".") if scope else []


def _shared(*paths: Sequence[str]) -> list[str]:
    """What paths begin with alike."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return [column[0] for column in columns]


def _meet(entries: Mapping[Run, Entry]) -> bool:
    try:
        _unify_calls(Runs(dict.fromkeys(entries, Tape())), list(entries.values()))
    except Disagreement:
        return False
    return True


def _step(entry: Entry) -> str:
    name = getattr(entry.target, "__name__", str(entry.target))
    return f"{name} ({f'in {entry.scope}' if entry.scope else 'at the top of forward'})"


def _unify_entries(runs: Runs, entries: Sequence[Entry]) -> Entry:
    first = entries[0]
    args, kwargs = _unify_calls(runs, entries)
    value = _pair_specs(runs, [entry.value for entry in entries])
    seen = _unify_seen(runs, entries)
    others = [entry.value for run, entry in zip(runs, entries, strict=True) if run.grown]
    grown = _pair(*others[:2]) if runs.sized else None
    return Entry(first.op, first.target, args, kwargs, value, first.scope, seen, grown)


def _unify_seen(runs: Runs, entries: Sequence[Entry]) -> Seen | None:
    """What was seen in the first run, for one example, and the layers that only others call."""
    found: dict[str, list[Inner]] = {}
    touched: set[tuple[str, str]] = set()
    for run, entry in zip(runs, entries, strict=True):
        if entry.seen is None:
            return None
        calls: dict[str, list[Inner]] = {}
        for inner in replace(entry.seen, batch=run.batch).per_example().inner:
            calls.setdefault(inner.name, []).append(inner)
        found = {**calls, **found}
        touched |= entry.seen.touched
    first = entries[0].seen
    assert first is not None
    inner = tuple(call for calls in found.values() for call in calls)
    return Seen(inner, frozenset(touched), first.visits, runs[0].batch)


def _unify_calls(runs: Runs, entries: Sequence[Entry]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = entries[0]
    if any((entry.op, entry.target) != (first.op, first.target) for entry in entries):
        raise Disagreement
    args = _unify(runs, [entry.args for entry in entries])
    return args, _unify(runs, [entry.kwargs for entry in entries])


def _unify(runs: Runs, values: Sequence[Any]) -> Any:
    """One value for the values of all runs."""
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        return _bridge(runs, values)
    if isinstance(first, list | tuple):
        return _unify_sequences(runs, values)
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise Disagreement
        return {key: _unify(runs, [value[key] for value in values]) for key in first}
    if isinstance(first, Built):
        if any(value.type is not first.type for value in values):
            raise Disagreement
        return Built(first.type, *_unify(runs, [(value.args, value.kwargs) for value in values]))
    if isinstance(first, slice):
        ends = [(value.start, value.stop, value.step) for value in values]
        return slice(*_unify(runs, ends))
    if all(_same(value, first) for value in values):
        return first
    return _bridge(runs, values)


def _unify_sequences(runs: Runs, values: Sequence[Any]) -> Any:
    first = values[0]
    if any(len(value) != len(first) for value in values):
        raise Disagreement
    items = [_unify(runs, column) for column in zip(*values, strict=True)]
    if hasattr(first, "_fields"):
        return type(first)(*items)
    return items if isinstance(first, list) else tuple(items)


def _same(value: Any, other: Any) -> bool:
    return value == other or (value != value and other != other)  # NaN is the same as NaN


def _bridge(runs: Runs, values: Sequence[Any]) -> Any:
    """A number of the batch or the size, a switch of the mode, or a disagreement."""
    if not all(map(_is_constant, values)):
        raise Disagreement
    by_batch = _by({run.batch: [] for run in runs}, [run.batch for run in runs], values)
    by_mode = _by({run.training: [] for run in runs}, [run.training for run in runs], values)
    if all(type(value) is int for value in values) and _agree(by_batch):
        number = _line_through({batch: got[0] for batch, got in by_batch.items()})
        if number is not None:
            return number
    if _agree(by_mode) and len(by_mode) == 2:
        return Switched(train=by_mode[True][0], eval=by_mode[False][0])
    size = runs.size(values) if all(type(value) is int for value in values) else None
    if size is None:
        raise Disagreement
    return size


def _is_constant(value: Any) -> bool:
    """Whether a value is the same whatever the network is called with."""
    if isinstance(value, list | tuple):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(map(_is_constant, value.values()))
    if isinstance(value, slice):
        return all(map(_is_constant, (value.start, value.stop, value.step)))
    return not isinstance(value, Ref | InputDevice | Built)


def _line_through(points: Mapping[int, int]) -> BatchNumber | None:
    """The one `factor * batch + offset` that gives the number at every batch, or None."""
    (small, low), (large, high) = list(points.items())[:2]
    factor = (high - low) // (large - small)
    number = BatchNumber(factor, low - factor * small)
    fits = all(factor * batch + number.offset == value for batch, value in points.items())
    return number if fits else None


def _by(groups: dict[Any, list[Any]], keys: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    return groups


def _agree(groups: Mapping[Any, Sequence[Any]]) -> bool:
    return all(_same(value, group[0]) for group in groups.values() for value in group)


def _pair_specs(runs: Runs, values: Sequence[Any]) -> Any:
    """The specs of the smallest and the largest batch as a pair for each tensor."""
    evaluated = [i for i, run in enumerate(runs) if not (run.training or run.grown)]
    usable = evaluated or [index for index, run in enumerate(runs) if not run.grown]
    ordered = sorted(usable, key=lambda index: runs[index].batch)
    return _pair(values[ordered[0]], values[ordered[-1]])


def _pair(small: Any, large: Any) -> Any:
    if isinstance(small, Spec):
        return (small, large)
    if isinstance(small, dict):
        return {key: _pair(small[key], large[key]) for key in small}
    if isinstance(small, list):
        # An element that only one batch has is never used: its users would have parted.
        return [_pair(*both) for both in zip(small, large, strict=False)]
    return None
