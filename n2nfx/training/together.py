"""Jobs on all the processes that torchrun started: each network is trained by them together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from n2nfx.errors import RunFailed
from n2nfx.training.ranks import Ranks, joined, own_device
from n2nfx.training.sweep import Ended, Job, Teller, default_runner, work


@dataclass(frozen=True)
class Together:
    """Runs jobs one after the other; of "cuda" each process has the GPU that torchrun gave it.

    The first process claims runs and tells how they fare. A run that fails, or at which somebody is
    without a lease, ends them all, as the others may wait for what never comes: the same command
    goes on with the next run.
    """

    device: str

    def __call__(self, jobs: Sequence[Job], teller: Teller) -> None:
        with joined(own_device(self.device)) as ranks:
            for job in ranks.of_first([replace(job, device=self.device) for job in jobs]):
                if ranks.first:
                    _lead(job, ranks, teller)
                elif ranks.of_first(None):
                    _follow(job)


def _lead(job: Job, ranks: Ranks, teller: Teller) -> None:
    """Do a job unless it is done or another's; the other processes are told which."""
    begun = False

    def run(*given: Any, **options: Any) -> None:
        nonlocal begun
        begun = ranks.of_first(True)
        default_runner()(*given, **options)

    teller.started(job)
    ended = work(job, run, lambda progress: teller.progress(job, progress))
    if not begun:
        ranks.of_first(False)
    teller.ended(ended)
    if begun and ended.state in ("failed", "taken"):
        raise RunFailed(f"{ended.name}: {ended.told}; the same command goes on with the next run")


def _follow(job: Job) -> None:
    """What the others do of a job; the first one writes and tells."""
    default_runner()(job.spec, job.folder, device=job.device, data_root=job.data_root)


class Silent:
    """Who is told of all processes but the first."""

    def started(self, job: Job) -> None: ...

    def progress(self, job: Job, progress: Any) -> None: ...

    def ended(self, ended: Ended) -> None: ...
