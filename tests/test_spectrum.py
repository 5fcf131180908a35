"""Spectra: counts, the smallest eigenvalue, closed forms and the matrix distance, against numpy."""

from itertools import combinations, pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layered_samples import dense_laplacian, layered_graphs, random_graph, true_heat
from scipy import sparse

from n2nfx.connectivity.closed_form import (
    chain_weights,
    equal_weight_eigenvalues,
    equal_weight_signature,
)
from n2nfx.connectivity.elimination import Elimination, UnstablePivots
from n2nfx.connectivity.elimination_order import elimination_order
from n2nfx.connectivity.graph import ChannelGraph, layered
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.matrix_frobenius import matrix_frobenius
from n2nfx.connectivity.spectrum import inertia, smallest_nonzero
from n2nfx.errors import CannotOperate, UsageError

unhurried = settings(deadline=None, max_examples=60)
graphs = layered_graphs()
joined = graphs.filter(lambda graph: graph.edges > 0)


@st.composite
def equal_layers(draw: st.DrawFn) -> tuple[list[int], dict[tuple[int, int], float]]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    weight = st.sampled_from((0.0, 0.25, 1.0, 3.0))
    return sizes, {pair: draw(weight) for pair in combinations(range(len(sizes)), 2)}


def drawn_out(sizes: list[int], weights: dict[tuple[int, int], float]) -> ChannelGraph:
    """The graph of a closed form, edge by edge."""
    blocks = [
        (source, target, np.full((sizes[target], sizes[source]), weight))
        for (source, target), weight in weights.items()
    ]
    return layered(sizes, blocks)


def with_depthwise() -> ChannelGraph:
    """3 channels widened to 20, one by one to 20 others, narrowed to 4, and a shortcut."""
    rng = np.random.default_rng(0)
    ones = sparse.diags_array(rng.random(20) + 0.1).tocsr()
    return layered(
        [3, 20, 20, 4],
        [
            (0, 1, rng.random((20, 3)) + 0.1),
            (1, 2, sparse.csr_array(ones)),
            (2, 3, rng.random((4, 20)) + 0.1),
            (0, 3, rng.random((4, 3)) + 0.1),
        ],
    )


class TestInertia:
    @unhurried
    @given(graphs, st.floats(-0.2, 1.2))
    def test_counts_what_numpy_finds_below(self, graph: ChannelGraph, share: float) -> None:
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        sigma = share * max(values[-1], 1.0)
        assume(np.abs(values - sigma).min() > 1e-8 * max(values[-1], 1.0))
        assert inertia(graph, sigma) == (values < sigma).sum()

    def test_between_any_two_eigenvalues(self) -> None:
        graph = random_graph([3, 15, 20, 15, 4], 0.6, seed=1, skip=2)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        for count, (low, high) in enumerate(pairwise(values), start=1):
            assert inertia(graph, (low + high) / 2) == count

    @pytest.mark.parametrize("backwards", [False, True])
    def test_groups_may_be_eliminated_from_either_end(self, backwards: bool) -> None:
        graph = random_graph([3, 15, 20, 15, 4], 0.6, seed=2, skip=2)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        for sigma in (-1.0, 0.3, 2.0, 5.0, 100.0):
            factor = Elimination(Laplacian(graph), 1.0, -sigma, keep=True, backwards=backwards)
            assert factor.negative == (values < sigma).sum()
            right = np.arange(graph.n, dtype=np.float64)
            solved = factor.solve(right)
            shifted = dense_laplacian(graph) - sigma * np.eye(graph.n)
            np.testing.assert_allclose(shifted @ solved, right, atol=1e-7)

    def test_a_sigma_at_which_a_group_alone_is_singular(self) -> None:
        """Every pivot of the first and of the last layer is zero; no eigenvalue is there."""
        graph = drawn_out([3, 4, 3], {(0, 1): 1.0, (1, 2): 1.0})
        for backwards in (False, True):
            with pytest.raises(UnstablePivots):
                Elimination(Laplacian(graph), 1.0, -4.0, keep=False, backwards=backwards)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        assert inertia(graph, 4.0 + 1e-9) == (values < 4.0 + 1e-9).sum()

    @pytest.mark.parametrize("backwards", [False, True])
    def test_the_order_says_what_is_kept(self, backwards: bool) -> None:
        for skip in (2, 3):
            graph = random_graph([3, 5, 7, 4], 1.0, seed=3, skip=skip)
            order = elimination_order(Laplacian(graph), backwards=backwards)
            factor = Elimination(Laplacian(graph), 1.0, 1.0, keep=True, backwards=backwards)
            assert order.entries == factor.entries
            assert sorted(order.groups) == [0, 1, 2, 3]

    def test_what_a_narrow_layer_widened_is_eliminated_first_and_stays_a_diagonal(self) -> None:
        graph = with_depthwise()
        laplacian = Laplacian(graph)
        order = elimination_order(laplacian)
        assert set(order.groups[:2]) == {1, 2}
        assert order.entries == (20 + 20 + 20 * 3) + (20 + 20 * 3 + 20 * 4) + (9 + 3 * 4) + 16
        factor = Elimination(laplacian, 1.0, 1.0, keep=True, backwards=False)
        assert factor.entries == order.entries
        right = np.arange(graph.n, dtype=np.float64)
        shifted = dense_laplacian(graph) + np.eye(graph.n)
        np.testing.assert_allclose(shifted @ factor.solve(right), right, atol=1e-9)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        for count, (low, high) in enumerate(pairwise(values), start=1):
            if high - low > 1e-6:
                assert inertia(graph, (low + high) / 2) == count

    def test_a_factor_that_does_not_fit_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.elimination_order.LARGEST_FACTOR", 10)
        with pytest.raises(CannotOperate, match="2 GiB"):
            inertia(random_graph([3, 5], 1.0, seed=0), 1.0)

    @pytest.mark.parametrize("sigma", [np.nan, np.inf])
    def test_needs_a_finite_sigma(self, sigma: float) -> None:
        with pytest.raises(UsageError, match="sigma must be finite"):
            inertia(random_graph([3, 5], 1.0, seed=0), sigma)

    def test_needs_a_number_and_a_graph(self) -> None:
        graph: Any = random_graph([3, 5], 1.0, seed=0)
        wrong: Any = "1"
        with pytest.raises(UsageError, match="sigma must be a number, not '1'"):
            inertia(graph, wrong)
        with pytest.raises(UsageError, match=r"a Laplacian is of .*, not ndarray"):
            Laplacian(graph.degrees)


class TestSmallest:
    @unhurried
    @given(joined)
    def test_is_that_of_numpy(self, graph: ChannelGraph) -> None:
        found = smallest_nonzero(graph, certify=True)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        assert found.components == Laplacian(graph).components
        assert abs(found.value - values[found.components]) <= found.residual + 1e-12
        assert found.certified

    @pytest.mark.parametrize("certify", [False, True])
    def test_of_a_graph_with_more_nodes(self, certify: bool) -> None:
        graph = random_graph([3, 100, 200, 200, 100], 0.05, seed=4, skip=2)
        found = smallest_nonzero(graph, certify=certify)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        assert found.method == "lanczos"
        assert found.certified == certify
        assert found.value == pytest.approx(values[found.components], rel=1e-9)
        assert found.residual <= 2 * found.tolerance

    def test_one_that_was_missed_is_found_from_another_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A start without part in the lowest mode sees the next one only, with no residual."""
        graph = random_graph([3, 100, 200, 200, 100], 0.3, seed=5)
        values, vectors = np.linalg.eigh(dense_laplacian(graph))
        lowest = vectors[:, 1]

        class Blind(np.random.Generator):
            def standard_normal(self, *size: int) -> np.ndarray:  # pyright: ignore
                drawn = super().standard_normal(*size)
                return drawn - lowest * (lowest @ drawn)

        def generator(seed: int, *names: str) -> np.random.Generator:
            bits = np.random.Philox(seed)
            return Blind(bits) if seed == 0 else np.random.Generator(bits)

        monkeypatch.setattr("n2nfx.connectivity.bottom.generator", generator)
        monkeypatch.setattr("n2nfx.connectivity.bottom.TOLERANCE", 1e-4)  # or rounding finds it
        assert smallest_nonzero(graph).value > values[1] + 1e-3
        found = smallest_nonzero(graph, certify=True)
        assert (found.seed, found.certified) == (1, True)
        assert found.value == pytest.approx(values[1], abs=1e-3)

    def test_is_the_algebraic_connectivity_of_networkx(self) -> None:
        graph = random_graph([3, 10, 12, 5], 0.7, seed=6)
        theirs = nx.algebraic_connectivity(
            nx.from_scipy_sparse_array(graph.to_scipy()), tol=1e-12, seed=1
        )
        assert smallest_nonzero(graph).value == pytest.approx(theirs, rel=1e-6)

    def test_of_a_stiff_graph_is_certified(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.bottom.MOST_STEPS", 60)
        generator = np.random.default_rng(7)
        weights = [(at, at + 1, generator.random((4, 4))) for at in range(149)]
        found = smallest_nonzero(layered([4] * 150, weights), certify=True)
        values = np.linalg.eigvalsh(dense_laplacian(layered([4] * 150, weights)))
        assert (found.method, found.certified) == ("shift-invert", True)
        assert found.value == pytest.approx(values[1], rel=1e-6)

    def test_of_no_edges(self) -> None:
        with pytest.raises(CannotOperate, match="no edges"):
            smallest_nonzero(layered([3], []))

    @unhurried
    @given(joined, st.integers(0, 2**32 - 1))
    def test_an_edge_less_raises_no_eigenvalue(self, graph: ChannelGraph, seed: int) -> None:
        """Interlacing, seen by the counts: no sigma has fewer eigenvalues below it."""
        whole = [np.array(block.weights) for block in graph.blocks]
        place = np.random.default_rng(seed).choice([k for k, w in enumerate(whole) if w.any()])
        edge = tuple(np.argwhere(whole[place])[0])
        whole[place][edge] = 0
        sizes = [group.size for group in graph.groups]
        blocks = zip(graph.blocks, whole, strict=True)
        cut = layered(sizes, [(b.source, b.target, weights) for b, weights in blocks])
        before, after = (np.linalg.eigvalsh(dense_laplacian(g)) for g in (graph, cut))
        assert (after <= before + 1e-12 * max(before[-1], 1)).all()
        middle = float((before[-1] + before[-2]) / 2)
        assume(min(np.abs(before - middle).min(), np.abs(after - middle).min()) > 1e-8 * middle)
        assert inertia(cut, middle) >= inertia(graph, middle)


class TestClosedForm:
    @unhurried
    @given(equal_layers())
    def test_has_the_eigenvalues_of_the_graph(
        self, layers: tuple[list[int], dict[tuple[int, int], float]]
    ) -> None:
        expected = np.linalg.eigvalsh(dense_laplacian(drawn_out(*layers)))
        np.testing.assert_allclose(equal_weight_eigenvalues(*layers), expected, atol=1e-11)

    @unhurried
    @given(equal_layers(), st.sampled_from((0.0, 0.05, 1.0, 20.0)))
    def test_has_the_heat_of_the_graph(
        self, layers: tuple[list[int], dict[tuple[int, int], float]], time: float
    ) -> None:
        graph = drawn_out(*layers)
        found = equal_weight_signature(*layers, time)
        true = true_heat(graph, time, graph.sources).astype(float)
        np.testing.assert_allclose(found[0], true, atol=1e-11)

    def test_of_a_chain_agrees_with_lanczos(self) -> None:
        sizes = [3, 64, 64, 128, 10]
        weights = chain_weights(sizes)
        graph = drawn_out(sizes, weights)
        times = (1e-4, 1e-3, 0.01, 1.0)
        heat = graph.heat(times)
        gap = np.linalg.norm(heat.signature - equal_weight_signature(sizes, weights, times), axis=1)
        assert (gap <= heat.certificate).all()

    def test_of_another_source(self) -> None:
        sizes, weights = [3, 4, 5], {(0, 1): 1.0, (1, 2): 2.0, (0, 2): 0.5}
        graph = drawn_out(sizes, weights)
        start = np.repeat([0.0, 0.0, 1.0], sizes)
        found = equal_weight_signature(sizes, weights, 0.3, source=2)
        np.testing.assert_allclose(found[0], true_heat(graph, 0.3, start).astype(float), atol=1e-12)

    @pytest.mark.parametrize(
        ("sizes", "weights", "said"),
        [
            ([], {}, "must have a node"),
            ([3, 0], {}, "must have a node"),
            ([3, 2], {(0, 2): 1.0}, "no layers 0 and 2"),
            ([3, 2], {(1, 1): 1.0}, "no layers 1 and 1"),
            ([3, 2], {(0, 1): -1.0}, "must be 0 or more, not -1"),
            ([3, 2], {(0, 1): np.nan}, "must be 0 or more, not nan"),
            ([3, 2], {(0, 1): 1.0, (1, 0): 1.0}, "two weights"),
        ],
    )
    def test_bad_layers(
        self, sizes: list[int], weights: dict[tuple[int, int], float], said: str
    ) -> None:
        with pytest.raises(UsageError, match=said):
            equal_weight_eigenvalues(sizes, weights)

    def test_bad_times_and_sources(self) -> None:
        with pytest.raises(UsageError, match="finite times"):
            equal_weight_signature([2, 2], {(0, 1): 1.0}, np.inf)
        with pytest.raises(UsageError, match="no layer 2"):
            equal_weight_signature([2, 2], {(0, 1): 1.0}, 1.0, source=2)


class TestMatrixFrobenius:
    def pair(self, seed: int) -> tuple[ChannelGraph, ChannelGraph]:
        sizes = [3, 10, 12, 6]
        return random_graph(sizes, 0.9, seed), random_graph(sizes, 0.2, seed, skip=2)

    @unhurried
    @given(st.integers(0, 2**32 - 1), st.sampled_from((0.0, 0.1, 1.0, 30.0, np.inf)))
    def test_is_the_distance_of_the_matrices(self, seed: int, time: float) -> None:
        one, other = self.pair(seed)
        found = matrix_frobenius(one, other, time)
        identity, late = np.eye(one.n), time if np.isfinite(time) else 1e7
        true = np.linalg.norm(true_heat(one, late, identity) - true_heat(other, late, identity))
        assert found.exact
        assert abs(found.value - float(true)) <= found.certificate + 1e-9

    @unhurried
    @given(layered_graphs(), st.sampled_from((0.1, 10.0, np.inf)))
    def test_is_symmetric_and_zero_for_one_graph(self, graph: ChannelGraph, time: float) -> None:
        assert matrix_frobenius(graph, graph, time).value == 0
        scaled = layered(
            [group.size for group in graph.groups],
            [(b.source, b.target, 2 * np.asarray(b.weights)) for b in graph.blocks],
        )
        one, other = (matrix_frobenius(*pair, time) for pair in ((graph, scaled), (scaled, graph)))
        assert one.value == pytest.approx(other.value, abs=1e-12)

    def test_at_infinity_counts_components(self) -> None:
        """sqrt(components - 1) against a connected graph on the same nodes."""
        whole = layered([4, 4], [(0, 1, np.ones((4, 4)))])
        parted = layered([4, 4], [(0, 1, np.eye(4))])
        for method in ("dense", "sampled"):
            found = matrix_frobenius(whole, parted, np.inf, method=method)
            assert found.value == pytest.approx(np.sqrt(3), rel=1e-9)

    def test_sampled_holds_the_truth_over_seeds(self) -> None:
        sizes = [3, 60, 80, 60]
        one, other = random_graph(sizes, 0.8, 8), random_graph(sizes, 0.1, 8)
        for time in (0.02, 0.2, 5.0):
            exact = matrix_frobenius(one, other, time, method="dense").value
            found = [matrix_frobenius(one, other, time, method="sampled", seed=s) for s in range(8)]
            inside = [f.low - f.certificate <= exact <= f.high + f.certificate for f in found]
            assert np.mean(inside) >= 0.75
            assert all(f.value == pytest.approx(exact, rel=0.2) for f in found)

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 2**32 - 1))
    def test_sampled_is_exact_where_the_probes_span_everything(self, seed: int) -> None:
        one, other = self.pair(seed)
        exact = matrix_frobenius(one, other, 0.3, method="dense")
        found = matrix_frobenius(one, other, 0.3, method="sampled", seed=seed)
        assert abs(found.value - exact.value) <= found.certificate + exact.certificate
        assert found.low == found.value == found.high

    def test_bad_input(self) -> None:
        one, other = random_graph([3, 5], 1.0, seed=0), random_graph([3, 6], 1.0, seed=0)
        with pytest.raises(UsageError, match="8 and 9 nodes"):
            matrix_frobenius(one, other, 1.0)
        with pytest.raises(UsageError, match="time must be 0 or more"):
            matrix_frobenius(one, one, -1.0)
        with pytest.raises(UsageError, match="no method 'exact'"):
            matrix_frobenius(one, one, 1.0, method="exact")  # pyright: ignore[reportArgumentType]
