"""A directory of files, or one file, put in place at once, or not at all.

The files are written beside it under a hidden name, made durable, and moved in by a rename;
where an older directory stands, the two change names in one step, and what is foreign is given
back untouched. (Where the system cannot exchange two directories in one step, being killed
between two renames leaves the old one whole under a hidden name.) Writers of one directory keep
each other out by a lock, so what a killed one left beside it, a hidden `.NAME.partial-*` which is
never read, is nobody's work any more, and the next one takes it away.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from n2nfx import lock
from n2nfx.errors import CannotWrite, UsageError


@dataclass(frozen=True)
class Kind:
    """What a directory must look like to be ours, and so to be replaced.

    It is empty, or has all files of `proof`; and it has no file that is not one of `names`.
    """

    noun: str  # with its article, for messages
    names: tuple[str, ...]
    proof: tuple[str, ...]


def as_path(place: object) -> Path:
    """A place as a path; raises `UsageError` for what is none."""
    if not isinstance(place, str | os.PathLike):
        raise UsageError(f"{place!r} is no path")
    return Path(place)


def require_free(directory: Path, kind: Kind, force: bool) -> None:
    """Raise UsageError where `put` would: where something stands that it may not replace."""
    target = os.path.realpath(directory)
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise UsageError(f"{target}: is a file, not a directory; name another place")
    if foreign := _what_is_foreign(Path(target), kind):
        raise UsageError(
            f"{target}: {foreign}, so neither --force nor force=True replaces it; "
            "name another directory"
        )
    if not force:
        raise UsageError(f"{target}: exists already; --force (force=True) replaces it")


def put(directory: Path, contents: Mapping[str, bytes], kind: Kind, *, force: bool = False) -> None:
    """Make a directory of exactly these files, so that it is at every moment the old or the new.

    Missing parents are made, and a link is followed. Raises UsageError (`require_free`, another
    writer is at work on the directory, or it came to be meanwhile) and CannotWrite (a full disk,
    no permission); after either, everything is as it was.
    """
    require_free(directory, kind, force)
    target = Path(os.path.realpath(directory))
    try:
        _put(target, contents, kind, force)
    except OSError as error:
        size = sum(len(data) for data in contents.values())
        raise CannotWrite(
            f"{target}: cannot be written: {error.strerror}; it needs {size} bytes; nothing was "
            "changed; make room, or name another directory"
        ) from error


def put_file(path: Path, data: bytes) -> None:
    """Make a file of exactly this, at every moment the old one or the new; a link is followed.

    Missing parents are made. Raises CannotWrite (a full disk, no permission, a directory there).
    """
    target = Path(os.path.realpath(path))
    partial = _beside(target, secrets.token_hex(8))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise CannotWrite(
            f"{target}: cannot be written: {error.strerror}; it needs {len(data)} bytes; "
            "nothing was changed; make room, or name another place"
        ) from error


def _what_is_foreign(directory: Path, kind: Kind) -> str:
    """Why a directory must not be replaced; empty for one of ours and for an empty one."""
    try:
        names = set(os.listdir(directory))
    except OSError as error:
        return f"cannot be looked into ({error.strerror})"
    if others := names.difference(kind.names):
        return f"holds {min(others)!r}, which is no part of {kind.noun}"
    if names and not names.issuperset(kind.proof):
        return f"is not {kind.noun}: it lacks {' or '.join(kind.proof)}"
    return ""


def _put(target: Path, contents: Mapping[str, bytes], kind: Kind, force: bool) -> None:
    """Write the files beside the target and move them in; undo everything on any failure."""
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    partial = _beside(target, secrets.token_hex(8))
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
        with _alone_at(target, kind):
            try:
                _write_files(partial, contents)
                _move_in(partial, target, kind, force)
            finally:
                _discard(partial, kind)  # after an exchange this is what was replaced
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _alone_at(target: Path, kind: Kind) -> Iterator[None]:
    """Be the only writer of the target, with nothing left of those that were killed."""
    try:
        with lock.held(_beside(target, "lock")) as alone:
            if alone:
                _discard_left_over(target, kind)
            yield
    except lock.Held as error:
        who = f" ({error.holder})" if error.holder else ""
        raise UsageError(
            f"{target}: another writer is at work on it{who}; wait for it, or name another "
            "directory"
        ) from error


def _discard_left_over(target: Path, kind: Kind) -> None:
    """Not what stands `.aside`: that may be the only whole one."""
    partial = re.compile(re.escape(_beside(target, "").name) + "[0-9a-f]{16}")
    for name in filter(partial.fullmatch, os.listdir(target.parent)):
        _discard(target.with_name(name), kind)


def _beside(target: Path, what: str) -> Path:
    """A hidden sibling of the target's: the lock, or a directory that is being written."""
    return target.with_name(f".{target.name}.partial-{what}")


def _write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in contents.items():
        with (folder / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable; a few network file systems cannot, and say EINVAL."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _move_in(partial: Path, target: Path, kind: Kind, force: bool) -> None:
    """Give the finished folder its name; what stood there before is then at `partial`."""
    exchanged = _rename_or_exchange(partial, target, force)
    try:
        # Somebody may have put files there since the first look.
        if exchanged and (foreign := _what_is_foreign(partial, kind)):
            raise UsageError(f"{target}: {foreign}, so it is not replaced; name another directory")
        sync_folder(target.parent)
    except BaseException:
        if exchanged:
            _exchange(partial, target)
        else:
            os.rename(target, partial)
        raise


def _rename_or_exchange(partial: Path, target: Path, force: bool) -> bool:
    """Move in by a rename, which replaces an empty folder at most; with force, by an exchange."""
    try:
        os.rename(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not force:
            raise UsageError(
                f"{target}: appeared meanwhile; --force (force=True) replaces it"
            ) from error
        _exchange(partial, target)
        return True
    return False


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change names: in one step where the system can, else in three."""
    if _exchange_at_once(one, other):
        return
    aside = one.with_name(f"{one.name}.aside")
    try:
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)
    except BaseException:
        if os.path.lexists(aside):
            if os.path.lexists(other):
                os.rename(other, one)
            os.rename(aside, other)
        raise


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Linux renameat2(RENAME_EXCHANGE); False where the libc or the file system has none."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _discard(folder: Path, kind: Kind) -> None:
    """Delete a folder with our files, and nothing that somebody else put there."""
    for name in kind.names:
        with contextlib.suppress(OSError):
            os.unlink(folder / name)
    with contextlib.suppress(OSError):
        folder.rmdir()
