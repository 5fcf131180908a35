"""Runs that train nothing, and so show what a sweep does with runs.

Here and not in a test file: a spawned process imports what it runs by name. Each takes the place of
`n2nfx.training.runs.run`, and finds what it shall do in the words of the spec's data.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from n2nfx.atomic import put_file
from n2nfx.errors import CannotOperate, CannotWrite
from n2nfx.runspec import RunSpec
from n2nfx.training import sweep
from n2nfx.training.local import Local
from n2nfx.training.runresult import MANIFEST, RESULT, Result, manifest_line
from n2nfx.training.sweep import Ended, Job

_AT_FIRST = {
    "works at last": CannotOperate("not yet"),
    "no room": CannotWrite("events.jsonl: cannot be written: No space left on device"),
}


def specs(count: int, data: str = "quick") -> list[RunSpec]:
    return [RunSpec(model="m", data=data, seed=seed) for seed in range(count)]


def run(
    spec: RunSpec,
    folder: Path,
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    watch: Callable[[Any], None] | None = None,
    tensorboard: bool = False,
) -> None:
    """Leaves one line of `journal` for each begin, and a result that can be made only once."""
    with (folder / "at-work").open("w") as file:
        # The system's own lock, which a killed process loses: proof that no other is at it.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (folder / "journal").open("a") as journal:
            journal.write(f"{device} {os.getpid()}\n")
        if watch is not None:
            watch(f"at {spec.seed}")
        _do(spec, folder)
        finish(folder, "diverged" if spec.data == "diverges" else "done")


def _do(spec: RunSpec, folder: Path) -> None:
    begun = len((folder / "journal").read_text().splitlines())
    match spec.data:
        case "slow":
            time.sleep(0.15)
        case "for ever":
            time.sleep(600)
        case "impossible":
            raise CannotOperate("the disk is full")
        case "buggy":
            raise ZeroDivisionError("by nothing")
        case "odd seeds fail" if spec.seed % 2:
            raise CannotOperate(f"{spec.seed} is odd")
        case "works at last" | "no room" if begun == 1:
            raise _AT_FIRST[spec.data]
        case "interrupted":
            raise KeyboardInterrupt
        case "killed" if spec.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "killed once" if begun == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def finish(folder: Path, status: Literal["done", "diverged"] = "done", **values: Any) -> None:
    """Make the result, whole at once; raises FileExistsError where there is one already."""
    result = Result(
        name=folder.name, status=status, final_accuracy=None, best_accuracy=None, final_loss=None,
        nnz=1, skip_nnz=0, size=2, multiply_adds=1, epochs=1, seconds=1.0, environments=1,
    )  # fmt: skip
    text = json.dumps({**asdict(result), "by": os.getpid(), **values})
    draft = folder / f"draft-{os.getpid()}"
    draft.write_text(text)
    put_file(folder / MANIFEST, manifest_line(RESULT, text.encode()).encode())
    os.link(draft, folder / RESULT)
    draft.unlink()


def made_by(folder: Path) -> int:
    """The process that made the result."""
    return json.loads((folder / RESULT).read_bytes())["by"]


class Told:
    """What a sweep told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.progressed: list[Any] = []
        self.states: dict[str, Ended] = {}

    def started(self, job: Job) -> None:
        self.begun.append((job.spec.name, job.device))

    def progress(self, job: Job, progress: Any) -> None:
        self.progressed.append(progress)

    def ended(self, ended: Ended) -> None:
        self.states[ended.name] = ended


def main() -> None:
    """A sweep of its own: FOLDER COUNT DATA SLOTS; says its processes' numbers on stdout."""
    folder, count, data, slots = sys.argv[1:]
    # Ignored by what a shell starts in the background, and by all that this starts in turn.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told = Told()

    def started(job: Job) -> None:
        print(job.spec.name, flush=True)

    told.started = started
    jobs = sweep.left(specs(int(count), data), Path(folder), retry=True)
    Local(slots=int(slots), run=run)(jobs, told)


if __name__ == "__main__":
    main()
