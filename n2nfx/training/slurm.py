"""Jobs of a SLURM cluster, by submitit, which is imported only here, when it is asked for."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from n2nfx.errors import CannotOperate, UsageError, first_line
from n2nfx.training.sweep import Ended, Job, Runner, Teller, default_runner, work

_TIMEOUTS = 1000  # of one job: each time it goes on where it was, so that none is a failure

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slurm:
    """Hands jobs in as one array, and does not wait for them; their folder must be on all nodes.

    `options` are submitit's: slurm_partition, timeout_min, gpus_per_node, slurm_array_parallelism
    and so on. A run is trained on `device`, by default on a GPU where the options ask for one. What
    submitit writes goes to `logs`. A job whose time is over or whose node is taken
    away is put back, and goes on where its folder says. Raises UsageError for options that submitit
    does not take, CannotOperate where Slurm does not take the jobs.
    """

    logs: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    run: Runner | None = None

    def __call__(self, jobs: Sequence[Job], teller: Teller) -> None:
        submitit = _imported()
        device = self.device or ("cuda" if _asks_for_a_gpu(self.options) else "cpu")
        here = [job.on(device) for job in jobs]
        try:
            executor = self._executor(submitit)
            handed = executor.map_array(Task(self.run), here)
        except (RuntimeError, OSError) as error:  # submitit's own, of what sbatch says
            raise CannotOperate(f"Slurm did not take the jobs: {first_line(error)}") from error
        _log.info(
            "Slurm has %d runs as %s to %s, and this process does not wait for them: n2nfx recipe "
            "status says how they fare, %s what they say",
            len(handed), handed[0].job_id, handed[-1].job_id, self.logs,
        )  # fmt: skip

    def _executor(self, submitit: Any) -> Any:
        executor = submitit.AutoExecutor(
            folder=self.logs.absolute(), cluster="slurm", slurm_max_num_timeout=_TIMEOUTS
        )
        try:
            executor.update_parameters(name="n2nfx", **self.options)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise UsageError(f"--slurm: {first_line(error)}") from error
        return executor


def _asks_for_a_gpu(options: Mapping[str, Any]) -> bool:
    """gpus_per_node=1, slurm_gpus_per_task=1, slurm_gres=gpu:1; a partition's name is none."""
    return any(
        value and ("gpus" in key or (key.endswith("gres") and "gpu" in str(value)))
        for key, value in options.items()
    )


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
