"""Pictures: what they show, and that they are written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import n2nfx
from n2nfx.connectivity import plots
from n2nfx.connectivity.compare import compare
from n2nfx.connectivity.graph import Block, ChannelGraph, Group, layered

TIMES = [0.0, 0.1, 1.0, 10.0]


def drawn(sizes: tuple[int, ...], density: float, seed: int = 0) -> ChannelGraph:
    """A graph of layers that follow each other, joined at random."""
    rng = np.random.default_rng(seed)
    blocks = [
        (at, at + 1, (rng.random((sizes[at + 1], sizes[at])) < density).astype(float))
        for at in range(len(sizes) - 1)
    ]
    return layered(sizes, blocks)


def test_a_small_graph_is_drawn_node_by_node() -> None:
    graph = drawn((3, 5, 4), 0.5)
    picture, borders = plots.picture_of(graph)
    np.testing.assert_array_equal(picture, graph.to_scipy().toarray() > 0)
    np.testing.assert_array_equal(borders, [2.5, 7.5])


def test_a_large_graph_is_drawn_as_shares_of_pairs() -> None:
    graph = drawn((30, 61, 44), 0.3)
    picture, borders = plots.picture_of(graph, bins=20)
    assert len(picture) == 20 + len({*borders}) - 2
    joined = graph.to_scipy().toarray() > 0
    starts = [0, *np.ceil(borders).astype(int), len(picture)]
    for row in range(3):
        for column in range(3):
            view = picture[starts[row] : starts[row + 1], starts[column] : starts[column + 1]]
            own = joined[graph.span(row), graph.span(column)]
            assert view.mean() == pytest.approx(own.mean(), abs=0.03)
    np.testing.assert_array_equal(picture, picture.T)
    assert picture.max() <= 1


def test_every_group_has_a_point_however_small_it_is() -> None:
    graph = drawn((1, 5000, 1), 1.0)
    picture, borders = plots.picture_of(graph, bins=10)
    assert borders.tolist() == [0.5, 10.5]
    np.testing.assert_array_equal(picture[0, 1:11], 1.0)
    np.testing.assert_array_equal(picture[-1, 1:11], 1.0)


def test_edges_inside_a_group_are_drawn_on_both_sides() -> None:
    group = Group("layer", "layer", 4)
    inside = sparse.csr_array(np.eye(4, k=-2))
    graph = ChannelGraph((Group("input", "input", 1), group), (Block(1, 1, inside),))
    picture, _ = plots.picture_of(graph)
    np.testing.assert_array_equal(picture, graph.to_scipy().toarray() > 0)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures_are_written_in_the_format_of_their_suffix(tmp_path: Path, suffix: str) -> None:
    one, other = drawn((3, 8, 6), 0.8), drawn((3, 8, 6), 0.4, seed=1)
    found = compare(one, other, TIMES)
    figure = plots.overview(
        {"one": one, "other": other},
        {"one": one.scree(0.2, TIMES)},
        {"one": found.reference.heat, "other": found.graph.heat},
        {"other": found},
    )
    path = plots.save(figure, tmp_path / "new" / f"picture{suffix}")
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(head)
    assert path.stat().st_size > 5_000
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_picture_of_curves_alone_and_of_nothing_that_moves(tmp_path: Path) -> None:
    one = drawn((3, 8, 6), 0.8)
    same = compare(one, one, TIMES)  # F is 0, which has no place among powers of ten
    figure = plots.overview({"one": one}, {}, {"one": same.graph.heat}, {"one": same})
    assert plots.save(figure, tmp_path / "same.png").stat().st_size > 5_000
    curves = {"one": one.scree([0.1, 0.5], TIMES)}
    assert plots.save(plots.scree(curves), tmp_path / "scree.svg").stat().st_size > 5_000


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    figure = plots.adjacency({"one": drawn((3, 4), 0.5)})
    with pytest.raises(n2nfx.UsageError, match=r"picture.pgn: .*did you mean .png"):
        plots.save(figure, tmp_path / "picture.pgn")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    figure = plots.adjacency({"one": drawn((3, 4), 0.5)})
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(n2nfx.CannotOperate, match=r"taken\.png"):
        plots.save(figure, tmp_path / "taken.png")
    assert [file.name for file in tmp_path.iterdir()] == ["taken.png"]


def test_a_long_path_leaves_room_for_the_picture(tmp_path: Path) -> None:
    paths = [f"/a/very/long/path{'/and/on' * 20}/{name}.npz" for name in ("whole", "half")]
    graphs = [drawn((3, 5, 4), density) for density in (1.0, 0.9)]
    found = compare(*graphs, times=TIMES)
    figure = plots.overview(
        dict(zip(paths, graphs, strict=True)),
        {path: graph.scree(times=TIMES) for path, graph in zip(paths, graphs, strict=True)},
        dict(zip(paths, (found.reference.heat, found.graph.heat), strict=True)),
        {paths[1]: found},
    )
    plots.save(figure, tmp_path / "all.png")  # matplotlib warns where it has no room
    assert all(axis.get_position().width > 0.1 for axis in figure.axes)
