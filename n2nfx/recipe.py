"""A recipe: a flat TOML file that spans runs over models, data, methods, densities and seeds.

Everything that is wrong with a file is said at once, each with its key. Passes, models and data
are texts here; whether there are such is checked higher up (`n2nfx.training.check`).
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator

from n2nfx import ownfile
from n2nfx.errors import UsageError, did_you_mean
from n2nfx.runspec import Part, RunSpec, Training, canonical, name_of

DENSITY = "DENSITY"
"""What stands for the density in the passes of a method."""

_SHOWN = ("name", "title", "paper", "table", "figure")  # what changes no run
_WORD = re.compile(rf"\b{DENSITY}\b")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED = re.compile(r"'([^']*)'")

Value = TypeVar("Value")


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"{', '.join(map(str, twice))} stands there twice")
    return values


Text = Annotated[str, Field(min_length=1)]
Distinct = AfterValidator(_distinct)


class Matrix(Part):
    """What the runs are spanned over; `methods` are all that the recipe has, unless some are named.

    A density is a share of the reference's weights, above 0 and at most 1.
    """

    models: Annotated[tuple[Text, ...], Field(min_length=1), Distinct]
    data: Annotated[tuple[Text, ...], Field(min_length=1), Distinct]
    methods: Annotated[tuple[Text, ...], Distinct] = ()
    densities: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Distinct] = ()
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Distinct
    ] = (0, 1, 2)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of a table: what it is of, whatever the seed; a dense network has no density."""

    model: str
    data: str
    method: str
    density: float | None


@dataclass(frozen=True)
class Run:
    """One run of a cell."""

    cell: Cell
    spec: RunSpec


class Recipe(Part):
    """A matrix of runs, and how they are trained and shown.

    A method is a list of passes as texts, with DENSITY where the density goes; one that has it
    nowhere is run once for each model and data set. `table` is what its numbers are: accuracies,
    or with `connectivity` also how far the trained networks' heat is from that of the method
    without passes. `paper` is the table of printed values to set beside. `figure` is what is drawn:
    accuracy by epoch (`curves`) or test error by density (`errors`); of the trained networks'
    channel graphs their `adjacency`, or `alpha` over time.
    """

    name: Text
    title: str = ""
    matrix: Matrix
    methods: Annotated[dict[Text, tuple[Text, ...]], Field(min_length=1)]
    scoring_images: Annotated[int, Field(ge=1)] = 256
    training: Training = Training()
    paper: str = ""
    table: Literal["accuracy", "connectivity"] = "accuracy"
    figure: Literal["none", "curves", "errors", "adjacency", "alpha"] = "none"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = list(_misfits(self.matrix.model_dump(), self.methods, self.table))
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @cached_property
    def id(self) -> str:
        """Name and hash of the canonical form, which what is only shown does not change."""
        return name_of([self.name], canonical(self, without=_SHOWN))

    @cached_property
    def reference(self) -> str | None:
        """The method that prunes nothing: the first one without passes."""
        return next((name for name in self._named if not self.methods[name]), None)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell once: by model, data, method and density, in the order of the file."""
        return tuple(
            Cell(model, data, method, density)
            for model, data, method in product(self.matrix.models, self.matrix.data, self._named)
            for density in self._densities(method)
        )

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every run, the first seed's first: a whole table is there after one seed."""
        return tuple(
            Run(cell, self._spec(cell, seed)) for seed in self.matrix.seeds for cell in self.cells
        )

    @cached_property
    def distinct(self) -> tuple[Run, ...]:
        """The runs of different names: what several methods have in common is run once."""
        first: dict[str, Run] = {}
        for run in self.runs:
            first.setdefault(run.spec.name, run)
        return tuple(first.values())

    @property
    def _named(self) -> tuple[str, ...]:
        """The methods that are run."""
        return self.matrix.methods or tuple(self.methods)

    def _densities(self, method: str) -> tuple[float | None, ...]:
        return self.matrix.densities if _has_density(self.methods[method]) else (None,)

    @cached_property
    def _files(self) -> dict[str, str]:
        """The SHA-256 of the files of one's own that models and data are in, by their names."""
        named = (*self.matrix.models, *self.matrix.data)
        return {name: ownfile.digest(name) for name in named if ownfile.is_file(name)}

    def _spec(self, cell: Cell, seed: int) -> RunSpec:
        return RunSpec(
            model=cell.model,
            data=cell.data,
            files=tuple(self._files[n] for n in (cell.model, cell.data) if n in self._files),
            passes=tuple(with_density(t, cell.density) for t in self.methods[cell.method]),
            seed=seed,
            scoring_images=self.scoring_images,
            training=self.training,
        )


def with_density(text: str, density: float | None) -> str:
    """A pass as a recipe has it, with the density in its place."""
    return _WORD.sub(repr(density), text)


def _has_density(passes: object) -> bool:
    return _is_list(passes) and any(_WORD.search(str(text)) for text in passes)


# --- files -------------------------------------------------------------------------------------


def shipped() -> dict[str, Traversable]:
    """The recipes of the package, by name."""
    found = files("n2nfx.recipes").iterdir()
    names = {one.name.removesuffix(".toml"): one for one in found if one.name.endswith(".toml")}
    return {name: names[name] for name in sorted(names) if not name.startswith("_")}


def find(name: str) -> Traversable:
    """The file of a recipe: one of the package's by name, or a path that ends in .toml.

    Raises `UsageError` where there is none.
    """
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise UsageError(
            f"there is no recipe {name!r}{did_you_mean(name, known)}; there is {', '.join(known)}, "
            "or a file.toml"
        )
    if not path.is_file():
        if path.is_dir():
            raise UsageError(f"{name} is a folder, not a recipe's file")
        near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.toml")])
        raise UsageError(f"there is no file {name}{near}")
    return path


def text_of(file: Traversable) -> str:
    """What stands in a file, without the mark that some editors begin UTF-8 with."""
    return file.read_bytes().decode("utf-8-sig")


def read(
    name: str,
    overrides: Sequence[str] = (),
    also: Callable[[Recipe], Iterable[str]] = lambda recipe: (),
) -> Recipe:
    """The recipe of that name or path, with `key=value` in place of what the file says.

    `also` finds what else is wrong with a recipe. Raises `UsageError` with everything that is
    wrong, a line each: the file or the override that brought it, key and what was meant.
    """
    file = find(name)
    try:
        data = tomllib.loads(text_of(file))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5000 digits
        raise UsageError(f"{file}: is no TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    steps = [(str(file), {"name": Path(file.name).stem, **data})]
    for text in overrides:
        steps.append((text, _merged(steps[-1][1], _override(text))))
    return _last(steps, also)


def parse(data: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that such data is; `source` is how errors call it."""
    return _last([(source, data)])


def _last(
    steps: Sequence[tuple[str, Mapping[str, Any]]],
    also: Callable[[Recipe], Iterable[str]] = lambda recipe: (),
) -> Recipe:
    """The recipe of the last step's data; what is wrong is told with the step that brought it."""
    made = _parsed(steps[-1][1], also)
    if isinstance(made, Recipe):
        return made
    brought: dict[str, str] = {}
    for source, data in steps:
        faults = _parsed(data, also)
        lines = [] if isinstance(faults, Recipe) else faults
        brought = {line: brought.get(line, source) for line in lines}
    raise UsageError("\n".join(f"{source}: {line}" for line, source in brought.items()))


def _parsed(data: Mapping[str, Any], also: Callable[[Recipe], Iterable[str]]) -> Recipe | list[str]:
    """The recipe that such data is, or all that is wrong with it, a line each."""
    try:
        made = Recipe.model_validate(_as_tuples(data), strict=True)
    except ValidationError as error:
        found = error.errors()
        lines = [line for one in found if not _follows(one, found) for line in _told(one)]
        parts = (data.get(key) for key in ("matrix", "methods", "table"))
        lines += _misfits(*parts)  # seen though others are wrong
        return list(dict.fromkeys([*lines, *_in_the_rest(data, found, also)]))
    return list(also(made)) or made


def _in_the_rest(
    data: Mapping[str, Any], found: Sequence[Any], also: Callable[[Recipe], Iterable[str]]
) -> Iterable[str]:
    """What else is wrong with a recipe but for the keys that are, if there is one without them."""
    wrong = {error["loc"][0] for error in found if error["loc"]}
    if not wrong & data.keys() or wrong & {"name", "matrix", "methods"}:
        return []
    rest = _parsed({key: value for key, value in data.items() if key not in wrong}, also)
    return [] if isinstance(rest, Recipe) else rest


def as_toml(recipe: Recipe, file: str) -> str:
    """The recipe as a file that is read as the same again: every key that it says.

    But for the name, where it is that of the `file` it was read from: a copy has its own file's.
    """
    without = {"name"} if recipe.name == Path(file).stem else None
    said = recipe.model_dump(mode="json", exclude_unset=True, exclude=without)
    tables = {key: value for key, value in said.items() if isinstance(value, dict)}
    lines = [_line(key, value) for key, value in said.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_line(key, value) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"{key if _BARE.fullmatch(key) else _text(key)} = {_text(value)}"


def _text(value: Any) -> str:
    """JSON for scalars and lists is TOML too, but for one sign that TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _as_tuples(value: Any) -> Any:
    """The same with tuples for lists, which is what strict validation takes."""
    match value:
        case list():
            return tuple(map(_as_tuples, value))
        case dict():
            return {key: _as_tuples(own) for key, own in value.items()}
        case _:
            return value


# --- overrides ---------------------------------------------------------------------------------


def _override(text: str) -> dict[str, Any]:
    """A `key=value` as nested data; the value is TOML, or else a text as it stands.

    In the matrix, values without brackets are those of a list: seeds=0,1.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{text!r} is not key=value, such as training.epochs=30")
    given = _toml(key, value) or _toml(key, _text(value.strip()))
    if given is None:
        raise UsageError(f"{key!r} is no key, such as training.epochs or matrix.seeds")
    spanned = given.get("matrix")
    if isinstance(spanned, dict):
        for name, own in spanned.items():
            if isinstance(own, str):
                spanned[name] = [_scalar(part.strip()) for part in own.split(",")]
            elif isinstance(own, int | float):
                spanned[name] = [own]
    return given


def _toml(key: str, value: str) -> dict[str, Any] | None:
    """A line of TOML, or None where it is none."""
    if "\n" in key + value:
        return None
    try:
        return tomllib.loads(f"{key} = {value}")
    except (ValueError, RecursionError):
        return None


def _scalar(text: str) -> Any:
    line = _toml("value", text)
    return text if line is None else line["value"]


def _merged(data: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The data with what is given in its place, table by table."""
    made = dict(data)
    for key, value in given.items():
        own = made.get(key)
        if isinstance(own, dict) and isinstance(value, dict):
            value = _merged(own, value)
        made[key] = value
    return made


# --- what is wrong, for a person ---------------------------------------------------------------


def _misfits(matrix: object, methods: object, table: object) -> Iterator[str]:
    """Where these do not fit together, as far as they are what they should be."""
    if not isinstance(matrix, dict) or not isinstance(methods, dict):
        return
    named = matrix.get("methods")
    named = [name for name in named if isinstance(name, str)] if _is_list(named) else []
    for name in named:
        if name not in methods:
            yield f"matrix.methods: there is no method {name!r}{did_you_mean(name, methods)}"
    if not matrix.get("densities") and any(map(_has_density, methods.values())):
        yield f"matrix.densities: must name some, since methods speak of {DENSITY}"
    if table == "connectivity" and all(methods.get(name) for name in named or methods):
        yield (
            "table: connectivity is a distance from a method without passes, which must be among "
            "those that are run: Baseline = []"
        )


def _is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def _follows(error: Any, found: Sequence[Any]) -> bool:
    """Whether a list is only told to be too short because of what is wrong with its items."""
    at = error["loc"]
    inside = any(one["loc"][: len(at)] == at and len(one["loc"]) > len(at) for one in found)
    return error["type"] == "too_short" and inside


def _told(error: Any) -> Iterator[str]:
    """One of pydantic's errors as lines: the key, what is wrong, the nearest right thing."""
    path = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            yield f"{path}: unknown key{_nearest_key(error['loc'])}"
        case "missing":
            yield f"{path}: is missing"
        case "value_error":
            reason = str(error["ctx"]["error"])
            yield from (f"{path}: {line}" if path else line for line in reason.splitlines())
        case "literal_error":
            known = _QUOTED.findall(error["ctx"]["expected"])
            near = did_you_mean(str(error["input"]), known)
            yield f"{path}: must be {' or '.join(known)}, not {error['input']!r}{near}"
        case _:
            reason = re.sub("[Tt]uple", "list", error["msg"].replace("Input should", "should"))
            yield f"{path}: {reason} (got {_shown(error['input'])})"


def _nearest_key(path: Sequence[int | str]) -> str:
    """What key was meant: one beside it, or one of that name elsewhere."""
    key = str(path[-1])
    known = list(_keys(Recipe))
    above = ".".join(map(str, path[:-1]))
    beside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == above]
    elsewhere = [name for name in known if name.rpartition(".")[2] == key]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return did_you_mean(key, beside)


def _keys(part: type[Part], above: str = "") -> Iterator[str]:
    """Every key there is, with dots."""
    for name, field in part.model_fields.items():
        yield f"{above}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
            yield from _keys(field.annotation, f"{above}{name}.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
