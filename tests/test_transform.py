"""The main job in one call, and the names that people build on."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx import models
from n2nfx.budget import budget
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.network import Probe
from n2nfx.operate import PRUNERS, transform
from n2nfx.outcome import Outcome
from n2nfx.passes import N2NSkip, RandomPruning
from n2nfx.pipeline import Pipeline


def small() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        )


EXAMPLE = torch.zeros(2, 3, 8, 8)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return [*one] == [*other] and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_outcome(one: Outcome, other: Outcome) -> None:
    assert one.network.text() == other.network.text()
    assert one.network.skips == other.network.skips
    assert [step.spec for step in one.record] == [step.spec for step in other.record]
    assert same(dict(one.network.masks), dict(other.network.masks))
    assert same(dict(one.network.module.state_dict()), dict(other.network.module.state_dict()))


def test_one_call_is_the_pipeline_by_hand() -> None:
    once = transform(small(), density=0.3, skip_ratio=0.4, seed=5, example=EXAMPLE)
    network = n2nfx.trace(small(), EXAMPLE)
    by_hand = Pipeline([RandomPruning(density=0.3), N2NSkip(ratio=0.4)])(network, seed=5)
    assert once.record[0].seed == by_hand.record[0].seed == 5
    assert_same_outcome(once, by_hand)


def test_every_option_reaches_its_pass() -> None:
    pruning: dict[str, Any] = {"allocation": "erk", "floor": 3, "ends": "dense"}
    skips: dict[str, Any] = {
        "hops": (1, 2), "placement": "blocks", "wiring": "joint", "kernel": 1,
        "pattern": "identity", "branch_norm": "batch", "init": "zero",
    }  # fmt: skip
    once = transform(
        small(), density=0.6, skip_ratio=0.05, pruner="random", example=EXAMPLE, **pruning, **skips
    )
    passes = [RandomPruning(density=0.6, **pruning), N2NSkip(ratio=0.05, **skips)]
    assert_same_outcome(once, Pipeline(passes)(n2nfx.trace(small(), EXAMPLE)))


def test_without_a_skip_ratio_the_network_is_only_pruned() -> None:
    outcome = transform(small(), density=0.3, example=EXAMPLE)
    assert [step.spec.partition("{")[0] for step in outcome.record] == ["random"]
    assert outcome.network.skips == ()


def test_a_module_is_left_exactly_as_it_was() -> None:
    model = small().train()
    model[0].eval()
    model[3].register_forward_hook(lambda *_: None)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    looks = [(name, type(part), part.training) for name, part in model.named_modules()]
    hooks, randomness = dict(model[3]._forward_hooks), torch.get_rng_state()
    outcome = transform(model, density=0.3, skip_ratio=0.4, example=EXAMPLE)
    outcome.network.module.train()(torch.ones(4, 3, 8, 8)).sum().backward()
    assert same(dict(model.state_dict()), state)
    assert looks == [(name, type(part), part.training) for name, part in model.named_modules()]
    assert dict(model[3]._forward_hooks) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), randomness)


# Models by name


def test_a_named_model_is_the_one_that_is_built_from_the_name() -> None:
    outcome = transform("n2nfx:mlp", density=0.1, seed=3)
    built = models.build("n2nfx:mlp", seed=3).module
    masks = outcome.network.masks
    for name, weight in built.named_parameters():
        assert torch.equal(outcome.network.module.get_parameter(name), weight * masks[name])
    assert outcome.network.origin.name == "n2nfx:mlp"


def test_a_named_model_takes_classes_and_an_input_shape() -> None:
    outcome = transform("timm:test_resnet", density=0.3, num_classes=7, input_shape=(3, 64, 64))
    assert outcome.network.inputs[0].shape[1:] == (3, 64, 64)
    assert outcome.network.module(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_a_function_in_a_file_of_ones_own_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(6, 9)), torch.zeros(2, 6)\n"
    )
    assert transform(f"{file}:build", density=0.5).network.nnz == 27


# What cannot be


def of(model: Any, **options: Any) -> Callable[[], object]:
    return lambda: transform(model, **{"density": 0.3, **options})


def with_module(**options: Any) -> Callable[[], object]:
    return of(small(), **{"example": EXAMPLE, **options})


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (with_module(pruner="randm"), "no pruner 'randm'; did you mean random?"),
        (with_module(density=0), "density"),
        (with_module(density=1.5), "density"),
        (with_module(density="0.5"), "density"),
        (with_module(skip_ratio=-0.1), "ratio"),
        (with_module(skip_ratio=1.0), "ratio"),
        (with_module(hops=(0,)), "hops"),
        (with_module(hops=()), "hops"),
        (with_module(hops=3), "hops"),
        (with_module(wiring="eq2"), "wiring"),
        (with_module(pattern="diagonal"), "pattern"),
        (with_module(wiring="paper", init="zero"), "init 'zero'"),
        (with_module(allocation="earth"), "allocation"),
        (with_module(floor=-1), "floor"),
        (with_module(ends="open"), "ends"),
        (with_module(skip_ratio=0.0, kernel=2), "kernel"),
        (with_module(example=None), "example"),
        (with_module(pruner=None), "no pruner None"),
        (with_module(control=["shuffle"]), "no control ['shuffle']"),
        (with_module(seed=1.5), "a seed must be a whole number (int), not 1.5"),
        (with_module(seed=None), "a seed must be a whole number (int), not None"),
        (with_module(loss="mse"), "a loss must be a function of (output, targets), not 'mse'"),
        (with_module(num_classes=10), "num_classes and input_shape are for a model's name"),
        (with_module(input_shape=(3, 8, 8)), "num_classes and input_shape are for a model's name"),
        (with_module(pruner="iterative-snip", revive=1), "revive must be True or False, not 1"),
        (with_module(pruner="grasp", temperature="1"), "temperature must be a number, not '1'"),
        (of(None), "a model is a name or an nn.Module, not NoneType"),
        (of(small), "a name or an nn.Module, not function"),
        (of(nn.Linear), "a name or an nn.Module, not the class Linear"),
        (of("n2nfx:mlp", num_classes="10"), "num_classes is '10'"),
        (of("n2nfx:mlp", input_shape=3), "input_shape is 3"),
        (lambda: transform("resnet5", density=0.5), "resnet50"),
        (lambda: transform("n2nfx:mpl", density=0.5), "did you mean"),
    ],
)
def test_an_argument_that_cannot_be_is_a_usage_error_that_names_it(
    job: Callable[[], object], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        job()


def test_a_wrong_argument_is_told_before_a_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> object:
        raise AssertionError("it was built")

    monkeypatch.setattr(models, "build", build)
    with pytest.raises(UsageError, match="hops"):
        transform("resnet50", density=0.5, skip_ratio=0.1, hops=(0,))


def test_a_job_that_cannot_be_done_says_why() -> None:
    with pytest.raises(CannotOperate, match="apart"):
        transform(small(), density=0.3, skip_ratio=0.1, hops=(9,), example=EXAMPLE)


def test_a_module_that_cannot_be_traced_says_where() -> None:
    class Fork(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CannotOperate, match=r"Fork.*test_transform\.py"):
        transform(Fork(), density=0.3, example=EXAMPLE)


# The public face


class Named(nn.Module):
    """A module in a module, a weight that a function uses directly, and what is never pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU())
        self.weights = nn.ParameterDict({"mix": nn.Parameter(torch.randn(6, 6))})
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.linear(self.body(x), self.weights["mix"]))
        return self.head(x * self.scale)


@pytest.fixture(scope="module")
def named() -> Outcome:
    return transform(Named(), density=0.5, skip_ratio=0.2, hops=(2,), example=torch.zeros(2, 6))


def test_layers_are_named_by_module_or_by_the_parameter_that_a_function_uses(
    named: Outcome,
) -> None:
    assert [layer.name for layer in named.network.layers] == ["body.0", "weights.mix", "head"]


def test_masks_are_named_by_the_weights_those_of_the_skips_included(named: Outcome) -> None:
    assert [*named.network.masks] == [
        "body.0.weight",
        "weights.mix",
        "head.weight",
        *(f"{skip.name}.weight" for skip in named.network.skips),
    ]
    parameters = dict(named.network.module.named_parameters())
    assert {name: mask.shape for name, mask in named.network.masks.items()} == {
        name: parameters[name].shape for name in named.network.masks
    }
    assert len(named.network.skips) == 2


def test_the_nonzeros_are_the_sum_over_all_masks_and_a_skips_are_its_share(named: Outcome) -> None:
    masks = named.network.masks
    assert named.network.nnz == sum(int(mask.sum()) for mask in masks.values()) == 54
    assert [skip.nnz for skip in named.network.skips] == [
        int(masks[skip.weight].sum()) for skip in named.network.skips
    ]


def test_every_original_key_is_still_in_the_state_dict(named: Outcome) -> None:
    assert {*Named().state_dict()} <= {*named.network.module.state_dict()}


def test_an_untouched_trace_has_no_masks_and_density_1() -> None:
    network = n2nfx.trace(small(), EXAMPLE)
    assert (len(network.masks), network.skips, network.density) == (0, (), 1.0)
    assert network.nnz == network.size == 3 * 8 * 9 + 2 * 8 * 8 * 9 + 8 * 5


def test_a_batch_and_a_loss_are_handed_to_the_pruner(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Probe] = []

    class Watching(RandomPruning):
        def __call__(self, network: n2nfx.Network, probe: Probe) -> n2nfx.Network:
            seen.append(probe)
            return super().__call__(network, probe)

    batch = torch.randn(4, 3, 8, 8), torch.zeros(4)
    monkeypatch.setitem(transform.__globals__["PRUNERS"], "random", Watching)
    transform(small(), density=0.3, example=EXAMPLE, batch=batch, loss=functional.mse_loss, seed=9)
    (probe,) = seen
    assert (probe.seed, probe.batches, probe.loss) == (9, (batch,), functional.mse_loss)


def test_a_model_without_a_prunable_layer_is_told_so() -> None:
    with pytest.raises(CannotOperate, match="no prunable layer"):
        n2nfx.transform(nn.Sequential(nn.ReLU()), density=0.5, example=torch.zeros(1, 4))


# Every pruner by its name

DATA = (
    torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.arange(8) % 5,
)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_makes_room_for_skips_in_an_exact_budget(pruner: str) -> None:
    outcome = transform(
        small(), density=0.3, skip_ratio=0.4, pruner=pruner, example=EXAMPLE, batch=DATA
    )
    before, after = outcome.record
    assert before.spec.startswith(f"{pruner}{{density=0.3 ")
    assert before.nnz[1] == after.nnz[1] == outcome.counts.kept == budget(0.3, before.nnz[0])
    assert outcome.counts.skip == round(0.4 * outcome.counts.kept)
    pruned = transform(small(), density=0.3, pruner=pruner, example=EXAMPLE, batch=DATA).network
    for layer in pruned.layers:
        fewer = outcome.network.masks[layer.weight]
        assert not (fewer & ~pruned.masks[layer.weight]).any()


def test_a_scored_pruner_ranks_globally_unless_told_otherwise() -> None:
    def spec(**options: Any) -> str:
        return transform(small(), density=0.3, example=EXAMPLE, **options).record[0].spec

    assert "allocation=global" in spec(pruner="magnitude")
    assert "allocation=erk" in spec(pruner="magnitude", allocation="erk")
    assert "allocation=uniform" in spec(pruner="random")


def test_several_batches_are_all_looked_at() -> None:
    outcome = transform(
        small(), density=0.3, pruner="snip", example=EXAMPLE, batch=[DATA, DATA], norm="running"
    )
    assert "norm=running batches=2" in outcome.record[0].spec


def test_options_reach_the_pruners_that_take_them_and_no_others() -> None:
    def job(**options: Any) -> Outcome:
        return transform(small(), density=0.3, example=EXAMPLE, batch=DATA, **options)

    assert "rounds=3" in job(pruner="synflow", rounds=3).record[0].spec
    assert (
        "rounds=4 revive=True" in job(pruner="iterative-snip", rounds=4, revive=True).record[0].spec
    )
    assert "temperature=2.0" in job(pruner="grasp", temperature=2.0).record[0].spec
    with pytest.raises(UsageError, match=r"'random' takes no rounds; .* iterative-snip, synflow"):
        job(pruner="random", rounds=3)


def test_a_saved_outcome_of_a_scored_pruner_is_loaded_without_its_data(tmp_path: Path) -> None:
    model = small()
    outcome = transform(
        model, density=0.3, skip_ratio=0.3, pruner="snip", example=EXAMPLE, batch=DATA
    )
    outcome.save(tmp_path / "out")
    loaded = n2nfx.load(tmp_path / "out", model)
    assert same(dict(loaded.masks), dict(outcome.network.masks))
