"""N2NSkip's options, alone and together: budgets, silence, records; scores, degrees, shares."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from samples import Mixed, Residual
from torch import Tensor, nn

import n2nfx
from n2nfx.budget import Allocation, budget
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import Masks, ScoreRanking, select
from n2nfx.network import Network, Probe
from n2nfx.passes import N2NSkip, RandomPruning, n2nskip
from n2nfx.pipeline import Pass, Pipeline
from n2nfx.registry import passes
from n2nfx.rehearsal import misfits
from n2nfx.seeds import generator
from n2nfx.spec import from_text, to_text

# A pruner that scores, and networks of every layout

Saliency = Callable[[Network, Probe], Mapping[str, Tensor]]


def sensitivity(network: Network, probe: Probe) -> dict[str, Tensor]:
    """|w dR/dw| for the output of one input of ones: of all weights that there are."""
    module = copy.deepcopy(network.module).eval()
    weights = {row.weight: module.get_parameter(row.weight) for row in network.ledger() if row.size}
    output = module(torch.ones(2, *network.inputs[0].shape[1:]))
    found = torch.autograd.grad(output.square().sum(), list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if grad is None else (weight * grad).abs().detach()
        for (name, weight), grad in zip(weights.items(), found, strict=True)
    }


@dataclass(frozen=True)
class Scored:
    """A scored pruner, as small as can be."""

    name: ClassVar[str] = "scored"
    keeps: ClassVar[frozenset[str]] = frozenset({"graph", "outputs"})

    density: float
    allocation: Allocation = field(default_factory=lambda: Allocation("global"))
    saliency: Saliency | None = sensitivity

    def __call__(self, network: Network, probe: Probe) -> Network:
        ranking = ScoreRanking(sensitivity(network, probe), self.saliency)
        total = budget(self.density, network.size)
        masks = select(network.layers, ranking, self.allocation, total)
        return replace(network, masks=masks, scores=ranking, allocation=self.allocation)


def plain() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in ((3, 6), (6, 8), (8, 8), (8, 10)):
        layers += [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        if into != out:
            layers.append(nn.MaxPool2d(2) if out < 10 else nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(10, 5))


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), Residual(4), Residual(4))


def vectors() -> nn.Module:
    sizes = ((48, 24), (24, 16), (16, 16))
    layers = [(nn.Linear(*size), nn.BatchNorm1d(size[1]), nn.ReLU()) for size in sizes]
    return nn.Sequential(nn.Flatten(), *sum(layers, ()), nn.Linear(16, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "maps": plain,
    "residual": residual,
    "vectors": vectors,
    "mixed": Mixed,
}
SIZES = {"maps": 16, "residual": 8, "vectors": 4, "mixed": 8}


@cache
def module(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]()


@cache
def network(name: str) -> Network:
    return n2nfx.trace(module(name), torch.zeros(1, 3, SIZES[name], SIZES[name]))


def made(name: str, density: float = 0.3, seed: int = 0, **options: Any) -> Network:
    steps: list[Pass] = [Scored(density), N2NSkip(**{"ratio": 0.3, "hops": (2,), **options})]
    return Pipeline(steps)(network(name), seed=seed).network


def outputs(of: Network, training: bool) -> Tensor:
    side = of.inputs[0].shape[1:]
    x = torch.randn(3, *side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return copy.deepcopy(of.module).train(training)(x)


# All of them together

OPTIONS: dict[str, Any] = {
    "ratio": st.one_of(st.floats(0.02, 0.5), st.just("learned")),
    "hops": st.sampled_from([(1,), (2,), (3,), (1, 2), (2, 3)]),
    "placement": st.sampled_from(["every", "blocks", "stages"]),
    "wiring": st.sampled_from(["paper", "linear", "joint", "released-vgg"]),
    "kernel": st.sampled_from(["target", 1, 3]),
    "resolution": st.sampled_from(["stride", "pool"]),
    "share": st.sampled_from(["uniform", "global"]),
    "pattern": st.sampled_from(["random", "identity", "scored"]),
    "degrees": st.sampled_from(["uniform", "lognormal"]),
    "branch_norm": st.sampled_from(["none", "batch"]),
    "init": st.sampled_from(["kaiming", "zero"]),
}
NO_ROOM = ("no legal pair", "hold at most", "the layers' own")


@st.composite
def operations(draw: st.DrawFn) -> N2NSkip:
    for _ in range(6):
        try:
            return N2NSkip(**{name: draw(values) for name, values in OPTIONS.items()})
        except UsageError:  # two options that do not go together
            continue
    assume(False)
    raise AssertionError


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.filter_too_much])
@given(operation=operations(), density=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_whatever_is_asked_for_the_budget_is_exact_and_zeros_are_silent(
    name: str, operation: N2NSkip, density: float, seed: int
) -> None:
    pruned = Pipeline([Scored(density)])(network(name), seed=seed).network
    outcome = operated(name, operation, density, seed)
    skipped = outcome.network
    total = round(density * network(name).size)
    assert skipped.nnz == skipped.masks.nnz == pruned.nnz == total
    if operation.ratio != "learned":
        assert outcome.counts.skip == round(operation.ratio * total)
        lost = [skipped.masks[at] & ~mask for at, mask in pruned.masks.items()]
        assert not any(bool(one.any()) for one in lost)
    assert all(skipped.masks.counts[skip.weight] == skip.nnz > 0 for skip in skipped.skips)
    assert from_text(to_text(operation), passes()) == operation
    assert_silent(name, skipped)


def operated(name: str, operation: N2NSkip, density: float, seed: int) -> n2nfx.Outcome:
    """A network pruned and with skips; where there is no room for these, another example."""
    try:
        return Pipeline([Scored(density), operation])(network(name), seed=seed)
    except CannotOperate as error:
        if not any(reason in str(error) for reason in NO_ROOM):
            raise
    assume(False)
    raise AssertionError


def assert_silent(name: str, skipped: Network) -> None:
    """Branches of zeros change no bit of the output."""
    masks = {layer.weight: skipped.masks[layer.weight] for layer in skipped.layers}
    without = Pipeline([])(replace(network(name), masks=Masks(masks))).network
    silent = replace(skipped, module=copy.deepcopy(skipped.module))
    for skip in skipped.skips:
        nn.init.zeros_(silent.module.get_parameter(skip.weight))
    for training in (False, True):
        assert torch.equal(outputs(silent, training), outputs(without, training))


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.filter_too_much])
@given(operation=operations())
def test_whatever_is_asked_for_an_artifact_is_loaded_and_rehearsed(
    name: str, operation: N2NSkip
) -> None:
    outcome = operated(name, operation, 0.4, 3)
    with tempfile.TemporaryDirectory() as folder:
        outcome.save(Path(folder) / "out")
        loaded = n2nfx.load(Path(folder) / "out", module(name))
    skipped = outcome.network
    assert loaded.text() == skipped.text()
    assert loaded.skips == skipped.skips
    assert all(torch.equal(mask, loaded.masks[at]) for at, mask in skipped.masks.items())
    assert torch.equal(outputs(loaded, False), outputs(skipped, False))
    assert list(misfits(loaded)) == []


# Degrees and resolution


def test_lognormal_degrees_spread_and_leave_every_count_as_it_is() -> None:
    wide = nn.Sequential(*(nn.Linear(200, 200) for _ in range(3)))
    reference = n2nfx.trace(wide, torch.ones(1, 200))
    spread: dict[str, float] = {}
    for degrees in ("uniform", "lognormal"):
        operation = N2NSkip(0.5, (2,), degrees=degrees)  # type: ignore[arg-type]
        found = Pipeline([RandomPruning(0.1), operation])(reference).network
        assert [skip.nnz for skip in found.skips] == [3000, 3000]
        mask = found.masks[found.skips[0].weight].numpy()
        assert mask.sum() == 3000
        spread[degrees] = float(np.std(np.log(mask.sum(axis=1) + 0.5)))
    assert spread["lognormal"] > 2 * spread["uniform"]


@pytest.mark.parametrize("pattern", ["random", "identity"])
@pytest.mark.parametrize("degrees", ["uniform", "lognormal"])
def test_drawn_neurons_are_nested(pattern: str, degrees: str) -> None:
    few, more = (made("maps", density, pattern=pattern, degrees=degrees) for density in (0.1, 0.3))
    kept = {skip.weight: more.masks[skip.weight] for skip in more.skips}
    assert few.skips
    assert not any(bool((few.masks[s.weight] & ~kept[s.weight]).any()) for s in few.skips)


def test_pooling_averages_wherever_a_branch_would_have_a_stride() -> None:
    strided, pooled = (made("maps", resolution=how) for how in ("stride", "pool"))
    assert any(max(skip.stride, default=1) > 1 for skip in strided.skips)
    for one, other in zip(strided.skips, pooled.skips, strict=True):
        assert max(other.stride, default=1) == 1
        if max(one.stride, default=1) > 1:
            assert other.pool == one.places
        assert other.weight_shape == one.weight_shape or 0 in (one.nnz, other.nnz)


# Scores


def seen(**options: Any) -> tuple[Network, Network, Mapping[str, Tensor]]:
    """A network with scored branches, the one its saliency was asked for, and the scores."""
    asked: list[tuple[Network, Mapping[str, Tensor]]] = []

    def spy(candidate: Network, probe: Probe) -> Mapping[str, Tensor]:
        asked.append((candidate, sensitivity(candidate, probe)))
        return asked[-1][1]

    pruner = Scored(0.2, options.pop("allocation", Allocation("global", floor=0)), spy)
    operation = N2NSkip(**{"ratio": 0.3, "hops": (2,), "pattern": "scored", **options})
    result = Pipeline([pruner, operation])(network("maps")).network
    ((candidate, scores),) = asked
    return result, candidate, scores


def best(scores: list[Tensor], count: int) -> np.ndarray:
    """The `count` best of all, the first among equals: written out once more."""
    flat = torch.cat([one.reshape(-1) for one in scores]).double().numpy()
    kept = np.zeros(len(flat), dtype=bool)
    kept[np.lexsort((np.arange(len(flat)), -flat))[:count]] = True
    return kept


def flat(result: Network, names: list[str], like: Mapping[str, Tensor]) -> np.ndarray:
    masks = [result.masks.get(name, torch.zeros(like[name].shape, dtype=bool)) for name in names]  # type: ignore[call-overload]
    return torch.cat([mask.reshape(-1) for mask in masks]).numpy()


def test_candidates_are_scored_dense_and_at_their_initialization() -> None:
    result, candidate, scores = seen(share="global")
    assert candidate.module is not result.module
    assert [skip.nnz for skip in candidate.skips] == [skip.size for skip in candidate.skips]
    assert len(candidate.masks) == 0
    for skip in candidate.skips:
        weight = candidate.module.get_parameter(skip.weight).detach()
        assert bool((weight != 0).all())
        fan_in = skip.size / skip.weight_shape[0]
        assert float(weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.2)
        assert scores[skip.weight].any()
    for layer in result.layers:
        weight = module("maps").get_parameter(layer.weight)
        assert torch.equal(candidate.module.get_parameter(layer.weight), weight)


def test_scored_branches_keep_their_best_weights_each() -> None:
    result, _, scores = seen(share="uniform")
    for skip in result.skips:
        expected = best([scores[skip.weight]], skip.nnz)
        assert (result.masks[skip.weight].reshape(-1).numpy() == expected).all()
    drawn = made("maps", 0.2).skips
    assert [skip.nnz for skip in result.skips] == [skip.nnz for skip in drawn]


def test_a_global_share_is_one_ranking_of_all_branches_weights() -> None:
    result, candidate, scores = seen(share="global")
    names = [skip.weight for skip in candidate.skips]
    total = round(0.3 * result.nnz)
    expected = best([scores[name] for name in names], total)
    assert (flat(result, names, scores) == expected).all()


@pytest.mark.parametrize("pattern", ["random", "identity"])
def test_neurons_can_be_drawn_where_scores_say_how_many(pattern: str) -> None:
    result, candidate, scores = seen(share="global", pattern=pattern)
    names = [skip.weight for skip in candidate.skips]
    ends = np.cumsum([scores[name].numel() for name in names])
    kept = best([scores[name] for name in names], round(0.3 * result.nnz))
    counts = [int(part.sum()) for part in np.split(kept, ends[:-1])]
    expected = {name: count for name, count in zip(names, counts, strict=True) if count}
    assert {skip.weight: skip.nnz for skip in result.skips} == expected


def test_a_learned_split_is_one_ranking_of_everything_at_the_same_budget() -> None:
    result, candidate, scores = seen(ratio="learned", share="global")
    names = [*(layer.weight for layer in result.layers), *(s.weight for s in candidate.skips)]
    total = round(0.2 * network("maps").size)
    expected = best([scores[name] for name in names], total)
    assert (flat(result, names, scores) == expected).all()
    assert result.nnz == total
    assert isinstance(result.scores, ScoreRanking)
    assert result.scores.scores is scores


def test_a_learned_split_leaves_every_layer_its_floor_first() -> None:
    allocation = Allocation("global", floor=40)
    result, candidate, scores = seen(ratio="learned", share="global", allocation=allocation)
    counts, total = result.masks.counts, round(0.2 * network("maps").size)
    assert any(counts[layer.weight] == 40 for layer in result.layers)
    floored = {layer.weight: best([scores[layer.weight]], 40) for layer in result.layers}
    names = [*floored, *(skip.weight for skip in candidate.skips)]
    first = np.concatenate(
        [floored.get(name, np.zeros(scores[name].numel(), dtype=bool)) for name in names]
    )
    rest = torch.cat([scores[name].reshape(-1) for name in names])[~torch.from_numpy(first)]
    expected = first.copy()
    expected[~first] = best([rest], total - int(first.sum()))
    assert (flat(result, names, scores) == expected).all()


def test_a_learned_split_of_a_smaller_budget_keeps_a_subset() -> None:
    options: dict[str, Any] = {"ratio": "learned", "share": "global", "pattern": "scored"}
    few, more = (made("maps", density, **options) for density in (0.1, 0.3))
    assert not any(bool((mask & ~more.masks[name]).any()) for name, mask in few.masks.items())


def test_scored_weights_are_those_that_were_scored_on_the_scale_of_their_real_fan_in() -> None:
    result, candidate, _ = seen(share="global")
    for skip in result.skips:
        mask = result.masks[skip.weight]
        kept = result.module.get_parameter(skip.weight)[mask]
        scored = candidate.module.get_parameter(skip.weight)[mask]
        shrunk = max(skip.nnz / skip.weight_shape[0], 1) / (skip.size / skip.weight_shape[0])
        torch.testing.assert_close(kept, scored / shrunk**0.5)


# What is refused


def refused(*steps: Pass, of: str = "maps") -> str:
    with pytest.raises(CannotOperate) as error:
        Pipeline(steps)(network(of))
    return str(error.value)


LEARNED = N2NSkip("learned", (2,), pattern="scored", share="global")


@pytest.mark.parametrize("operation", [LEARNED, N2NSkip(0.3, (2,), pattern="scored")])
def test_branches_are_not_scored_where_the_layers_were_not(operation: N2NSkip) -> None:
    assert "scored pruner" in refused(RandomPruning(0.2), operation)
    assert "scored pruner" in refused(operation)
    assert "scored pruner" in refused(Scored(0.2, saliency=None), operation)


def test_a_split_is_not_learned_where_the_allocation_fixes_it() -> None:
    told = refused(Scored(0.2, Allocation("erk")), LEARNED)
    assert "'erk' fixes what each layer keeps" in told


def layers_only(candidate: Network, probe: Probe) -> dict[str, Tensor]:
    scores = sensitivity(candidate, probe)
    own = {layer.weight for layer in candidate.layers}
    return {name: one + 1 if name in own else one * 0 for name, one in scores.items()}


def test_a_learned_split_without_a_branch_is_told() -> None:
    assert "the layers' own" in refused(Scored(0.2, saliency=layers_only), LEARNED)


def test_a_saliency_that_forgets_branches_is_told_which() -> None:
    def forgets(candidate: Network, probe: Probe) -> dict[str, Tensor]:
        return {layer.weight: torch.ones(layer.weight_shape) for layer in candidate.layers}

    assert "no score to skips." in refused(Scored(0.2, saliency=forgets), LEARNED)


def other_scores(candidate: Network, probe: Probe) -> dict[str, Tensor]:
    return {
        row.weight: torch.from_numpy(generator(0, "other", row.weight).random(row.shape))
        for row in candidate.ledger()
    }


def test_weights_that_an_earlier_pipeline_dropped_do_not_come_back() -> None:
    first = Pipeline([Scored(0.2, saliency=other_scores)])(network("maps")).network
    with pytest.raises(CannotOperate, match="in one pipeline"):
        Pipeline([LEARNED])(first)
    both = Pipeline([Scored(0.2, saliency=other_scores), LEARNED])(network("maps")).network
    assert both.nnz == first.nnz


def test_candidates_that_fit_in_no_memory_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = sum(skip.size for skip in made("maps").skips)
    monkeypatch.setattr(n2nskip, "bytes_of_memory", lambda: (0, 10 * size))
    made("maps")  # which are not scored
    with pytest.raises(CannotOperate, match="GiB"):
        made("maps", pattern="scored")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": "even"}, "share"),
        ({"degrees": "normal"}, "degrees"),
        ({"resolution": "max"}, "resolution"),
        ({"ratio": "learnt"}, "ratio"),
        ({"ratio": "learned"}, "'scored'"),
        ({"ratio": "learned", "pattern": "scored"}, "'global'"),
        ({"pattern": "scored", "degrees": "lognormal"}, "draws no neurons"),
        ({"pattern": "scored", "init": "zero", "wiring": "linear"}, "scores"),
        ({"share": "global", "init": "zero", "wiring": "joint"}, "scores"),
        ({"wiring": "released-vgg", "branch_norm": "batch"}, "share their targets' norms"),
        ({"wiring": "released-vgg", "init": "zero"}, "gradient"),
        ({"wiring": "released-vgg", "resolution": "pool"}, "max-pools"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_told_with_what_does(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        N2NSkip(**{"ratio": 0.3, **options})
