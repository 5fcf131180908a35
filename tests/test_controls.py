"""Controls: what a network with skips is compared with, at exactly the same budget."""

from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from samples import Residual
from torch import Tensor, nn

import n2nfx
from n2nfx.cli import main
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.network import Network
from n2nfx.passes import N2NSkip, RandomPruning, Reinit, ResSkip, Shuffle
from n2nfx.pipeline import Pass, Pipeline


@cache
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(12, 12, 1)),
            *(nn.ReLU(), Residual(12), Residual(12), nn.Flatten(), nn.Linear(768, 5)),
        )


@cache
def reference() -> Network:
    return n2nfx.trace(module(), torch.zeros(1, 3, 8, 8))


SKIPS = N2NSkip(0.4, (2,), wiring="linear", pattern="random")


def made(*steps: Pass, seed: int = 0) -> Network:
    return Pipeline([RandomPruning(0.3), *steps])(reference(), seed=seed).network


def weight(network: Network, name: str) -> Tensor:
    return network.module.get_parameter(name).detach()


@pytest.mark.parametrize("control", [Shuffle(), Reinit()])
@pytest.mark.parametrize("skips", [SKIPS, ResSkip((2,)), N2NSkip(0.3, pattern="identity")])
def test_a_control_keeps_every_count_and_is_the_same_after_loading(
    control: Pass, skips: Pass, tmp_path: Path
) -> None:
    before, outcome = made(skips), Pipeline([RandomPruning(0.3), skips, control])(reference())
    after = outcome.network
    assert after.masks.counts == before.masks.counts
    assert after.skips == before.skips
    assert after.text() == before.text()
    outcome.save(tmp_path / "out")
    loaded = n2nfx.load(tmp_path / "out", module())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.module.eval()(x), after.module.eval()(x))
    assert not torch.equal(after.module(x), before.module.eval()(x))
    assert loaded.history[-1].spec == f"{control.name}{{}}"


def test_shuffling_moves_the_masks_of_layers_and_branches_and_no_others() -> None:
    before, after = made(SKIPS), made(SKIPS, Shuffle())
    for row in before.ledger():
        assert not torch.equal(after.masks[row.weight], before.masks[row.weight])
    dense = Pipeline([RandomPruning(1.0), Shuffle()])(reference()).network
    assert dense.nnz == reference().nnz


def test_a_shuffled_layer_has_its_initial_weights_and_a_branch_its_own_elsewhere() -> None:
    before, after = made(SKIPS), made(SKIPS, Shuffle())
    for layer in after.layers:
        initial = module().get_parameter(layer.weight).detach()
        assert torch.equal(weight(after, layer.weight), initial * after.masks[layer.weight])
    for skip in after.skips:
        moved, old = weight(after, skip.weight), weight(before, skip.weight)
        assert int(moved.count_nonzero()) == skip.nnz
        assert torch.equal(moved[after.masks[skip.weight]], old[before.masks[skip.weight]])


def test_shuffled_places_are_uniform_and_drawn_by_seed_alone() -> None:
    hits = torch.zeros(12, 12, 1, 1)
    for seed in range(60):
        hits += made(Shuffle(), seed=seed).masks["2.weight"]
    share = made().masks.counts["2.weight"] / 144
    assert abs(float(hits.mean()) / 60 - share) < 1e-6
    assert float(hits.std()) == pytest.approx((60 * share * (1 - share)) ** 0.5, rel=0.25)
    one, again, other = (made(Shuffle(), seed=seed).masks for seed in (1, 1, 2))
    assert all(torch.equal(mask, again[name]) for name, mask in one.items())
    assert not torch.equal(one["2.weight"], other["2.weight"])


def test_there_must_be_masks_and_weights_outside_of_them_to_shuffle() -> None:
    with pytest.raises(CannotOperate, match="prune before"):
        Pipeline([Shuffle()])(reference())
    with pytest.raises(CannotOperate, match="in one pipeline"):
        Pipeline([Shuffle()])(made(SKIPS))


def test_a_control_comes_last_since_no_ranking_says_what_it_kept() -> None:
    for control in (Shuffle(), Reinit()):
        with pytest.raises(CannotOperate, match="without the ranking"):
            made(control, SKIPS)


def test_weights_are_drawn_anew_with_the_mean_and_spread_that_they_had() -> None:
    before, after = made(SKIPS), made(SKIPS, Reinit())
    for name, mask in before.masks.items():
        assert torch.equal(mask, after.masks[name])
        assert not (weight(after, name)[mask] == weight(before, name)[mask]).any()
        assert not weight(after, name)[~mask].any()
    for layer in after.layers:
        initial = module().get_parameter(layer.weight).detach()
        spread = float(weight(after, layer.weight)[after.masks[layer.weight]].std())
        assert spread == pytest.approx(float(initial.std()), rel=0.35)
    for skip in after.skips:
        drawn = weight(after, skip.weight)[after.masks[skip.weight]]
        assert float(drawn.std()) == pytest.approx(skip.spread, rel=0.35)


def test_new_weights_are_drawn_by_seed_and_name_and_zero_branches_stay_zero() -> None:
    one, again, other = (made(Reinit(), seed=seed) for seed in (1, 1, 2))
    names = [layer.weight for layer in reference().layers]
    assert all(torch.equal(weight(one, name), weight(again, name)) for name in names)
    assert not any(torch.equal(weight(one, name), weight(other, name)) for name in names)
    silent = made(N2NSkip(0.3, (2,), wiring="joint", init="zero"), Reinit())
    assert not any(weight(silent, skip.weight).any() for skip in silent.skips)


def test_a_layer_of_zeros_and_one_pruned_before_are_drawn_anew_too() -> None:
    zeros = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    nn.init.zeros_(zeros[2].weight)  # type: ignore[arg-type]
    traced = n2nfx.trace(zeros, torch.zeros(1, 3, 8, 8))
    assert not weight(Pipeline([Reinit()])(traced).network, "2.weight").any()
    later = Pipeline([Reinit()])(made(SKIPS)).network
    kept = weight(later, "0.weight")[later.masks["0.weight"]]
    assert kept.all()
    initial = module().get_parameter("0.weight").detach()
    assert float(kept.std()) == pytest.approx(float(initial.std()), rel=0.35)


# In one call, and on the command line


@pytest.mark.parametrize("control", ["none", "shuffle", "reinit", "sequential"])
def test_every_control_has_the_same_budget(control: str) -> None:
    outcome = n2nfx.transform(
        module(), density=0.3, skip_ratio=0.4, hops=(2,), example=torch.zeros(1, 3, 8, 8),
        control=control,  # type: ignore[arg-type]
    )  # fmt: skip
    total = round(0.3 * reference().size)
    assert outcome.counts.kept == total
    assert outcome.counts.skip == (0 if control == "sequential" else round(0.4 * total))


def test_the_sequential_control_is_plain_pruning_and_still_checks_what_is_asked_for() -> None:
    options = {"density": 0.3, "skip_ratio": 0.4, "example": torch.zeros(1, 3, 8, 8)}
    found = n2nfx.transform(module(), control="sequential", **options)  # type: ignore[arg-type]
    assert all(torch.equal(mask, found.network.masks[at]) for at, mask in made().masks.items())
    assert found.network.text() == made().text()
    with pytest.raises(UsageError, match="wiring"):
        n2nfx.transform(module(), control="sequential", wiring="papper", **options)  # type: ignore[arg-type]


def test_an_unknown_control_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean shuffle"):
        n2nfx.transform(module(), density=0.3, control="shufle")  # type: ignore[arg-type]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["transform", "n2nfx:mlp", "--density", "0.1", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_ledger_says_which_control_it_is() -> None:
    assert "control: " not in run("--skip-ratio", "0.5")
    assert "control: " in run("--skip-ratio", "0.5", "--control", "shuffle")
    sequential = run("--skip-ratio", "0.5", "--control", "sequential")
    assert "spent on the layers" in sequential
    assert "skips" not in sequential.partition("control:")[0]


def test_every_wiring_option_reaches_its_pass() -> None:
    text = run(
        "--skip-ratio", "0.5", "--resolution", "pool", "--share", "uniform", "--degrees",
        "lognormal", "--pattern", "identity", "--control", "reinit", "--json",
    )  # fmt: skip
    assert "resolution=pool share=uniform pattern=identity degrees=lognormal" in text
    assert "reinit{}" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--skip-ratio", "learnt"], "neither a number nor 'learned'"),
        (["--skip-ratio", "learned"], "'scored'"),
        (["--skip-ratio", "learned", "--pattern", "scored", "--share", "global"], "scored pruner"),
        (["--skip-ratio", "0.2", "--wiring", "released-vgg"], "no batch norm"),
    ],
)
def test_what_cannot_be_is_told_on_the_command_line(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["transform", "n2nfx:mlp", "--density", "0.1", *arguments])
    assert result.exit_code != 0
    assert told in result.output + str(result.exception)
