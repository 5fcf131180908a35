"""Where a run stands, as its folder says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from n2nfx.errors import DamagedFile
from n2nfx.training import lease, runresult
from n2nfx.training.runresult import Result

EVENTS = "events.jsonl"

State = Literal["done", "diverged", "running", "stopped", "failed", "missing"]


@dataclass(frozen=True)
class Standing:
    """How far a run is, who runs it or why it ended as it did (`told`), and what came out.

    `stopped` is a run that was interrupted: it goes on by itself. `missing` was never begun.
    """

    state: State
    told: str = ""
    result: Result | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        return self.state in ("done", "diverged")

    @property
    def is_left(self) -> bool:
        """Whether there is something to do that nobody need ask for."""
        return not self.is_over and self.state != "failed"


def epochs_done(folder: Path) -> int:
    """How many epochs of the run in a folder are measured; a line that is half written is none."""
    try:
        return (folder / EVENTS).read_bytes().count(b"\n")
    except OSError:
        return 0


def standing(folder: Path) -> Standing:
    """Where the run in a folder of its name stands."""
    try:
        result = runresult.read(folder)
    except DamagedFile as error:
        return Standing("failed", str(error))
    if result is not None:
        return _over(folder, result)
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


def _over(folder: Path, result: Result) -> Standing:
    if result.name != folder.name:
        return Standing("failed", f"{folder}: has the result of {result.name}: move it there")
    return Standing(result.status, result.reason or "", result)
