"""Recipes of connectivity: F, adjacency and alpha of trained networks, as the paper has them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sweep_samples
from click.testing import CliRunner, Result

import n2nfx
from n2nfx import recipe
from n2nfx.cli import main
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.paper.order import Figure
from n2nfx.paper.printed import Place, table3
from n2nfx.paper.table3 import Cell
from n2nfx.recipe import Recipe, Run
from n2nfx.training import connectivity, runs

# Vectors have no channels to be last: that this changes nothing is seen on the way.
SMALL = (
    "matrix.data=fashion-mnist-sample", "training.epochs=1", "training.images=32",
    "training.batch_size=16", "training.channels_last=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fig. 3's networks, trained for two steps."""
    out = tmp_path_factory.mktemp("runs")
    for run in recipe.read("fig3", SMALL).runs:
        runs.run(run.spec, out / run.spec.name)
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """A copy of them, to change."""
    return shutil.copytree(trained, tmp_path / "runs")


def report(out: Path, *arguments: str, name: str = "fig3") -> Result:
    result = CliRunner().invoke(main, ["recipe", "report", name, *arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return result


def cells(out: Path) -> dict[str, Any]:
    told = json.loads(report(out, *SMALL, "--json").stdout)
    return {cell["method"]: cell for cell in told["cells"]}


def graph(run: Run, out: Path) -> ChannelGraph:
    return n2nfx.channel_graph(n2nfx.load(out / run.spec.name / "network"))


def test_a_report_compares_what_runs_became_with_their_reference(out: Path) -> None:
    dense, pruned, _ = recipe.read("fig3", SMALL).runs
    found = cells(out)
    for convention in ("reference", "degree"):
        own = n2nfx.compare(graph(dense, out), graph(pruned, out), convention)
        assert found["RP"][f"F_{convention}_5"] == own.frobenius[own.tau.index(5.0)] > 0
        assert found["RP"][f"saturation_time_{convention}"] == own.saturation_time_ratio
    assert found["RP"]["F_infinity"] == 0
    assert found["RP"]["components"] == 1
    assert found["RP"]["nnz"] == found["N2NSkip-RP"]["nnz"] == found["RP"]["edges"]
    assert "F_reference_5" not in found["Baseline"]
    shown = report(out, *SMALL).stdout
    assert f"ref 5: {found['RP']['F_reference_5']:.1e}" in shown
    assert "ref 5: " in report(out, *SMALL, "--format", "markdown").stdout
    head = report(out, *SMALL, "--format", "csv").stdout.splitlines()[0]
    assert "F_degree_20,F_degree_20_std" in head


def test_a_comparison_is_made_once_for_two_networks(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, loaded = cells(out), []
    monkeypatch.setattr(connectivity, "load", lambda folder, model: loaded.append(folder))
    assert cells(out) == found
    assert loaded == []
    monkeypatch.undo()
    dense, pruned, skips = (out / run.spec.name for run in recipe.read("fig3", SMALL).runs)
    (pruned / "connectivity.json").write_text('{"schema": "n2nfx.run-connectivity/1"}')
    assert cells(out) == found
    for file in (skips / "MANIFEST.sha256", dense / "MANIFEST.sha256"):  # another network
        before = [(one / "connectivity.json").read_bytes() for one in (pruned, skips)]
        file.write_text(file.read_text() + "\n")
        assert cells(out) == found
        after = [(one / "connectivity.json").read_bytes() for one in (pruned, skips)]
        assert before[1] != after[1]
        assert (before[0] == after[0]) == (file.parent == skips)


def test_what_cannot_be_compared_is_told_and_stops_no_other(out: Path) -> None:
    _, pruned, _ = recipe.read("fig3", SMALL).runs
    weights = out / pruned.spec.name / "network" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    told = report(out, *SMALL)
    assert f"{pruned.spec.name}: cannot be compared: " in told.stdout
    found = cells(out)
    assert "F_reference_5" not in found["RP"]
    assert found["N2NSkip-RP"]["F_reference_5"] > 0


def test_without_a_trained_reference_there_is_no_distance(out: Path) -> None:
    dense, *_ = recipe.read("fig3", SMALL).runs
    shutil.rmtree(out / dense.spec.name)
    shown = report(out, *SMALL).stdout
    assert shown.count("no trained reference yet") == 2
    assert "1 missing" in shown


@pytest.mark.parametrize("figure", ["adjacency", "alpha"])
def test_figures_are_drawn_of_trained_networks(out: Path, tmp_path: Path, figure: str) -> None:
    file = tmp_path / "figure.svg"
    report(out, *SMALL, f"figure={figure}", "--figure", str(file))
    text = file.read_text()
    assert text.count("<!-- RP, 20%") == text.count("<!-- N2NSkip-RP, 20%") == 1
    empty = ["recipe", "report", "fig3", f"figure={figure}", "--out", str(tmp_path)]
    assert CliRunner().invoke(main, [*empty, "--figure", str(file)]).exit_code == 3


# --- beside what is printed --------------------------------------------------------------------


def as_printed(found: Recipe, out: Path, reverse: bool) -> None:
    """Runs of Table 3, and comparisons that say just what is printed there, or its opposite."""
    references = {run.cell.model: run for run in found.runs if run.cell.density is None}
    for run in found.runs:
        folder = out / run.spec.name
        folder.mkdir(parents=True)
        sweep_samples.finish(
            folder, final_accuracy=90.0, best_accuracy=91.0, final_loss=0.1, nnz=1, size=2
        )
    for run in found.runs:
        if run.cell.density is not None:
            name = run.cell.model.removeprefix("n2nfx:").removesuffix("_cifar")
            place = Place(name, run.cell.method.lower(), run.cell.density)
            value = table3()[place]
            reading = {"reference 1": Figure(1 / value if reverse else value)}
            times = {"reference 1": (0.5, 0.5), "degree 1": (0.25, 0.75)}
            cell = Cell(place, reading, times, {}, 1, 1, 1, 0, None, None, None)
            connectivity._Kept.of(run, references[run.cell.model], out).write(cell)


@pytest.mark.parametrize("reverse", [False, True])
def test_table_3_stands_beside_the_printed_one(tmp_path: Path, reverse: bool) -> None:
    as_printed(recipe.read("table3", ["matrix.seeds=0"]), tmp_path, reverse)
    shown = report(tmp_path, "matrix.seeds=0", name="table3").stdout
    assert shown.count("paper: ") == 32 + 1
    assert "paper: 2.8e-06" in shown
    assert shown.count("ref 1 0/8 0/24 0/24" if reverse else "ref 1 8/8 24/24 24/24") == 2
    assert "ref 1 is t = 0.5, deg 1 of the reference t = 0.25" in shown
    told = json.loads(report(tmp_path, "matrix.seeds=0", "--json", name="table3").stdout)
    printed = {cell["paper_F"] for cell in told["cells"] if "paper_F" in cell}
    assert printed == set(table3().values())


def test_nothing_is_printed_for_other_data_or_other_tables() -> None:
    (cell, *_) = (c for c in recipe.read("table3").cells if c.density == 0.02)
    assert connectivity.distance("table3", cell) == 6.5
    for other in ({"data": "fashion-mnist"}, {"density": 0.03}, {"method": "X"}, {"model": "m"}):
        assert connectivity.distance("table3", type(cell)(**{**cell.__dict__, **other})) is None
    assert connectivity.distance("", cell) is None


@pytest.mark.parametrize(("kind", "name", "near"), [
    ("connectivity", "table1", "table3"), ("accuracy", "table3", "table1"),
])  # fmt: skip
def test_what_is_printed_is_of_the_kind_of_the_table(kind: str, name: str, near: str) -> None:
    asked = ["recipe", "validate", "table1", f"table={kind}", f"paper={name}"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    told = result.stderr.partition(f"no printed values '{name}' of {kind}; did you mean ")[2]
    assert near in told
