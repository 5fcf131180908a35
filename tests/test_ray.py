"""Jobs on Ray, on a cluster of this machine: only where it is installed."""

import os
import sys
from pathlib import Path

import pytest
import sweep_samples
from sweep_samples import Told, specs

from n2nfx.training import sweep
from n2nfx.training.ray_tasks import Ray
from n2nfx.training.status import standing

pytest.importorskip("ray", reason="pip install 'n2nfx[ray]'")

# What Ray's own threads and sockets leave behind is no matter of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_jobs_are_tasks_and_what_fails_or_is_killed_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    once, odd, killed = (specs(3, data) for data in ("killed once", "odd seeds fail", "killed"))
    jobs = [*once[:1], *odd, *killed]
    told = Told()
    Ray(cpus=1, run=sweep_samples.run)(sweep.left(jobs, tmp_path), told)
    states = [told.states[spec.name].state for spec in jobs]
    assert states == ["done", "done", "failed", "done", "done", "failed", "done"]
    stands = [standing(tmp_path / spec.name).state for spec in jobs]
    assert stands == states
    assert told.states[odd[1].name].told == "1 is odd"
