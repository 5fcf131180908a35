"""A pass as one line of text, and the list of passes that such a line can name."""

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import n2nfx.passes
from n2nfx.errors import UsageError
from n2nfx.registry import passes
from n2nfx.spec import from_text, to_text

LIBRARY = [getattr(n2nfx.passes, name) for name in n2nfx.passes.__all__]

# What an argument of each type may be, near enough to what passes take that most can be built.
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    float: st.floats(0, 1),
    int: st.integers(1, 9),
    tuple[int, ...]: st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
}


def value_of(hint: Any) -> st.SearchStrategy[Any]:
    if hint in VALUES:
        return VALUES[hint]
    choices = getattr(hint, "__args__", ())
    for number in (int, float):
        if number in choices:
            others = (value_of(other) for other in choices if other is not number)
            return st.one_of(VALUES[number], *others)
    return st.from_type(hint)


@st.composite
def operations(draw: st.DrawFn, cls: type[Any]) -> Any:
    hints = get_type_hints(cls)
    for _ in range(8):
        arguments = {field.name: draw(value_of(hints[field.name])) for field in fields(cls)}
        with suppress(UsageError):  # two arguments that do not go together
            return cls(**arguments)
    assume(False)


@pytest.mark.parametrize("cls", LIBRARY)
@settings(deadline=None)
@given(data=st.data())
def test_every_pass_of_the_library_comes_back_from_its_text(
    cls: type[Any], data: st.DataObject
) -> None:
    operation = data.draw(operations(cls))
    text = to_text(operation)
    back = from_text(text, passes())
    assert back == operation
    assert to_text(back) == text


@dataclass(frozen=True)
class Toy:
    """A pass as another package might write it."""

    name: ClassVar[str] = "toy-pass"
    keeps: ClassVar[frozenset[str]] = frozenset()

    ratio: float
    hops: tuple[int, ...] = (3,)
    kind: Literal["one", "two"] = "one"
    deep: bool = False
    label: str = "plain"


KNOWN = {"toy-pass": Toy, "random": n2nfx.passes.RandomPruning, "n2nskip": n2nfx.passes.N2NSkip}


def test_every_argument_is_written_those_at_their_default_too() -> None:
    assert to_text(Toy(0.1)) == "toy-pass{ratio=0.1 hops=3 kind=one deep=False label=plain}"


def test_a_list_is_written_as_a_tuple_is() -> None:
    hops: Any = [1, 2]
    assert from_text(to_text(Toy(0.1, hops)), KNOWN) == Toy(0.1, (1, 2))


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("toy-pass{ratio=0.5}", Toy(0.5)),
        ("  toy-pass {  hops=1,2   ratio=1e-3 }\n", Toy(1e-3, (1, 2))),
        ("toy-pass{kind=two deep=true ratio=1 label=a=b}", Toy(1.0, (3,), "two", True, "a=b")),
        ("random{density=0.02 floor=7}", n2nfx.passes.RandomPruning(0.02, floor=7)),
        ("random{density=0.02 floor=channels}", n2nfx.passes.RandomPruning(0.02)),
    ],
)
def test_a_line_written_by_hand_is_read(text: str, operation: object) -> None:
    assert from_text(text, KNOWN) == operation


def test_a_pass_without_arguments_needs_no_braces() -> None:
    stem = n2nfx.passes.SmallInputStem()
    assert from_text("small-input-stem", passes()) == stem
    assert from_text("small-input-stem{}", passes()) == stem


@given(st.floats(allow_nan=False))
def test_a_number_comes_back_to_its_last_bit(value: float) -> None:
    assert from_text(to_text(Toy(value)), KNOWN).ratio == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n2nskp{ratio=0.5}", ["no pass 'n2nskp'", "did you mean n2nskip?"]),
        ("zebra{}", ["no pass 'zebra'"]),
        ("toy-pass{ratoi=0.5}", ["toy-pass", "no argument 'ratoi'", "did you mean ratio?"]),
        ("toy-pass{name=x ratio=1}", ["toy-pass", "no argument 'name'"]),
        ("toy-pass{ratio=much}", ["toy-pass", "ratio=much", "number"]),
        ("toy-pass{ratio=0.5 hops=1,two}", ["toy-pass", "hops=1,two", "integer"]),
        ("toy-pass{ratio=0.5 hops=}", ["toy-pass", "hops=", "integer"]),
        ("toy-pass{ratio=0.5 kind=three}", ["toy-pass", "kind=three", "'one' or 'two'"]),
        ("toy-pass{ratio=0.5 deep=perhaps}", ["toy-pass", "deep=perhaps", "boolean"]),
        ("toy-pass{ratio=0.5 ratio=0.6}", ["toy-pass", "ratio", "twice"]),
        ("toy-pass{hops=1}", ["toy-pass needs ratio"]),
        ("toy-pass", ["toy-pass needs ratio"]),
        ("toy-pass{ratio}", ["'ratio'", "argument=value"]),
        ("toy-pass{ratio=0.5", ["'toy-pass{ratio=0.5'", "name{argument=value"]),
        ("toy-pass ratio=0.5", ["'toy-pass ratio=0.5'", "name{argument=value"]),
        ("toy-pass{{ratio=0.5}}", ["name{argument=value"]),
        ("", ["''", "name{argument=value"]),
        ("random{density=2}", ["density", "2.0"]),
        ("n2nskip{ratio=0.5 hops=0}", ["hops", "0"]),
    ],
)
def test_a_wrong_line_is_told_by_what_is_wrong_in_it(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        from_text(text, KNOWN)
    assert [word for word in words if word not in str(caught.value)] == []


PIECES = ["toy-pass", "{", "}", "ratio", "hops", "kind", "=", "0.5", "1,2", ",", "one", " ", "\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_a_pass_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        assert isinstance(from_text(text, KNOWN), Toy)


# The list of passes


def test_the_library_is_in_the_list_by_name() -> None:
    assert {passes()[cls.name] for cls in LIBRARY} == {*LIBRARY}


def install(folder: Path, distribution: str, line: str, code: str | None) -> None:
    """A package on the import path, with one entry point, as pip would leave it."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[n2nfx.passes]\n{line}\n")
    if code is not None:
        (folder / f"{distribution}.py").write_text(code)


PASS = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Freeze:
    name: ClassVar[str] = "freeze"
    keeps: ClassVar[frozenset[str]] = frozenset({"nnz"})
    share: float = 0.5

    def __call__(self, network, probe):
        return network
"""


def test_a_pass_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "cold_passes", "freeze = cold_passes:Freeze", PASS)
    monkeypatch.syspath_prepend(tmp_path)
    freeze = from_text("freeze{share=0.25}", passes())
    assert (type(freeze).__module__, freeze.share) == ("cold_passes", 0.25)


@pytest.mark.parametrize(
    ("package", "code", "why"),
    [
        ("absent_passes", None, "No module named 'absent_passes'"),
        ("empty_passes", "", "has no attribute 'Gone'"),
        ("torn_passes", "raise OSError('no licence')", "no licence"),
        ("nameless_passes", "class Gone: pass", "has no attribute 'name'"),
    ],
)
def test_a_broken_package_is_a_warning_that_names_it_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, code: str | None, why: str
) -> None:
    install(tmp_path, package, f"gone = {package}:Gone", code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=rf"gone \({package}:Gone\)") as told:
        known = passes()
    assert why in str(told[0].message)
    assert {cls.name for cls in LIBRARY} <= {*known}


def test_a_package_cannot_take_the_name_of_a_pass_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = PASS.replace('"freeze"', '"random"')
    install(tmp_path, "rude_passes", "random = rude_passes:Freeze", code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r"random \(rude_passes:Freeze\)"):
        known = passes()
    assert known["random"] is n2nfx.passes.RandomPruning
