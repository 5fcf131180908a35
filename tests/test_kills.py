"""Killing a run at any moment, or filling its disk, changes no bit of what comes out in the end."""

import json
import logging
import os
import random
import resource
import time
from pathlib import Path

import pytest
import torch
from run_samples import KILLED, ended, process, same, spec, train, train_and_die

from n2nfx import CannotOperate
from n2nfx.training import runs
from n2nfx.training.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As the processes that are killed have it, whatever ran before here."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.run(spec(), folder)
    return folder


def test_kills_at_random_times_change_no_bit(whole: Path, tmp_path: Path) -> None:
    draw, killed = random.Random(0), 0
    for attempt in range(1, 11):  # ever later: the first ones come before any run is done
        started = process(train, tmp_path, {})
        time.sleep(draw.uniform(0, 0.06 * attempt))
        started.kill()
        killed += ended(started) == KILLED
    assert killed > 1
    assert ended(process(train, tmp_path, {})) == 0
    assert same(whole, tmp_path)


@pytest.mark.parametrize("torn", [False, True])
def test_kills_between_any_two_steps_of_a_write_change_no_bit(
    whole: Path, tmp_path: Path, torn: bool
) -> None:
    reached, at = 0, 1 + torn
    while (code := ended(process(train_and_die, tmp_path, at, torn))) == KILLED:
        at += 2  # a checkpoint has an odd number of such moments
        if (tmp_path / "result.json").exists():
            continue  # checkpoints are no more needed, and may be half deleted
        newest, notes = Checkpoints(tmp_path / "checkpoints").newest()
        assert notes == ()
        step = newest.step if newest else 0
        assert step >= reached
        reached = step
    assert code == 0
    assert reached > 2
    assert same(whole, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(whole))
    assert at > 30


def test_a_damaged_checkpoint_costs_steps_and_no_bit(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ended(process(train_and_die, tmp_path, 60, False)) == KILLED
    newest, _ = Checkpoints(tmp_path / "checkpoints").newest()
    assert newest is not None
    for path in (tmp_path / "checkpoints").glob("*/weights.safetensors"):
        if json.loads((path.parent / "plan.json").read_text())["step"] == newest.step:
            path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        runs.run(spec(), tmp_path)
    assert "weights.safetensors: does not have the SHA-256" in caplog.text
    assert "going on from the one before" in caplog.text
    assert same(whole, tmp_path)


def test_events_beyond_the_checkpoint_are_those_of_the_epochs_that_are_trained_again(
    whole: Path, tmp_path: Path
) -> None:
    assert ended(process(train_and_die, tmp_path, 60, False)) == KILLED
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"epoch": 2, "loss": 0.1}\n{"epo')
    runs.run(spec(), tmp_path)
    assert same(whole, tmp_path)


def test_going_on_in_another_environment_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(process(train_and_die, tmp_path, 60, False)) == KILLED
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert runs.run(spec(), tmp_path).environments == 2
    assert "goes on in another environment: threads was 1 and is 99" in caplog.text
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 2


# A full disk


def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(
    whole: Path, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 190_000)
    with pytest.raises(CannotOperate, match="No space left on device"):
        runs.run(spec(), small_disk / "run", save_every=0)
    newest, notes = Checkpoints(small_disk / "run" / "checkpoints").newest()
    assert notes == ()
    filler.unlink()
    runs.run(spec(), small_disk / "run", save_every=0)
    assert same(whole, small_disk / "run")
    assert newest is not None
    assert newest.step > 0


def test_a_quota_stops_it_as_a_full_disk_does(whole: Path, tmp_path: Path) -> None:
    assert ended(process(train_and_die, tmp_path, 60, False)) == KILLED
    before, _ = Checkpoints(tmp_path / "checkpoints").newest()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CannotOperate, match=r"File too large.*start the same run again"):
            runs.run(spec(), tmp_path, save_every=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after, notes = Checkpoints(tmp_path / "checkpoints").newest()
    assert before is not None
    assert after is not None
    assert (after.step, notes) == (before.step, ())
    runs.run(spec(), tmp_path)
    assert same(whole, tmp_path)
