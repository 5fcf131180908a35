"""Jobs of a SLURM cluster, by submitit, which is imported only here, when it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from n2nfx.errors import CannotOperate
from n2nfx.training.sweep import Ended, Job, Runner, Teller, default_runner, work


@dataclass(frozen=True)
class Slurm:
    """Hands jobs in as one array, and does not wait for them; their folder must be on all nodes.

    `options` are submitit's: partition, timeout_min, gpus_per_node, slurm_array_parallelism and so
    on. What submitit writes goes to `logs`. A job that is put back goes on where its folder says.
    """

    logs: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    run: Runner | None = None

    def __call__(self, jobs: Sequence[Job], teller: Teller) -> None:
        submitit = _imported()
        executor = submitit.AutoExecutor(folder=self.logs.absolute(), cluster="slurm")
        executor.update_parameters(name="n2nfx", **self.options)
        device = "cuda" if self.options.get("gpus_per_node") else "cpu"
        here = [replace(job, device=device, folder=job.folder.absolute()) for job in jobs]
        executor.map_array(Task(self.run), here)
        for job in here:
            teller.started(job)


@dataclass(frozen=True)
class Task:
    """What a node is handed; all else it finds in the job's folder."""

    run: Runner | None

    def __call__(self, job: Job) -> Ended:
        return work(job, self.run or default_runner())

    def checkpoint(self, job: Job) -> Any:
        """What is put back into the queue when the node is taken away: the same again."""
        return _imported().helpers.DelayedSubmission(self, job)


def _imported() -> Any:
    try:
        return import_module("submitit")
    except ImportError as error:
        raise CannotOperate(
            f"the executor slurm needs submitit, which cannot be imported ({error}); "
            "pip install 'n2nfx[slurm]'"
        ) from error
