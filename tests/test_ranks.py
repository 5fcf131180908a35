"""Several processes that train one network: the same bits whenever, and the same network."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import run_samples
from run_samples import KILLED, differ, ended, process, results, same, spec, train_rank

from n2nfx import recipe
from n2nfx.lock import held
from n2nfx.training import runs


def ranks(count: int, folder: Path, store: Path, **how: Any) -> list[Any]:
    return [process(train_rank, rank, count, folder, store, how) for rank in range(count)]


# Of three ranks on, the order in which gradients are summed shows in the last bits.
WAYS = [(3, {}), (2, {"rewiring": "rigl", "accumulate": 2, "ema": 0.9})]


@pytest.mark.parametrize(("count", "how"), WAYS)
def test_ranks_repeat_and_go_on_with_the_same_bits(
    tmp_path: Path, count: int, how: dict[str, Any]
) -> None:
    for name in ("one", "other"):
        for started in ranks(count, tmp_path / name, tmp_path / f"store-{name}", **how):
            assert ended(started) == 0
    assert same(tmp_path / "one", tmp_path / "other")
    for attempt in range(2):
        group = ranks(count, tmp_path / "killed", tmp_path / f"store-{attempt}", **how)
        _wait_for(tmp_path / "killed" / "checkpoints" / "ab"[attempt])
        for started in group:
            started.kill()
        assert KILLED in [ended(started) for started in group]
    for started in ranks(count, tmp_path / "killed", tmp_path / "store-last", **how):
        assert ended(started) == 0
    assert same(tmp_path / "one", tmp_path / "killed")


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.005)


def test_several_processes_train_what_one_does_to_within_the_rounding(tmp_path: Path) -> None:
    how = {"model": "plain", "epochs": 1, "passes": ("random{density=0.3}",)}
    runs.run(spec(**how), tmp_path / "one")
    for started in ranks(2, tmp_path / "two", tmp_path / "store", **how):
        assert ended(started) == 0
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert two[0]["final_loss"] == pytest.approx(one[0]["final_loss"], rel=1e-4)
    assert two[1]["test_loss"] == pytest.approx(one[1]["test_loss"], rel=1e-4)


def test_ranks_that_hold_different_masks_are_told(tmp_path: Path) -> None:
    for equal in (True, False):
        group = [process(differ, rank, tmp_path / f"store-{equal}", equal) for rank in range(2)]
        assert [ended(started) for started in group] == [0, 0]


# A recipe whose runs all processes train, one after the other


def written(folder: Path, models: str) -> Path:
    file = folder / "mine.toml"
    own = run_samples.__file__
    file.write_text(
        f"matrix = {{models = [{models}], data = ['{own}:images'], seeds = [0]}}\n"
        "methods.Dense = []\ntraining = {epochs = 1, batch_size = 32}\n"
    )
    return file


def torchrun(folder: Path, models: str, *more: str) -> "subprocess.CompletedProcess[str]":
    file = written(folder, models)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command += ["n2nfx", "recipe", "run", str(file), "--out", str(folder / "runs"), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_torchrun_trains_the_runs_of_a_recipe_with_all_its_processes(tmp_path: Path) -> None:
    own = run_samples.__file__
    models = f"'{own}:net', '{own}:plain'"
    ran = torchrun(tmp_path, models)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Dense") == 2  # once for each table, and by one process
    found = [*(tmp_path / "runs").glob("*/environment.json")]
    assert [json.loads(file.read_text())[0]["processes"] for file in found] == [2, 2]
    assert "0 of 2 runs to do" in torchrun(tmp_path, models).stderr
    refused = torchrun(tmp_path, models, "--slots", "2")
    assert "leave --executor and --slots out" in refused.stderr


def test_a_run_at_which_somebody_is_without_a_lease_ends_torchrun(tmp_path: Path) -> None:
    """The other process waits for the first in what it would do together with it."""
    own = run_samples.__file__
    models = f"'{own}:net', '{own}:plain'"
    first = recipe.read(str(written(tmp_path, models))).runs[0].spec.name
    (tmp_path / "runs" / first).mkdir(parents=True)
    with held(tmp_path / "runs" / first / ".training.lock"):
        ended = torchrun(tmp_path, models)
    assert ended.returncode != 0
    assert "another process trains there" in ended.stderr


def test_a_run_that_fails_ends_torchrun_and_the_same_command_goes_on(tmp_path: Path) -> None:
    own = run_samples.__file__
    models = f"'{own}:narrow', '{own}:net'"
    failed = torchrun(tmp_path, models)
    assert failed.returncode != 0
    assert "the same command goes on with the next run" in failed.stderr
    again = torchrun(tmp_path, models)
    assert "1 of 2 runs to do" in again.stderr
    assert len([*(tmp_path / "runs").glob("*/result.json")]) == 1
