"""Fetching a data set: from mirrors or from a file at hand, checked, and put in place whole.

A download is kept under a hidden name until it is whole, so that the next one goes on where one
was cut. Nothing has its name before it is checked and durable. This is only ever started by a
person's `n2nfx data fetch`: never on import, by `load` or in a worker.
"""

import contextlib
import errno
import gzip
import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from n2nfx import lock
from n2nfx.atomic import sync_folder
from n2nfx.catalogue import Archive, Entry, File, Place, find, remedy
from n2nfx.errors import CannotOperate, DamagedFile, UsageError

Progress = Callable[[str, int, int], None]  # an archive's name, its bytes so far, and in all

TRIES = 3  # in a row without a byte, before the next mirror's turn
TIMEOUT = 30.0  # seconds without a byte

_BLOCK = 1 << 20
_GZIP = b"\x1f\x8b"  # what such a file starts with
_NETWORK = (OSError, http.client.HTTPException)  # URLError and TimeoutError are OSErrors
_log = logging.getLogger(__name__)


def fetch(
    one: Entry, root: Path, given: Iterable[Path] = (), progress: Progress | None = None
) -> Path:
    """Bring a data set to its folder below `root`, and return that folder.

    `given` are archives, files or folders at hand, from which all of it is then taken; else the
    mirrors of each archive are asked in turn, unless all is there already and right. Raises
    UsageError (another fetch is at work), CannotOperate (no mirror gave it, no space, a data set
    that nobody may hand out) and DamagedFile (what was given is not what it should be).
    """
    folder = root / one.folder
    if not one.files:
        raise CannotOperate(f"{one.name} cannot be fetched: {remedy(one, root)}")
    given = tuple(given)
    if absent := [path for path in given if not path.exists()]:
        raise UsageError(f"there is no file {absent[0]}")
    found = find(one, root)
    if not given and found.state == "whole" and not any(damages(one, found)):
        _log.info("%s is in %s already", one.name, found.folder)
        return found.folder
    with _explained(folder), _alone(root, one), _made(folder):
        _require_space(one, root, given)
        archives = given or [_downloaded(part, one, folder, progress) for part in one.archives]
        _install(one, archives, folder)
        if not given:
            for archive in archives:
                archive.unlink()
    return folder


def damages(one: Entry, place: Place) -> Iterator[str]:
    """What is wrong with the contents of each file in turn; empty where they are those known."""
    for file in one.files:
        path = place.paths.get(file.name)
        yield "is not there" if path is None else _damage(file, path)


def _damage(file: File, path: Path) -> str:
    """What is wrong with the contents of one file; empty where they are those known."""
    try:
        with _opened(path) as stream:
            size, digest = _sha256(stream)
    except (OSError, EOFError, zlib.error) as error:
        return f"cannot be read: {error}"
    if size != file.size:
        return f"has {size:,} bytes, and {file.size:,} are expected"
    return "" if digest == file.sha256 else f"has SHA-256 {digest}, and {file.sha256} is expected"


def _sha256(stream: BinaryIO) -> tuple[int, str]:
    """Size and SHA-256 of what a stream still has."""
    digest, size = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def _opened(path: Path) -> BinaryIO:
    """A file to be read, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


# --- downloading -------------------------------------------------------------------------------


def _downloaded(archive: Archive, one: Entry, folder: Path, progress: Progress | None) -> Path:
    """The archive from the first mirror that gives it whole and right."""
    part = folder / f".{archive.name}.part"
    told = []
    for mirror in archive.mirrors:
        try:
            _from_mirror(mirror, archive, part, progress)
        except (*_NETWORK, DamagedFile) as error:
            if not _is_of_the_network(error):
                raise
            told.append(f"{mirror}: {_reason(error)}")
            _log.info("%s", told[-1])
        else:
            return part
    raise CannotOperate(
        f"no mirror gave {archive.name} ({'; '.join(told)}); bring it here by another way, and "
        f"n2nfx data fetch {one.name} --from FILE"
    )


def _from_mirror(url: str, archive: Archive, part: Path, progress: Progress | None) -> None:
    """Have the whole archive at `part`; one that was begun before goes on, or is begun anew."""
    resumed = part.exists()
    _log.info("fetching %s", url)
    _complete(url, archive, part, progress)
    if wrong := _wrong(archive, part):
        part.unlink()
        if not resumed:
            raise DamagedFile(wrong)
        _log.info("%s; what was there before may be at fault: once more from the start", wrong)
        _from_mirror(url, archive, part, progress)


def _complete(url: str, archive: Archive, part: Path, progress: Progress | None) -> None:
    """Ask for the rest as long as some of it comes."""
    failures = 0
    while (have := _size(part)) < archive.size:
        try:
            _rest(url, archive, part, progress)
            cut: Exception = DamagedFile("the connection was cut")
        except _NETWORK as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            cut = error
        if _size(part) >= archive.size:
            return
        failures = 0 if _size(part) > have else failures + 1
        if failures == TRIES:
            raise cut


def _rest(url: str, archive: Archive, part: Path, progress: Progress | None) -> None:
    """One request, for what is still missing; a server that knows no ranges sends all of it."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "n2nfx"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if (total := _total(answer)) not in (None, archive.size):
            raise DamagedFile(f"offers {total:,} bytes, and {archive.size:,} are expected")
        if have and not _goes_on(answer, have):
            have = 0
        with part.open("ab" if have else "wb") as file:
            # One byte more than expected is enough to see that this is another file.
            while have <= archive.size and (block := answer.read(_BLOCK)):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(archive.name, have, archive.size)
            file.flush()
            os.fsync(file.fileno())


def _goes_on(answer: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server sends from there on, and not from the start."""
    told = answer.headers.get("Content-Range", "")
    return answer.status == http.client.PARTIAL_CONTENT and told.startswith(f"bytes {have}-")


def _total(answer: http.client.HTTPResponse) -> int | None:
    """The size of the whole file, where the server says it."""
    if answer.status == http.client.PARTIAL_CONTENT:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        size = answer.headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else None


def _is_of_the_network(error: Exception) -> bool:
    """Whether the other side is at fault, and not this machine's disk."""
    local = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
    return not (isinstance(error, OSError) and error.errno in local)


def _wrong(archive: Archive, part: Path) -> str:
    with part.open("rb") as stream:
        size, digest = _sha256(stream)
    if size != archive.size:
        return f"sent {size:,} bytes, and {archive.size:,} are expected"
    if digest != archive.sha256:
        return f"sent a file with SHA-256 {digest}, and {archive.sha256} is expected"
    return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return f"{error.code} {told}" if isinstance(error, urllib.error.HTTPError) else told


# --- putting in place --------------------------------------------------------------------------


def _install(one: Entry, sources: Sequence[Path], folder: Path) -> None:
    """Take all files out of the sources; every one is checked before the first has its name."""
    ready: dict[str, Path] = {}
    try:
        for path in _files(sources):
            with _whole(path):
                for name, stream in _unpacked(path, one):
                    ready[name] = folder / f".{name}.new"
                    _write(stream, one, name, ready[name])
        if missing := [file.name for file in one.files if file.name not in ready]:
            raise DamagedFile(
                f"{', '.join(map(str, sources))}: has no {' and no '.join(missing)}, which "
                f"{one.name} needs"
            )
        for name, path in ready.items():
            path.replace(folder / name)
        sync_folder(folder)
    finally:
        for path in ready.values():
            path.unlink(missing_ok=True)


def _files(sources: Iterable[Path]) -> Iterator[Path]:
    """The files that were named, and those in folders that were (no hidden ones)."""
    for source in sources:
        if not source.is_dir():
            yield source
            continue
        visible = (path for path in source.iterdir() if not path.name.startswith("."))
        yield from sorted(path for path in visible if path.is_file())


def _unpacked(path: Path, one: Entry) -> Iterator[tuple[str, BinaryIO]]:
    """Name and contents of each file of the data set that a file is or has, to be read at once."""
    names = {file.name for file in one.files}
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in names and (stream := tar.extractfile(member)):
                    yield name, cast(BinaryIO, stream)
        return
    name = path.name.removeprefix(".").removesuffix(".part").removesuffix(".gz")
    if name in names:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP
        with cast(BinaryIO, gzip.open(path)) if packed else path.open("rb") as stream:
            yield name, stream


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Tell a file that cannot be unpacked as what it is."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedFile(f"{path}: cannot be unpacked: {error}") from error
    except DamagedFile as error:
        raise DamagedFile(f"{path}: {error}") from error


def _write(stream: BinaryIO, one: Entry, name: str, path: Path) -> None:
    """Copy one file, or what shows that it is another, and check what came."""
    (file,) = (file for file in one.files if file.name == name)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as target:
        while size <= file.size and (block := stream.read(_BLOCK)):
            target.write(block)
            digest.update(block)
            size += len(block)
        target.flush()
        os.fsync(target.fileno())
    if size != file.size:
        more = " or more" * (size > file.size)
        raise DamagedFile(f"{file.name}: has {size:,} bytes{more}, and {file.size:,} are expected")
    if digest.hexdigest() != file.sha256:
        raise DamagedFile(
            f"{file.name}: has SHA-256 {digest.hexdigest()}, and {file.sha256} is expected"
        )


# --- what surrounds it -------------------------------------------------------------------------


@contextmanager
def _alone(root: Path, one: Entry) -> Iterator[None]:
    """Be the only fetch of this data set into this root."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        with lock.held(root / f".{one.name}.lock"):
            yield
    except lock.Held as error:
        raise UsageError(
            f"{one.name}: another fetch is at work ({error.holder or 'another process'})"
        ) from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Have the folder while the body runs, and after it unless it is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Tell a full disk and a folder that may not be written to as what they are."""
    try:
        yield
    except OSError as error:
        raise CannotOperate(
            f"{folder}: cannot be written: {error.strerror or error}; nothing there was changed; "
            "another place: --root DIR, or N2NFX_DATA"
        ) from error


def _require_space(one: Entry, root: Path, given: tuple[Path, ...]) -> None:
    """Raise CannotOperate before anything is fetched that would not have room."""
    begun = sum(_size(root / one.folder / f".{archive.name}.part") for archive in one.archives)
    download = 0 if given else sum(archive.size for archive in one.archives) - begun
    needed = download + sum(file.size for file in one.files)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise CannotOperate(
            f"{root}: {one.name} needs {needed / 1e6:,.0f} MB there, and {free / 1e6:,.0f} MB are "
            "free; another place: --root DIR, or N2NFX_DATA"
        )
