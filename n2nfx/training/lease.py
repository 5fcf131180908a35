"""Who is at work on a run: a lease in its folder, which one process at most holds at a time.

The leases of a run are `leases/0001.json`, `0002.json` and so on, one for each attempt, and the
newest counts. A claim is a finished file that is linked to the next number, which only one of
several can do, on a network's file system too. Numbers are never given back: a claimant that was
slow, and saw an older lease end, finds the next number taken. The holder touches its file while it
works; on the host where it runs its process is looked at instead, so that a dead one is replaced at
once, and a live one never.
"""

import json
import os
import platform
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from n2nfx.atomic import sync_folder
from n2nfx.errors import CannotWrite, N2nfxError, described, first_line

FOLDER = "leases"

State = Literal["running", "ended", "stopped", "failed"]

_BEAT = 10.0  # seconds
_PATIENCE = 6  # beats that may be missed, elsewhere


class Taken(N2nfxError):
    """Another process is at work on the run."""


@dataclass(frozen=True)
class Holder:
    """A process; `host` also tells boots of a machine and its containers apart.

    `started` is when it was started, in the system's own clock; empty where it cannot be known.
    """

    host: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


@dataclass(frozen=True)
class Lease:
    """One attempt at a run: whose, and how it ended; `reason` is why it failed or stopped.

    `beat` is when the holder was last heard of, in seconds of the epoch.
    """

    number: int
    holder: Holder
    state: State
    reason: str = ""
    beat: float = 0.0

    def is_live(self, now: float | None = None) -> bool:
        """Whether the holder is at work, as far as can be seen from here."""
        if self.state != "running":
            return False
        own = this_process()
        if self.holder.host == own.host and own.started:
            return _started(self.holder.pid) == self.holder.started
        return (time.time() if now is None else now) - self.beat < _BEAT * _PATIENCE


@dataclass(frozen=True)
class _Said:
    """What a lease's file says; its name and its time say the rest."""

    holder: Holder
    state: State
    reason: str


@cache
def _said() -> TypeAdapter[_Said]:
    return TypeAdapter(_Said)


def newest(folder: Path) -> Lease | None:
    """The newest lease of a run's folder; None where nobody ever began."""
    numbers = _numbers(folder / FOLDER)
    return _read(folder / FOLDER, max(numbers)) if numbers else None


@contextmanager
def claimed(folder: Path, on_lost: Callable[[], None] | None = None) -> Iterator[Lease]:
    """Hold the lease of a run while the body works, and write down how that ended.

    Raises `Taken` where another holds it, CannotWrite where the folder cannot be written.
    A run that ends since a file cannot be written is stopped, not failed: with room it goes on. So
    does one at which another process was all the same.
    `on_lost` is called, in another thread, should somebody have taken it over: from a process that
    was stopped for a minute, as seen from another host.
    """
    try:
        lease = _claim(folder)
    except OSError as error:
        raise CannotWrite(f"{folder}: cannot be written: {error.strerror}") from error
    over = threading.Event()
    heart = threading.Thread(
        target=_beat, args=(folder, lease.number, over, on_lost or _nothing), daemon=True
    )
    heart.start()
    state, reason = "ended", ""
    try:
        yield lease
    except BaseException as error:
        fails = isinstance(error, Exception) and not isinstance(error, CannotWrite | Taken)
        state, reason = ("failed" if fails else "stopped"), told(error)
        if not isinstance(error, N2nfxError | KeyboardInterrupt):
            with suppress(OSError):
                log_of(folder, lease.number).write_text(traceback.format_exc())
        raise
    finally:
        over.set()
        heart.join()
        with suppress(OSError):  # on a full disk the lease ends with its process
            _write(folder / FOLDER, lease.number, state, reason)


def give_up(folder: Path, reason: str) -> None:
    """Write down that a run failed, whose process cannot do it any more."""
    with suppress(Taken, GaveUp, CannotWrite), claimed(folder):
        raise GaveUp(reason)


def told(error: BaseException) -> str:
    """Why a run ended, in a line: an error for people as it is, any other with its type.

    Nothing for Ctrl-C: who pressed it knows.
    """
    if isinstance(error, KeyboardInterrupt):
        return ""
    return first_line(error) if isinstance(error, N2nfxError) else described(error)


def log_of(folder: Path, number: int) -> Path:
    """Where the traceback of an attempt is, if it ended with a bug."""
    return folder / FOLDER / f"{number:04}.log"


class GaveUp(N2nfxError):
    """A run whose processes were killed, again and again."""


def _nothing() -> None:
    pass


def _claim(folder: Path) -> Lease:
    leases = folder / FOLDER
    leases.mkdir(parents=True, exist_ok=True)
    draft = _draft(leases, "running", "")
    try:
        last = newest(folder)
        # The draft was just written: its time is now, by the clock of the file system.
        if last is not None and last.is_live(draft.stat().st_mtime):
            raise Taken(f"{last.holder} is at work on it")
        number = 1 if last is None else last.number + 1
        try:
            os.link(draft, _path(leases, number))
        except FileExistsError:
            raise Taken("another process was faster") from None
        sync_folder(leases)
    finally:
        draft.unlink()
    return Lease(number, this_process(), "running")


def _beat(folder: Path, number: int, over: threading.Event, on_lost: Callable[[], None]) -> None:
    while not over.wait(_BEAT):
        with suppress(OSError):
            os.utime(_path(folder / FOLDER, number))
            if max(_numbers(folder / FOLDER)) != number:
                on_lost()
                return


def _draft(leases: Path, state: State, reason: str) -> Path:
    """A finished lease under a hidden name."""
    path = leases / f".{secrets.token_hex(8)}"
    said = _Said(this_process(), state, reason)
    try:
        with path.open("x") as file:
            json.dump(asdict(said), file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _write(leases: Path, number: int, state: State, reason: str) -> None:
    os.replace(_draft(leases, state, reason), _path(leases, number))


def _read(leases: Path, number: int) -> Lease:
    """A lease; one that is damaged is nobody's."""
    path = _path(leases, number)
    try:
        beat = path.stat().st_mtime
        said = _said().validate_json(path.read_bytes(), strict=True)
        return Lease(number, said.holder, said.state, said.reason, beat)
    except (ValidationError, IsADirectoryError):
        return Lease(number, Holder("", 0, ""), "stopped", f"{path} is damaged")


def _numbers(leases: Path) -> list[int]:
    try:
        names = os.listdir(leases)
    except FileNotFoundError:
        return []
    return [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()]


def _path(leases: Path, number: int) -> Path:
    return leases / f"{number:04}.json"


# --- processes ---------------------------------------------------------------------------------


def this_process() -> Holder:
    """The process that asks."""
    pid = os.getpid()
    return Holder(_host(), pid, _started(pid))


@cache
def _host() -> str:
    """The machine, this boot of it, and the container: in another one a number is another's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()


def _started(pid: int) -> str:
    """When a process was started; empty where there is none, or only what is left of one.

    One whose main thread alone is dead, killed a moment ago, still holds its files and locks.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    threads, started = int(fields[16]), fields[18]
    return "" if state in "ZX" and threads <= 1 else started
