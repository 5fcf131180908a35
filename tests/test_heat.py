"""Heat over channel graphs: conserved, bounded, and never further off than its certificate."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layered_samples import dense_laplacian, layered_graphs, random_graph, true_heat
from scipy import sparse

from n2nfx.connectivity.chebyshev import Series, first_below, walk
from n2nfx.connectivity.elimination import Elimination
from n2nfx.connectivity.graph import ChannelGraph, Group, layered
from n2nfx.connectivity.heat import heat
from n2nfx.connectivity.lanczos import Lanczos
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.propagate import Method
from n2nfx.errors import CannotOperate, UsageError

unhurried = settings(deadline=None, max_examples=60)
few = settings(deadline=None, max_examples=25)

TIMES = (0.0, 0.003, 0.1, 1.0, 7.0, 300.0, np.inf)
methods = st.sampled_from(("auto", "lanczos", "chebyshev", "shift-invert"))
graphs = layered_graphs()


def permuted(graph: ChannelGraph, seed: int) -> tuple[ChannelGraph, np.ndarray]:
    """The nodes of every layer in another order, and where each of them went."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(group.size) for group in graph.groups]
    blocks = []
    for block in graph.blocks:
        weights = np.asarray(block.weights)
        inside = block.source == block.target
        whole = weights + weights.T if inside else weights
        moved = whole[orders[block.target]][:, orders[block.source]]
        blocks.append((block.source, block.target, np.tril(moved) if inside else moved))
    places = np.concatenate(
        [start + order for start, order in zip(graph.starts[:-1], orders, strict=True)]
    )
    return layered([group.size for group in graph.groups], blocks), places


def scaled(graph: ChannelGraph, factor: float) -> ChannelGraph:
    blocks = [(b.source, b.target, factor * np.asarray(b.weights)) for b in graph.blocks]
    return layered([group.size for group in graph.groups], blocks)


def stiff_chain(layers: int = 40, width: int = 2, weak: float = 1e-4) -> ChannelGraph:
    """A deep chain of dense blocks, every tenth of which is weak: slow modes, far from the fast."""
    generator = np.random.default_rng(5)
    blocks = [
        (at, at + 1, (weak if at % 10 == 9 else 1.0) * generator.random((width, width)))
        for at in range(layers - 1)
    ]
    return layered([width] * layers, blocks)


class TestLaplacian:
    @unhurried
    @given(graphs, st.integers(0, 2**32 - 1))
    def test_is_the_matrix_of_the_edges(self, graph: ChannelGraph, seed: int) -> None:
        generator, laplacian = np.random.default_rng(seed), Laplacian(graph)
        vector, matrix = generator.standard_normal(graph.n), generator.random((graph.n, 3))
        dense = dense_laplacian(graph)
        scale = 1e-13 * max(dense.max(), 1.0)
        np.testing.assert_allclose(laplacian @ vector, dense @ vector, atol=scale * 10)
        np.testing.assert_allclose(laplacian @ matrix, dense @ matrix, atol=scale * 10)
        np.testing.assert_allclose(laplacian.toarray(), dense, atol=scale)

    @unhurried
    @given(graphs)
    def test_its_bound_is_above_every_eigenvalue(self, graph: ChannelGraph) -> None:
        highest = np.linalg.eigvalsh(dense_laplacian(graph)).max()
        assert Laplacian(graph).largest >= highest * (1 - 1e-12)

    def test_the_bound_is_attained(self) -> None:
        assert Laplacian(layered([1, 1], [(0, 1, np.ones((1, 1)))])).largest == pytest.approx(2)

    @unhurried
    @given(graphs)
    def test_components_are_those_of_networkx(self, graph: ChannelGraph) -> None:
        laplacian = Laplacian(graph)
        whole = nx.from_scipy_sparse_array(graph.to_scipy())
        found = {frozenset(np.flatnonzero(laplacian.labels == k).tolist()) for k in range(graph.n)}
        assert found - {frozenset()} == {frozenset(part) for part in nx.connected_components(whole)}
        assert laplacian.components == nx.number_connected_components(whole)

    @unhurried
    @given(graphs)
    def test_is_the_laplacian_of_networkx(self, graph: ChannelGraph) -> None:
        theirs = nx.laplacian_matrix(nx.from_scipy_sparse_array(graph.to_scipy())).toarray()
        np.testing.assert_allclose(Laplacian(graph).toarray(), theirs, rtol=1e-12, atol=1e-12)

    @unhurried
    @given(graphs, st.integers(0, 2**32 - 1))
    def test_projection_leaves_nothing_in_the_null_space(
        self, graph: ChannelGraph, seed: int
    ) -> None:
        laplacian = Laplacian(graph)
        left = laplacian.project(np.random.default_rng(seed).random((graph.n, 2)))
        sums = np.stack([np.bincount(laplacian.labels, column) for column in left.T])
        np.testing.assert_allclose(sums, 0, atol=1e-13)
        np.testing.assert_allclose(laplacian @ laplacian.means(left), 0, atol=1e-9)

    def test_stored_zeros_are_no_edges(self) -> None:
        weights = sparse.csr_array(np.array([[1.0, 1.0, 0, 0, 0, 0, 0, 0]]))
        weights.data[1] = 0.0
        laplacian = Laplacian(layered([8, 1], [(0, 1, weights)]))
        assert laplacian.components == 8
        assert weights.nnz == 2

    def test_sparse_and_dense_weights_are_the_same(self) -> None:
        full, thin = np.ones((3, 4)), np.zeros((3, 4))
        thin[0, 0] = 2.0
        for weights in (full, thin):
            one = Laplacian(layered([4, 3], [(0, 1, weights)]))
            other = Laplacian(layered([4, 3], [(0, 1, sparse.csr_array(weights))]))
            assert (one.toarray() == other.toarray()).all()
            assert one.components == other.components


class TestCertificate:
    @unhurried
    @given(graphs, methods, st.sampled_from((1e-3, 1e-6, 1e-10, 1e-13)))
    def test_is_never_below_the_true_error(
        self, graph: ChannelGraph, method: Method, tol: float
    ) -> None:
        found = heat(graph, TIMES[:-1], tol, method=method)
        for row, time in enumerate(found.times):
            error = np.linalg.norm(found.signature[row] - true_heat(graph, time, graph.sources))
            assert error <= found.certificate[row]

    def test_holds_where_rounding_adds_up_over_a_long_series(self) -> None:
        """Of these thirty, five were wrong by up to twice the certificate."""
        times = (1.0, 10.0, 100.0, 1e3, 5e3)
        for seed in range(30):
            graph = random_graph([2, 3], 1.0, seed)
            found = heat(graph, times, 1e-13, method="chebyshev")
            error = np.linalg.norm(found.signature[-1] - true_heat(graph, 5e3, graph.sources))
            assert error <= found.certificate[-1]

    @unhurried
    @given(layered_graphs(scales=(1e-7, 1e-3, 1.0, 1e4)))
    def test_holds_where_weights_differ_by_eleven_orders(self, graph: ChannelGraph) -> None:
        times = (1e-6, 1e-3, 1.0, 1e3)
        found = heat(graph, times)
        for row, time in enumerate(times):
            error = np.linalg.norm(found.signature[row] - true_heat(graph, time, graph.sources))
            assert error <= found.certificate[row]

    @unhurried
    @given(graphs, methods)
    def test_is_within_the_tolerance(self, graph: ChannelGraph, method: Method) -> None:
        assert heat(graph, TIMES, 1e-9, method=method).certificate.max() <= 1e-9

    @unhurried
    @given(graphs)
    def test_does_not_fall_with_time(self, graph: ChannelGraph) -> None:
        certificate = heat(graph, TIMES[:-1], 1e-8).certificate
        assert (np.diff(certificate) >= -1e-13).all()

    def test_agrees_with_dense_eigenvectors(self) -> None:
        graph = random_graph([3, 40, 60, 60, 10], 0.4, seed=1, skip=2)
        values, vectors = np.linalg.eigh(dense_laplacian(graph))
        values[0] = 0.0  # connected: the lowest is 0, to rounding
        found = heat(graph, (0.01, 0.1, 1.0, 10.0))
        for row, time in enumerate(found.times):
            true = vectors @ (np.exp(-time * values) * (vectors.T @ graph.sources))
            error = np.linalg.norm(found.signature[row] - true)
            assert error <= found.certificate[row] + 1e-12

    @pytest.mark.parametrize("method", ["lanczos", "shift-invert", "chebyshev"])
    def test_says_what_was_reached_where_the_tolerance_is_out_of_reach(
        self, method: Method
    ) -> None:
        graph = random_graph([3, 20, 20], 0.5, seed=2)
        found = heat(graph, (0.1, 1.0), 1e-18, method=method)
        assert found.method == method
        assert (found.certificate > found.tolerance).all()
        for row, time in enumerate(found.times):
            error = np.linalg.norm(found.signature[row] - true_heat(graph, time, graph.sources))
            assert error <= found.certificate[row]

    def test_of_a_lanczos_run_that_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.propagate.MOST_STEPS", 20)
        graph = stiff_chain()
        found = heat(graph, (1.0, 100.0, 1e4), method="lanczos")
        assert found.products == 20
        assert found.certificate.max() > 1e-3
        for row, time in enumerate(found.times):
            error = np.linalg.norm(found.signature[row] - true_heat(graph, time, graph.sources))
            assert error <= found.certificate[row]

    def test_of_a_walk_that_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.chebyshev.MOST", 1500)
        graph = stiff_chain(weak=1e-5)
        found = heat(graph, (1.0, 1e6), method="chebyshev")
        error = np.linalg.norm(found.signature[1] - true_heat(graph, 1e6, graph.sources))
        assert 1e-3 < error <= found.certificate[1]
        assert found.certificate[0] < 1e-10

    @pytest.mark.parametrize("exponent", [-5, 3])
    def test_of_a_pole_far_from_the_times(
        self, exponent: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It amplifies the rounding of its solves."""
        monkeypatch.setattr("n2nfx.connectivity.propagate._POLES", (exponent,))
        graph = random_graph([3, 20, 20], 0.5, seed=2)
        found = heat(graph, (0.1, 1.0), method="shift-invert")
        for row, time in enumerate(found.times):
            error = np.linalg.norm(found.signature[row] - true_heat(graph, time, graph.sources))
            assert error <= found.certificate[row]

    def test_of_a_long_walk_counts_its_rounding(self) -> None:
        graph = stiff_chain()
        found = heat(graph, 1e4, 1e-14, method="chebyshev")
        error = np.linalg.norm(found.signature[0] - true_heat(graph, 1e4, graph.sources))
        assert 5e-14 < error <= found.certificate[0]

    def test_at_infinity_is_from_the_pivots(self) -> None:
        laplacian = Laplacian(random_graph([3, 20, 20], 0.5, seed=2))
        start = laplacian.project(np.eye(laplacian.n)[0])
        run = Lanczos(laplacian.__matmul__, laplacian.project, start, 12)
        run.extend(12)
        ritz = run.ritz()
        inverse = (ritz.vectors / ritz.values) @ ritz.vectors.T
        assert ritz.inverse_corner == pytest.approx(abs(inverse[-1, 0]), rel=1e-9)


class TestMethods:
    def test_a_stiff_graph_is_shift_inverted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.propagate.MOST_STEPS", 50)
        graph = stiff_chain()
        times = (1e4, 100.0, 1.0, 1e3)
        found = heat(graph, times, 1e-8)
        assert found.method == "shift-invert"
        assert found.certificate.max() <= 1e-8
        for row, time in enumerate(times):
            error = np.linalg.norm(found.signature[row] - true_heat(graph, time, graph.sources))
            assert error <= found.certificate[row]

    def test_a_factor_that_does_not_fit_is_not_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.propagate.MOST_STEPS", 60)
        monkeypatch.setattr("n2nfx.connectivity.elimination_order.LARGEST_FACTOR", 100)
        found = heat(stiff_chain(), (1e4,))
        assert found.method == "lanczos"
        assert found.certificate[0] > 1e-10

    def test_a_graph_of_many_nodes_is_walked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.propagate.LARGEST_KRYLOV", 50)
        graph = random_graph([3, 30, 30], 0.3, seed=3)
        found, other = heat(graph, TIMES), heat(graph, TIMES, method="lanczos")
        assert found.method == "chebyshev"
        gap = np.linalg.norm(found.signature - other.signature, axis=1)
        assert (gap <= found.certificate + other.certificate).all()

    @pytest.mark.parametrize("end", [10.0, 1e3, 1e5])
    def test_a_long_walk_is_one_of_several_series(self, end: float) -> None:
        graph = stiff_chain()
        laplacian = Laplacian(graph)
        start = laplacian.project(graph.sources)
        series = Series(lambda x: laplacian @ x, laplacian.largest, 1e-12)
        times = end * np.array([0.001, 0.1, 1.0])
        found = walk(series, start, times, enough=1e-11)
        for row, time in enumerate(times):
            error = np.linalg.norm(found.vectors[row] - true_heat(graph, time, start))
            assert error <= found.errors[row] + 1e-12 * end
        assert found.errors.max() < 1e-10

    @few
    @given(graphs, st.booleans(), st.integers(0, 2**32 - 1))
    def test_elimination_solves(self, graph: ChannelGraph, backwards: bool, seed: int) -> None:
        laplacian = Laplacian(graph)
        factor = Elimination(laplacian, 0.7, 1.0, keep=True, backwards=backwards)
        true = np.random.default_rng(seed).random(graph.n)
        right = 0.7 * (dense_laplacian(graph) @ true) + true
        np.testing.assert_allclose(factor.solve(right), true, rtol=1e-9, atol=1e-9)
        assert factor.negative == 0


class TestHeat:
    @unhurried
    @given(graphs)
    def test_no_heat_is_lost_in_any_component(self, graph: ChannelGraph) -> None:
        labels = Laplacian(graph).labels
        there = np.bincount(labels, graph.sources)
        for signature in heat(graph, TIMES).signature:
            np.testing.assert_allclose(np.bincount(labels, signature), there, atol=1e-9)

    @unhurried
    @given(graphs, methods)
    def test_lies_between_0_and_1(self, graph: ChannelGraph, method: Method) -> None:
        found = heat(graph, TIMES, method=method)
        assert (found.signature >= -found.certificate[:, None]).all()
        assert (found.signature <= 1 + found.certificate[:, None]).all()

    @unhurried
    @given(graphs)
    def test_starts_at_the_sources_and_ends_at_the_means(self, graph: ChannelGraph) -> None:
        found = heat(graph, (0.0, np.inf))
        labels = Laplacian(graph).labels
        means = np.bincount(labels, graph.sources) / np.bincount(labels)
        np.testing.assert_allclose(found.signature[0], graph.sources, atol=1e-14)
        assert (found.signature[1] == found.saturated).all()
        np.testing.assert_allclose(found.saturated, means[labels], atol=1e-15)

    @unhurried
    @given(graphs)
    def test_ends_there_by_itself(self, graph: ChannelGraph) -> None:
        found = heat(graph, 1e9)
        assert np.linalg.norm(found.signature[0] - found.saturated) <= found.certificate[0]

    @unhurried
    @given(graphs, st.floats(0, 3), st.floats(0, 3))
    def test_is_a_semigroup(self, graph: ChannelGraph, one: float, other: float) -> None:
        whole, first = heat(graph, one + other), heat(graph, one)
        further = true_heat(graph, other, first.signature[0])
        allowed = whole.certificate[0] + first.certificate[0]
        assert np.linalg.norm(whole.signature[0] - further) <= allowed

    @unhurried
    @given(graphs, methods)
    def test_only_cools(self, graph: ChannelGraph, method: Method) -> None:
        found = heat(graph, TIMES, method=method)
        slack = 2 * found.certificate.max()
        assert (np.diff(found.residual) <= slack).all()
        assert (np.diff(np.linalg.norm(found.signature, axis=1)) <= slack).all()

    @unhurried
    @given(graphs, methods)
    def test_residual_is_the_distance_to_the_end(self, graph: ChannelGraph, method: Method) -> None:
        found = heat(graph, TIMES, method=method)
        distance = np.linalg.norm(found.signature - found.saturated, axis=1)
        assert (np.abs(found.residual - distance) <= found.certificate + 1e-14).all()

    @unhurried
    @given(graphs, st.integers(0, 2**32 - 1))
    def test_follows_its_nodes_into_another_order(self, graph: ChannelGraph, seed: int) -> None:
        other, places = permuted(graph, seed)
        one, moved = heat(graph, TIMES), heat(other, TIMES)
        gap = np.linalg.norm(moved.signature - one.signature[:, places], axis=1)
        assert (gap <= one.certificate + moved.certificate).all()

    @unhurried
    @given(graphs, st.sampled_from((1e-6, 0.1, 7.0, 1e6)))
    def test_a_factor_of_the_weights_is_one_of_the_time(
        self, graph: ChannelGraph, factor: float
    ) -> None:
        one = heat(scaled(graph, factor), TIMES)
        other = heat(graph, factor * np.array(TIMES))
        gap = np.linalg.norm(one.signature - other.signature, axis=1)
        assert (gap <= one.certificate + other.certificate).all()

    def test_a_cut_costs_what_the_formula_says(self) -> None:
        """F(inf) = a sqrt(m / (n (n - m))) for m nodes that no source is joined to."""
        sources, middle, cut = 3, 5, 4
        whole = layered([sources, middle + cut], [(0, 1, np.ones((middle + cut, sources)))])
        weights = np.ones((middle + cut, sources))
        weights[middle:] = 0
        parted = layered([sources, middle + cut], [(0, 1, weights)])
        gap = np.linalg.norm(heat(whole, np.inf).saturated - heat(parted, np.inf).saturated)
        n = whole.n
        assert gap == pytest.approx(sources * np.sqrt(cut / (n * (n - cut))), rel=1e-12)

    @unhurried
    @given(st.integers(0, 2**32 - 1), st.sampled_from((0.0, 0.1, 1.0, 30.0, np.inf)))
    def test_two_graphs_differ_by_at_most_the_root_of_twice_the_sources(
        self, seed: int, time: float
    ) -> None:
        sizes = [4, 9, 9]
        one, other = (random_graph(sizes, fill, seed) for fill in (0.9, 0.1))
        gap = np.linalg.norm(heat(one, time).signature - heat(other, time).signature)
        assert gap <= np.sqrt(2 * sizes[0]) + 1e-9

    def test_is_the_same_every_time(self) -> None:
        graph = random_graph([3, 30, 30], 0.3, seed=4)
        assert (heat(graph, TIMES).signature == heat(graph, TIMES).signature).all()

    def test_may_start_anywhere(self) -> None:
        graph = random_graph([3, 10, 10], 0.5, seed=5)
        last = np.zeros(graph.n)
        last[-1] = 1
        found = graph.heat((0.0, 1.0), sources=last)
        np.testing.assert_allclose(found.signature[0], last, atol=1e-14)
        error = np.linalg.norm(found.signature[1] - true_heat(graph, 1.0, last))
        assert error <= found.certificate[1]

    def test_times_keep_their_order(self) -> None:
        graph = random_graph([3, 10, 10], 0.5, seed=6)
        for method in ("auto", "chebyshev"):
            mixed = graph.heat((5.0, 0.1, np.inf, 1.0), method=method)
            for time, signature in zip(mixed.times, mixed.signature, strict=True):
                alone = graph.heat(time, method=method)
                np.testing.assert_allclose(signature, alone.signature[0], atol=1e-9)


class TestSaturationTime:
    @unhurried
    @given(graphs, methods, st.sampled_from((0.5, 1e-2, 1e-6)))
    def test_is_when_the_residual_passes_the_target(
        self, graph: ChannelGraph, method: Method, eps: float
    ) -> None:
        found = heat(graph, 0.01, method=method)  # early: the run must go on by itself
        target = eps * np.linalg.norm(graph.sources)
        time = found.saturation_time(eps)
        start = graph.sources - found.saturated
        if np.linalg.norm(start) <= target:
            assert time == 0
            return
        left = np.linalg.norm(true_heat(graph, time, start))
        assert float(left) == pytest.approx(target, rel=2e-3)

    @few
    @given(graphs)
    def test_of_more_is_earlier(self, graph: ChannelGraph) -> None:
        found = heat(graph, 1.0)
        times = [found.saturation_time(eps) for eps in (1e-1, 1e-2, 1e-4, 1e-6)]
        assert times == sorted(times)

    def test_of_a_stiff_graph(self) -> None:
        graph = stiff_chain()
        found = heat(graph, 1.0)
        start = graph.sources - found.saturated
        time = found.saturation_time(1e-2)
        left = np.linalg.norm(true_heat(graph, time, start))
        assert float(left) == pytest.approx(1e-2 * np.linalg.norm(graph.sources), rel=1e-3)

    def test_walks_as_far_as_lanczos_sees(self) -> None:
        graph = random_graph([3, 20, 20], 0.5, seed=7)
        laplacian = Laplacian(graph)
        start = laplacian.project(graph.sources)
        series = Series(lambda x: laplacian @ x, laplacian.largest, 1e-12)
        target = 1e-5 * np.linalg.norm(graph.sources)
        expected = heat(graph, 1.0).saturation_time(1e-5)
        assert first_below(series, start, float(target)) == pytest.approx(expected, rel=1e-6)

    def test_that_rounding_hides_is_refused(self) -> None:
        graph = random_graph([3, 20, 20], 0.5, seed=8)
        with pytest.raises(CannotOperate, match=r"1e-14 \|\|A\|\| cannot be certified"):
            heat(graph, 1.0).saturation_time(1e-14)

    @pytest.mark.parametrize("eps", [0.0, -1.0, np.nan, np.inf])
    def test_needs_a_positive_eps(self, eps: float) -> None:
        with pytest.raises(UsageError, match="eps must be positive"):
            heat(random_graph([2, 2], 1.0, seed=0), 1.0).saturation_time(eps)

    def test_needs_a_number(self) -> None:
        wrong: Any = "1e-5"
        with pytest.raises(UsageError, match="eps"):
            heat(random_graph([2, 2], 1.0, seed=0), 1.0).saturation_time(wrong)


class TestBadInput:
    graph = random_graph([3, 5, 5], 0.8, seed=9)

    @pytest.mark.parametrize(
        ("times", "said"),
        [
            (-1.0, "a time must be 0 or more, not -1"),
            ([1.0, np.nan], "a time must be 0 or more, not nan"),
            (-np.inf, "a time must be 0 or more, not -inf"),
            ([], "one number or a list"),
            ([[1.0]], "one number or a list"),
            ("soon", "times must be numbers"),
        ],
    )
    def test_times(self, times: object, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            self.graph.heat(times)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("tol", [0.0, -1.0, np.nan])
    def test_tolerance(self, tol: float) -> None:
        with pytest.raises(UsageError, match="tolerance must be positive"):
            self.graph.heat(1.0, tol)

    @pytest.mark.parametrize("tol", [None, "1", [1e-10]])
    def test_tolerance_that_is_no_number(self, tol: Any) -> None:
        with pytest.raises(UsageError, match="the tolerance must be a number, not"):
            self.graph.heat(1.0, tol)

    def test_method(self) -> None:
        with pytest.raises(UsageError, match=r"no method 'lancsoz'.*did you mean lanczos"):
            self.graph.heat(1.0, method="lancsoz")  # pyright: ignore[reportArgumentType]

    def test_sources(self) -> None:
        with pytest.raises(UsageError, match=r"shape \(2,\); the graph has 13 nodes"):
            self.graph.heat(1.0, sources=[1, 0])
        with pytest.raises(UsageError, match="sources must be numbers"):
            self.graph.heat(1.0, sources="input")
        with pytest.raises(UsageError, match="indicator"):
            self.graph.heat(1.0, sources=np.full(13, 0.5))
        with pytest.raises(UsageError, match="nothing is a source"):
            self.graph.heat(1.0, sources=np.zeros(13))

    def test_a_graph_without_inputs(self) -> None:
        graph = ChannelGraph((Group("fc", "layer", 4),), ())
        with pytest.raises(UsageError, match="nothing is a source"):
            graph.heat(1.0)

    def test_a_graph_without_nodes(self) -> None:
        with pytest.raises(UsageError, match="no nodes"):
            layered([], [])

    @pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
    def test_signed_and_infinite_weights(self, wrong: float) -> None:
        weights = np.ones((2, 3))
        weights[1, 1] = wrong
        with pytest.raises(UsageError, match="from input to layer1 are"):
            layered([3, 2], [(0, 1, weights)])

    def test_one_node_is_a_graph(self) -> None:
        found = layered([1], []).heat((0.0, 1.0, np.inf))
        assert (found.signature == 1).all()
        assert found.method == "components"
        assert found.components == 1
        assert found.saturation_time(1e-3) == 0

    def test_sources_without_edges_stay_as_they_are(self) -> None:
        graph = layered([2, 3, 3], [(1, 2, np.ones((3, 3)))])
        found = graph.heat((0.0, 1.0, np.inf))
        assert (found.signature == graph.sources).all()
        assert found.components == 3

    @few
    @given(graphs)
    def test_a_time_beyond_all_numbers_is_the_end(self, graph: ChannelGraph) -> None:
        assume(graph.edges)
        found = heat(graph, 1e300)
        assert np.linalg.norm(found.signature[0] - found.saturated) <= found.certificate[0]
