"""Pruners: scores by their papers' definitions, computed here independently; exact budgets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import part_samples
import pytest
import torch
from samples import Model
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.budget import budget
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import ScoreRanking, select
from n2nfx.models import build
from n2nfx.network import Network, Probe
from n2nfx.passes import SNIP, Expander, GraSP, IterativeSNIP, Magnitude, RandomPruning, SynFlow
from n2nfx.passes.expander import ExpanderRanking
from n2nfx.pipeline import Pipeline
from n2nfx.rounds import exponential, rank_in_rounds
from n2nfx.saliency import Workbench, prunable


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def mlp() -> nn.Sequential:
    """Small, smooth and without norms, so that its derivatives can be written down."""
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def convolutional() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        )
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def batch(count: int = 16, shape: tuple[int, ...] = (4,), seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw(count, *shape, seed=seed), labels(count, seed=seed)


IMAGES = (2, 8, 8)


def traced(module: nn.Module, shape: tuple[int, ...] = (4,)) -> Network:
    return n2nfx.trace(module, draw(2, *shape))


def scores_of(pruner: Any, network: Network, probe: Probe) -> dict[str, Tensor]:
    ranking = pruner(network, probe).scores
    assert isinstance(ranking, ScoreRanking)
    return dict(ranking.scores)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.ndim > 1}


def gradients(module: nn.Module, value: Tensor) -> dict[str, Tensor]:
    weights = weights_of(module)
    found = torch.autograd.grad(value, list(weights.values()))
    return dict(zip(weights, found, strict=True))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        wanted = values.detach().double()
        slack = rtol * float(wanted.abs().max())
        torch.testing.assert_close(found[name].double(), wanted, rtol=rtol, atol=slack)


# SNIP


def test_snip_is_how_much_the_loss_moves_with_each_connection() -> None:
    """By finite differences in float64, from the definition: dL(c * w)/dc at c = 1."""
    module, (inputs, targets) = mlp(), batch()
    found = scores_of(SNIP(density=0.5), traced(module), Probe(batches=[(inputs, targets)]))
    module = module.double()
    expected = {name: torch.zeros_like(weight) for name, weight in weights_of(module).items()}
    step = 1e-5
    with torch.no_grad():
        for name, weight in weights_of(module).items():
            for at in range(weight.numel()):
                own, losses = float(weight.view(-1)[at]), []
                for factor in (1 + step, 1 - step):
                    weight.view(-1)[at] = own * factor
                    losses.append(functional.cross_entropy(module(inputs.double()), targets))
                weight.view(-1)[at] = own
                expected[name].view(-1)[at] = abs(losses[0] - losses[1]) / (2 * step)
    assert_close(found, expected)


def test_snip_with_batch_statistics_and_without_dropout() -> None:
    module, data = convolutional(), batch(shape=IMAGES)
    found = scores_of(SNIP(density=0.5), traced(module, IMAGES), Probe(batches=[data]))
    module.train()[6].eval()
    expected = gradients(module, functional.cross_entropy(module(data[0]), data[1]))
    assert_close(found, {n: (w * expected[n]).abs() for n, w in weights_of(module).items()})


def test_snip_with_running_statistics() -> None:
    module, data = convolutional(), batch(shape=IMAGES)
    for _ in range(3):
        module.train()(draw(8, *IMAGES, seed=9) * 3 + 1)
    pruner = SNIP(density=0.5, norm="running")
    found = scores_of(pruner, traced(module, IMAGES), Probe(batches=[data]))
    module.eval()
    expected = gradients(module, functional.cross_entropy(module(data[0]), data[1]))
    assert_close(found, {n: (w * expected[n]).abs() for n, w in weights_of(module).items()})


def test_several_batches_count_as_their_union_whatever_their_sizes() -> None:
    one, other = batch(10, seed=1), batch(22, seed=2)
    union = torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])
    network = traced(mlp())
    apart = scores_of(SNIP(density=0.5, batches=2), network, Probe(batches=[one, other]))
    assert_close(apart, scores_of(SNIP(density=0.5), network, Probe(batches=[union])))
    first = scores_of(SNIP(density=0.5), network, Probe(batches=[one, other]))
    assert_close(first, scores_of(SNIP(density=0.5), network, Probe(batches=[one])))


def test_a_loss_of_ones_own_is_the_one_that_is_differentiated() -> None:
    def squares(output: Tensor, targets: Tensor) -> Tensor:
        return (output - targets).square().mean()

    module, inputs, targets = mlp(), draw(8, 4), draw(8, 3, seed=1)
    probe = Probe(batches=[(inputs, targets)], loss=squares)
    found = scores_of(SNIP(density=0.5), traced(module), probe)
    expected = gradients(module, squares(module(inputs), targets))
    assert_close(found, {n: (w * expected[n]).abs() for n, w in weights_of(module).items()})


# Iterative SNIP, FORCE


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1).double() for part in parts.values()])


def best(scores: Tensor, count: int) -> Tensor:
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.topk(count).indices] = True
    return kept


@pytest.mark.parametrize("revive", [False, True])
def test_iterative_snip_takes_sensitivities_where_the_network_stands(revive: bool) -> None:
    module, (inputs, targets), rounds = seeded(lambda: nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )), batch(), 8  # fmt: skip
    network = traced(module)
    pruner = IterativeSNIP(density=0.2, floor=0, rounds=rounds, revive=revive)
    found = pruner(network, Probe(batches=[(inputs, targets)])).masks
    module = module.double()
    first = flat(weights_of(module))
    kept, total, came_back = torch.ones(len(first), dtype=torch.bool), budget(0.2, len(first)), 0
    for turn in range(1, rounds + 1):
        with torch.no_grad():
            parts = (first * kept).split([w.numel() for w in weights_of(module).values()])
            for weight, part in zip(weights_of(module).values(), parts, strict=True):
                weight.copy_(part.reshape(weight.shape))
        loss = functional.cross_entropy(module(inputs.double()), targets)
        scores = (first * flat(gradients(module, loss))).abs()
        if not revive:
            scores[~kept] = -1
        left = round(len(first) * (total / len(first)) ** (turn / rounds))
        came_back += int((best(scores, left) & ~kept).sum())
        kept = best(scores, left)
    assert torch.equal(flat(dict(found)).bool(), kept)
    assert bool(came_back) == revive


def test_weights_are_ranked_by_their_round_then_by_their_last_score() -> None:
    """What is left after some rounds is what pruning that stops there keeps."""
    network, probe = traced(convolutional(), IMAGES), Probe(batches=[batch(shape=IMAGES)])
    pruner = IterativeSNIP(density=0.05, floor=0, rounds=6)
    ranking = pruner(network, probe).scores
    assert ranking is not None
    data, loss = pruner.data(network, probe)
    totals = exponential(network.size, budget(0.05, network.size), 6)
    for rounds in range(1, 7):
        bench = Workbench(network, "batch", 0)
        scores = rank_in_rounds(
            bench,
            network.layers,
            pruner.sharing,
            totals[:rounds],
            lambda bench=bench: bench.mean_gradients(data, loss),
            lambda weight, gradient: (weight * gradient).abs(),
        )
        total = totals[rounds - 1]
        stopped = select(network.layers, ScoreRanking(scores), pruner.sharing, total)
        going_on = select(network.layers, ranking, pruner.sharing, total)
        assert all(torch.equal(stopped[name], mask) for name, mask in going_on.items())


def test_the_schedule_falls_by_the_same_share_and_ends_at_the_budget() -> None:
    assert exponential(10_000, 100, 2) == (1000, 100)
    assert exponential(10_000, 100, 1) == (100,)
    for size, total, rounds in ((1000, 1000, 7), (25_502_912, 510_058, 100), (10, 1, 50)):
        left = exponential(size, total, rounds)
        assert len(left) == rounds
        assert left[-1] == total
        assert sorted(left, reverse=True) == [*left]
        assert max(left) <= size


# GraSP


def test_grasp_is_what_each_removal_does_to_the_norm_of_the_gradient() -> None:
    """By finite differences in float64: half of d|g|^2/dc for c * w at c = 1."""
    module, (inputs, targets) = mlp(), batch()
    pruner = GraSP(density=0.5, temperature=2.0)
    found = scores_of(pruner, traced(module), Probe(batches=[(inputs, targets)]))
    module = module.double()

    def norm() -> float:
        loss = functional.cross_entropy(module(inputs.double()) / 2.0, targets)
        return float(flat(gradients(module, loss)).square().sum())

    expected = {name: torch.zeros_like(weight) for name, weight in weights_of(module).items()}
    step = 1e-5
    for name, weight in weights_of(module).items():
        for at in range(weight.numel()):
            entry, norms = weight.detach().view(-1)[at : at + 1], []
            own = entry.clone()
            for factor in (1 + step, 1 - step):
                entry.copy_(own * factor)
                norms.append(norm())
            entry.copy_(own)
            expected[name].view(-1)[at] = (norms[0] - norms[1]) / (4 * step)
    # Growing a weight that is kept raises the norm: removing it would lower it.
    assert_close(found, expected, rtol=1e-3)


def test_grasp_over_several_batches_is_over_their_union() -> None:
    one, other = batch(10, seed=1), batch(22, seed=2)
    union = torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])
    network = traced(mlp())
    apart = scores_of(GraSP(density=0.5, batches=2), network, Probe(batches=[one, other]))
    assert_close(apart, scores_of(GraSP(density=0.5), network, Probe(batches=[union])), rtol=1e-3)


def test_grasp_through_attention_and_batch_norm() -> None:
    module = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
    network = n2nfx.trace(module, draw(2, 5, 8))
    probe = Probe(batches=[(draw(4, 5, 8), draw(4, 5, 8, seed=1))], loss=functional.mse_loss)
    assert all(own.any() for own in scores_of(GraSP(density=0.5), network, probe).values())


def test_what_cannot_be_differentiated_twice_is_told() -> None:
    def ctc(output: Tensor, targets: Tensor) -> Tensor:
        steps, lengths = output.log_softmax(-1)[:, None], (torch.tensor([16]), torch.tensor([2]))
        return functional.ctc_loss(steps, torch.tensor([[1, 2]]), *lengths)

    network, probe = traced(mlp()), Probe(batches=[batch()], loss=ctc)
    SNIP(density=0.5)(network, probe)
    with pytest.raises(CannotOperate, match=r"grasp differentiates twice, .*; snip would do"):
        GraSP(density=0.5)(network, probe)


# SynFlow


def test_synflow_is_the_flow_along_all_paths_round_by_round() -> None:
    """In closed form: R is the product of the matrices |W|, between ones."""
    module = seeded(lambda: nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ))  # fmt: skip
    found = SynFlow(density=0.2, floor=0)(traced(module), Probe()).masks
    first, second, third = (w.detach().double().abs() for w in weights_of(module).values())
    size = first.numel() + second.numel() + third.numel()
    total, kept = budget(0.2, size), torch.ones(size, dtype=torch.bool)
    for turn in range(1, 101):
        masks = kept.split([first.numel(), second.numel(), third.numel()])
        a, b, c = (
            weight * mask.reshape(weight.shape)
            for weight, mask in zip((first, second, third), masks, strict=True)
        )
        into_b, into_c = a.sum(1), b @ a.sum(1)
        out_of_b, out_of_a = c.sum(0), c.sum(0) @ b
        scores = torch.cat([
            (a * out_of_a[:, None]).reshape(-1),
            (b * out_of_b[:, None] * into_b).reshape(-1),
            (c * into_c).reshape(-1),
        ])  # fmt: skip
        scores[~kept] = -1
        kept = best(scores, round(size * (total / size) ** (turn / 100)))
    assert torch.equal(flat(dict(found)).bool(), kept)


def test_synflow_scores_convolutions_by_the_derivative_of_the_flow() -> None:
    module = convolutional().eval()
    module(draw(2, *IMAGES))
    found = scores_of(SynFlow(density=0.5, rounds=1), traced(module, IMAGES), Probe())
    module = module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(parameter.abs() * (not name.endswith("bias")))
    flow = module(torch.ones(1, *IMAGES, dtype=torch.float64)).sum()
    slopes = gradients(module, flow)
    expected = {n: w * slopes[n] for n, w in weights_of(module).items()}
    assert torch.equal(  # the same order: dropped below kept, then by score
        flat(found).argsort(stable=True), flat(expected).argsort(stable=True)
    )


def test_synflow_needs_no_data_and_no_seed() -> None:
    network = traced(convolutional(), IMAGES)
    one, other = (SynFlow(density=0.1, rounds=5)(network, Probe(seed=seed)) for seed in (0, 1))
    assert all(torch.equal(one.masks[name], mask) for name, mask in other.masks.items())


# Magnitude and expander


def test_magnitude_keeps_the_largest() -> None:
    module = mlp()
    masks = Magnitude(density=0.4, floor=0)(traced(module), Probe()).masks
    weights = flat(weights_of(module)).abs()
    assert torch.equal(flat(dict(masks)).bool(), best(weights, budget(0.4, len(weights))))


@pytest.mark.parametrize("shape", [(16, 4, 3, 3), (4, 16, 3, 3), (12, 12, 1, 1), (10, 7)])
@pytest.mark.parametrize("count", [0, 1, 50, 200, "all"])
def test_expander_keeps_whole_kernels_of_one_degree(
    shape: tuple[int, ...], count: int | str
) -> None:
    size = prod(shape)
    count = size if count == "all" else min(int(count), size)
    mask = ExpanderRanking(0).best(Weight(shape), count).reshape(*shape[:2], -1).sum(2)
    assert int(mask.sum()) == count
    taps = prod(shape[2:])
    assert int(((mask > 0) & (mask < taps)).sum()) == int(count % taps > 0)
    degrees = (mask > 0).sum(1 if shape[1] > shape[0] else 0)
    assert int(degrees.max() - degrees.min()) <= 1


@dataclass(frozen=True)
class Weight:
    weight_shape: tuple[int, ...]
    name: str = "layer"
    weight: str = "layer.weight"
    channels: int = 1

    @property
    def size(self) -> int:
        return prod(self.weight_shape)


def test_expander_masks_are_nested_and_keyed_by_seed_and_name() -> None:
    layer, ranking = Weight((8, 12, 3, 3)), ExpanderRanking(3)
    masks = [ranking.best(layer, count) for count in range(0, layer.size + 1, 7)]
    assert all(not (one & ~other).any() for one, other in pairwise(masks))
    for other in (replace(layer, weight="other"), layer):
        seed = 3 if other is not layer else 4
        assert not torch.equal(ExpanderRanking(seed).best(other, 300), ranking.best(layer, 300))


def test_partners_are_drawn_evenly() -> None:
    """Over many seeds each kernel is kept as often as the others: chi-squared, 63 degrees."""
    layer, rounds = Weight((8, 8)), 2000
    kept = torch.stack([ExpanderRanking(seed).best(layer, 20) for seed in range(rounds)]).sum(0)
    expected = rounds * 20 / 64
    # One draw of 20 in 64 has less variance than independent ones.
    assert float(((kept - expected) ** 2 / expected).sum()) < 110  # p < 1e-4


@pytest.mark.parametrize("pruner", [Expander, RandomPruning])
def test_without_scores_the_budget_is_exact_too(pruner: Any) -> None:
    network = traced(convolutional(), IMAGES)
    for density in (0.05, 0.31, 0.5, 1.0):
        pruned = pruner(density=density)(network, Probe(seed=1))
        assert pruned.nnz == budget(density, network.size)
        with pytest.raises(UsageError, match="global"):
            pruner(density=density, allocation="globally")


# What all scored pruners share

SCORED: dict[str, Any] = {
    "snip": SNIP(density=0.3),
    "iterative-snip": IterativeSNIP(density=0.3, rounds=5),
    "force": IterativeSNIP(density=0.3, rounds=5, revive=True),
    "grasp": GraSP(density=0.3),
    "synflow": SynFlow(density=0.3, rounds=10),
    "magnitude": Magnitude(density=0.3),
}
every_scored = pytest.mark.parametrize("pruner", SCORED.values(), ids=SCORED.keys())
PROBE = Probe(batches=[batch(shape=IMAGES)])


@every_scored
@pytest.mark.parametrize("method", ["global", "uniform", "er", "erk"])
@pytest.mark.parametrize("ends", ["pruned", "dense"])
def test_the_budget_is_exact_and_smaller_ones_are_nested(
    pruner: Any, method: str, ends: str
) -> None:
    pruner = replace(pruner, allocation=method, ends=ends)
    network = traced(convolutional(), IMAGES)
    pruned = pruner(network, PROBE)
    assert pruned.nnz == budget(0.3, network.size)
    kept = dict(pruned.masks)
    for total in (pruned.nnz - 1, pruned.nnz // 2, 7):
        fewer = select(network.layers, pruned.scores, pruned.allocation, total)
        assert fewer.nnz == total
        assert not any((fewer[name] & ~mask).any() for name, mask in kept.items())
        kept = dict(fewer)


@every_scored
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_that_was_moved_is_pruned_by_data_of_its_precision(
    pruner: Any, dtype: torch.dtype
) -> None:
    network = traced(convolutional(), IMAGES)
    network.module.to(dtype)
    images, targets = batch(shape=IMAGES)
    for given in (images, images.to(dtype)):
        pruned = pruner(network, Probe(batches=[(given, targets)]))
        assert pruned.nnz == budget(0.3, network.size)


def look(module: nn.Module) -> list[Any]:
    """Everything that scoring could disturb."""
    return [
        torch.get_rng_state(),
        *(part.training for part in module.modules()),
        *(tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())),
        *(None if p.grad is None else p.grad.clone() for p in module.parameters()),
        *(p.requires_grad for p in module.parameters()),
    ]


@contextmanager
def nothing_changes(module: nn.Module) -> Iterator[None]:
    before = look(module)
    yield
    for one, other in zip(look(module), before, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@every_scored
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_network_and_the_generators_as_they_were(
    pruner: Any, training: bool
) -> None:
    network = traced(convolutional().train(training), IMAGES)
    network.module(draw(4, *IMAGES)).sum().backward()
    network.module.get_parameter("3.weight").requires_grad_(False)
    with nothing_changes(network.module):
        scores = pruner.score(network, PROBE)
    again = pruner.score(network, PROBE)
    assert all(torch.equal(own, again[name]) for name, own in scores.items())
    assert scores["3.weight"].any()


@every_scored
def test_scores_are_there_under_no_grad_and_for_weights_that_draw(pruner: Any) -> None:
    noisy = seeded(
        lambda: Model(
            lambda self, x: self.last(functional.dropout(torch.relu(self.first(x)), 0.3, True)),
            first=nn.Linear(4, 8),
            last=nn.Linear(8, 3),
        )
    )
    network, probe = traced(noisy), Probe(seed=3, batches=[batch()])
    with torch.no_grad(), nothing_changes(network.module):
        scores = pruner.score(network, probe)
    again = pruner.score(network, probe)
    assert all(torch.equal(own, again[name]) for name, own in scores.items())


@every_scored
def test_the_criterion_scores_every_weight_of_a_network_with_branches(pruner: Any) -> None:
    network = traced(convolutional(), IMAGES)
    skips = n2nfx.passes.N2NSkip(ratio=0.2, hops=(1, 2), pattern="random")
    outcome = Pipeline([RandomPruning(density=0.5), skips])(network)
    ranking = pruner(network, PROBE).scores
    assert ranking.saliency is not None
    scores = ranking.saliency(outcome.network, PROBE)
    expected = {item.weight: item.weight_shape for item in prunable(outcome.network)}
    assert {name: tuple(own.shape) for name, own in scores.items()} == expected
    assert outcome.network.skips
    assert all(scores[skip.weight].any() for skip in outcome.network.skips)
    plain = ranking.saliency(network, PROBE)
    assert all(torch.equal(plain[name], own) for name, own in ranking.scores.items())


class ZeroInit(nn.Module):
    """A residual block whose last gain is zero, as timm initializes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(x + self.norm2(self.conv2(inner))).mean((2, 3)))


@every_scored
def test_gains_that_are_zero_are_one_while_scoring(pruner: Any) -> None:
    module = seeded(ZeroInit)
    network = traced(module, IMAGES)
    with nothing_changes(network.module):
        found = pruner.score(network, PROBE)
    nn.init.ones_(module.norm2.weight)
    expected = pruner.score(traced(module, IMAGES), PROBE)
    assert all(torch.equal(found[name], own) and own.any() for name, own in expected.items())


# Bad input


def of_snip(module: nn.Module, data: Any, shape: tuple[int, ...] = (4,), **more: Any) -> None:
    SNIP(density=0.5, **more)(traced(module, shape), Probe(batches=data))


def test_without_data_it_says_who_needs_none() -> None:
    with pytest.raises(CannotOperate, match=r"snip needs a batch: .* synflow need none"):
        of_snip(mlp(), [])


INPUTS, TARGETS = batch()


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        ([(draw(16, 5), TARGETS)], CannotOperate, r"16x5, the network was traced with 2x4"),
        ([(draw(16, 4, 1), TARGETS)], CannotOperate, r"16x4x1"),
        ([(INPUTS[:0], TARGETS[:0])], CannotOperate, r"no example"),
        ([(INPUTS.long(), TARGETS)], CannotOperate, r"int64, the network takes float32"),
        ([(INPUTS / 0, TARGETS)], CannotOperate, r"NaN or infinite"),
        ([(INPUTS, TARGETS[:3])], CannotOperate, r"targets are 3, .* must be 16"),
        ([(INPUTS, TARGETS + 1)], CannotOperate, r"labels run from 1 to 3, .* 3 classes"),
        ([(INPUTS, TARGETS - 1)], CannotOperate, r"labels run from -1 to 1"),
        ([(INPUTS, TARGETS.float())], CannotOperate, r"probabilities of the output's shape 16x3"),
        ([((INPUTS, INPUTS), TARGETS)], CannotOperate, r"has 1 inputs, the batch 2"),
        ([INPUTS], UsageError, r"\(inputs, targets\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_told(data: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        of_snip(mlp(), data)


@pytest.mark.parametrize("pruner", ["snip", "iterative-snip", "grasp"])
def test_what_a_detector_finds_is_not_taken_for_logits(pruner: str) -> None:
    images = part_samples.pictures(2, 16, 20)
    options: dict[str, Any] = {"density": 0.5, "pruner": pruner, "example": images}
    data = images, torch.tensor([0, 1])
    told = r"gives a list of dict.*as detectors do.*; random, magnitude and expander need no data"
    with pytest.raises(CannotOperate, match=told):
        n2nfx.transform(part_samples.detector(), batch=data, **options)

    def scores(output: Any, _: Tensor) -> Tensor:
        return torch.cat([found["scores"] for found in output]).mean()

    outcome = n2nfx.transform(part_samples.detector(), batch=data, loss=scores, **options)
    assert outcome.network.nnz == round(0.5 * outcome.network.size)


def test_the_targets_of_a_detector_are_no_batch_and_it_is_told_what_needs_none() -> None:
    images = part_samples.pictures(2, 16, 20)
    found = [{"boxes": torch.rand(1, 4), "labels": torch.ones(1)}] * 2
    network = n2nfx.trace(part_samples.detector(), images)
    batches: list[Any] = [(images, found), ([*images], found)]
    for wrong in batches:
        told = "a batch is .*, not .*list.*; random, magnitude and expander need no data"
        with pytest.raises(UsageError, match=told):
            Pipeline([SNIP(density=0.5)])(network, Probe(batches=[wrong]))


def test_fewer_batches_than_asked_for_are_told() -> None:
    with pytest.raises(CannotOperate, match="asked to look at 3 batches and was given 1"):
        of_snip(mlp(), [batch()], batches=3)


def test_probabilities_are_targets_too() -> None:
    network = traced(mlp())
    one_hot = functional.one_hot(TARGETS, 3).float()
    soft = SNIP(density=0.5).score(network, Probe(batches=[(INPUTS, one_hot)]))
    hard = SNIP(density=0.5).score(network, Probe(batches=[(INPUTS, TARGETS)]))
    assert_close(dict(soft), dict(hard))


def test_a_loss_that_is_not_finite_names_the_first_layer_that_is_not() -> None:
    module = mlp()
    nn.init.constant_(module.get_parameter("2.weight"), float("nan"))
    with pytest.raises(CannotOperate, match="the loss is nan; 2 is the first"):
        of_snip(module, [batch()])


def test_scores_that_are_not_finite_name_their_layer() -> None:
    module = Model(
        lambda self, x: self.last(self.first(x).square().sum(1, keepdim=True).sqrt() * x),
        first=nn.Linear(4, 4, bias=False),
        last=nn.Linear(4, 3),
    )
    nn.init.zeros_(module.get_parameter("first.weight"))
    with pytest.raises(CannotOperate, match=r"16 of the 16 scores of first.weight are NaN"):
        of_snip(module, [batch()])


def test_scores_that_are_all_zero_are_refused() -> None:
    module = mlp()
    for weight in weights_of(module).values():
        nn.init.zeros_(weight)
    with pytest.raises(CannotOperate, match="all scores are zero"):
        of_snip(module, [batch()])


def test_a_loss_that_does_not_see_the_weights_is_refused() -> None:
    probe = Probe(batches=[batch()], loss=lambda output, targets: torch.tensor(1.0))
    with pytest.raises(CannotOperate, match="depends on no prunable weight"):
        SNIP(density=0.5)(traced(mlp()), probe)


def test_a_loss_that_gives_no_number_is_refused() -> None:
    probe = Probe(batches=[batch()], loss=lambda output, targets: output)
    with pytest.raises(UsageError, match="one number"):
        SNIP(density=0.5)(traced(mlp()), probe)


def test_one_example_has_no_batch_statistics() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(CannotOperate, match="more than 1 value per channel"):
        of_snip(module, [batch(1)])
    of_snip(module, [batch(1)], norm="running")


@pytest.mark.parametrize("options", [{"norm": "train"}, {"batches": 0}, {"batches": True}])
def test_options_that_cannot_be_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        SNIP(density=0.5, **options)


# Whatever the tracer gives


class Auxiliary(nn.Module):
    """Another graph in training: a second head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head, self.aux = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        pooled = torch.relu(self.norm(self.body(x))).mean((2, 3))
        return (self.head(pooled), self.aux(pooled)) if self.training else self.head(pooled)


@every_scored
def test_a_head_that_only_training_runs_is_scored_by_a_loss_that_sees_it(pruner: Any) -> None:
    def both(output: Any, targets: Tensor) -> Tensor:
        heads = output if isinstance(output, tuple) else (output,)
        return sum(functional.cross_entropy(one, targets) for one in heads)  # pyright: ignore

    network = traced(seeded(Auxiliary), IMAGES)
    probe = Probe(batches=PROBE.batches, loss=both)
    pruned = pruner(network, probe)
    assert pruned.nnz == budget(0.3, network.size)
    if pruner.name in ("snip", "grasp"):
        assert all(own.any() for own in pruned.scores.scores.values())


class Standardized(nn.Conv2d):
    """Its weight is standardized in what it convolves with."""

    def forward(self, input: Tensor) -> Tensor:
        weight = functional.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
        ).reshape_as(self.weight)
        return functional.conv2d(input, weight, self.bias, padding=1)


@every_scored
def test_weights_that_are_standardized_stay_masked_from_round_to_round(pruner: Any) -> None:
    module = seeded(
        lambda: nn.Sequential(
            *(Standardized(2, 6, 3), nn.ReLU(), Standardized(6, 6, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        )
    )
    network = traced(module, IMAGES)
    with nothing_changes(network.module):
        outcome = Pipeline([pruner])(network, PROBE)
    assert outcome.network.nnz == budget(0.3, network.size)
    scores = outcome.network.scores
    assert isinstance(scores, ScoreRanking)
    assert all(own.any() for own in scores.scores.values())


class Opaque(nn.Module):
    """A part that is kept whole: it looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else self.inner(2 * x)


@every_scored
def test_the_layers_of_a_part_that_is_kept_whole_are_scored(pruner: Any) -> None:
    network = traced(seeded(lambda: nn.Sequential(Opaque(), nn.Tanh(), nn.Linear(4, 3))))
    assert any("0 (Opaque) is kept as it is" in note for note in network.notes)
    scores = pruner.score(network, Probe(batches=[batch()]))
    assert scores["0.inner.weight"].any()


def test_timm_resnets_are_scored_as_if_their_last_gains_were_one() -> None:
    built = build("timm:resnet18", num_classes=3, input_shape=(3, 32, 32))
    network = n2nfx.trace(built.module, built.example)
    probe = Probe(batches=[batch(4, (3, 32, 32))])
    assert all(own.any() for own in SNIP(density=0.1).score(network, probe).values())
    assert not built.module.get_parameter("layer1.0.bn2.weight").any()
