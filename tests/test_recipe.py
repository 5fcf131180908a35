"""Recipes: what a file says, what overrides change, and what is told where one is wrong."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from n2nfx import recipe
from n2nfx.errors import UsageError
from n2nfx.recipe import Recipe, parse, read
from n2nfx.runspec import RunSpec, Training
from n2nfx.training.printed import printed

SHIPPED = list(recipe.shipped())

SMALL: dict[str, Any] = {
    "name": "small",
    "matrix": {"models": ["a", "b"], "data": ["d"], "densities": [0.1, 0.02], "seeds": [0, 1]},
    "methods": {"Dense": [], "RP": ["random{density=DENSITY}"]},
}


def small(**changes: Any) -> Recipe:
    return parse({**SMALL, **changes}, "small.toml")


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(data, "small.toml")
    return str(caught.value).splitlines()


# --- what is shipped ---------------------------------------------------------------------------


def test_these_recipes_are_shipped() -> None:
    names = "controls fashion-mnist fig3 fig4 fig5 fig6 modern pruners smoke table1 table2 table3"
    assert set(names.split()) == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_right_and_no_run_is_there_twice(name: str) -> None:
    found = read(name)
    assert found.title
    assert found.id.startswith(f"{name}-")
    assert len({run.cell for run in found.runs}) == len(found.cells)
    assert len(found.runs) == len(found.cells) * len(found.matrix.seeds)


@pytest.mark.parametrize(
    ("name", "cells", "runs"),
    [("table1", 52, 156), ("table2", 13, 39), ("table3", 34, 102), ("fashion-mnist", 66, 198)],
)
def test_the_tables_have_as_many_cells_as_the_papers(name: str, cells: int, runs: int) -> None:
    found = read(name)
    assert (len(found.cells), len(found.runs)) == (cells, runs)


def test_table_1_is_trained_as_the_paper_says() -> None:
    assert read("table1").training == Training()
    assert read("table1").training.model_dump(include={"epochs", "lr", "batch_size"}) == {
        "epochs": 300, "lr": 0.05, "batch_size": 128
    }  # fmt: skip


@pytest.mark.parametrize("name", ["table3", "fig4", "fig5", "fig6"])
def test_the_others_share_their_runs_with_table_1(name: str) -> None:
    table, other = ({run.spec.name for run in read(n).runs} for n in ("table1", name))
    own = [r for r in read(name).runs if "ResSkip" in r.cell.method or r.cell.density == 0.5]
    assert other - table == {run.spec.name for run in own}


# --- runs --------------------------------------------------------------------------------------


def test_runs_are_seed_major_and_a_dense_network_is_run_once() -> None:
    runs = small().runs
    assert [run.spec.seed for run in runs] == [0] * 6 + [1] * 6
    assert [run.cell for run in runs[:6]] == [run.cell for run in runs[6:]]
    assert [(run.cell.model, run.cell.method, run.cell.density) for run in runs[:6]] == [
        ("a", "Dense", None), ("a", "RP", 0.1), ("a", "RP", 0.02),
        ("b", "Dense", None), ("b", "RP", 0.1), ("b", "RP", 0.02),
    ]  # fmt: skip


def test_what_methods_have_in_common_is_one_run() -> None:
    found = small(methods={"Dense": [], "Again": [], "RP": ["random{density=DENSITY}"]})
    assert len(found.runs) == 16
    assert found.distinct == tuple(run for run in found.runs if run.cell.method != "Again")


def test_a_run_says_its_passes_with_the_density_in_them() -> None:
    assert small().runs[2].spec == RunSpec(
        model="a", data="d", passes=("random{density=0.02}",), seed=0
    )


def test_only_the_word_itself_is_the_density() -> None:
    found = small(methods={"X": ["p{a=DENSITY b=DENSITYS}"]})
    assert found.runs[0].spec.passes == ("p{a=0.1 b=DENSITYS}",)


def test_names_do_not_change_with_what_is_at_its_default() -> None:
    plain, said = small(), small(training={"epochs": 300, "lr": 0.05})
    assert plain.id == said.id
    assert [run.spec.name for run in plain.runs] == [run.spec.name for run in said.runs]
    shown = {"title": "another", "paper": "table1", "figure": "curves", "table": "connectivity"}
    assert plain.id == small(**shown).id
    assert plain.id != small(training={"epochs": 299}).id


def test_an_edited_file_is_another_run_and_one_elsewhere_is_the_same(tmp_path: Path) -> None:
    def name(folder: str, text: str = "") -> str:
        file = tmp_path / folder / "net.py"
        file.parent.mkdir(exist_ok=True)
        if text:
            file.write_text(text)
        return small(matrix={**SMALL["matrix"], "models": [f"{file}:build"]}).runs[0].spec.name

    first = name("a", "build = 1")
    assert name("b", "build = 1") == first
    assert name("a", "build = 2") != first
    with pytest.raises(UsageError, match=r"there is no file .*net\.py"):
        name("c")


def test_a_whole_number_is_the_same_as_its_decimal_form() -> None:
    assert small(training={"lr": 1}).id == small(training={"lr": 1.0}).id


# --- overrides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        ("training.lr = 1e-2", "training.lr", 0.01),
        ("training.schedule=cosine", "training.schedule", "cosine"),
        ("training.augment=false", "training.augment", False),
        ("matrix.seeds=5", "matrix.seeds", (5,)),
        ("matrix.seeds=5,6", "matrix.seeds", (5, 6)),
        ("matrix.densities=[0.5]", "matrix.densities", (0.5,)),
        ("matrix.densities=0.5, 1", "matrix.densities", (0.5, 1.0)),
        ("matrix.models=n2nfx:mlp", "matrix.models", ("n2nfx:mlp",)),
        ("matrix.methods=RP,CSP", "matrix.methods", ("RP", "CSP")),
        ("methods.Mine=['a', 'b{x=DENSITY}']", "methods.Mine", ("a", "b{x=DENSITY}")),
        ('methods."Eq. 2"=["a"]', "methods.Eq. 2", ("a",)),
        ("title=Half = half", "title", "Half = half"),
    ],
)
def test_an_override_stands_for_what_the_file_says(text: str, path: str, value: object) -> None:
    found = read("table1", [text])
    table, _, key = path.partition(".")
    own = getattr(found, table)
    assert (own if not key else own[key] if isinstance(own, dict) else getattr(own, key)) == value
    assert len(found.methods) == 5 + (table == "methods")


def test_later_overrides_win() -> None:
    assert read("table1", ["training.epochs=3", "training.epochs=4"]).training.epochs == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training.epochs", "is not key=value"),
        ("=3", "is not key=value"),
        ("a b=3", "'a b' is no key"),
        ("training=3", "training: should be"),
        ("training.epochs=many", "training.epochs: should be a valid integer (got 'many')"),
        ("training.epochs=3.0", "training.epochs: should be a valid integer (got 3.0)"),
        ("training.epochs=true", "training.epochs: should be a valid integer (got True)"),
        ("training.lr=nan", "training.lr: should be a finite number"),
        ("matrix.seeds=-1", "matrix.seeds.0: should be greater than or equal to 0"),
        ("matrix.densities=0", "matrix.densities.0: should be greater than 0"),
        ("matrix.seeds=1,1", "matrix.seeds: 1 stands there twice"),
        ("matrix.models=[]", "matrix.models: "),
        ("epochs=3", "epochs: unknown key; did you mean training.epochs?"),
        (f"training.epochs={'1' * 5000}", "training.epochs: "),
        ("training.epoch=3", "training.epoch: unknown key; did you mean epochs?"),
        ("training.schedule=cosin", "step or cosine or one-cycle, not 'cosin'; did you mean cos"),
        ("matrix.methods=RPP", "matrix.methods: there is no method 'RPP'; did you mean RP?"),
        ("matrix.methods=rp", "matrix.methods: there is no method 'rp'; did you mean RP?"),
        (
            "training.warmup=301",
            "training.warmup: 301 epochs of warmup are more than all 300 of training",
        ),
    ],
)
def test_an_override_that_cannot_be_is_told_by_its_key(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read("table1", [text])
    assert told in str(caught.value)


def test_a_fault_is_told_with_the_override_that_brought_it_or_else_with_the_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(recipe.find("smoke").read_bytes() + b"lr_ = 3\nnesterov = true\n")
    overrides = [
        "traning.epochs=2", "matrix.seeds=-1", "matrix.seeds=-2", "training.momentum=0",
        "training.batch_size=4", "methods.RP=3",
    ]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        read(str(file), overrides)
    assert sorted(str(caught.value).splitlines()) == sorted([
        "traning.epochs=2: traning: unknown key; did you mean training?",
        "matrix.seeds=-2: matrix.seeds.0: should be greater than or equal to 0 (got -2)",
        "methods.RP=3: methods.RP: should be a valid list (got 3)",
        f"{file}: training.lr_: unknown key; did you mean lr?",
    ])  # fmt: skip
    with pytest.raises(UsageError, match=r"\Atraining.momentum=0: training: nesterov=true needs"):
        read("smoke", ["training.nesterov=true", "training.momentum=0", "training.epochs=3"])


# --- what is told ------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once_with_file_and_key() -> None:
    told = faults({
        "name": "x",
        "matrix": {"models": [], "data": ["d"], "densities": [1.5], "methods": ["RQ"], "seed": [1]},
        "methods": {"RP": ["random{density=DENSITY}"], "CSP": "snip"},
        "training": {"lr": "fast", "optimizer": "sdg", "epochs": 0},
    })  # fmt: skip
    keys = [line.split(": ")[1] for line in told]
    assert sorted(keys) == sorted([
        "matrix.models", "matrix.densities.0", "matrix.methods", "matrix.seed", "methods.CSP",
        "training.lr", "training.optimizer", "training.epochs",
    ])  # fmt: skip
    assert all(line.startswith("small.toml: ") for line in told)
    assert "matrix.seed: unknown key; did you mean seeds?" in "\n".join(told)


def test_what_is_missing_is_told() -> None:
    assert faults({"name": "x"}) == [
        "small.toml: matrix: is missing",
        "small.toml: methods: is missing",
    ]


def test_densities_are_asked_for_where_a_method_has_one() -> None:
    (line,) = faults({**SMALL, "matrix": {"models": ["a"], "data": ["d"]}})
    assert line == ("small.toml: matrix.densities: must name some, since methods speak of DENSITY")
    assert len(small(matrix={"models": ["a"], "data": ["d"]}, methods={"Dense": []}).runs) == 3


@pytest.mark.parametrize("methods", [["RP"], ["RP", "Other"]])
def test_a_distance_is_from_a_method_without_passes_that_is_run(methods: list[str]) -> None:
    assert small().reference == "Dense"
    three = {**SMALL["methods"], "Other": ["shuffle"]}
    data = {**SMALL, "methods": three, "table": "connectivity"}
    assert parse(data, "small.toml").reference == "Dense"
    (line,) = faults({**data, "matrix": {**SMALL["matrix"], "methods": methods}})
    assert line.startswith("small.toml: table: connectivity is a distance from a method without")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tabel1", "there is no recipe 'tabel1'; did you mean table1"),
        ("_paper", "there is no recipe '_paper'"),
        ("FOLDER/mine.toml", "there is no file"),
        ("FOLDER/minn.toml", "did you mean mine2.toml"),
        ("FOLDER/broken.toml", "is no TOML"),
        ("FOLDER/bytes.toml", "is no TOML"),
        ("FOLDER/twice.toml", "is no TOML"),
        ("FOLDER/deep.toml", "is no TOML"),
        ("FOLDER/long.toml", "is no TOML"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "mine2.toml").write_text("")
    (tmp_path / "broken.toml").write_text("a = ")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "twice.toml").write_text("a = 1\na = 2\n")
    (tmp_path / "long.toml").write_text("a = " + "1" * 5000)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(UsageError) as caught:
        read(name.replace("FOLDER", str(tmp_path)))
    assert told in str(caught.value)


def test_a_file_of_ones_own_is_read_and_named_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(recipe.find("table1").read_bytes())
    assert read(str(file)).name == "mine"
    assert [run.spec for run in read(str(file)).runs] == [run.spec for run in read("table1").runs]


def test_the_mark_that_some_editors_begin_a_file_with_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + recipe.find("table1").read_bytes())
    assert read(str(file), ["name=table1"]) == read("table1")


# --- anything at all ---------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["name", "matrix", "methods", "training", "models", "data", "seeds", "densities", "epochs",
     "lr", "schedule", "RP", "scoring_images", "paper", "table", "figure", "x", ""]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["random{density=DENSITY}", "n2nfx:mlp", "cosine", "connectivity"])
    | st.dates()
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda own: st.lists(own, max_size=3) | st.dictionaries(KEYS, own, max_size=5)
)


def outcome(make: Callable[[], Recipe]) -> Recipe | list[str]:
    """The recipe, or the lines that refuse it; anything else that is raised is a bug."""
    try:
        return make()
    except UsageError as error:
        return str(error).splitlines()


@settings(max_examples=150, deadline=None)
@given(data=st.dictionaries(KEYS, ANYTHING, max_size=6), base=st.booleans())
def test_whatever_a_file_says_it_is_a_recipe_or_refused(data: dict[str, Any], base: bool) -> None:
    found = outcome(lambda: parse({**SMALL, **data} if base else data, "any.toml"))
    if isinstance(found, list):
        assert found
        assert all(line.startswith("any.toml: ") for line in found)
    else:
        assert parse(json.loads(found.model_dump_json()), "again") == found
        assert len(found.runs) == len(found.cells) * len(found.matrix.seeds)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["training.epochs", "matrix.seeds", "methods.RP", "title", "a.b", ""])
            | st.text(max_size=5),
            st.text(max_size=12) | st.sampled_from(["[1,", "{", '"', "1", "[[[", "0x1", "1e999"]),
        ).map("=".join),
        max_size=3,
    )
)
def test_whatever_an_override_says_it_is_taken_or_refused(texts: Sequence[str]) -> None:
    assert outcome(lambda: read("table1", texts))


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 2000), put=st.binary(max_size=4))
def test_a_file_with_any_piece_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, put: bytes
) -> None:
    whole = recipe.find("table1").read_bytes()
    file = tmp_path_factory.mktemp("fuzz") / "any.toml"
    file.write_bytes(whole[:cut] + put + whole[cut + len(put) :])
    found = outcome(lambda: read(str(file)))
    assert found[0].startswith(str(file)) if isinstance(found, list) else found.runs


def test_a_wrong_item_is_told_without_what_follows_from_it() -> None:
    with pytest.raises(UsageError) as told:
        read("smoke", ["matrix.seeds=a,b"])
    lines = str(told.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["matrix.seeds.0", "matrix.seeds.1"]


def test_any_sign_stands_in_a_title() -> None:
    assert read("smoke", ["title=\N{GRINNING FACE} \x7f"]).title == "\N{GRINNING FACE} \x7f"


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "d.toml").mkdir()
    with pytest.raises(UsageError, match=r"d.toml is a folder"):
        read(str(tmp_path / "d.toml"))


def test_what_the_paper_prints_is_of_its_density_or_of_the_dense_network_alone() -> None:
    def values(*overrides: str) -> list[Any]:
        return [printed("table1", cell) for cell in read("table1", overrides).cells]

    assert values("matrix.methods=Baseline") != [None] * 4
    assert values("methods.RP=['random{density=0.3}']", "matrix.methods=RP") == [None] * 4
    dense = "methods.Baseline=['random{density=DENSITY}']"
    assert set(values(dense, "matrix.methods=Baseline")) == {None}


def test_nesterov_is_of_sgd() -> None:
    with pytest.raises(UsageError, match='nesterov=true is of optimizer="sgd"'):
        read("smoke", ["training.nesterov=true", "training.optimizer=adamw"])
