"""A lock that one process holds on a place, and that ends with the process, however it ends.

It is the system's own lock (`flock`) on a small file, so a file that a killed process left keeps
nobody out. The file says who holds it, and is deleted with the lock. Somebody may have opened it
just before: a lock counts only while its file still has its name.
"""

import contextlib
import errno
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from n2nfx.errors import N2nfxError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_HOLDER = re.compile(rb"process [0-9]{1,20} on [A-Za-z0-9_.-]{1,255}")


_descriptors: set[int] = set()  # of the locks that this process holds


def _let_go() -> None:
    """In a fork, which may outlive the holder: the lock is the holder's alone."""
    while _descriptors:
        os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class Held(N2nfxError):
    """Another holds the lock; `holder` is who ("process 4711 on host"), or empty if unknown."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"locked by {holder or 'another process'}")
        self.holder = holder


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Hold the lock of `file` while the body runs; gives whether there are locks here.

    Where there are none (Windows, a few network file systems) the body runs all the same. Raises
    `Held` at once where another has it, be it a thread of this process, and OSError.
    """
    if fcntl is None:
        yield False
        return
    descriptor = _opened(file)
    while locked := _lock(descriptor):
        if _still_named(descriptor, file):
            break
        os.close(descriptor)
        descriptor = _opened(file)
    _descriptors.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # on a full disk nobody learns who it is
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield locked
    finally:
        if descriptor in _descriptors:
            _descriptors.remove(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(file)
            os.close(descriptor)


def _opened(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _lock(descriptor: int) -> bool:
    """Lock the file; False where its file system has no locks. Closes it where it raises."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        text = os.read(descriptor, 300)
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        holder = _HOLDER.fullmatch(text)
        raise Held(holder[0].decode() if holder else "") from error
    return True


def _still_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False
