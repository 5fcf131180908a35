"""A run is held by one process at most, and a dead one's lease is free."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from n2nfx.errors import CannotOperate
from n2nfx.training import lease
from n2nfx.training.lease import Holder, Lease, Taken, claimed, newest

LIVES = """
import sys
from pathlib import Path
from n2nfx.training.lease import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def write(folder: Path, number: int, holder: Holder, state: str = "running") -> Path:
    path = folder / lease.FOLDER / f"{number:04}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"holder": asdict(holder), "state": state, "reason": ""}))
    return path


def found(folder: Path) -> Lease:
    last = newest(folder)
    assert last is not None
    return last


def other_process(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_nobody_else_gets_a_lease_that_is_held(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    with claimed(tmp_path) as held:
        assert held.number == 1
        assert found(tmp_path).is_live()
        with pytest.raises(Taken, match=f"process {os.getpid()} on"), claimed(tmp_path):
            pass
    with claimed(tmp_path) as held:
        assert held.number == 2


def test_how_an_attempt_ended_is_written_down(tmp_path: Path) -> None:
    with claimed(tmp_path):
        pass
    assert (found(tmp_path).state, found(tmp_path).reason) == ("ended", "")
    with pytest.raises(CannotOperate), claimed(tmp_path):
        raise CannotOperate("no room\nat all")
    assert (found(tmp_path).state, found(tmp_path).reason) == ("failed", "no room")
    assert not lease.log_of(tmp_path, 2).exists()
    with pytest.raises(ZeroDivisionError), claimed(tmp_path):
        _ = 1 / 0
    assert (found(tmp_path).state, found(tmp_path).number) == ("failed", 3)
    assert found(tmp_path).reason == "ZeroDivisionError: division by zero"
    assert "_ = 1 / 0" in lease.log_of(tmp_path, 3).read_text()
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path):
        raise KeyboardInterrupt
    assert (found(tmp_path).state, found(tmp_path).reason) == ("stopped", "")
    assert [path.name for path in sorted((tmp_path / lease.FOLDER).iterdir())] == [
        "0001.json", "0002.json", "0003.json", "0003.log", "0004.json"
    ]  # fmt: skip


def test_a_process_that_was_killed_is_replaced_at_once(tmp_path: Path) -> None:
    process = other_process(tmp_path)
    with pytest.raises(Taken, match=f"process {process.pid} on"), claimed(tmp_path):
        pass
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
    with claimed(tmp_path) as held:
        assert held.number == 2
    process.communicate()


def test_a_process_that_is_stopped_here_is_not_replaced(tmp_path: Path) -> None:
    """On this host it is seen to live, however long it was not heard of."""
    process = other_process(tmp_path)
    process.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / lease.FOLDER / "0001.json", (0, 0))
    with pytest.raises(Taken), claimed(tmp_path):
        pass
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert found(tmp_path).state == "ended"


def test_another_process_with_the_same_number_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1, replace(lease.this_process(), started="1"))
    with claimed(tmp_path) as held:
        assert held.number == 2


def test_elsewhere_a_process_is_dead_when_it_is_not_heard_of(tmp_path: Path) -> None:
    path = write(tmp_path, 1, Holder("elsewhere", os.getpid(), "1"))
    with pytest.raises(Taken, match="on elsewhere"), claimed(tmp_path):
        pass
    now = path.stat().st_mtime
    os.utime(path, (now, now - lease._BEAT * (lease._PATIENCE - 1)))
    with pytest.raises(Taken), claimed(tmp_path):
        pass
    os.utime(path, (now, now - lease._BEAT * (lease._PATIENCE + 1)))
    with claimed(tmp_path) as held:
        assert held.number == 2


def test_another_boot_or_container_of_this_host_is_elsewhere(tmp_path: Path) -> None:
    own = lease.this_process()
    write(tmp_path, 1, replace(own, host=own.host + "0"))
    with pytest.raises(Taken), claimed(tmp_path):
        pass


def test_a_holder_is_heard_of_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_BEAT", 0.02)
    touched = threading.Event()

    def utime(path: Path) -> None:
        assert path == tmp_path / lease.FOLDER / "0001.json"
        touched.set()

    monkeypatch.setattr(lease.os, "utime", utime)
    with claimed(tmp_path):
        assert touched.wait(20)


def test_who_has_lost_a_lease_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BEAT", 0.02)
    lost = threading.Event()
    with claimed(tmp_path, on_lost=lost.set):
        write(tmp_path, 2, Holder("elsewhere", 1, "1"))
        assert lost.wait(20)
    assert found(tmp_path).holder.host == "elsewhere"


@pytest.mark.parametrize("before", ["nobody", "a dead one"])
def test_of_many_at_once_one_gets_it(tmp_path: Path, before: str) -> None:
    count = 12
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        if before == "a dead one":
            write(folder, 1, replace(lease.this_process(), started="1"))
        start, tried = threading.Barrier(count), threading.Barrier(count)
        got: list[int] = []

        def claim(
            folder: Path = folder,
            start: threading.Barrier = start,
            tried: threading.Barrier = tried,
            got: list[int] = got,
        ) -> None:
            start.wait()
            try:
                with claimed(folder) as held:
                    got.append(held.number)
                    tried.wait()
            except Taken:
                tried.wait()

        threads = [threading.Thread(target=claim) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [1 if before == "nobody" else 2]


def test_who_saw_an_older_lease_end_finds_the_next_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has happened since it looked."""
    write(tmp_path, 1, lease.this_process(), "stopped")
    seen = newest(tmp_path)
    with claimed(tmp_path):
        pass
    monkeypatch.setattr(lease, "newest", lambda folder: seen)
    with pytest.raises(Taken, match="faster"), claimed(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"holder": {}}', "\0"])
def test_a_damaged_lease_is_nobodys(tmp_path: Path, text: str) -> None:
    write(tmp_path, 7, lease.this_process()).write_text(text)
    (tmp_path / lease.FOLDER / "notes.json").write_text("mine")
    assert "damaged" in found(tmp_path).reason
    with claimed(tmp_path) as held:
        assert held.number == 8


def test_giving_up_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    lease.give_up(tmp_path, "killed 3 times")
    assert (found(tmp_path).state, found(tmp_path).reason) == ("failed", "killed 3 times")
    with claimed(tmp_path):
        lease.give_up(tmp_path, "another has it")
    assert found(tmp_path).state == "ended"


def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(CannotOperate, match="cannot be written: Not a dir")
    with refused, claimed(tmp_path / "file"):
        pass


def test_no_draft_is_left_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotOperate, match="No space left"), claimed(tmp_path):
        pass
    assert list((tmp_path / lease.FOLDER).iterdir()) == []


# The main thread ends alone (the system call, and not Python's exit), as when a process is killed
# and other threads of it are not yet gone: they still hold its files and locks.
HALF_DEAD = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_a_process_is_dead_only_when_all_of_its_threads_are() -> None:
    process = subprocess.Popen([sys.executable, "-c", HALF_DEAD])
    status = Path(f"/proc/{process.pid}/status")
    _until(lambda: "State:\tZ" in status.read_text())
    assert lease._started(process.pid)
    process.kill()
    process.wait()
    assert not lease._started(process.pid)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
