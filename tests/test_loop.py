"""The loop trains what the spec says, keeps the masks, and draws nothing that depends on the way.

Run with --update-golden to record the losses anew.
"""

import errno
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from run_samples import TRAIN, spec
from torch import Tensor

from n2nfx import CannotOperate, UsageError
from n2nfx.bind import as_it_acts
from n2nfx.network import Network
from n2nfx.outcome import Outcome
from n2nfx.pipeline import BrokenInvariant
from n2nfx.runspec import RunSpec, Training
from n2nfx.training.average import Average
from n2nfx.training.checkpoint import Checkpoint
from n2nfx.training.data import Data, load_for
from n2nfx.training.loop import Diverged, Trained, Trainer, _Clock, is_of_memory, train
from n2nfx.training.ranks import Ranks
from n2nfx.training.runs import make
from n2nfx.training.sampler import Sampler, sampler_of
from n2nfx.training.schedules import rate

GOLDEN = Path(__file__).parent / "golden" / "losses.txt"
CPU = torch.device("cpu")

# Every way to train that has a state of its own.
WAYS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup": 1},
    "one cycle": {"schedule": "one-cycle", "label_smoothing": 0.1, "accumulate": 3},
    "average": {"ema": 0.9, "nesterov": True},
    "bf16": {"precision": "bf16", "channels_last": True},
    "fp16": {"precision": "fp16"},
    "set": {"rewiring": "set"},
    "rigl": {"rewiring": "rigl", "momentum": 0.0},
    "part": {"images": 100, "augment": False},
}
every_way = pytest.mark.parametrize("how", list(WAYS.values()), ids=list(WAYS))


def made(asked: RunSpec) -> tuple[Outcome, Data]:
    data = load_for(asked.model, asked.data)
    return make(asked, data), data


def trainer(asked: RunSpec) -> Trainer:
    outcome, data = made(asked)
    return Trainer(outcome.network, data, asked.training, asked.seed, CPU, Ranks())


def trained(asked: RunSpec, **options: Any) -> Trained:
    outcome, data = made(asked)
    return train(outcome.network, data, asked.training, seed=asked.seed, **options)


def state(found: Trained) -> dict[str, Tensor]:
    return found.network.module.state_dict()


def same(one: Trained, other: Trained) -> bool:
    return list(state(one)) == list(state(other)) and all(
        torch.equal(tensor, state(other)[name]) for name, tensor in state(one).items()
    )


def measures(found: Trained) -> list[Any]:
    """What the epochs measured, but for the times."""
    return [replace(epoch, seconds=0.0, images_per_second=0.0) for epoch in found.epochs]


def losses(at: Trainer, count: int) -> list[float]:
    """The mean loss of each of the next steps."""
    found: list[float] = []
    clock = _Clock(at, 0.0)
    while True:
        for step, images in at.batches():
            before = float(at.sums[0])
            at.step(step, images)
            found.append((float(at.sums[0]) - before) / images)
            if len(found) == count:
                return found
        at.epochs.append(at.measured(clock))


# What is trained


def test_twenty_steps_lose_as_they_once_did(pytestconfig: pytest.Config) -> None:
    found = losses(trainer(spec()), 20)
    if pytestconfig.getoption("--update-golden"):
        GOLDEN.write_text("".join(f"{loss:.6f}\n" for loss in found))
    recorded = [float(line) for line in GOLDEN.read_text().splitlines()]
    assert len(found) == len(recorded) == 20
    # Other machines add in another order; what is trained otherwise differs by far more.
    assert found == pytest.approx(recorded, rel=1e-3)


@every_way
def test_a_repeat_ends_with_the_same_bits(how: dict[str, Any]) -> None:
    one, other = trained(spec(**how)), trained(spec(**how))
    assert same(one, other)
    assert measures(one) == measures(other)
    assert not same(one, trained(spec(seed=1, **how)))


@every_way
@pytest.mark.parametrize("at", [1, 9, 16])
def test_it_goes_on_with_the_same_bits_from_any_step(how: dict[str, Any], at: int) -> None:
    kept: list[Checkpoint] = []
    whole = trained(spec(**how), save=lambda now: kept.append(deepcopy(now)), save_every=0)
    at = min(at, kept[-1].step)
    resumed = trained(spec(**how), saved=kept[at - 1])
    assert kept[at - 1].step == at
    assert same(whole, resumed)
    assert measures(whole) == measures(resumed)


@pytest.mark.parametrize("way", ["sgd", "average", "rigl"])
def test_it_goes_on_with_its_own_masks_where_others_are_made(way: str) -> None:
    """As on another CPU, which rounds scores otherwise."""
    asked, kept = spec(**WAYS[way]), list[Checkpoint]()
    whole = trained(asked, save=lambda now: kept.append(deepcopy(now)), save_every=0)
    others, data = made(spec(seed=1, **WAYS[way]))
    assert not masks_equal(others.network, made(asked)[0].network)
    resumed = train(others.network, data, asked.training, seed=asked.seed, saved=kept[8])
    assert same(whole, resumed)
    assert masks_equal(as_it_acts(whole.network), as_it_acts(resumed.network))


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_what_has_no_masks_trains_as_without_rewiring(method: str) -> None:
    """The reference of a recipe whose networks are rewired."""
    dense = [trained(spec(passes=(), rewiring=how)) for how in ("none", method)]
    assert same(*dense)


def test_a_checkpoint_with_a_whole_layer_for_a_masked_one_is_refused() -> None:
    """A layer that is whole has no mask in the network, and none to load."""
    asked = spec(rewiring="set")
    kept: list[Checkpoint] = []
    trained(asked, save=lambda now: kept.append(deepcopy(now)), save_every=0)
    small, large = (
        kept[0].tensors[f"mask/net.{name}.weight"] for name in ("classifier", "features.3")
    )
    moved = int((~small).sum())
    small.fill_(True)
    large[tuple(large.nonzero()[:moved].T)] = False
    assert sum(int(m.sum()) for n, m in kept[0].tensors.items() if n.startswith("mask/")) == (
        made(asked)[0].network.nnz
    )
    with pytest.raises(CannotOperate, match="masks of other weights than are pruned here"):
        trained(asked, saved=kept[0])


def test_a_checkpoint_of_other_layers_masks_is_refused() -> None:
    kept: list[Checkpoint] = []
    trained(spec(), save=lambda now: kept.append(deepcopy(now)), save_every=0)
    with pytest.raises(CannotOperate, match="masks of other weights than are pruned here"):
        trained(spec(passes=()), saved=kept[0])


def masks_equal(one: Network, other: Network) -> bool:
    return list(one.masks) == list(other.masks) and all(
        torch.equal(mask, other.masks[name]) for name, mask in one.masks.items()
    )


@every_way
def test_the_masks_stay_and_the_weights_move(how: dict[str, Any]) -> None:
    asked = spec(**how)
    outcome, data = made(asked)
    before = {name: tensor.clone() for name, tensor in outcome.network.module.state_dict().items()}
    found = train(outcome.network, data, asked.training).network
    assert as_it_acts(found).nnz == outcome.network.nnz
    for name, mask in as_it_acts(found).masks.items():
        if how.get("rewiring", "none") == "none":
            assert torch.equal(mask, outcome.network.masks[name])
            assert not found.module.get_parameter(name)[~mask].any()
        assert not torch.equal(found.module.get_parameter(name), before[name])
    after = outcome.network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_rewiring_moves_the_masks(method: str) -> None:
    outcome, data = made(spec(rewiring=method))
    found = train(outcome.network, data, spec(rewiring=method).training).network
    masks = as_it_acts(found).masks
    assert any(not torch.equal(mask, outcome.network.masks[name]) for name, mask in masks.items())


def test_a_trained_mask_acts_as_one_that_is_kept_by_projection() -> None:
    """The masks are taken out of the graph to train: the kept weights must not feel it."""
    outcome, data = made(spec())
    projected = train(outcome.network, data, spec().training).network.module
    bound = trainer(spec(rewiring="set", epochs=3))
    bound.rewiring = None
    losses(bound, bound.total)
    for name, mask in outcome.network.masks.items():
        one, other = projected.get_parameter(name), bound.module.get_parameter(name)
        assert torch.equal(one[mask], other[mask])


def test_an_escaped_weight_is_told() -> None:
    at = trainer(spec())
    at.require_masks()
    name, mask = next((n, m) for n, m in at.network.masks.items() if not m.all())
    with torch.no_grad():
        at.module.get_parameter(name)[~mask] = 1.0
    with pytest.raises(BrokenInvariant, match=f"nnz: {at.network.nnz} at its start"):
        at.require_masks()
    at.projection()
    at.require_masks()


def test_it_learns() -> None:
    last = trained(spec("plain", passes=(), epochs=20, step_every=10, augment=False)).epochs[-1]
    assert last.accuracy > 60
    assert last.loss < 1


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"rewiring": "rigl", "precision": "bf16"}])
def test_a_compiled_network_trains_as_it_does_without(how: dict[str, Any]) -> None:
    asked = {"passes": ("random{density=0.3}",), "epochs": 1, **how}
    one = trained(spec("plain", **asked))
    other = trained(spec("plain", compile=True, **asked))
    assert one.epochs[-1].loss == pytest.approx(other.epochs[-1].loss, rel=1e-2)


# How steps are made


def test_accumulated_micro_batches_are_one_step_of_all_their_images() -> None:
    """Without batch norms, which see micro-batches, and to within the rounding of another sum."""
    asked = spec("plain", passes=("random{density=0.3}",), epochs=1, batch_size=40)
    whole = trained(asked)
    parts = trained(spec("plain", passes=asked.passes, epochs=1, batch_size=20, accumulate=2))
    for name, tensor in state(whole).items():
        torch.testing.assert_close(state(parts)[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_caller_s_random_numbers_go_on_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    trained(spec(epochs=1))
    assert torch.equal(torch.rand(4), wanted)


def test_fp16_survives_a_first_step_that_overflows() -> None:
    at = trainer(spec(precision="fp16"))
    scales = []
    for step, images in at.batches():
        torch.full((100_000,), float("nan"))  # what the memory holds is nobody's momentum
        at.step(step, images)
        scales.append(at.scaler.get_scale())
    assert scales[0] < 65536
    at.require_finite()


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(Diverged, match="the loss was not finite; try a lower lr") as told:
        trained(spec("exploding", passes=("random{density=0.3}",)))
    assert told.value.epochs == []


def test_a_gradient_that_is_not_finite_stops_it_and_no_checkpoint_is_made_of_it() -> None:
    kept: list[Checkpoint] = []
    asked = spec("steep", passes=("random{density=0.3}",), images=16)
    with pytest.raises(Diverged, match="a gradient was not finite"):
        trained(asked, save=kept.append, save_every=0)
    assert kept == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_too_small_a_memory_is_known_by_what_is_said_of_it(error: Exception) -> None:
    assert is_of_memory(error)
    assert not is_of_memory(OSError(errno.ENOSPC, "No space left on device"))


def test_too_small_a_memory_fails_with_what_helps() -> None:
    with pytest.raises(CannotOperate, match="batch_size=8 with accumulate=2"):
        trained(spec("hungry", passes=("random{density=0.3}",)))


def test_other_errors_of_a_model_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        trained(spec("narrow", passes=("random{density=0.3}",)))


def test_the_average_is_what_is_measured() -> None:
    at = trainer(spec(ema=0.999))
    assert at.average is not None
    losses(at, 5)
    assert at.trained().module is at.average.module
    before = at._tested()
    with torch.no_grad():
        for parameter in at.module.parameters():
            parameter.zero_()
    assert at._tested() == before


def test_an_average_follows_fast_at_first_and_then_by_its_decay() -> None:
    module = torch.nn.Linear(1, 1)
    average = Average(module, 0.5)
    own = average.module.get_parameter("weight").detach()
    module.weight.detach().fill_(1.0)
    own.fill_(0.0)
    average.update(1)
    assert own.item() == pytest.approx(1 - 2 / 11)
    average.update(1_000_000)
    assert own.item() == pytest.approx(1 - 1 / 11)


# Schedules


def rates(**how: Any) -> list[float]:
    training = Training(epochs=10, lr=1.0, **how)
    return [rate(training, step, 10) for step in range(100)]


def test_the_paper_s_schedule_halves_every_thirty_epochs() -> None:
    training = Training()
    found = [rate(training, 390 * epoch, 390) for epoch in (0, 29, 30, 59, 60, 299)]
    assert found == [0.05, 0.05, 0.025, 0.025, 0.0125, 0.05 / 2**9]


def test_a_cosine_falls_from_the_rate_to_almost_nothing() -> None:
    found = rates(schedule="cosine")
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.001
    assert all(later < earlier for earlier, later in pairwise(found))


def test_one_cycle_is_torch_s() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=100, cycle_momentum=False
    )
    wanted = []
    for _ in range(100):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    assert rates(schedule="one-cycle") == pytest.approx(wanted)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_has_a_rate_for_each(steps: int) -> None:
    training = Training(epochs=1, schedule="one-cycle")
    assert all(0 < rate(training, step, steps) <= training.lr for step in range(steps))


def test_a_warmup_rises_in_a_line_to_the_rate() -> None:
    found = rates(warmup=2)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[20:] == [1.0] * 80


@pytest.mark.parametrize("key", ["step_every", "step_factor"])
def test_what_only_steps_have_is_refused_of_another_schedule(key: str) -> None:
    wrong: dict[str, Any] = {key: 1}
    with pytest.raises(ValidationError, match=f'{key} is of schedule="step"'):
        Training(schedule="cosine", **wrong)
    assert getattr(Training(schedule="step", **wrong), key) == 1


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a momentum above 0"):
        Training(nesterov=True, momentum=0.0)


# Samples


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_ranks_together_see_every_image_once_an_epoch(ranks: int, accumulate: int) -> None:
    sampler = Sampler(images=70, batch_size=16, accumulate=accumulate, seed=0, ranks=ranks)
    steps = sampler.epoch(0)
    assert len(steps) == sampler.steps
    seen: list[int] = []
    for micro in (micro for step in steps for micro in step):
        shares = [Ranks(rank, ranks).share(micro).tolist() for rank in range(ranks)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        seen += [index for share in shares for index in share]
    assert sorted(seen) == list(range(70))


def test_an_epoch_is_in_its_own_order_and_goes_on_at_any_step() -> None:
    sampler = Sampler(images=64, batch_size=16, accumulate=1, seed=0)

    def flat(*at: int) -> list[int]:
        return np.concatenate([micro for step in sampler.epoch(*at) for micro in step]).tolist()

    assert flat(0) == flat(0) != flat(1)
    assert flat(0, 3) == flat(0)[48:]
    assert sampler.epoch(0, 4) == []


@pytest.mark.parametrize(("images", "ranks"), [(65, 1), (66, 2), (5, 3), (1, 1)])
def test_a_batch_that_no_norm_can_take_is_refused(images: int, ranks: int) -> None:
    with pytest.raises(UsageError, match="batch norms need 2 images on each"):
        Sampler(images=images, batch_size=32, accumulate=1, seed=0, ranks=ranks)


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="images=121, and there are 120 to train on"):
        sampler_of(Training(images=121), TRAIN, 0, 1)
    assert sampler_of(Training(), TRAIN, 0, 1).images == TRAIN
    assert sampler_of(Training(images=40), TRAIN, 0, 1).images == 40
