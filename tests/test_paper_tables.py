"""The paper's tables and figures: what is printed, in what order, and the tool that runs it."""

import json
from pathlib import Path

import numpy as np
import paper_tables
import pytest

import n2nfx
from n2nfx.connectivity.graph import layered
from n2nfx.paper import printed, table3
from n2nfx.paper.figures import fig3, fig4
from n2nfx.paper.networks import Setting, drawn_batch, reference, trained, untrained
from n2nfx.paper.order import Agreement, Figure, agreement, agrees
from n2nfx.paper.printed import Place
from n2nfx.paper.table3 import Cell, Orders, orders, skips_stand_as_printed

PRINTED = printed.table3()


def cell(place: Place, value: float, error: float = 0.0) -> Cell:
    """A cell with one reading, its other numbers of no interest."""
    return Cell(
        place=place, figures={"reference 1": Figure(value, error)}, times={}, ratios={}, nodes=1,
        edges=0, components=1, unreached=0, dead_channels=None, density=None,
        effective_density=None,
    )  # fmt: skip


def test_the_paper_prints_32_cells() -> None:
    assert len(PRINTED) == 32
    assert PRINTED[Place("vgg19", "rp", 0.02)] == 6.5
    assert PRINTED[Place("resnet50", "n2nskip-csp", 0.5)] == 5.3e-6
    for network in ("vgg19", "resnet50"):
        for density in (0.5, 0.1, 0.05, 0.02):
            for pruning in ("rp", "csp"):
                with_skips = PRINTED[Place(network, f"n2nskip-{pruning}", density)]
                assert with_skips < PRINTED[Place(network, pruning, density)]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((Figure(1.0), Figure(2.0)), True),
        ((Figure(2.0), Figure(1.0)), False),
        ((Figure(1.0), Figure(1.0)), False),  # no order is no agreement
        ((Figure(1.0, 0.6), Figure(2.0, 0.6)), False),  # nor one that errors could turn round
        ((Figure(1.0, 0.4), Figure(2.0, 0.4)), True),
    ],
)
def test_two_numbers_stand_as_printed(ours: tuple[Figure, Figure], expected: bool) -> None:
    assert agrees((3e-6, 4e-3), ours) is expected
    assert agrees((4e-3, 3e-6), (ours[1], ours[0])) is expected


def test_agreement_counts_pairs_that_both_have() -> None:
    ours = {"a": Figure(1.0), "b": Figure(3.0), "c": Figure(2.0), "unknown": Figure(0.0)}
    assert agreement({"a": 10.0, "b": 20.0, "c": 30.0}, ours) == Agreement(2, 3)
    assert str(Agreement(2, 3)) == "2/3"


def test_a_table_that_is_the_printed_one_agrees_everywhere() -> None:
    cells = [cell(place, value) for place, value in PRINTED.items() if place.network == "vgg19"]
    assert orders(cells) == {
        "reference 1": Orders(Agreement(8, 8), Agreement(24, 24), Agreement(24, 24))
    }
    assert all(skips_stand_as_printed(one, cells) == ("reference 1",) for one in cells)


def test_a_table_turned_round_agrees_nowhere() -> None:
    cells = [cell(place, -value) for place, value in PRINTED.items() if place.network == "resnet50"]
    assert orders(cells) == {
        "reference 1": Orders(Agreement(0, 8), Agreement(0, 24), Agreement(0, 24))
    }
    assert not any(skips_stand_as_printed(one, cells) for one in cells)


def test_one_pair_of_twins_by_hand() -> None:
    places = [Place("vgg19", method, 0.1) for method in ("rp", "n2nskip-rp", "csp")]
    cells = [cell(place, value) for place, value in zip(places, (0.2, 0.1, 0.3), strict=True)]
    assert skips_stand_as_printed(cells[0], cells) == ("reference 1",)
    assert skips_stand_as_printed(cells[1], cells) == ("reference 1",)
    assert skips_stand_as_printed(cells[2], cells) == ()  # its twin is not there
    # printed at 10%: n2nskip-rp 4.9e-5 < csp 7.1e-5 < rp 4.2e-1
    assert orders(cells)["reference 1"] == Orders(Agreement(1, 1), Agreement(2, 3), Agreement(0, 0))


def test_cells_of_graphs_have_every_reading_and_come_back_from_json() -> None:
    rng = np.random.default_rng(0)
    sizes, pairs = (3, 6, 4), ((0, 1), (1, 2))
    dense, sparse = (
        layered(sizes, [(a, b, (rng.random((sizes[b], sizes[a])) < share) * 1.0) for a, b in pairs])
        for share in (1.0, 0.6)
    )
    pruned = [("rp", 0.5, sparse), ("n2nskip-rp", 0.5, dense)]
    one, same = table3.cells("vgg19", dense, pruned, tau=(1, 5))
    readings = ["reference 1", "reference 5", "degree 1", "degree 5", "infinity"]
    assert list(one.figures) == readings
    assert one.printed == 3.6e-3
    assert (one.nodes, one.edges) == (13, sparse.edges)
    found = n2nfx.compare(dense, sparse, "degree", tau=(1, 5))
    alone = found.frobenius[1], found.certificate[1]  # of a run for this clock only
    assert tuple(one.figures["degree 5"]) == pytest.approx(alone, rel=1e-9)
    assert one.times["degree 5"] == (found.times[1], found.times_of_graph[1])
    assert all(figure.value == 0 for figure in same.figures.values())
    assert Cell.from_data(json.loads(json.dumps(one.as_data()))) == one


def test_the_four_methods_spend_the_same_budget() -> None:
    dense = reference("vgg19", Setting())
    counts = {}
    for method, density, network in untrained(dense, Setting(), densities=(0.02,)):
        counts[method] = network.nnz
        assert density == 0.02
        assert bool(network.skips) == method.startswith("n2nskip")
        in_skips = sum(skip.nnz for skip in network.skips)
        assert in_skips == (round(network.nnz / 2) if network.skips else 0)
    assert set(counts) == {"rp", "n2nskip-rp", "csp", "n2nskip-csp"}
    assert set(counts.values()) == {round(0.02 * dense.size)}


def test_a_batch_is_drawn_the_same_again() -> None:
    (images, classes), again = drawn_batch(), drawn_batch()
    assert images.shape == (64, 3, 32, 32)
    assert classes.shape == (64,)
    assert images.equal(again[0])
    assert not images.equal(drawn_batch(1)[0])


def test_names_that_the_paper_does_not_have() -> None:
    with pytest.raises(n2nfx.UsageError, match="did you mean vgg19"):
        reference("vgg16", Setting())
    with pytest.raises(n2nfx.UsageError, match="did you mean csp"):
        Setting().steps("cps", 0.5)


def test_figure_3_has_the_mlp_whole_and_twice_at_a_fifth() -> None:
    found = fig3()
    n = 3072 + 512 + 256 + 128 + 64
    assert [graph.n for graph in found.values()] == [n] * 3
    whole, pruned, skips = (graph.edges for graph in found.values())
    assert whole == 3072 * 512 + 512 * 256 + 256 * 128 + 128 * 64
    assert pruned == skips == round(0.2 * whole)


def test_figure_4_has_a_curve_for_every_graph() -> None:
    ones = [
        layered((2, 3, 4), [(0, 1, np.ones((3, 2))), (1, 2, np.full((4, 3), w))]) for w in (1, 2)
    ]
    found = fig4(ones[0], [("rp", 0.02, ones[1])], share=0.5)
    assert list(found) == ["reference", "rp, 2%"]
    for curve in found.values():
        assert curve.alpha.shape == (1, 101)
        assert (curve.times[0], curve.times[-1]) == (0, 2)


def test_trained_networks_come_from_a_folder_of_artifacts(tmp_path: Path) -> None:
    with pytest.raises(n2nfx.UsageError, match="needs the artifacts vgg19-reference"):
        trained(tmp_path, "vgg19")
    n2nfx.transform("n2nfx:mlp", density=1.0).save(tmp_path / "vgg19-reference")
    n2nfx.transform("n2nfx:mlp", density=0.1).save(tmp_path / "vgg19-rp-0.1")
    dense, there = trained(tmp_path, "vgg19")
    assert dense.density == 1.0
    assert there == [(Place("vgg19", "rp", 0.1), tmp_path / "vgg19-rp-0.1")]


def test_the_tool_computes_a_cell_once_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table3.jsonl"
    words = ["table3", "--out", str(out), "--networks", "vgg19", "--methods", "rp"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["paper_tables.py", *words, "--densities", "0.02"])
        paper_tables.main()
    (row,) = paper_tables.read(out)
    assert row["cell"]["place"] == ["vgg19", "rp", 0.02]
    assert row["cell"]["nodes"] == 5517
    assert (row["ends"], row["data"], row["trained"]) == ("pruned", "drawn", False)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["paper_tables.py", "report", str(out)])
    paper_tables.main()
    told = capsys.readouterr().out
    assert "## vgg19, untrained, first and last layer pruned like all, CSP by a drawn" in told
    assert "| rp | 2% | 6.5e+00 |" in told
    assert "cannot be F" in told


def test_the_tool_draws_figure_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "fig3.png"
    monkeypatch.setattr("sys.argv", ["paper_tables.py", "fig3", "--out", str(out)])
    paper_tables.main()
    assert out.stat().st_size > 20_000
