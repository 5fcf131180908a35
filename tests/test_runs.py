"""A run's directory says the truth about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_samples import results, spec

import n2nfx
from n2nfx import CannotOperate, DamagedFile, UsageError
from n2nfx.lock import held
from n2nfx.runspec import RunSpec
from n2nfx.training import runs
from n2nfx.training.checkpoint import Checkpoint
from n2nfx.training.loop import Diverged, Progress
from n2nfx.training.runresult import sha256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.run(spec(), folder)
    return folder


# The directory


def test_a_run_leaves_what_it_was_where_it_was_and_what_came_out(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "environment.json", "events.jsonl", "network", "result.json",
        "MANIFEST.sha256",
    }  # fmt: skip
    result = json.loads((whole / "result.json").read_text())
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events] == [1, 2, 3]
    assert result["final_accuracy"] == events[-1]["accuracy"]
    assert result["best_accuracy"] == max(event["accuracy"] for event in events)
    assert result["final_loss"] == events[-1]["loss"]
    assert (result["status"], result["epochs"], result["name"]) == ("done", 3, spec().name)
    assert 0 < events[0]["seconds"] < events[-1]["seconds"] == result["seconds"]
    assert all(event["images_per_second"] > 0 for event in events)
    assert json.loads((whole / "config.json").read_text()) == spec().model_dump(mode="json")
    (environment,) = json.loads((whole / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_the_network_that_is_left_is_the_one_that_was_measured(whole: Path) -> None:
    from run_samples import net

    from n2nfx.training.data import load_for

    network = n2nfx.load(whole / "network", net())
    result = json.loads((whole / "result.json").read_text())
    assert network.nnz == result["nnz"] == round(0.3 * result["size"])
    images, labels = next(load_for(spec().model, spec().data).testing(1000))
    right = network.module.eval()(images).argmax(1) == labels
    assert 100 * right.double().mean().item() == result["final_accuracy"]


def test_a_run_that_is_done_is_returned_and_nothing_is_touched(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    monkeypatch.setattr(runs, "train", None)
    assert runs.run(spec(), whole).final_loss == results(whole)[0]["final_loss"]
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_run_of_another_spec_is_refused_and_the_difference_named(whole: Path) -> None:
    with pytest.raises(UsageError, match=r"with training.lr=0.05, not 0.1; name another"):
        runs.run(spec(lr=0.1), whole)
    with pytest.raises(UsageError, match="with seed=0, not 1"):
        runs.run(spec(seed=1), whole)


def test_a_changed_result_or_configuration_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.run(spec(epochs=1), folder)
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"nnz": 6', '"nnz": 7'))
    with pytest.raises(DamagedFile, match=r"result.json: does not have the SHA-256"):
        runs.run(spec(epochs=1), folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DamagedFile, match="is not the configuration of a run"):
        runs.run(spec(epochs=1), folder)


def test_all_files_have_the_sums_of_the_manifest(whole: Path) -> None:
    lines = (whole / "MANIFEST.sha256").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert set(sums) == files - {"MANIFEST.sha256"}
    assert all(sha256((whole / name).read_bytes()) == sums[name] for name in sums)


def test_two_processes_never_train_in_one_directory(tmp_path: Path) -> None:
    with (
        held(tmp_path / ".training.lock"),
        pytest.raises(UsageError, match=r"another process trains there \(process \d+"),
    ):
        runs.run(spec(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_run_that_diverges_says_so_and_is_done(tmp_path: Path) -> None:
    asked = spec("exploding", passes=("random{density=0.3}",))
    result = runs.run(asked, tmp_path)
    assert (result.status, result.final_accuracy, result.final_loss) == ("diverged", None, None)
    assert result.reason is not None
    assert "the loss was not finite" in result.reason
    assert runs.run(asked, tmp_path) == result
    assert not (tmp_path / "network").exists()


def test_a_run_that_diverges_leaves_no_checkpoint_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*given: Any, save: Callable[[Checkpoint], None], **options: Any) -> None:
        save(Checkpoint(5, {}, {"one": torch.zeros(1)}))
        assert (tmp_path / "checkpoints").exists()
        raise Diverged("the loss was not finite", [])

    monkeypatch.setattr(runs, "train", diverging)
    assert runs.run(spec(), tmp_path).status == "diverged"
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("how", [{"lr": 1e10}, {"lr": 1e30, "rewiring": "set"}])
@pytest.mark.parametrize("save_every", [0.0, 60.0])
def test_a_network_of_which_no_score_is_finite_has_no_accuracy(
    tmp_path: Path, how: dict[str, Any], save_every: float
) -> None:
    """One step an epoch: the losses in training are finite, and what its update leaves is not."""
    asked = spec("plain", passes=("random{density=0.3}",), batch_size=120, epochs=4, **how)
    result = runs.run(asked, tmp_path, save_every=save_every)
    assert (result.status, result.final_accuracy) == ("diverged", None)
    assert result.reason is not None
    assert "finite" in result.reason


def test_a_network_without_passes_is_the_dense_one(tmp_path: Path) -> None:
    result = runs.run(spec(passes=(), epochs=1), tmp_path)
    assert result.nnz == result.size > 0


# Progress


def test_it_is_told_while_a_run_trains(tmp_path: Path) -> None:
    told: list[Progress] = []
    runs.run(spec(epochs=2), tmp_path, watch=told.append)
    assert [at.step for at in told] == sorted(at.step for at in told)
    assert told[-1].epoch == told[-1].epochs == 2
    assert told[-1].step == told[-1].steps
    assert told[-1].last is not None


# Where it was trained


def interrupted(asked: RunSpec, folder: Path) -> None:
    """A run with a checkpoint, and more to do."""

    def stop(progress: Progress) -> None:
        if progress.step >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(asked, folder, watch=stop, save_every=0.0)


@pytest.mark.parametrize("text", [None, b"{", b"[1]", b"\xff", b'[{"device": "abacus"}]'])
def test_a_run_goes_on_though_it_is_not_known_where_it_was_trained(
    tmp_path: Path, text: bytes | None
) -> None:
    interrupted(spec(), tmp_path)
    path = tmp_path / "environment.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    assert runs.run(spec(), tmp_path).environments == 2


def test_a_run_that_goes_on_with_another_file_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "own.py"
    source = (
        "from torch.nn import *\ndef build(): return Sequential(Flatten(), {}(), Linear(192, 5))"
    )
    file.write_text(source.format("ReLU"))
    asked = spec(passes=()).model_copy(update={"model": f"{file}:build"})
    interrupted(asked, tmp_path / "run")
    file.write_text(source.format("GELU"))
    assert runs.run(asked, tmp_path / "run").environments == 2
    assert f"files.{file}:build was " in caplog.text


def test_a_file_that_was_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    """It would be trained under the name of what it was."""
    asked = spec().model_copy(update={"files": ("0" * 64,)})
    with pytest.raises(UsageError, match=r"run_samples\.py: was changed meanwhile"):
        runs.run(asked, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_network_with_too_few_outputs_is_told(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from torch.nn import *\ndef build(): return Sequential(Flatten(), Linear(192, 3))"
    )
    asked = spec(passes=()).model_copy(update={"model": f"{file}:build"})
    with pytest.raises(CannotOperate, match=r"own\.py:build gives 3 numbers .* has 5 classes"):
        runs.run(asked, tmp_path / "run")


def test_where_memory_is_too_small_to_score_the_images_are_named(tmp_path: Path) -> None:
    asked = spec(model="hungry", passes=("snip{density=0.3}",))
    with pytest.raises(CannotOperate, match=r"score 12 images as one batch .*scoring_images"):
        runs.run(asked.model_copy(update={"scoring_images": 12}), tmp_path)


def test_a_result_without_its_manifest_is_told_as_that(tmp_path: Path) -> None:
    runs.run(spec(epochs=1), tmp_path)
    (tmp_path / "MANIFEST.sha256").unlink()
    with pytest.raises(DamagedFile, match=r"MANIFEST.sha256: is not there"):
        runs.run(spec(epochs=1), tmp_path)
