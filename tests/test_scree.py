"""Scree diagrams: shares of heat that only grow, exact or inside of their interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layered_samples import dense_laplacian, layered_graphs, random_graph

from n2nfx.connectivity.bottom import bottom
from n2nfx.connectivity.eigenvalues import Method, eigenvalues
from n2nfx.connectivity.graph import ChannelGraph, layered
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.quadrature import quadrature
from n2nfx.connectivity.scree import ZeroModes, scree, scree_of
from n2nfx.connectivity.spectrum import smallest_nonzero
from n2nfx.errors import CannotOperate, UsageError

unhurried = settings(deadline=None, max_examples=60)

FRACTIONS = (0.01, 0.06, 0.25, 1.0)
TIMES = (0.0, 0.01, 0.3, 2.0, 50.0, 1e6)
joined = layered_graphs().filter(lambda graph: graph.edges > 0)
modes: st.SearchStrategy[ZeroModes] = st.sampled_from(("paper", "nonzero"))
methods: st.SearchStrategy[Method] = st.sampled_from(("dense", "slq"))


def defined(graph: ChannelGraph, counts: tuple[int, ...], skipped: int, time: float) -> list[float]:
    """Eq. 7 as it is written, on eigenvalues of numpy."""
    values = np.linalg.eigvalsh(dense_laplacian(graph))[skipped:]
    heat = np.exp(-time * values)
    return [heat[:count].sum() / heat.sum() for count in counts]


class TestAlpha:
    @unhurried
    @given(joined, modes)
    def test_is_what_eq_7_says(self, graph: ChannelGraph, mode: ZeroModes) -> None:
        found = scree(graph, FRACTIONS, (0.0, 0.01, 0.3), zero_modes=mode)
        assert found.exact
        skipped = 1 if mode == "paper" else Laplacian(graph).components
        for column, time in enumerate(found.times):
            expected = defined(graph, found.counts, skipped, time)
            np.testing.assert_allclose(found.alpha[:, column], expected, rtol=1e-9)

    @unhurried
    @given(joined, modes, methods)
    def test_grows_with_time_and_with_k(
        self, graph: ChannelGraph, mode: ZeroModes, method: Method
    ) -> None:
        found = scree(graph, FRACTIONS, TIMES, zero_modes=mode, method=method)
        assert np.isfinite(found.alpha).all()
        assert (found.alpha >= 0).all()
        assert (found.alpha <= 1 + 1e-12).all()
        assert (np.diff(found.alpha, axis=0) >= -1e-12).all()
        assert (np.diff(found.alpha, axis=1) >= -1e-12).all()
        np.testing.assert_allclose(found.alpha[-1], 1, rtol=1e-12)

    @unhurried
    @given(joined, modes, methods)
    def test_starts_at_the_share_of_the_eigenvalues(
        self, graph: ChannelGraph, mode: ZeroModes, method: Method
    ) -> None:
        found = scree(graph, FRACTIONS, 0.0, zero_modes=mode, method=method)
        counted = graph.n - (1 if mode == "paper" else found.components)
        np.testing.assert_allclose(found.alpha[:, 0], np.array(found.counts) / counted, rtol=1e-9)

    @pytest.mark.parametrize("method", ["dense", "slq"])
    def test_ends_at_the_zero_modes(self, method: Method) -> None:
        """Five isolated nodes and one component: five zeros are counted, then all is in them."""
        weights = np.ones((12, 10))
        weights[7:] = 0
        graph = layered([10, 12], [(0, 1, weights)])
        found = scree(graph, (0.05, 0.1, 0.5), 1e6, method=method)
        assert found.components == 6
        assert found.counts == (1, 2, 11)
        np.testing.assert_allclose(found.alpha[:, 0], [1 / 5, 2 / 5, 1])

    def test_late_heat_does_not_vanish(self) -> None:
        """The plain form of Eq. 7 is 0 / 0 here."""
        graph = random_graph([3, 20, 20], 0.8, seed=1)
        for method in ("dense", "slq"):
            found = scree(graph, 0.06, 1e6, method=method, zero_modes="nonzero")
            np.testing.assert_allclose(found.alpha, 1)

    @unhurried
    @given(joined, st.integers(1, 60))
    def test_counts_are_whole_and_within_the_graph(self, graph: ChannelGraph, count: int) -> None:
        found = scree(graph, min(1.0, count / graph.n), 1.0)
        assert found.counts[0] == min(count, graph.n - 1)


class TestInterval:
    def test_holds_over_seeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A nominal 95%, of seeds that are few: half the width would hold 7 times in 10."""
        monkeypatch.setattr("n2nfx.connectivity.eigenvalues.PAIRS", 8)
        graph = random_graph([3, 80, 80, 80, 10], 0.2, seed=2, skip=2)
        fractions, times = (0.1, 0.25, 0.5), (0.02, 0.05, 0.1, 0.2)
        exact = scree(graph, fractions, times, method="dense")
        inside = []
        for seed in range(40):
            found = scree(graph, fractions, times, method="slq", seed=seed)
            assert not found.exact
            assert (found.low <= found.alpha).all()
            assert (found.alpha <= found.high).all()
            inside.append((found.low <= exact.alpha) & (exact.alpha <= found.high))
        assert np.mean(inside) >= 0.88

    def test_holds_what_few_steps_miss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the spectrum is dense chance is not all: what probes alone say held 85%."""
        monkeypatch.setattr("n2nfx.connectivity.eigenvalues.PAIRS", 8)
        graph = random_graph([3, 20, 300, 20, 300, 20], 0.5, seed=2)
        exact = eigenvalues(graph, "dense")
        times = np.array((0.1, 0.3, 1.0, 3.0, 10.0)) / exact.known[0]
        true = scree_of(exact, (0.06, 0.1, 0.25), times).alpha
        inside = []
        for seed in range(10):
            found = scree_of(eigenvalues(graph, "slq", seed), (0.06, 0.1, 0.25), times)
            inside.append((found.low <= true) & (true <= found.high))
        assert np.mean(inside) >= 0.95

    def test_holds_where_small_eigenvalues_crowd(self) -> None:
        """All steps see 400 of them at the same place or two, so that nothing moves any more."""
        generator = np.random.default_rng(0)
        inner = generator.random((150, 150)) * (generator.random((150, 150)) < 0.5)
        pendant = np.zeros((400, 150))
        pendant[np.arange(400), generator.integers(0, 150, 400)] = 10 ** generator.uniform(
            -5, -1, 400
        )
        blocks = [(0, 1, generator.random((150, 20))), (1, 2, inner), (2, 3, pendant)]
        graph = layered([20, 150, 150, 400], blocks)
        exact = eigenvalues(graph, "dense")
        times = np.array((0.1, 1.0, 5.0, 20.0)) / exact.known[0]
        true = scree_of(exact, (0.01, 0.06, 0.25), times).alpha
        for seed in range(3):
            found = scree_of(eigenvalues(graph, "slq", seed), (0.01, 0.06, 0.25), times)
            assert (found.low <= true + 1e-9).all()
            assert (true <= found.high + 1e-9).all()
            assert (found.high - found.low)[:, -1].max() < 1e-6

    def test_is_narrow(self) -> None:
        graph = random_graph([3, 100, 200, 200, 100, 10], 0.2, seed=3)
        exact = scree(graph, (0.1, 0.25), (0.05, 0.1, 0.5), method="dense")
        found = scree(graph, (0.1, 0.25), (0.05, 0.1, 0.5), method="slq")
        np.testing.assert_allclose(found.alpha, exact.alpha, atol=0.01)
        assert (found.high - found.low).max() < 0.05

    @unhurried
    @given(st.integers(0, 2**32 - 1), st.sampled_from((0.2, 0.5, 1.0)))
    def test_closes_where_the_probes_span_everything(self, seed: int, fill: float) -> None:
        graph = random_graph([3, 15, 15, 6], fill, seed)
        exact = scree(graph, FRACTIONS, TIMES, method="dense", zero_modes="nonzero")
        found = scree(graph, FRACTIONS, TIMES, method="slq", zero_modes="nonzero", seed=seed)
        # Lanczos loses directions to rounding: of 750 graphs the worst is 4e-6 off, 99% below 5e-9.
        np.testing.assert_allclose(found.alpha, exact.alpha, atol=1e-4)
        assert (found.low == found.alpha).all()
        assert (found.high == found.alpha).all()

    def test_depends_on_the_seed_and_nothing_else(self) -> None:
        graph = random_graph([3, 100, 100], 0.2, seed=4)
        first, same, other = (scree(graph, 0.5, 0.2, method="slq", seed=s) for s in (1, 1, 2))
        assert (first.alpha == same.alpha).all()
        assert (first.alpha != other.alpha).all()
        assert (first.seed, other.seed) == (1, 2)

    def test_no_ghosts_of_the_bottom(self) -> None:
        """What was taken out, were it back, would take over the late heat."""
        graph = random_graph([3, 200, 300, 200], 0.5, seed=5)
        laplacian = Laplacian(graph)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        exact = bottom(laplacian, 8, seed=0)
        np.testing.assert_allclose(exact.values, values[1:9], rtol=1e-9)
        rules = quadrature(laplacian, exact, seed=0)
        time = 3.0
        seen = rules.dimension * np.mean(
            np.sum(rules.shares * np.exp(-time * rules.places), axis=1)
        )
        true = np.exp(-time * values[9:]).sum()
        assert seen == pytest.approx(true, rel=0.5)

    def test_many_pairs_of_a_graph_that_factors_well(self) -> None:
        """Found by shift-invert from early on; one pair is not worth a factor."""
        graph = random_graph([3, 30, 200, 30, 200, 30, 200, 30], 0.5, seed=8)
        found = bottom(Laplacian(graph), 32, seed=0)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        assert found.method == "shift-invert"
        assert 16 <= found.values.size <= 32
        assert found.values[0] == pytest.approx(values[1], rel=1e-10)
        apart = np.abs(np.subtract.outer(found.values, values)).min(axis=1)
        assert (apart <= found.residuals + 1e-12 * values[-1]).all()
        assert bottom(Laplacian(graph), 1, seed=0).method == "lanczos"

    def test_a_large_factor_is_read_less_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        graph = random_graph([3, 30, 200, 30, 200, 30, 200, 30], 0.5, seed=8)
        laplacian, values = Laplacian(graph), np.linalg.eigvalsh(dense_laplacian(graph))
        often = bottom(laplacian, 32, seed=0)
        monkeypatch.setattr("n2nfx.connectivity.bottom._READ", 0)
        seldom = bottom(laplacian, 32, seed=0)
        assert seldom.method == often.method == "shift-invert"
        assert 0 < seldom.values.size < often.values.size
        apart = np.abs(np.subtract.outer(seldom.values, values)).min(axis=1)
        assert (apart <= seldom.residuals + 1e-12 * values[-1]).all()

    @pytest.mark.parametrize("count", [1, 16])
    def test_pairs_of_a_stiff_graph(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("n2nfx.connectivity.bottom.MOST_STEPS", 100)
        generator = np.random.default_rng(6)
        weights = [(at, at + 1, generator.random((4, 4))) for at in range(149)]
        graph = layered([4] * 150, weights)
        found = bottom(Laplacian(graph), count, seed=0)
        values = np.linalg.eigvalsh(dense_laplacian(graph))
        assert found.method == "shift-invert"
        np.testing.assert_allclose(found.values, values[1 : 1 + count], rtol=1e-6)


class TestEigenvalues:
    @unhurried
    @given(joined, methods)
    def test_the_smallest_is_that_of_the_graph(self, graph: ChannelGraph, method: Method) -> None:
        found, alone = eigenvalues(graph, method), smallest_nonzero(graph)
        assert found.components == alone.components
        if found.smallest is None:
            assert method == "slq"
            assert graph.n - found.components < 4
            return
        assert found.smallest.value == pytest.approx(alone.value, rel=1e-8, abs=alone.tolerance)
        assert found.smallest.certified == (method == "dense")
        assert found.known.size == found.residuals.size
        assert found.known.size + found.others.dimension == graph.n - found.components

    def test_many_times_at_once_are_each_time_alone(self) -> None:
        graph = random_graph([3, 100, 100], 0.2, seed=4)
        found = eigenvalues(graph, "slq", 3)
        once = scree_of(found, FRACTIONS, TIMES)
        for place, time in enumerate(TIMES):
            alone = scree(graph, FRACTIONS, time, method="slq", seed=3)
            np.testing.assert_allclose(once.alpha[:, place], alone.alpha[:, 0], rtol=1e-12)
            np.testing.assert_allclose(once.high[:, place], alone.high[:, 0], rtol=1e-9)

    @pytest.mark.parametrize("joint", [1e-12, 1e-14, 1e-16])
    def test_one_that_rounding_hides_is_not_the_smallest(self, joint: float) -> None:
        """Two halves that hardly touch: all eigenvalues at once are right to 1e-11 here."""
        generator = np.random.default_rng(9)
        sizes = (100, 150, 150, 100)
        blocks = [
            (at, at + 1, scale * generator.random((sizes[at + 1], sizes[at])))
            for at, scale in enumerate((1.0, joint, 1.0))
        ]
        graph = layered(sizes, blocks)
        assert eigenvalues(graph, "dense").smallest is None
        assert 0 < smallest_nonzero(graph).value < 1e3 * joint


class TestBadInput:
    graph = random_graph([3, 5, 5], 0.8, seed=7)

    @pytest.mark.parametrize(
        ("fraction", "said"),
        [
            (0.0, "above 0 and up to 1, not 0"),
            (-0.1, "not -0.1"),
            (6, "not 6; for 6% take 0.06"),
            (np.nan, "not nan"),
            ([], "one fraction or a list"),
            ("some", "K must be numbers"),
        ],
    )
    def test_fractions(self, fraction: object, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            self.graph.scree(fraction)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("time", [-1.0, np.nan, np.inf])
    def test_times(self, time: float) -> None:
        with pytest.raises(UsageError, match="time"):
            self.graph.scree(0.1, time)

    def test_words(self) -> None:
        with pytest.raises(UsageError, match=r"no method 'dens'.*did you mean dense"):
            self.graph.scree(0.1, method="dens")  # pyright: ignore[reportArgumentType]
        with pytest.raises(UsageError, match="no zero_modes 'all'"):
            self.graph.scree(0.1, zero_modes="all")  # pyright: ignore[reportArgumentType]

    def test_nothing_to_count(self) -> None:
        with pytest.raises(CannotOperate, match="no edges"):
            layered([1], []).scree()
        with pytest.raises(CannotOperate, match="no edges"):
            layered([2, 2], []).scree(zero_modes="nonzero")

    def test_isolated_nodes_are_zero_modes_of_the_paper(self) -> None:
        for method in ("dense", "slq"):
            found = layered([2, 2], []).scree(0.5, (0.0, 1.0), method=method)
            np.testing.assert_allclose(found.alpha, 2 / 3)

    def test_fig_4_is_the_default(self) -> None:
        found = self.graph.scree()
        assert (found.times[0], found.times[-1], found.K[0]) == (0, 2, 0.06)
