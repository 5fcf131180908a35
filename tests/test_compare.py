"""Comparing channel graphs: F and its bounds, times, saturation, bipartite spectra."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from scipy.linalg import expm

import n2nfx
from n2nfx.connectivity.bipartite import layer_spectra
from n2nfx.connectivity.compare import compare, compare_with, measure
from n2nfx.connectivity.conventions import mean_degree
from n2nfx.connectivity.graph import Block, ChannelGraph, Group, Matrix, layered, shape_of
from n2nfx.connectivity.spectrum import Smallest

SIZES = (3, 5, 4, 2)
PAIRS = ((0, 1), (1, 2), (2, 3), (0, 2))  # the last is a skip


def dense(scale: float = 1.0, seed: int = 0, sizes: Sequence[int] = SIZES) -> ChannelGraph:
    """A graph that has all edges, whose weights are between 0.5 and 1.5 times the scale."""
    rng = np.random.default_rng(seed)
    blocks = [(a, b, scale * (0.5 + rng.random((sizes[b], sizes[a])))) for a, b in PAIRS]
    return layered(sizes, blocks)


def without_channel(graph: ChannelGraph, node: int) -> ChannelGraph:
    """The graph with all edges of one node left out."""
    blocks = []
    for block in graph.blocks:
        weights = np.array(block.weights)
        source, target = graph.span(block.source), graph.span(block.target)
        weights[:, np.arange(source.start, source.stop) == node] = 0
        weights[np.arange(target.start, target.stop) == node] = 0
        blocks.append(Block(block.source, block.target, weights, block.names))
    return ChannelGraph(graph.groups, tuple(blocks))


graphs = st.tuples(
    *(
        arrays(
            np.float64,
            (SIZES[b], SIZES[a]),
            elements=st.one_of(st.just(0.0), st.floats(0.25, 4.0)),
        )
        for a, b in PAIRS
    )
).map(lambda found: layered(SIZES, [(*pair, one) for pair, one in zip(PAIRS, found, strict=True)]))


@given(graphs, graphs, st.lists(st.floats(0.0, 100.0), min_size=1, max_size=4))
def test_f_is_symmetric_bounded_and_nothing_against_itself(
    one: ChannelGraph, other: ChannelGraph, times: list[float]
) -> None:
    there, back = compare(one, other, times), compare(other, one, times)
    np.testing.assert_allclose(there.frobenius, back.frobenius, atol=1e-12)
    assert there.frobenius_saturated == pytest.approx(back.frobenius_saturated, abs=1e-15)
    assert (there.frobenius <= there.bound + there.certificate).all()
    assert there.frobenius_saturated <= there.bound
    same = compare(one, one, times)
    assert (same.frobenius == 0).all()
    assert same.frobenius_saturated == 0


@given(graphs, graphs, st.lists(st.floats(0.0, 20.0), min_size=1, max_size=4))
def test_f_is_right_within_its_certificate(
    one: ChannelGraph, other: ChannelGraph, times: list[float]
) -> None:
    found = compare(one, other, times)
    differences = [_signature(one, time) - _signature(other, time) for time in times]
    exact = np.linalg.norm(differences, axis=1)
    assert (abs(found.frobenius - exact) <= found.certificate + 1e-12).all()
    both = (graph.heat(times).certificate for graph in (one, other))
    np.testing.assert_array_equal(found.certificate, sum(both))


def _signature(graph: ChannelGraph, time: float) -> np.ndarray:
    return expm(-time * _laplacian(graph)) @ graph.sources


def _laplacian(graph: ChannelGraph) -> np.ndarray:
    weights = graph.to_scipy().toarray()
    return np.diag(weights.sum(axis=0)) - weights


@pytest.mark.parametrize("dead", [(3,), (3, 9, 13)])
def test_f_at_infinity_is_that_of_the_channels_cut_off(dead: tuple[int, ...]) -> None:
    reference = graph = dense()
    for node in dead:
        graph = without_channel(graph, node)
    found = compare(reference, graph)
    n, sources, m = reference.n, SIZES[0], len(dead)
    expected = sources * math.sqrt(m / (n * (n - m)))
    assert found.frobenius_saturated == pytest.approx(expected, rel=1e-12)
    assert found.components == (1, 1 + m)
    assert found.unreached == (0, m)


def test_two_connected_graphs_are_alike_at_infinity() -> None:
    assert compare(dense(seed=1), dense(seed=2)).frobenius_saturated < 1e-15


def test_a_lone_source_costs_one() -> None:
    """Its heat stays with it, and the others' spreads over the rest: nearly 1 of a large graph."""
    reference = dense(sizes=(3, 300, 200, 100))
    found = compare(reference, without_channel(reference, 0))
    assert found.frobenius_saturated == pytest.approx(1.0, abs=0.01)


def test_by_reference_both_have_the_reference_s_times() -> None:
    reference, graph = dense(), dense(scale=0.1)
    found = compare(reference, graph, "reference", tau=(1, 5))
    smallest = np.linalg.eigvalsh(_laplacian(reference))[1]
    np.testing.assert_allclose(found.times, np.array([1, 5]) / smallest, rtol=1e-8)
    np.testing.assert_array_equal(found.times_of_graph, found.times)
    assert (found.convention, found.tau) == ("reference", (1.0, 5.0))


def test_by_degree_the_scale_of_weights_does_not_count() -> None:
    reference, graph = dense(), dense(scale=0.01)
    by_degree = compare(reference, graph, "degree")
    assert (by_degree.frobenius <= by_degree.certificate + 1e-12).all()
    assert by_degree.saturation_time_ratio == pytest.approx(1.0, rel=1e-2)
    np.testing.assert_allclose(by_degree.times_of_graph, 100 * by_degree.times)
    np.testing.assert_allclose(by_degree.times * mean_degree(reference), by_degree.tau)
    by_reference = compare(reference, graph, "reference")
    assert by_reference.frobenius.max() > 0.1
    assert by_reference.saturation_time_ratio == pytest.approx(100.0, rel=1e-2)


def test_saturation_has_a_sign_that_f_has_not() -> None:
    reference = dense()
    slower, faster = dense(scale=0.5), dense(scale=2.0)
    assert compare(reference, slower).saturation_time_ratio > 1
    assert compare(reference, faster).saturation_time_ratio < 1
    assert (compare(reference, faster).frobenius[:-1] > 1e-6).all()


def test_the_residual_falls_to_the_threshold_at_the_saturation_time() -> None:
    (found,) = measure(dense(), ([0.0],), threshold=0.05)
    (later,) = measure(dense(), ([found.saturation_time],))
    assert later.heat.residual[0] == pytest.approx(0.05 * math.sqrt(SIZES[0]), rel=5e-3)


def test_several_clocks_share_a_run_and_say_what_each_says_alone() -> None:
    reference, graph = dense(), dense(seed=5)
    clocks = ("reference", "degree", (0.5, 0.1))
    together = compare_with(measure(reference, clocks), graph)
    for clock, found in zip(clocks, together, strict=True):
        alone = compare(reference, graph, clock)
        assert (found.convention, found.tau) == (alone.convention, alone.tau)
        np.testing.assert_array_equal(found.times, alone.times)
        np.testing.assert_array_equal(found.times_of_graph, alone.times_of_graph)
        apart = np.abs(found.frobenius - alone.frobenius)
        assert (apart <= found.certificate + alone.certificate).all()
        assert found.saturation_time == pytest.approx(alone.saturation_time, rel=1e-3)


def test_without_anything_to_spread_there_is_no_ratio() -> None:
    inputs = layered((2, 2), [(0, 1, np.zeros((2, 2)))])
    found = compare(inputs, inputs, [1.0])
    assert found.saturation_time == (0.0, 0.0)
    assert math.isnan(found.saturation_time_ratio)


def test_one_reference_for_many_graphs_gives_the_same() -> None:
    reference, graph = dense(), dense(seed=5)
    for times in ("reference", "degree", [0.5]):
        (once,) = compare_with(measure(reference, (times,)), graph)
        again = compare(reference, graph, times)
        np.testing.assert_array_equal(once.frobenius, again.frobenius)
        np.testing.assert_array_equal(once.times_of_graph, again.times_of_graph)


def test_the_matrix_variant_is_that_of_the_heat_matrices() -> None:
    one, other, times = dense(), dense(seed=5), (0.1, 1.0)
    found = compare(one, other, times).matrix()
    for entry, time in zip(found, times, strict=True):
        first, second = (expm(-time * _laplacian(graph)) for graph in (one, other))
        assert entry.value == pytest.approx(np.linalg.norm(first - second), rel=1e-9)
        assert entry.time == time
    with pytest.raises(n2nfx.UsageError, match="one time for both"):
        compare(one, other, "degree").matrix()


def test_graphs_of_two_networks_are_refused_with_what_differs() -> None:
    with pytest.raises(n2nfx.UsageError, match=r"two different networks.*layer1"):
        compare(dense(), dense(sizes=(3, 6, 4, 2)))


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ([-1.0], "not negative"),
        ([math.nan], "finite"),
        ([math.inf], "finite"),
        ([], "one or more numbers"),
        (["soon"], "one or more numbers"),
        ("refrence", "did you mean reference"),
    ],
)
def test_times_that_cannot_be(times: object, told: str) -> None:
    with pytest.raises(n2nfx.UsageError, match=told):
        compare(dense(), dense(), times)  # pyright: ignore[reportArgumentType]


def test_what_is_no_graph_is_told() -> None:
    wrong: Any = None
    for pair in ((wrong, dense()), (dense(), wrong)):
        with pytest.raises(n2nfx.UsageError, match=r"n2nfx\.channel_graph.*, not NoneType"):
            compare(*pair)


def test_tau_and_threshold_that_cannot_be() -> None:
    wrong: Any = 3
    text: Any = "3"
    with pytest.raises(n2nfx.UsageError, match="tau must be one or more numbers in a row, not 3"):
        compare(dense(), dense(), tau=wrong)
    with pytest.raises(n2nfx.UsageError, match="times must be one or more numbers in a row, not 3"):
        compare(dense(), dense(), wrong)
    with pytest.raises(n2nfx.UsageError, match="threshold must be a number, not '3'"):
        compare(dense(), dense(), threshold=text)
    with pytest.raises(n2nfx.UsageError, match="tau must be finite"):
        compare(dense(), dense(), tau=(-1,))
    with pytest.raises(n2nfx.UsageError, match="threshold must be between"):
        compare(dense(), dense(), threshold=1.0)


@pytest.mark.parametrize("convention", ["reference", "degree"])
def test_without_an_edge_there_is_no_unit_of_time(convention: str) -> None:
    empty = layered((2, 2), [(0, 1, np.zeros((2, 2)))])
    with pytest.raises(n2nfx.UsageError, match="absolute times"):
        measure(empty, (convention,))  # pyright: ignore[reportArgumentType]


def test_an_eigenvalue_that_rounding_hides_is_no_unit_of_time() -> None:
    hidden = Smallest(0.0, False, 1, 1e-14, "dense", 1e-14, 0)
    with pytest.raises(n2nfx.CannotOperate, match="no unit of time: take the convention degree"):
        measure(dense(), ("reference",), smallest=hidden)


def test_a_layer_s_spectrum_is_that_of_its_binary_adjacency() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((40, 30)) * (rng.random((40, 30)) < 0.2)
    (found,) = layer_spectra(_one_layer(weights))
    joined = (weights > 0).astype(float)
    assert found.singular == pytest.approx(tuple(np.linalg.svd(joined, compute_uv=False)[:2]))
    assert found.edges == joined.sum()
    rows, columns = joined.sum(axis=1), joined.sum(axis=0)
    assert found.degrees == pytest.approx((rows[rows > 0].mean(), columns[columns > 0].mean()))
    bound = sum(math.sqrt(degree - 1) for degree in found.degrees)
    assert found.gap == pytest.approx(bound - found.singular[1])


def test_a_whole_layer_has_one_singular_value_and_the_largest_gap() -> None:
    (found,) = layer_spectra(_one_layer(np.ones((9, 4))))
    assert found.singular == pytest.approx((6.0, 0.0), abs=1e-12)
    assert found.gap == pytest.approx(math.sqrt(8) + math.sqrt(3))


def test_a_layer_in_two_pieces_is_no_ramanujan_graph() -> None:
    (found,) = layer_spectra(_one_layer(np.kron(np.eye(2), np.ones((8, 8)))))
    assert found.singular == pytest.approx((8.0, 8.0))
    assert found.gap < 0


def test_large_layers_are_iterated_to_the_same() -> None:
    rng = np.random.default_rng(1)
    weights = (rng.random((700, 600)) < 0.05).astype(float)
    (found,) = layer_spectra(_one_layer(weights))
    exact = np.linalg.svd(weights, compute_uv=False)[:2]
    assert found.singular == pytest.approx(tuple(exact), rel=1e-8)


def test_edges_without_weights_are_no_layer_and_an_empty_layer_has_none() -> None:
    graph = layered((3, 3), [(0, 1, np.eye(3))])
    assert layer_spectra(graph) == ()
    (found,) = layer_spectra(_one_layer(np.zeros((3, 2))))
    assert (found.edges, found.degrees, found.singular, found.gap) == (0, (0, 0), (0, 0), 0)


def test_zeros_that_are_stored_are_no_edges() -> None:
    weights = sparse.csr_array(np.ones((3, 2)))
    weights.data[:2] = 0
    (found,) = layer_spectra(_one_layer(weights))
    assert (found.edges, found.degrees) == (4, (2.0, 2.0))


def _one_layer(weights: Matrix) -> ChannelGraph:
    rows, columns = shape_of(weights)
    groups = Group("input", "input", columns), Group("layer", "layer", rows)
    return ChannelGraph(groups, (Block(0, 1, weights, ("layer.weight",)),))
