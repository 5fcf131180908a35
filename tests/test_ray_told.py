"""What is told of jobs on Ray, by a stand-in for it: only where one is at work has it begun."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep_samples import Told, specs

from n2nfx.training import lease, sweep
from n2nfx.training.ray_tasks import Ray
from n2nfx.training.status import standing
from n2nfx.training.sweep import Ended, Job


class Crashed(Exception):
    """Ray's error of a task whose process was killed too often."""


def fake_ray(steps: Iterator[list[Job]], results: dict[str, Ended | Crashed]) -> Any:
    """A Ray whose `wait` makes one step, which gives the jobs that are over."""

    def remote(**options: Any) -> Any:
        return lambda task: SimpleNamespace(remote=lambda job, run: job)

    def wait(pending: list[Job], **options: Any) -> tuple[list[Job], list[Job]]:
        over = {job.spec.name for job in next(steps)}
        return [job for job in pending if job.spec.name in over], []

    def get(job: Job) -> Ended:
        found = results[job.spec.name]
        if isinstance(found, Crashed):
            raise found
        return found

    return SimpleNamespace(
        init=lambda **options: None, shutdown=lambda: None, remote=remote, wait=wait, get=get,
        exceptions=SimpleNamespace(RayError=Crashed),
    )  # fmt: skip


def test_a_job_has_begun_when_a_process_is_at_work_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    first, second = jobs = sweep.left(specs(2), tmp_path)
    begun: list[list[str]] = []

    def steps() -> Iterator[list[Job]]:
        with ExitStack() as stack:
            yield []
            begun.append([name for name, _ in told.begun])
            stack.enter_context(lease.claimed(first.folder))
            yield []
            begun.append([name for name, _ in told.begun])
            yield []  # nor is it told twice
        begun.append([name for name, _ in told.begun])
        yield [first]
        yield [second]

    done = Ended(first.spec.name, "done")
    fake = fake_ray(steps(), {first.spec.name: done, second.spec.name: Crashed("died")})
    monkeypatch.setitem(sys.modules, "ray", fake)
    Ray()(jobs, told)
    name = first.spec.name
    assert begun == [[], [name], [name]]
    assert told.states[name] == done
    assert told.states[second.spec.name].state == "failed"
    assert standing(second.folder).told == "Crashed: died"
