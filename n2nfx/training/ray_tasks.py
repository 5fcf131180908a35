"""Jobs on a Ray cluster, each a task; Ray is imported only here, when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from n2nfx.errors import CannotOperate
from n2nfx.training import lease
from n2nfx.training.status import standing
from n2nfx.training.sweep import Ended, Job, Runner, Teller, default_runner, work

_RETRIES = 2  # of a task whose process was killed
_LOOK_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Ray:
    """Runs each job as a task with `cpus` and `gpus`; the folder of runs must be on all machines.

    `address` is a cluster's; without one, that of RAY_ADDRESS, or else a cluster of this machine
    alone, whose dashboard, which asks nobody who they are, is left off.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    run: Runner | None = None

    def __call__(self, jobs: Sequence[Job], teller: Teller) -> None:
        ray = _imported()
        ray.init(
            address=self.address, include_dashboard=False, log_to_driver=False,
            configure_logging=False,
        )  # fmt: skip
        try:
            self._do(ray, jobs, teller)
        finally:
            ray.shutdown()

    def _do(self, ray: Any, jobs: Sequence[Job], teller: Teller) -> None:
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=_RETRIES)(_task)
        device = "cuda" if self.gpus else "cpu"
        pending = {}
        for job in jobs:
            here = job.on(device)
            pending[task.remote(here, self.run)] = here
        waiting = list(pending.values())
        while pending:
            found, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK_EVERY)
            begun = [job for job in waiting if standing(job.folder).state == "running"]
            for job in begun:  # Ray does not say which of its tasks are at work
                waiting.remove(job)
                teller.started(job)
            for ready in found:
                teller.ended(_ended(ray, ready, pending.pop(ready)))


def _ended(ray: Any, task: Any, job: Job) -> Ended:
    """What became of a task that is over."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:  # its process was killed, again and again
        reason = lease.told(error)
        lease.give_up(job.folder, reason)
        return Ended(job.spec.name, "failed", reason)


def _task(job: Job, run: Runner | None) -> Ended:
    return work(job, run or default_runner())


def _imported() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise CannotOperate(
            f"the executor ray needs Ray, which cannot be imported ({error}); "
            "pip install 'n2nfx[ray]'"
        ) from error
