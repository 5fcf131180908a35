"""Several processes that train one network: the same bits whenever, and the same network."""

import time
from pathlib import Path
from typing import Any

import pytest
from run_samples import KILLED, differ, ended, process, results, same, spec, train_rank

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
