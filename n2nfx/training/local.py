"""Jobs on this machine: processes, so many for each device."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from n2nfx.training import lease
from n2nfx.training.sweep import Ended, Job, Runner, Teller, default_runner, work

MOST_SLOTS = 4
"""Processes on a CPU unless more are asked for: each holds a network and its data in memory."""

_KILLS = 3  # after so many the run itself is taken to be what kills its process


@dataclass(frozen=True)
class Local:
    """Runs jobs in `slots` processes for each device, each process one job after the other.

    A process that is killed takes no other down, and its job goes on in a new one. Processes die
    with the one that started them.
    """

    devices: tuple[str, ...] = ("cpu",)
    slots: int = 1
    run: Runner | None = None

    @property
    def threads(self) -> int:
        """Threads of each process, so that all together are not more than the cores."""
        return max(1, cores() // (self.slots * len(self.devices)))

    def __call__(self, jobs: Sequence[Job], teller: Teller) -> None:
        waiting, kills = deque(jobs), Counter[str]()
        devices = [device for _ in range(self.slots) for device in self.devices][: len(jobs)]
        workers = [_Worker(device, self.threads, self.run) for device in devices]
        try:
            while busy := self._busy(workers, waiting, teller):
                for connection in wait([worker.connection for worker in busy]):
                    worker = next(one for one in busy if one.connection is connection)
                    _listen(worker, waiting, kills, teller)
        except BaseException:
            for worker in workers:
                worker.interrupt()
            raise
        finally:
            for worker in workers:
                worker.close()

    def _busy(
        self, workers: Sequence["_Worker"], waiting: deque[Job], teller: Teller
    ) -> list["_Worker"]:
        """Give every idle process a job, as long as there are; gives those that have one."""
        for worker in workers:
            if worker.job is None and waiting:
                worker.start(waiting.popleft(), teller)
        return [worker for worker in workers if worker.job is not None]


def _listen(worker: "_Worker", waiting: deque[Job], kills: Counter[str], teller: Teller) -> None:
    """Take one message of a process: how its job fares or ended, or that it was killed."""
    job = worker.job
    assert job is not None
    try:
        told = worker.connection.recv()
    except (EOFError, OSError):
        code = worker.bury()
        kills[job.spec.name] += 1
        if kills[job.spec.name] < _KILLS:
            waiting.append(job)
            return
        reason = f"its process was killed {_KILLS} times, {_how(code)}"
        lease.give_up(job.folder, reason)
        told = Ended(job.spec.name, "failed", reason)
    if isinstance(told, Ended):
        worker.job = None
        teller.ended(told)
    else:
        teller.progress(job, told)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"at last with exit code {code}"
    name = signal.Signals(-code).name
    return f"at last by {name}" + ("; is memory short?" if name == "SIGKILL" else "")


def default_slots(devices: Sequence[str]) -> int:
    """One for a GPU; on the CPU one for each core, at most 4, since cores share one run badly."""
    return min(cores(), MOST_SLOTS) if tuple(devices) == ("cpu",) else 1


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class _Worker:
    """A place for one process: the process, if any, and the job that it is at."""

    device: str
    threads: int
    run: Runner | None
    process: Any = None
    connection: Connection = field(init=False)
    job: Job | None = None

    def start(self, job: Job, teller: Teller) -> None:
        """Hand over a job, to a new process if there is none."""
        self.job = replace(job, device=self.device)
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.threads, self.run))
            with _ignoring_interrupts():  # Ctrl-C reaches it through this process, once
                self.process.start()
            theirs.close()
        teller.started(self.job)
        with suppress(OSError):  # one that died is heard of when it is listened to
            self.connection.send(self.job)

    def bury(self) -> int | None:
        """The exit code of a process that is dead or dying."""
        self.process.join()
        code = self.process.exitcode
        self.connection.close()
        self.process = self.job = None
        return code

    def interrupt(self) -> None:
        """Let the process stop: it writes down that it did."""
        if self.process is not None:
            self.process.terminate()

    def close(self) -> None:
        """End the process, once it has nothing to do any more."""
        if self.process is not None:
            self.connection.close()
            self.process.join()


def _serve(connection: Connection, threads: int, run: Runner | None) -> None:
    """Do the jobs that come, in a process of its own."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
    with suppress(KeyboardInterrupt, EOFError, OSError):
        while True:
            job = connection.recv()
            connection.send(work(job, run or default_runner(), partial(_tell, connection)))


def _tell(connection: Connection, progress: Any) -> None:
    """Tell how a job fares; that nobody hears it is no matter of the job."""
    with suppress(OSError):
        connection.send(progress)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let what is started meanwhile never hear of Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # signals are that one's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
