"""Where a run ran: all that a result's last bits depend on, and that they do not follow from."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import n2nfx
from n2nfx.plan import versions


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """JSON data about this process; where it is the same, a run gives the same bits (on CPUs)."""
    return {
        "versions": versions(),
        "code": _code(),
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
