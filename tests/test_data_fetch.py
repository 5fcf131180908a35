"""A download comes whole and right or not at all, and what was begun goes on."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from data_samples import Server, Set, cifar_set, fashion_set, serving, tar_of

from n2nfx import lock
from n2nfx.catalogue import ENTRIES, find
from n2nfx.errors import CannotOperate, DamagedFile, UsageError
from n2nfx.training import fetch as module
from n2nfx.training.fetch import damages, fetch

Usage = namedtuple("Usage", "total used free")
ARCHIVE = "cifar-10-binary.tar.gz"
PART = f".{ARCHIVE}.part"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(dict(cifar_set().archives)) as state:
        yield state


@pytest.fixture
def cifar(server: Server) -> Set:
    return cifar_set().at(server.address)


def assert_whole(one: Set, root: Path) -> None:
    """All files are there with the right bytes, and nothing else is."""
    folder = root / one.entry.folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == one.files
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    assert find(one.entry, root).state == "whole"
    assert not any(damages(one.entry, find(one.entry, root)))


def assert_nothing(one: Set, root: Path) -> None:
    """No file of the data set is there; at most a download that goes on next time."""
    folder = root / one.entry.folder
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    assert all(name.endswith(".part") for name in names)


def test_an_archive_is_fetched_checked_and_taken_apart(cifar: Set, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    assert fetch(cifar.entry, tmp_path, progress=lambda *told: seen.append(told)) == (
        tmp_path / cifar.entry.folder
    )
    assert_whole(cifar, tmp_path)
    size = cifar.entry.archives[0].size
    assert seen[-1] == (ARCHIVE, size, size)


def test_single_files_are_fetched_and_unpacked(tmp_path: Path) -> None:
    with serving(dict(fashion_set().archives)) as server:
        one = fashion_set().at(server.address)
        fetch(one.entry, tmp_path)
    assert_whole(one, tmp_path)


def test_what_is_there_and_right_is_not_fetched_again(
    cifar: Set, server: Server, tmp_path: Path
) -> None:
    folder = cifar.put(tmp_path)
    fetch(cifar.entry, tmp_path)
    assert server.asked == []
    (folder / "test_batch.bin").write_bytes(bytes(len(cifar.files["test_batch.bin"])))
    fetch(cifar.entry, tmp_path)
    assert_whole(cifar, tmp_path)


def test_a_cut_connection_goes_on_where_it_was_cut(
    cifar: Set, server: Server, tmp_path: Path
) -> None:
    server.cut = [100, 0, 0, 250, None]
    fetch(cifar.entry, tmp_path)
    assert_whole(cifar, tmp_path)
    assert [wanted for _, wanted in server.asked] == [
        "", "bytes=100-", "bytes=100-", "bytes=100-", "bytes=350-"
    ]  # fmt: skip


def test_a_later_fetch_goes_on_where_an_earlier_one_gave_up(
    cifar: Set, server: Server, tmp_path: Path
) -> None:
    server.cut = [100, 0, 0, 0]
    with pytest.raises(CannotOperate, match="no mirror gave cifar-10-binary"):
        fetch(cifar.entry, tmp_path)
    assert_nothing(cifar, tmp_path)
    assert (tmp_path / cifar.entry.folder / PART).stat().st_size == 100
    fetch(cifar.entry, tmp_path)
    assert server.asked[-1] == (ARCHIVE, "bytes=100-")
    assert_whole(cifar, tmp_path)


@pytest.mark.parametrize("ranges", ["no", "misread"])
def test_a_server_that_sends_no_part_sends_it_all_again(
    cifar: Set, server: Server, tmp_path: Path, ranges: Literal["no", "misread"]
) -> None:
    server.cut, server.ranges = [100], ranges
    fetch(cifar.entry, tmp_path)
    assert_whole(cifar, tmp_path)


@pytest.mark.parametrize("length", [10, 10**6], ids=["shorter", "longer"])
def test_wrong_bytes_from_before_are_fetched_anew(
    cifar: Set, server: Server, tmp_path: Path, length: int
) -> None:
    folder = tmp_path / cifar.entry.folder
    folder.mkdir()
    (folder / PART).write_bytes(b"x" * length)
    fetch(cifar.entry, tmp_path)
    assert_whole(cifar, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "404"),
        (b"<html>pay for the network first</html>", "offers 38 bytes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "sent a file with SHA-256"),
        (lambda data: data + b"\0", "bytes, and"),
    ],
)
def test_the_next_mirror_is_asked_where_one_has_it_not_or_wrong(
    server: Server, tmp_path: Path, wrong: Any, told: str
) -> None:
    right = server.files[ARCHIVE]
    files: dict[str, Any] = {ARCHIVE: wrong(right) if callable(wrong) else wrong} if wrong else {}
    with serving(files) as bad:
        one = cifar_set().at(bad.address, server.address)
        fetch(one.entry, tmp_path)
        assert_whole(one, tmp_path)
        assert bad.asked
        only_bad = cifar_set().at(bad.address)
        shutil.rmtree(tmp_path / one.entry.folder)
        with pytest.raises(CannotOperate, match=told) as caught:
            fetch(only_bad.entry, tmp_path)
        assert "--from FILE" in str(caught.value)
        assert bad.address in str(caught.value)
        assert not (tmp_path / one.entry.folder).exists()


def test_a_server_that_sends_without_end_is_left(server: Server, tmp_path: Path) -> None:
    endless = {ARCHIVE: bytes(5 << 20)}
    with serving(endless) as bad:
        bad.lengths = False
        one = cifar_set().at(bad.address)
        with pytest.raises(CannotOperate, match="sent 1,048,576 bytes, and"):
            fetch(one.entry, tmp_path)
        one = cifar_set().at(bad.address, server.address)
        fetch(one.entry, tmp_path)
    assert_whole(one, tmp_path)


def test_a_mirror_that_is_not_there_or_never_answers_is_passed_over(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    with serving({}) as gone:
        pass
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quiet = f"http://127.0.0.1:{silent.getsockname()[1]}"
        one = cifar_set().at(gone.address, quiet, server.address)
        fetch(one.entry, tmp_path)
    assert_whole(one, tmp_path)


def test_no_space_is_told_before_anything_is_fetched(
    cifar: Set, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, 1000))
    with pytest.raises(CannotOperate, match=r"cifar10 needs .* MB there, and 0 MB are free"):
        fetch(cifar.entry, tmp_path)
    assert server.asked == []
    assert_nothing(cifar, tmp_path)


def test_what_was_fetched_before_needs_no_space_again(
    cifar: Set, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / cifar.entry.folder).mkdir()
    (tmp_path / cifar.entry.folder / PART).write_bytes(server.files[ARCHIVE][:1000])
    files = sum(file.size for file in cifar.entry.files)
    free = cifar.entry.archives[0].size - 1000 + files
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, free - 1))
    with pytest.raises(CannotOperate, match="cifar10 needs"):
        fetch(cifar.entry, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, free))
    fetch(cifar.entry, tmp_path)


@pytest.mark.parametrize("begun", ["download", "files"])
def test_a_disk_that_becomes_full_is_told_and_nothing_is_half_there(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    """Of a real disk of 256 KiB, whose free space is told too high."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, 2**40))
    one = cifar_set(train=2000, test=1000) if begun == "files" else cifar_set(train=8000, test=10)
    with serving(dict(one.archives)) as server:
        one = one.at(server.address)
        with pytest.raises(CannotOperate, match="cannot be written: No space left") as caught:
            fetch(one.entry, small_disk)
    assert "--root DIR" in str(caught.value)
    assert_nothing(one, small_disk)


def test_a_folder_that_may_not_be_written_to_is_told(
    cifar: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(CannotOperate, match="cannot be written: Permission denied"):
        fetch(cifar.entry, tmp_path)


def test_two_fetches_of_one_data_set_keep_each_other_out(cifar: Set, tmp_path: Path) -> None:
    with (
        lock.held(tmp_path / ".cifar10.lock"),
        pytest.raises(UsageError, match=f"another fetch is at work .process {os.getpid()}"),
    ):
        fetch(cifar.entry, tmp_path)


def test_a_data_set_that_nobody_may_hand_out_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CannotOperate, match="imagenet cannot be fetched: ask for access"):
        fetch(ENTRIES["imagenet"], tmp_path)


# From what is at hand


@pytest.mark.parametrize("how", ["archive", "renamed", "files", "packed", "one by one"])
def test_it_is_taken_from_archives_files_and_folders(tmp_path: Path, how: str) -> None:
    one, here = (fashion_set() if how in ("packed", "one by one") else cifar_set()), tmp_path / "x"
    here.mkdir()
    contents = one.files if how == "files" else one.archives
    for name, data in contents.items():
        (here / ("download" if how == "renamed" else name)).write_bytes(data)
    (here / "other").write_bytes(b"not of it")
    given = [here] if how in ("files", "packed") else [here / name for name in os.listdir(here)]
    fetch(one.entry, tmp_path / "root", given)
    assert_whole(one, tmp_path / "root")
    assert len(os.listdir(here)) == len(contents) + 1


def test_what_is_at_hand_and_lacks_a_file_is_told(tmp_path: Path) -> None:
    one = cifar_set()
    lacking = {name: data for name, data in one.files.items() if name != "test_batch.bin"}
    archive = tmp_path / "cifar.tgz"
    archive.write_bytes(tar_of(lacking))
    with pytest.raises(DamagedFile, match=r"cifar.tgz: has no test_batch.bin, which cifar10 needs"):
        fetch(one.entry, tmp_path / "root", [archive])
    assert_nothing(one, tmp_path / "root")
    with pytest.raises(UsageError, match="there is no file"):
        fetch(one.entry, tmp_path / "root", [tmp_path / "not there"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-1], "has 1,219 bytes, and 1,220 are expected"),
        (lambda data: data + b"\0", "has 1,221 bytes or more, and 1,220 are expected"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "has SHA-256 .* expected"),
    ],
)
def test_what_is_at_hand_and_other_than_it_should_be_is_told(
    tmp_path: Path, change: Any, told: str
) -> None:
    one = cifar_set()
    archive = tmp_path / "cifar.tar.gz"
    name = "data_batch_2.bin"
    archive.write_bytes(tar_of({**one.files, name: change(one.files[name])}))
    with pytest.raises(DamagedFile, match=f"cifar.tar.gz: {name}: {told}"):
        fetch(one.entry, tmp_path / "root", [archive])
    assert_nothing(one, tmp_path / "root")


def test_an_archive_cut_anywhere_is_damaged_and_leaves_what_was_there(tmp_path: Path) -> None:
    one, root = cifar_set(), tmp_path / "root"
    folder = one.put(root)
    data = one.archives[ARCHIVE]
    archive = tmp_path / ARCHIVE
    for end in range(0, len(data) - 8, 101):
        archive.write_bytes(data[:end])
        with pytest.raises(DamagedFile, match=ARCHIVE):
            fetch(one.entry, root, [archive])
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == one.files


def test_a_member_that_unpacks_without_end_is_left_at_its_beginning(tmp_path: Path) -> None:
    one, size = cifar_set(), 5 << 20
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(tar_of({"test_batch.bin": bytes(size)}))
    with pytest.raises(DamagedFile, match="has 1,048,576 bytes or more"):
        fetch(one.entry, tmp_path / "root", [archive])


def test_hidden_files_of_a_folder_are_not_looked_at(tmp_path: Path) -> None:
    one, here = cifar_set(), tmp_path / "x"
    here.mkdir()
    (here / ARCHIVE).write_bytes(one.archives[ARCHIVE])
    (here / PART).write_bytes(one.archives[ARCHIVE][:1000])
    fetch(one.entry, tmp_path / "root", [here])
    assert_whole(one, tmp_path / "root")


def test_a_member_that_leads_out_of_the_archive_stays_in_the_folder(tmp_path: Path) -> None:
    one = cifar_set()
    archive = tmp_path / "evil.tar.gz"
    archive.write_bytes(tar_of(one.files, folder="../../.."))
    fetch(one.entry, tmp_path / "root", [archive])
    assert_whole(one, tmp_path / "root")


def test_reading_data_never_imports_what_fetches_it() -> None:
    code = (
        "import sys, n2nfx.training.data, n2nfx.operate, n2nfx.cli.transform\n"
        "assert 'n2nfx.training.fetch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
