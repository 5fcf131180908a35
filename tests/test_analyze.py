"""`n2nfx analyze`: one graph, two, and a reference; what can be asked wrongly, and exit codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import n2nfx
from n2nfx.cli import main
from n2nfx.connectivity.eigenvalues import Eigenvalues, eigenvalues
from n2nfx.connectivity.graph import ChannelGraph, layered

NODES = 3072 + 512 + 256 + 128 + 64
SIZES = (4, 6, 5)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["analyze", *map(str, arguments)])


def data(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout, parse_constant=pytest.fail)  # no NaN, no Infinity


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of an MLP, half of it in skips, from weights of seed 3."""
    path = tmp_path_factory.mktemp("analyze") / "mlp"
    n2nfx.transform("n2nfx:mlp", density=0.2, skip_ratio=0.5, seed=3).save(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The files of two graphs of one network: all edges, and a half of them."""
    rng = np.random.default_rng(0)
    paths = tmp_path / "whole.npz", tmp_path / "half.npz"
    for path, share in zip(paths, (1.0, 0.5), strict=True):
        blocks = [
            (a, a + 1, (rng.random((SIZES[a + 1], SIZES[a])) < share) * 1.0) for a in range(2)
        ]
        layered(SIZES, blocks).save(path)
    return paths


def test_channels_without_any_edge_are_told(tmp_path: Path) -> None:
    blocks = [(0, 1, np.ones((6, 4))), (1, 2, np.zeros((5, 6)))]
    path = tmp_path / "zero.npz"
    graph = layered(SIZES, blocks)
    graph.save(path)
    (name,) = graph.edgeless
    assert name == graph.groups[2].name
    result = run(path)
    assert f"no edge at all at {name}, where weights that are all zero lead" in " ".join(
        result.output.split()
    )


def test_one_model_has_its_own_numbers() -> None:
    found = data("n2nfx:mlp", "--alpha", "none")
    assert found["schema"] == "n2nfx.analyze/1"
    assert found["comparisons"] == []
    (graph,) = found["graphs"]
    assert (graph["nodes"], graph["sources"], graph["components"]) == (NODES, 3072, 1)
    assert graph["edges"] == 3072 * 512 + 512 * 256 + 256 * 128 + 128 * 64
    assert (graph["density"], graph["effective_density"], graph["dead_channels"]) == (1, 1, 0)
    assert graph["smallest_nonzero"]["value"] > 0
    by_reference, by_degree = graph["heat"]
    assert (by_reference["convention"], by_degree["convention"]) == ("reference", "degree")
    np.testing.assert_allclose(
        np.array(by_reference["times"]) * graph["smallest_nonzero"]["value"], [0.1, 1, 5, 20]
    )
    np.testing.assert_allclose(np.array(by_degree["times"]) * graph["mean_degree"], [0.1, 1, 5, 20])
    assert (np.diff(by_reference["residual"]) <= 0).all()
    assert graph["alpha"] == []


def test_alpha_is_at_the_times_of_both_conventions(files: tuple[Path, Path]) -> None:
    whole, _ = files
    graph = n2nfx.load_graph(whole)
    (one,) = data(whole, "--k", "0.1,0.4")["graphs"]
    for heat, curve in zip(one["heat"], one["alpha"], strict=True):
        assert curve["times"] == heat["times"]
        expected = graph.scree([0.1, 0.4], heat["times"])
        np.testing.assert_allclose(curve["alpha"], expected.alpha)
        assert (curve["K"], curve["exact"], curve["low"]) == ([0.1, 0.4], True, curve["high"])


def test_an_estimated_alpha_has_its_interval(files: tuple[Path, Path]) -> None:
    (one,) = data(files[0], "--alpha", "slq", "--seed", "7")["graphs"]
    for curve in one["alpha"]:
        low, alpha, high = (np.array(curve[key]) for key in ("low", "alpha", "high"))
        assert ((low <= alpha) & (alpha <= high)).all()
        assert (curve["method"], curve["seed"]) == ("slq", 7)


def test_an_artifact_is_compared_with_the_model_it_came_from(artifact: Path) -> None:
    found = data(artifact, "--reference", "n2nfx:mlp", "--alpha", "none")
    reference, graph = found["graphs"]
    assert (reference["name"], graph["name"]) == ("n2nfx:mlp", str(artifact))
    assert graph["density"] == pytest.approx(0.2, abs=1e-6)
    assert graph["effective_density"] <= graph["density"]
    by_reference, by_degree = found["comparisons"]
    assert by_reference["times"] == by_reference["times_of_graph"]
    assert by_degree["times"] != by_degree["times_of_graph"]
    assert by_reference["bound"] == pytest.approx((2 * 3072) ** 0.5)
    for one in found["comparisons"]:
        assert all(0 < value < one["bound"] for value in one["frobenius"])
        assert max(one["certificate"]) < 1e-6
        assert one["saturation_time_ratio"] > 0


def test_the_reference_has_the_weights_that_the_artifact_was_pruned_from(artifact: Path) -> None:
    """Of seed 3: at density 1 nothing would be left of F."""
    by_default = data(artifact, "--reference", "n2nfx:mlp", "--alpha", "none")["graphs"][0]
    drawn = {
        seed: data("n2nfx:mlp", "--seed", seed, "--alpha", "none")["graphs"][0] for seed in (0, 3)
    }
    assert by_default["mean_degree"] == drawn[3]["mean_degree"] != drawn[0]["mean_degree"]


def test_of_two_the_first_is_the_reference(files: tuple[Path, Path]) -> None:
    whole, half = files
    found = data(whole, half, "--times", "0.5,2")
    (one,) = found["comparisons"]
    assert (one["reference"], one["graph"]) == (str(whole), str(half))
    assert (one["convention"], one["tau"], one["times"]) == ("absolute", [], [0.5, 2])
    again = n2nfx.compare(n2nfx.load_graph(whole), n2nfx.load_graph(half), [0.5, 2])
    assert one["frobenius"] == again.frobenius.tolist()


def test_the_matrix_variant_is_of_times_that_both_share(files: tuple[Path, Path]) -> None:
    whole, half = map(n2nfx.load_graph, files)
    by_reference, by_degree = data(*files, "--matrix", "--tau", "1,5")["comparisons"]
    expected = n2nfx.compare(whole, half, tau=(1, 5)).matrix()
    assert [one["value"] for one in by_reference["matrix"]] == [one.value for one in expected]
    assert by_degree["matrix"] == []
    assert "||H - H||" in run(*files, "--matrix").stdout


def test_with_a_reference_both_are_compared_with_it(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, half = files
    third = tmp_path / "third.npz"
    n2nfx.load_graph(half).save(third)
    found = data(half, third, "--reference", whole, "--time-convention", "degree")
    assert [(one["reference"], one["graph"]) for one in found["comparisons"]] == [
        (str(whole), str(half)), (str(whole), str(third)),
    ]  # fmt: skip
    assert {one["convention"] for one in found["comparisons"]} == {"degree"}


def test_tables_are_on_stdout_and_what_is_done_on_stderr(files: tuple[Path, Path]) -> None:
    result = run(*files, "--layers", "--k", "0.2,0.5")
    assert result.exit_code == 0, result.output
    for told in ("smallest nonzero eigenvalue", "infinity", "exact", "sqrt(2 * sources) = 2.828"):
        assert told in result.stdout
    assert "alpha 0.2 of graph" in result.stdout
    assert "heat of" not in result.stdout
    assert "heat of" in result.stderr


def test_what_is_in_different_pieces_is_said_to_be(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.npz"
    layered(SIZES, [(0, 1, np.ones((6, 4))), (1, 2, np.zeros((5, 6)))]).save(cut)
    result = run(files[0], cut)
    assert result.exit_code == 0, result.output
    assert "different numbers of pieces" in result.stdout
    nowhere = tmp_path / "nowhere.npz"
    layered(SIZES, [(0, 1, np.zeros((6, 4))), (1, 2, np.zeros((5, 6)))]).save(nowhere)
    found = data(files[0], nowhere, "--times", "1")
    assert found["comparisons"][0]["saturation_time_ratio"] == 0
    back = data(nowhere, files[0], "--times", "1")
    assert back["comparisons"][0]["saturation_time_ratio"] is None  # infinite
    assert found["graphs"][1]["smallest_nonzero"] is None


def test_pictures_and_graphs_are_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole, half = files
    picture, export = tmp_path / "all.png", tmp_path / "whole.graphml"
    found = data(whole, half, "--plot", picture, "--export", export)
    assert found["files"] == [str(export), str(picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = n2nfx.load_graph(export)
    np.testing.assert_array_equal(
        written.to_scipy().toarray(), n2nfx.load_graph(whole).to_scipy().toarray()
    )


def test_eigenvalues_are_found_once_for_all_that_is_told_of_a_graph(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clocks, a unit of time, a table and a picture, of which each needs them."""
    found: list[int] = []

    def counted(graph: ChannelGraph, *given: Any) -> Eigenvalues:
        found.append(graph.edges)
        return eigenvalues(graph, *given)

    def never(*given: Any) -> None:
        pytest.fail("the smallest is among those that are known")

    monkeypatch.setattr("n2nfx.cli.analysis.eigenvalues", counted)
    for room in ("cli.analysis", "connectivity.conventions"):
        monkeypatch.setattr(f"n2nfx.{room}.smallest_nonzero", never)
    told = data(*files, "--plot", tmp_path / "all.png")
    assert found == [graph["edges"] for graph in told["graphs"]]
    assert all(graph["smallest_nonzero"]["value"] > 0 for graph in told["graphs"])


def test_a_picture_of_a_graph_without_an_edge(tmp_path: Path) -> None:
    layered((2, 2), [(0, 1, np.zeros((2, 2)))]).save(tmp_path / "empty.npz")
    result = run(tmp_path / "empty.npz", "--times", "1", "--plot", tmp_path / "empty.svg")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "empty.svg").stat().st_size > 1_000
    assert run(tmp_path / "empty.npz").exit_code == 2  # there is no unit of time


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["resnet5"], 2, "did you mean"),
        (["{half}", "{half}"], 2, "given twice"),
        (["{half}", "--times=-1"], 2, "not negative"),
        (["{half}", "--times", "soon"], 2, "not numbers"),
        (["{half}", "--tau", "inf"], 2, "finite"),
        (["{half}", "--k", "1.5"], 2, "1.5"),
        (["{half}", "--k", "0"], 2, "0"),
        (["{half}", "--plot", "{folder}/all.pgn"], 2, "did you mean .png"),
        (["{half}", "--export", "{folder}/graph.npy"], 2, "did you mean .npz"),
        (["{half}", "--weight", "sum"], 2, "abs_sum"),
        (["{half}", "--weight", "abs_sum"], 2, "--weight says how the graph of a network is made"),
        (["{half}", "{other}", "--fold-norms"], 2, "half.npz is a graph already"),
        (["{half}", "{other}"], 2, "two different networks"),
        (["{folder}/missing.npz"], 4, "missing.npz"),
        (["{broken}"], 4, "broken.npz"),
        (["{folder}"], 4, "plan.json"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_computed(
    files: tuple[Path, Path],
    tmp_path: Path,
    arguments: list[str],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("n2nfx.cli.analysis.eigenvalues", lambda *given: pytest.fail("too early"))
    other, broken = tmp_path / "other.npz", tmp_path / "broken.npz"
    layered((2, 2), [(0, 1, np.ones((2, 2)))]).save(other)
    broken.write_bytes(b"no graph at all")
    names = {"half": files[1], "other": other, "broken": broken, "folder": tmp_path}
    result = run(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("option", ["tau", "times", "k"])
def test_numbers_that_cannot_be_are_refused_before_anything_is_built(option: str) -> None:
    result = run("no-such-model", f"--{option}", "-1")
    assert result.exit_code == 2
    assert "not -1" in result.stderr
    assert "no-such-model" not in result.stderr


def test_an_artifact_of_ones_own_model_asks_for_the_option_that_hands_it_in(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)), "
        "torch.ones(1, 6)\n"
    )
    n2nfx.transform(f"{net}:build", density=0.5).save(tmp_path / "out")
    result = run(tmp_path / "out")
    assert result.exit_code == 2
    assert f"was made from {net}:build, which must be handed in: --model" in result.stderr
    assert run(tmp_path / "out", "--model", f"{net}:build").exit_code == 0
