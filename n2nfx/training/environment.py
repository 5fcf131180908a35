"""Where a run ran: all that a result's last bits depend on, and that they do not follow from."""

import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import n2nfx
from n2nfx import ownfile
from n2nfx.plan import versions


def environment(device: torch.device, processes: int, names: Iterable[str]) -> dict[str, Any]:
    """JSON data about this process; where it is the same, a run gives the same bits (on CPUs).

    `names` are the run's model and data: files of one's own are told by their SHA-256.
    """
    files = {name: ownfile.digest(name) for name in names if ownfile.is_file(name)}
    return {
        "versions": versions(),
        "code": _code(),
        **({"files": files} if files else {}),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": _named(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _code() -> str | None:
    """The commit that is checked out, and whether it was changed; None for an installed package."""
    root = Path(n2nfx.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
