"""Sweeps: every run once, whatever fails, is killed, or goes on at the same time."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sweep_samples
from hypothesis import given
from hypothesis import strategies as st
from sweep_samples import Told, specs

from n2nfx.errors import UsageError
from n2nfx.runspec import RunSpec
from n2nfx.training import lease, sweep
from n2nfx.training.local import Local
from n2nfx.training.status import standing
from n2nfx.training.sweep import Ended, Job, work

STATES = ["done", "diverged", "running", "stopped", "failed", "missing"]


def job(folder: Path, data: str = "quick", *, retry: bool = False) -> Job:
    (spec,) = specs(1, data)
    return Job(spec, folder / spec.name, retry=retry)


def do(one: Job) -> Ended:
    return work(one, sweep_samples.run)


def begun(one: Job) -> int:
    return len((one.folder / "journal").read_text().splitlines())


# --- one job -----------------------------------------------------------------------------------


def test_a_run_is_run_once(tmp_path: Path) -> None:
    one = job(tmp_path)
    assert standing(one.folder).state == "missing"
    assert do(one) == do(one) == Ended(one.spec.name, "done")
    assert begun(one) == 1
    assert sweep_samples.made_by(one.folder) == os.getpid()


def test_a_run_that_diverged_has_a_result(tmp_path: Path) -> None:
    one = job(tmp_path, "diverges")
    assert do(one).state == do(one).state == "diverged"
    assert standing(one.folder).is_over
    assert begun(one) == 1


def test_a_failure_is_told_and_tried_again_only_on_request(tmp_path: Path) -> None:
    one = job(tmp_path, "works at last")
    assert do(one) == do(one) == Ended(one.spec.name, "failed", "not yet")
    assert (standing(one.folder).state, standing(one.folder).told) == ("failed", "not yet")
    assert begun(one) == 1
    assert do(job(tmp_path, "works at last", retry=True)).state == "done"
    assert standing(one.folder).state == "done"


def test_where_room_was_missing_the_same_command_goes_on(tmp_path: Path) -> None:
    one = job(tmp_path, "no room")
    assert (do(one).state, standing(one.folder).state) == ("failed", "stopped")
    assert "No space left" in standing(one.folder).told
    assert do(one).state == "done"


def test_a_bug_leaves_its_traceback_and_is_told_with_its_place(tmp_path: Path) -> None:
    one = job(tmp_path, "buggy")
    assert do(one).told == "ZeroDivisionError: by nothing"
    match = re.fullmatch(r"ZeroDivisionError: by nothing \((.*)\)", standing(one.folder).told)
    assert match is not None
    assert "in _do" in Path(match[1]).read_text()


def test_a_run_that_is_interrupted_goes_on_by_itself(tmp_path: Path) -> None:
    one = job(tmp_path, "interrupted")
    with pytest.raises(KeyboardInterrupt):
        do(one)
    assert standing(one.folder).state == "stopped"
    assert [j.spec for j in sweep.left([one.spec], tmp_path)] == [one.spec]


def test_a_run_that_another_is_at_is_left_to_it(tmp_path: Path) -> None:
    one = job(tmp_path)
    with lease.claimed(one.folder):
        assert standing(one.folder).state == "running"
        ended = do(one)
    assert ended.state == "taken"
    assert f"process {os.getpid()}" in ended.told
    assert not (one.folder / "journal").exists()


def test_a_run_is_told_what_its_job_says(tmp_path: Path) -> None:
    told: dict[str, object] = {}

    def run(spec: RunSpec, folder: Path, **options: object) -> None:
        told.update(options, spec=spec, folder=folder)
        sweep_samples.finish(folder)

    (one,) = sweep.left(specs(1), tmp_path, data_root=tmp_path / "data", tensorboard=True)
    work(one, run)
    assert told == {
        "spec": one.spec, "folder": one.folder, "device": "cpu", "data_root": tmp_path / "data",
        "watch": None, "tensorboard": True,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\0"])
def test_a_damaged_result_is_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    assert standing(tmp_path).state == "failed"
    assert "delete result.json to train again" in standing(tmp_path).told


def test_a_result_that_was_changed_or_moved_is_no_result(tmp_path: Path) -> None:
    (one,) = sweep.left(specs(1), tmp_path)
    do(one)
    path = one.folder / "result.json"
    text = path.read_text()
    path.write_text(text.replace('"nnz": 1', '"nnz": 2'))
    assert "does not have the SHA-256" in standing(one.folder).told
    path.write_text(text)
    assert standing(one.folder).is_over
    other = one.folder.rename(tmp_path / "other")
    assert standing(other).state == "failed"
    assert f"has the result of {one.spec.name}" in standing(other).told


@pytest.mark.parametrize("name", ["result.json", "leases/0001.json"])
def test_a_folder_where_a_file_should_be_is_a_matter_of_its_run_alone(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert standing(tmp_path).state in ("failed", "stopped")


# --- which jobs --------------------------------------------------------------------------------


def test_what_is_left_keeps_its_order_and_names_no_run_twice(tmp_path: Path) -> None:
    impossible, *_ = specs(1, "impossible")
    mixed = [*specs(3), impossible, *specs(3)]
    assert [one.spec for one in sweep.left(mixed, tmp_path)] == mixed[:4]
    for one in sweep.left(mixed, tmp_path)[1:]:
        do(one)
    assert [one.spec for one in sweep.left(mixed, tmp_path)] == [mixed[0]]
    assert [one.spec for one in sweep.left(mixed, tmp_path, retry=True)] == [mixed[0], impossible]


@given(st.integers(0, 60), st.integers(1, 9))
def test_shares_are_all_of_it_and_nothing_twice(runs: int, count: int) -> None:
    whole = specs(runs)
    shares = [sweep.share(whole, index, count) for index in range(1, count + 1)]
    assert sorted((one for part in shares for one in part), key=lambda one: one.seed) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("index", "count"), [(0, 3), (4, 3), (1, 0), (-1, 3)])
def test_a_share_that_cannot_be_is_refused(index: int, count: int) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        sweep.share([], index, count)


# --- processes of this machine -----------------------------------------------------------------


def swept(folder: Path, jobs: list[RunSpec], *, slots: int = 2) -> Told:
    told = Told()
    executor = Local(devices=("cpu",), slots=slots, run=sweep_samples.run)
    executor(sweep.left(jobs, folder), told)
    return told


def test_a_sweep_does_all_in_as_many_processes_as_there_are_slots(tmp_path: Path) -> None:
    jobs = specs(6, "slow")
    told = swept(tmp_path, jobs)
    assert {one.state for one in told.states.values()} == {"done"}
    assert [name for name, _ in told.begun] == [spec.name for spec in jobs]
    assert sorted(told.progressed) == [f"at {seed}" for seed in range(6)]
    made_by = {sweep_samples.made_by(tmp_path / spec.name) for spec in jobs}
    assert len(made_by) == 2
    assert os.getpid() not in made_by
    assert swept(tmp_path, jobs).states == {}


def test_every_device_has_its_slots(tmp_path: Path) -> None:
    told = Told()
    executor = Local(devices=("one", "two"), slots=2, run=sweep_samples.run)
    executor(sweep.left(specs(4, "slow"), tmp_path), told)
    assert [device for _, device in told.begun] == ["one", "two", "one", "two"]
    journals = (tmp_path / spec.name / "journal" for spec in specs(4, "slow"))
    assert [path.read_text().split()[0] for path in journals] == ["one", "two", "one", "two"]


def test_what_fails_stops_nothing_else(tmp_path: Path) -> None:
    jobs = specs(5, "odd seeds fail")
    told = swept(tmp_path, jobs)
    states = [told.states[spec.name].state for spec in jobs]
    assert states == ["done", "failed", "done", "failed", "done"]
    assert told.states[jobs[3].name].told == "3 is odd"


def test_a_process_that_is_killed_takes_no_other_run_with_it(tmp_path: Path) -> None:
    jobs = specs(4, "killed")
    told = swept(tmp_path, jobs, slots=1)
    states = [told.states[spec.name].state for spec in jobs]
    assert states == ["done", "failed", "done", "done"]
    assert "killed 3 times, at last by SIGKILL" in told.states[jobs[1].name].told
    assert "SIGKILL" in standing(tmp_path / jobs[1].name).told
    assert len((tmp_path / jobs[1].name / "journal").read_text().splitlines()) == 3


def test_a_run_whose_process_is_killed_goes_on_in_another(tmp_path: Path) -> None:
    jobs = specs(3, "killed once")
    told = swept(tmp_path, jobs)
    assert {one.state for one in told.states.values()} == {"done"}
    assert all(len((tmp_path / s.name / "journal").read_text().splitlines()) == 2 for s in jobs)


def own_sweep(folder: Path, count: int, data: str, slots: int) -> subprocess.Popen[str]:
    """A sweep in another process, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, sweep_samples.__file__, str(folder), str(count), data, str(slots)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def workers(folder: Path, jobs: list[RunSpec]) -> list[int]:
    """The processes that are at work on runs."""
    found = [lease.newest(folder / spec.name) for spec in jobs]
    return [one.holder.pid for one in found if one is not None and one.is_live()]


def wait_for_workers(folder: Path, jobs: list[RunSpec]) -> list[int]:
    for _ in range(600):
        if all((folder / spec.name / "journal").exists() for spec in jobs):
            return workers(folder, jobs)
        time.sleep(0.05)
    raise AssertionError("no process began")


@pytest.mark.parametrize("group", [True, False], ids=["the terminal's group", "the sweep alone"])
def test_an_interrupt_stops_all_processes_and_says_so(tmp_path: Path, group: bool) -> None:
    jobs = specs(2, "for ever")
    process = own_sweep(tmp_path, 2, "for ever", 2)
    pids = wait_for_workers(tmp_path, jobs)
    assert len(pids) == 2
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("Traceback") == 1  # its own, which the command line tells in a line
    assert [standing(tmp_path / spec.name).state for spec in jobs] == ["stopped", "stopped"]
    assert [lease.newest(tmp_path / spec.name).state for spec in jobs] == ["stopped"] * 2  # pyright: ignore[reportOptionalMemberAccess]


def test_processes_die_with_their_sweep(tmp_path: Path) -> None:
    jobs = specs(2, "for ever")
    process = own_sweep(tmp_path, 2, "for ever", 2)
    wait_for_workers(tmp_path, jobs)
    process.kill()
    process.communicate(timeout=60)  # whose end is that of all who hold its stdout
    assert workers(tmp_path, jobs) == []
    stands = [standing(tmp_path / spec.name) for spec in jobs]
    assert [one.state for one in stands] == ["stopped", "stopped"]
    assert all(one.told.startswith("process ") and one.told.endswith(" died") for one in stands)


def test_two_sweeps_with_random_kills_give_every_result_exactly_once(tmp_path: Path) -> None:
    """A result is made by a link that must be new, under a lock that nobody else may have."""
    draw, jobs = random.Random(0), specs(20, "slow")
    sweeps = [own_sweep(tmp_path, 20, "slow", 2) for _ in range(2)]
    kills = 0
    for _ in range(1000):
        if not sweep.left(jobs, tmp_path, retry=True):
            break
        time.sleep(draw.uniform(0, 0.25))
        at_work = workers(tmp_path, jobs)
        if kills < 14 and at_work:
            victim = draw.choice([*at_work, *(one.pid for one in sweeps if one.poll() is None)])
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kills += 1
        for index, one in enumerate(sweeps):
            if one.poll() is not None:
                told = one.communicate()[1]
                # A worker that was starting when its sweep was killed says that it got no orders.
                assert one.returncode == -signal.SIGKILL or told == ""
                sweeps[index] = own_sweep(tmp_path, 20, "slow", 2)
    for one in sweeps:
        one.communicate(timeout=60)
    assert kills >= 4  # how many fit in depends on how fast the runs are
    results = [json.loads((tmp_path / spec.name / "result.json").read_text()) for spec in jobs]
    assert all(result["status"] == "done" for result in results)
    leases = [path for spec in jobs for path in (tmp_path / spec.name / "leases").glob("*.json")]
    reasons = [json.loads(path.read_text())["reason"] for path in leases]
    assert not any("Error" in reason for reason in reasons)  # no lock was held, no link was there
    assert len(leases) > len(jobs)
