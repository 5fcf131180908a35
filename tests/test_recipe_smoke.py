"""The smoke recipe as a user runs it: real networks, real images, processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import n2nfx
from n2nfx import recipe

OVERRIDES = ("training.epochs=1", "training.images=64")


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "n2nfx", "recipe", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_smoke_is_killed_gone_on_with_and_reported(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    arguments = ("run", "smoke", *OVERRIDES, "--out", str(out), "--device", "cpu")
    killed = command(*arguments, "--slots", "1")
    for _ in range(1200):
        if list(out.glob("*/config.json")):
            break
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert len(list(out.glob("*/result.json"))) < 2

    again = command(*arguments, "--slots", "2")
    told, narrated = again.communicate(timeout=300)
    assert again.returncode == 0, narrated
    assert "N2NSkip-RP" in told
    for run in recipe.read("smoke", OVERRIDES).runs:
        result = json.loads((out / run.spec.name / "result.json").read_text())
        network = n2nfx.load(out / run.spec.name / "network")
        assert result["status"] == "done"
        assert result["nnz"] == network.nnz == 62_625
        assert f"{result['final_accuracy']:.2f}" in told
        assert bool(network.skips) == (run.cell.method == "N2NSkip-RP")
