"""TensorBoard's files: what is in them, and that a training neither waits for them nor fails."""

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import run_samples
from click.testing import CliRunner
from run_samples import spec

from n2nfx.cli import main
from n2nfx.training import runs, tensorboard
from n2nfx.training.loop import Epoch, Progress

EPOCHS = spec().training.epochs


class Stop(Exception):
    """What stops a run in the middle."""


def stopped(folder: Path, at: int, **options: Any) -> None:
    """A run that is stopped after so many epochs."""

    def watch(progress: Progress) -> None:
        if progress.epoch == at:
            raise Stop

    with pytest.raises(Stop):
        runs.run(spec(), folder, watch=watch, tensorboard=True, **options)


class Read:
    """TensorBoard, looking at a run."""

    def __init__(self, folder: Path) -> None:
        module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        self._found = module.EventAccumulator(str(folder / "tensorboard"))

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        self._found.Reload()
        return [(event.step, event.value) for event in self._found.Scalars(tag)]

    def times(self) -> list[float]:
        return [event.wall_time for event in self._found.Scalars("accuracy/test")]


def events(folder: Path, key: str) -> list[Any]:
    lines = map(json.loads, (folder / runs.EVENTS).read_text().splitlines())
    return [(line["epoch"], pytest.approx(line[key], rel=1e-6)) for line in lines]


# What TensorBoard's own packages warn of is no matter of ours.
reads = pytest.mark.filterwarnings("ignore")


@reads
def test_every_epoch_is_there_with_its_numbers(tmp_path: Path) -> None:
    runs.run(spec(), tmp_path, tensorboard=True)
    tags = {
        "loss/train": "loss", "loss/test": "test_loss", "accuracy/test": "accuracy",
        "training/lr": "lr", "training/images_per_second": "images_per_second",
    }  # fmt: skip
    read = Read(tmp_path)
    for tag, key in tags.items():
        assert read.scalars(tag) == events(tmp_path, key)
    assert len(read.scalars("loss/train")) == EPOCHS


@reads
@pytest.mark.parametrize("save_every", [0, 1000], ids=["with checkpoints", "from the start"])
def test_a_run_that_goes_on_has_every_epoch_once(tmp_path: Path, save_every: float) -> None:
    stopped(tmp_path, EPOCHS - 1, save_every=save_every)
    live = Read(tmp_path)
    assert [step for step, _ in live.scalars("loss/train")] == [1, 2]
    runs.run(spec(), tmp_path, tensorboard=True)
    later = Read(tmp_path)
    assert later.scalars("loss/train") == live.scalars("loss/train") == events(tmp_path, "loss")
    assert later.times() == sorted(later.times())


@reads
def test_what_was_trained_before_it_was_asked_for_is_there_too(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        runs.run(spec(), tmp_path, watch=lambda at: stop_at(2, at), save_every=0)
    assert not (tmp_path / "tensorboard").exists()
    runs.run(spec(), tmp_path, tensorboard=True)
    assert Read(tmp_path).scalars("loss/train") == events(tmp_path, "loss")


def stop_at(epoch: int, progress: Progress) -> None:
    if progress.epoch == epoch:
        raise Stop


class Broken:
    """A writer that goes wrong at its so-manieth line."""

    def __init__(self, folder: Path, at: int) -> None:
        self._left = at

    def add_scalar(self, *given: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(28, "No space left on device")

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_writer_that_fails_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    runs.run(spec(), tmp_path / "without")
    monkeypatch.setattr(tensorboard, "_writer", lambda folder: Broken(folder, at))
    runs.run(spec(), tmp_path / "with", tensorboard=True)
    (told,) = (one for one in caplog.records if one.levelno >= logging.WARNING)
    assert "TensorBoard's files end here: OSError: [Errno 28] No space left" in told.getMessage()
    assert run_samples.same(tmp_path / "without", tmp_path / "with")


def test_a_writer_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()

    def hanging(folder: Path) -> Broken:
        never.wait()
        return Broken(folder, 1000)

    monkeypatch.setattr(tensorboard, "_writer", hanging)
    monkeypatch.setattr(tensorboard, "_PATIENCE", 0.0)
    assert runs.run(spec(), tmp_path, tensorboard=True).status == "done"
    (told,) = (one for one in caplog.records if one.levelno >= logging.WARNING)
    assert "not waited for" in told.getMessage()
    never.set()


def test_a_package_that_is_missing_is_one_warning_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert runs.run(spec(), tmp_path, tensorboard=True).status == "done"
    (told,) = (one for one in caplog.records if one.levelno >= logging.WARNING)
    assert "TensorBoard's files end here: ModuleNotFoundError" in told.getMessage()


def test_a_package_that_is_missing_is_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    asked = ["recipe", "run", "smoke", "--tensorboard", "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 3
    assert "pip install 'n2nfx[tensorboard]'" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_writer_is_told_when_earlier_epochs_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, float, int, float]] = []

    class Remembering(Broken):
        def add_scalar(self, *given: Any) -> None:
            lines.append(given)

    monkeypatch.setattr(tensorboard, "_writer", lambda folder: Remembering(folder, 0))
    before = [Epoch(number, 0.5, 90.0, 0.4, 0.1, 10.0, 100.0 * number) for number in (1, 2)]
    with tensorboard.written(tmp_path, before) as tell:
        tell(Epoch(3, 0.3, 91.0, 0.2, 0.1, 10.0, 250.0))
    times = [time for tag, _, _, time in lines if tag == "loss/train"]
    assert times[1] - times[0] == pytest.approx(100)
    assert 0 <= times[2] - times[1] < 60
