"""One holder at a time, among threads and processes; a killed one keeps nobody out."""

import errno
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from n2nfx import lock

fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")

HOLD = """
import sys
from pathlib import Path
from n2nfx import lock

with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(file: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until its stdin ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    for _ in range(2):
        with lock.held(file) as locked:
            assert locked
            with pytest.raises(lock.Held), lock.held(file):
                pass
            assert file.exists()
        assert not file.exists()


def test_another_process_is_told_who_holds_it(tmp_path: Path) -> None:
    child = holder(tmp_path / "lock")
    with pytest.raises(lock.Held) as caught, lock.held(tmp_path / "lock"):
        pass
    assert caught.value.holder == f"process {child.pid} on {platform.node()}"
    child.communicate()
    with lock.held(tmp_path / "lock") as locked:
        assert locked


def test_a_killed_holder_keeps_nobody_out(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    child = holder(file)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert file.exists()
    with lock.held(file) as locked:
        assert locked
        with pytest.raises(lock.Held) as caught, lock.held(file):
            pass
        assert f"process {os.getpid()} " in caught.value.holder
    assert not file.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_body_ends_the_lock(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), lock.held(tmp_path / "lock"):
        raise error
    assert not os.listdir(tmp_path)


# Each child takes the lock again and again; whoever is inside makes a folder that only one can
# make. A file that is deleted under those who wait for it is where such locks go wrong.
CROWD = """
import os, sys
from pathlib import Path
from n2nfx import lock

folder, inside = Path(sys.argv[1]), 0
while inside < 200:
    try:
        with lock.held(folder / "lock"):
            os.mkdir(folder / "inside")
            inside += 1
            os.rmdir(folder / "inside")
    except lock.Held:
        pass
"""


def test_of_a_crowd_one_is_inside(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CROWD, str(tmp_path)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [child.communicate()[1] for child in children] == [""] * 4
    assert not os.listdir(tmp_path)


def test_a_file_that_loses_its_name_between_opening_and_locking_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = tmp_path / "lock", fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        file.unlink()  # as the one who held it does, at its end
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.held(file):
        assert file.exists()
        with pytest.raises(lock.Held), lock.held(file):
            pass


def test_what_claims_to_be_the_holder_is_not_repeated_to_a_person(tmp_path: Path) -> None:
    with lock.held(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(b"process 1 on \x1b[31mred")
        with pytest.raises(lock.Held) as caught, lock.held(tmp_path / "lock"):
            pass
    assert caught.value.holder == ""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"), lock.held(tmp_path / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_there_are_no_locks_the_body_runs_and_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(code, os.strerror(code))))
    with lock.held(tmp_path / "lock") as locked:
        assert not locked
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.held(tmp_path / "lock") as locked:
        assert not locked


def test_other_failures_are_not_taken_for_a_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=broken))
    with pytest.raises(OSError, match="Input/output"), lock.held(tmp_path / "lock"):
        pass


FORKED = """
import os, sys, time
from pathlib import Path
from n2nfx import lock

with lock.held(Path(sys.argv[1])):
    if not os.fork():
        print("held", flush=True)  # by the fork, which has let go by then
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


def test_a_fork_that_outlives_the_holder_does_not_hold(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    command = [sys.executable, "-c", FORKED, str(file)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            with pytest.raises(lock.Held), lock.held(file):
                pass
            child.kill()
            child.wait()
            with lock.held(file) as locked:
                assert locked
        finally:
            os.killpg(child.pid, signal.SIGKILL)
