"""Of two checkpoints one is always whole, whatever happens to the other, and damage is told."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from n2nfx import CannotOperate
from n2nfx.training.checkpoint import Checkpoint, Checkpoints


def checkpoint(step: int, size: int = 100) -> Checkpoint:
    tensors = {"module/a": torch.full((size,), float(step)), "module/mask": torch.ones(3) > 0}
    return Checkpoint(step, {"epochs": [{"loss": 0.1 * step}], "scaler": {}}, tensors)


def written(folder: Path, *steps: int) -> Checkpoints:
    places = Checkpoints(folder)
    for step in steps:
        places.write(checkpoint(step))
    return places


def found(folder: Path) -> tuple[int | None, int]:
    """The newest one's step, and how many notes there are."""
    one, notes = Checkpoints(folder).newest()
    return one and one.step, len(notes)


def test_what_was_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    written(tmp_path, 7)
    one, notes = Checkpoints(tmp_path).newest()
    assert one is not None
    assert (one.step, dict(one.facts), notes) == (7, dict(checkpoint(7).facts), ())
    for name, tensor in checkpoint(7).tensors.items():
        assert torch.equal(one.tensors[name], tensor)
        assert one.tensors[name].dtype == tensor.dtype


def test_where_nothing_is_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert found(tmp_path / "never") == (None, 0)


@pytest.mark.parametrize("steps", [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)])
def test_the_newest_and_the_one_before_it_are_kept(tmp_path: Path, steps: tuple[int, ...]) -> None:
    written(tmp_path, *steps)
    kept = sorted(json.loads(path.read_text())["step"] for path in tmp_path.glob("*/plan.json"))
    assert kept == list(steps[-2:])
    assert found(tmp_path) == (steps[-1], 0)


def test_another_process_goes_on_in_the_place_of_the_older(tmp_path: Path) -> None:
    for step in range(1, 5):
        places = Checkpoints(tmp_path)
        places.newest()
        places.write(checkpoint(step))
        assert found(tmp_path) == (step, 0)
        assert len(list(tmp_path.glob("*/plan.json"))) == min(step, 2)


def newest_place(folder: Path, step: int) -> Path:
    return next(
        path.parent
        for path in folder.glob("*/plan.json")
        if json.loads(path.read_text())["step"] == step
    )


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "MANIFEST.sha256"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_newest_falls_back_to_the_one_before_it_and_says_so(
    tmp_path: Path, name: str, damage: str
) -> None:
    written(tmp_path, 1, 2)
    file = newest_place(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"flip": bytes(data), "truncate": bytes(data[:-1]), "empty": b""}
    file.unlink() if damage == "delete" else file.write_bytes(changed[damage])
    places = Checkpoints(tmp_path)
    one, notes = places.newest()
    assert one is not None
    assert one.step == 1
    assert len(notes) == 1
    assert str(file.parent) in notes[0]
    places.write(checkpoint(3))  # in the place of the damaged one, never of the one that is whole
    assert found(tmp_path) == (3, 0)
    assert newest_place(tmp_path, 1).exists()


def test_every_flipped_bit_of_any_file_is_noticed(tmp_path: Path) -> None:
    written(tmp_path, 1)
    for file in sorted((tmp_path / "a").iterdir()):
        whole = file.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 60)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << (at % 8)
            file.write_bytes(bytes(flipped))
            assert found(tmp_path) == (None, 1), (file, at)
        file.write_bytes(whole)
    assert found(tmp_path) == (1, 0)


def test_where_both_are_damaged_both_are_told(tmp_path: Path) -> None:
    places = written(tmp_path, 1, 2)
    for path in tmp_path.glob("*/MANIFEST.sha256"):
        path.unlink()
    assert found(tmp_path) == (None, 2)
    places = Checkpoints(tmp_path)
    places.newest()
    places.write(checkpoint(3))
    assert found(tmp_path) == (3, 1)


def test_swapped_files_of_two_checkpoints_are_noticed(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    shutil.copy(tmp_path / "a/weights.safetensors", tmp_path / "b/weights.safetensors")
    assert found(tmp_path) == (1, 1)


def test_an_artifact_that_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    from n2nfx import artifact

    artifact.write(tmp_path / "a", {"some": "plan"}, {}, {})
    assert found(tmp_path) == (None, 1)


def test_on_a_full_disk_the_last_one_stays_and_what_helps_is_told(small_disk: Path) -> None:
    places = Checkpoints(small_disk / "checkpoints")
    places.write(checkpoint(1, size=20_000))  # of 256 KiB, so that a second fits and no third
    places.write(checkpoint(2, size=20_000))
    with pytest.raises(CannotOperate, match=r"No space left.*from the last checkpoint") as told:
        places.write(checkpoint(3, size=20_000))
    assert "make room, or name another directory; then start the same run again" in str(told.value)
    assert found(small_disk / "checkpoints") == (2, 0)
    places.write(checkpoint(4, size=100))
    assert found(small_disk / "checkpoints") == (4, 0)


def test_they_are_gone_when_the_run_is_done(tmp_path: Path) -> None:
    places = written(tmp_path / "checkpoints", 1, 2)
    places.discard()
    assert list(tmp_path.iterdir()) == []
    places.discard()


def test_a_file_in_the_place_of_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("no directory")
    places = Checkpoints(tmp_path)
    one, notes = places.newest()
    assert (one and one.step, len(notes)) == (2, 1)
    places.write(checkpoint(3))
    assert found(tmp_path) == (3, 0)
