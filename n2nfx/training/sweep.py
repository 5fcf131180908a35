"""Many runs: which are left, each of them run once, and what became of it.

All that is known of a run lies in its folder, so that a sweep that is started again goes on, and
several on one folder share the work. How runs are spread over processes is an executor's: `local`,
`ray_tasks`, `slurm`.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from n2nfx.errors import UsageError
from n2nfx.runspec import RunSpec
from n2nfx.training import lease
from n2nfx.training.status import standing

Runner = Callable[..., Any]
"""What runs one: `n2nfx.training.runs.run`, or in tests another of its signature."""


@dataclass(frozen=True)
class Job:
    """All that a process needs to know of a run; the rest it finds in the folder."""

    spec: RunSpec
    folder: Path
    device: str = "cpu"
    data_root: Path | None = None
    retry: bool = False
    tensorboard: bool = False

    def on(self, device: str) -> "Job":
        """The same on a device, for a process whose working folder may be another."""
        root = None if self.data_root is None else self.data_root.absolute()
        return replace(self, device=device, folder=self.folder.absolute(), data_root=root)


@dataclass(frozen=True)
class Ended:
    """What became of a job: `taken`, another process is at work on it; `told` says who, or why."""

    name: str
    state: Literal["done", "diverged", "failed", "taken"]
    told: str = ""


class Teller(Protocol):
    """Who is told how the jobs fare."""

    def started(self, job: Job) -> None: ...

    def progress(self, job: Job, progress: Any) -> None: ...

    def ended(self, ended: Ended) -> None: ...


class Executor(Protocol):
    """Spreads jobs over processes; returns when all have ended, or were handed on."""

    def __call__(self, jobs: Sequence[Job], teller: Teller) -> None: ...


def left(
    specs: Iterable[RunSpec],
    out: Path,
    *,
    data_root: Path | None = None,
    retry: bool = False,
    tensorboard: bool = False,
) -> list[Job]:
    """The jobs that there is still to do, in their order; those that failed only on request."""
    jobs: dict[str, Job] = {}
    for spec in specs:
        folder = out / spec.name
        found = standing(folder)
        if found.is_left or (retry and found.state == "failed"):
            job = Job(spec, folder, data_root=data_root, retry=retry, tensorboard=tensorboard)
            jobs.setdefault(spec.name, job)
    return list(jobs.values())


def share(specs: Sequence[RunSpec], index: int, count: int) -> Sequence[RunSpec]:
    """The `index`-th of `count` shares, from 1; each is spread over the whole list."""
    if not 1 <= index <= count:
        raise UsageError(
            f"share {index} of {count} cannot be; they are 1/{count} to {count}/{count}"
        )
    return specs[index - 1 :: count]


def work(job: Job, run: Runner, watch: Callable[[Any], None] | None = None) -> Ended:
    """Do a job in this process, unless it is done, or another is at it.

    What goes wrong is no matter of the other jobs: it is written down, and told.
    """
    name = job.spec.name
    found = standing(job.folder)
    if found.state == "failed" and not job.retry:
        return Ended(name, "failed", found.told)
    try:
        with lease.claimed(job.folder, on_lost=_die):
            if not standing(job.folder).is_over:
                run(
                    job.spec, job.folder, device=job.device, data_root=job.data_root, watch=watch,
                    tensorboard=job.tensorboard,
                )  # fmt: skip
    except lease.Taken as taken:
        return Ended(name, "taken", str(taken))
    except Exception as error:
        return Ended(name, "failed", lease.told(error))
    over = standing(job.folder)
    if not over.is_over:
        return Ended(name, "failed", over.told)
    return Ended(name, "diverged" if over.state == "diverged" else "done")


def _die() -> None:
    """Somebody else has the run, whatever this process is about to write."""
    os._exit(1)


def default_runner() -> Runner:
    """What runs are run by; it imports torch."""
    from n2nfx.training.runs import run

    return run
