"""Where a run stands, as its folder says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from n2nfx.training import lease

RESULT, EVENTS = "result.json", "events.jsonl"

State = Literal["done", "diverged", "running", "stopped", "failed", "missing"]


@dataclass(frozen=True)
class Standing:
    """How far a run is. `told` is who runs it, or why it failed; `result` what came out.

    `stopped` is a run that was interrupted: it goes on by itself. `missing` was never begun.
    """

    state: State
    told: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        return self.state in ("done", "diverged")


def epochs_done(folder: Path) -> int:
    """How many epochs of the run in a folder are measured; a line that is half written is none."""
    try:
        return (folder / EVENTS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def standing(folder: Path) -> Standing:
    """Where the run in a folder stands."""
    try:
        result = json.loads((folder / RESULT).read_bytes())
        return Standing(result["status"], "", result)
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, KeyError):
        return Standing("failed", f"{folder / RESULT} is damaged: delete it to run it again")
    last = lease.newest(folder)
    if last is None:
        return Standing("missing")
    if last.is_live():
        return Standing("running", str(last.holder))
    if last.state == "running":
        return Standing("stopped", f"{last.holder} died")
    if last.state != "failed":
        return Standing("stopped", last.reason)
    log = lease.log_of(folder, last.number)
    return Standing("failed", f"{last.reason} ({log})" if log.exists() else last.reason)
