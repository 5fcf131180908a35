"""The artifact on disk: lossless, atomic, and never believed before it is checked."""

import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from n2nfx import artifact
from n2nfx.errors import CannotOperate, DamagedFile, UsageError

WIDTHS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
State = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bits, which tell -0 from +0 and one NaN from another."""
    return tensor.contiguous().view(WIDTHS[tensor.dtype])


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with +0 where the mask drops it, its other bits as they are."""
    return torch.where(mask, bits(weight), 0).view(weight.dtype)


def random_weight(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: infinities, negative zeros, subnormals and NaNs with payloads."""
    width = torch.empty((), dtype=dtype).element_size()
    data = np.random.default_rng(seed).bytes(math.prod(shape) * width)
    integers = np.frombuffer(data, dtype=f"i{width}").copy()
    return torch.from_numpy(integers).view(dtype).reshape(shape)


def random_mask(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    chosen = np.random.default_rng(seed + 1).random(math.prod(shape)) < density
    return torch.from_numpy(chosen).reshape(shape)


def sample(seed: int = 0) -> State:
    """A small artifact with both codings, a fully kept weight, an empty one and plain tensors."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "sparse.weight": torch.rand(8, 5, 3, 3, generator=generator) < 0.05,
        "dense.weight": torch.rand(6, 7, generator=generator) < 0.95,
        "full.weight": torch.ones(4, 4, dtype=torch.bool),
        "empty.weight": torch.zeros(30, 30, dtype=torch.bool),
    }
    tensors = {
        name: masked(torch.randn(mask.shape, generator=generator), mask)
        for name, mask in masks.items()
    }
    tensors["bn.running_mean"] = torch.randn(6, generator=generator)
    tensors["bn.num_batches_tracked"] = torch.tensor(17 + seed)
    return (
        {"model": "resnet18", "steps": ["a", {"b": [1, 2.5, None]}], "seed": seed},
        tensors,
        masks,
    )


def same(found: artifact.Artifact, expected: State) -> bool:
    plan, tensors, masks = expected
    own = {key: value for key, value in found.plan.items() if key not in artifact.RESERVED}
    return (
        own == plan
        and found.tensors.keys() == tensors.keys()
        and found.masks.keys() == masks.keys()
        and all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
        and all(torch.equal(found.masks[name], masks[name]) for name in masks)
    )


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden or not: bytes of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def sign(folder: Path) -> None:
    """Write the right manifest for whatever the files now say."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (artifact.PLAN, artifact.WEIGHTS)
    ]
    (folder / artifact.MANIFEST).write_text("".join(lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the sample artifact."""
    artifact.write(tmp_path / "art", *sample())
    return tmp_path / "art"


def refused(folder: Path, *words: str) -> None:
    """Both readers refuse the directory with a DamagedFile whose message has the words."""
    for reader in (artifact.read, artifact.verify):
        with pytest.raises(DamagedFile) as caught:
            reader(folder)
        for word in words:
            assert word in str(caught.value)


# Round trips


def round_trip(
    tensors: dict[str, Tensor], masks: dict[str, Tensor]
) -> tuple[artifact.Artifact, dict[str, Tensor]]:
    """What is read back, and what the weights file has by its own keys."""
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "out"
        artifact.write(target, {}, tensors, masks)
        assert artifact.verify(target).keys() == set(artifact.RESERVED)
        return artifact.read(target), load_file(target / artifact.WEIGHTS)


@settings(max_examples=120, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), max_size=4).map(tuple),
    dtype=st.sampled_from(list(WIDTHS)),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.8, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_any_weight_comes_back_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, seed: int
) -> None:
    mask = random_mask(shape, density, seed)
    weight = masked(random_weight(shape, dtype, seed), mask)
    found, _ = round_trip({"w": weight}, {"w": mask})
    assert found.tensors["w"].dtype == dtype
    assert torch.equal(bits(found.tensors["w"]), bits(weight))
    assert torch.equal(found.masks["w"], mask)
    assert found.plan["weights"]["w"]["kept"] == int(mask.sum())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 253, 254, 255, 256, 509, 510, 511, 765, 1020]), max_size=6))
def test_gaps_around_the_multiples_of_255(gaps: list[int]) -> None:
    """The last gap is the one behind the last kept element."""
    *inner, last = gaps or [0]
    mask = torch.zeros(sum(inner) + len(inner) + last, dtype=torch.bool)
    at = -1
    for gap in inner:
        at += gap + 1
        mask[at] = True
    weight = masked(random_weight(tuple(mask.shape), torch.float64, len(gaps)), mask)
    found, stored = round_trip({"w": weight}, {"w": mask})
    assert torch.equal(bits(found.tensors["w"]), bits(weight))
    assert torch.equal(found.masks["w"], mask)
    if "gap/w" in stored:
        assert len(stored["gap/w"]) == sum(gap // 255 + 1 for gap in inner) + last // 255


def test_the_gap_code_is_what_the_format_says() -> None:
    mask = torch.zeros(800, dtype=torch.bool)
    mask[[0, 1, 257, 513]] = True  # gaps 0, 0, 255, 255, and 286 behind
    _, stored = round_trip({"w": mask.float()}, {"w": mask})
    assert stored["gap/w"].tolist() == [0, 0, 255, 0, 255, 0, 255]
    assert stored["val/w"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("density", "forms"),
    [(0.0, ["gap", "val"]), (0.02, ["gap", "val"]), (0.9, ["bits", "dense"]), (1.0, ["dense"])],
)
def test_the_smaller_form_is_stored(density: float, forms: list[str]) -> None:
    mask = random_mask((50, 40), density, 3)
    _, stored = round_trip({"w": mask.float()}, {"w": mask})
    assert sorted(key.removesuffix("/w") for key in stored) == forms


def test_negative_zero_is_kept_where_kept_and_dropped_where_dropped() -> None:
    position = torch.arange(40)
    for mask, form in ((position != 7, "dense/w"), (position == 7, "gap/w")):
        found, stored = round_trip({"w": torch.full((40,), -0.0)}, {"w": mask})
        assert form in stored
        assert torch.equal(torch.signbit(found.tensors["w"]), mask)


def test_a_large_weight_at_two_percent_costs_less_than_six_bytes_a_weight(tmp_path: Path) -> None:
    mask = random_mask((512, 512, 3, 3), 0.02, 0)
    paths = artifact.write(tmp_path / "out", {}, {"w": mask.float()}, {"w": mask})
    assert sum(path.stat().st_size for path in paths) < 6 * int(mask.sum())


def test_any_state_comes_back() -> None:
    """Views, shared storage, a gradient, 0-d, empty, integers, and names that look like ours."""
    base = torch.arange(24.0).reshape(4, 6)
    tied = torch.nn.Parameter(torch.randn(5, 5))
    tensors = {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": torch.ones(1).expand(3, 2),
        "tied.one": tied,
        "tied.two": tied,
        "tied.row": tied[1],
        "x": torch.tensor(3),
        "x.gap": torch.tensor([1, 2], dtype=torch.uint8),
        "gap/x": torch.zeros(0, 3),
        "dense/x": torch.tensor(True),
        "": torch.tensor([-1], dtype=torch.int16),
        "__metadata__": torch.tensor([2.5], dtype=torch.bfloat16),
        "naïve/é\n": torch.tensor([1], dtype=torch.int8),
        "masked.view": (base * (base > 20)).t(),
    }
    masks = {
        "masked.view": (base > 20).t(),
        "x.gap.w": torch.tensor(True),
        "gap/": torch.zeros(60, dtype=torch.bool),
    }
    tensors |= {"x.gap.w": torch.tensor(2.0), "gap/": torch.zeros(60)}
    found, _ = round_trip(tensors, masks)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
        assert not found.tensors[name].requires_grad
    assert all(torch.equal(found.masks[name], mask) for name, mask in masks.items())
    found.tensors["tied.one"].zero_()
    assert torch.equal(found.tensors["tied.two"], tied)


def test_an_artifact_can_be_written_again_and_gives_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    found = artifact.read(folder)
    assert same(found, sample())
    plan = {key: value for key, value in found.plan.items() if key not in artifact.RESERVED}
    artifact.write(tmp_path / "again", plan, found.tensors, found.masks)
    assert snapshot(folder) == snapshot(tmp_path / "again")


def test_the_files_are_what_they_are_said_to_be(folder: Path) -> None:
    text = (folder / "plan.json").read_text()
    plan = json.loads(text)
    assert text == json.dumps(plan, sort_keys=True, indent=2) + "\n"
    assert plan["format"] == "n2nfx.artifact/1"
    assert plan["weights"]["full.weight"] == {"shape": [4, 4], "dtype": "float32", "kept": 16}
    assert artifact.verify(folder) == plan
    sha256sum = shutil.which("sha256sum")
    if sha256sum is not None:
        subprocess.run([sha256sum, "-c", "--strict", "MANIFEST.sha256"], cwd=folder, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_another_device_are_stored_and_come_back_on_the_cpu() -> None:
    plan, tensors, masks = sample()
    there = {name: tensor.cuda() for name, tensor in tensors.items()}
    found, _ = round_trip(there, {name: mask.cuda() for name, mask in masks.items()})
    found.plan.update(plan)
    assert same(found, (plan, tensors, masks))


# What is refused before writing


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        ({"weights": {}}, "reserved"),
        ({"format": 1}, "reserved"),
        ({"x": float("nan")}, "JSON"),
        ({"x": float("inf")}, "JSON"),
        ({"x": torch.zeros(1)}, "JSON"),
        ({"x": (1, 2)}, "tuples"),
        ({"x": {1: 2}}, "strings as keys"),
        ({"x": {1: 2, "1": 3}}, "JSON"),
        ({"x": "\ud800"}, "JSON"),
        ({"x": 10**5000}, "JSON"),
    ],
)
def test_a_plan_that_would_not_come_back_is_refused(
    tmp_path: Path, plan: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        artifact.write(tmp_path / "out", plan, {}, {})
    assert not snapshot(tmp_path)


ONES = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("tensors", "masks", "error", "words"),
    [
        ({}, {"w": ONES.bool()}, UsageError, "no tensor of that name"),
        ({"w": ONES}, {"w": ONES}, UsageError, "torch.bool"),
        ({"w": ONES}, {"w": ONES.bool()[0]}, UsageError, "shape"),
        ({"w": ONES}, {"w": ~ONES.bool()}, UsageError, "12 of the elements"),
        ({"w": ONES * math.nan}, {"w": ~ONES.bool()}, UsageError, "bake"),
        ({"w": ONES * 1e-40}, {"w": ~ONES.bool()}, UsageError, "bake"),
        ({"\ud800": ONES}, {}, UsageError, "UTF-8"),
        ({3: ONES}, {}, UsageError, "name"),
        ({"w": ONES.int()}, {"w": ONES.bool()}, CannotOperate, "int32"),
        ({"w": ONES.to(torch.complex128)}, {}, CannotOperate, "complex128"),
        ({"w": ONES.to_sparse()}, {}, CannotOperate, "sparse"),
        ({"w": ONES.to("meta")}, {}, CannotOperate, "meta"),
        ({"w._extra_state": {"a": 1}}, {}, CannotOperate, "not a tensor"),
    ],
)
def test_arguments_that_cannot_be_stored_are_refused_by_name(
    tmp_path: Path, tensors: Any, masks: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        artifact.write(tmp_path / "out", {}, tensors, masks)
    assert not snapshot(tmp_path)


# Where it is written


def test_missing_parents_are_made(tmp_path: Path) -> None:
    paths = artifact.write(tmp_path / "a" / "b" / "out", *sample())
    assert [path.name for path in paths] == ["plan.json", "weights.safetensors", "MANIFEST.sha256"]
    assert all(path.parent == tmp_path / "a" / "b" / "out" for path in paths)
    assert same(artifact.read(tmp_path / "a" / "b" / "out"), sample())


def test_an_existing_directory_is_replaced_only_with_force(folder: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"art: exists already; --force \(force=True\)"):
        artifact.write(folder, *sample(1))
    assert snapshot(tmp_path) == before
    artifact.write(folder, *sample(1), force=True)
    assert same(artifact.read(folder), sample(1))
    assert os.listdir(tmp_path) == ["art"]


def test_force_takes_an_empty_directory_and_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        artifact.write(tmp_path / name, *sample(), force=True)
        assert same(artifact.read(tmp_path / name), sample())


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "files",
    [["notes.txt"], ["plan.json"], ["plan.json", "MANIFEST.sha256", "thesis.tex"], [".git/config"]],
)
def test_other_peoples_files_are_never_deleted(
    tmp_path: Path, files: list[str], force: bool
) -> None:
    for file in files:
        path = tmp_path / "out" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="artifact"):
        artifact.write(tmp_path / "out", *sample(), force=force)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UsageError, match="is a file"):
        artifact.write(tmp_path / "out", *sample(), force=force)
    with pytest.raises(CannotOperate, match="is a file, not a dir"):
        artifact.write(tmp_path / "out" / "below", *sample(), force=force)
    assert snapshot(tmp_path) == {"out": b"precious"}


def test_a_link_stays_a_link_and_its_target_is_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("art")
    artifact.write(tmp_path / "link", *sample(1), force=True)
    assert (tmp_path / "link").is_symlink()
    assert same(artifact.read(folder), sample(1))


def appear(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let something happen at the target after the first look at it and before the rename."""
    real = os.rename

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(os, "rename", real)
        action()
        real(*arguments)

    monkeypatch.setattr(os, "rename", late)


def test_a_target_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appear(monkeypatch, lambda: artifact.write(tmp_path / "out", *sample(1)))
    with pytest.raises(UsageError, match="appeared meanwhile"):
        artifact.write(tmp_path / "out", *sample())
    assert same(artifact.read(tmp_path / "out"), sample(1))
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_appears_in_the_old_artifact_meanwhile_saves_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appear(monkeypatch, lambda: (folder / "notes.txt").write_text("precious"))
    before = {**snapshot(tmp_path), "art/notes.txt": b"precious"}
    with pytest.raises(UsageError, match=r"notes\.txt"):
        artifact.write(folder, *sample(1), force=True)
    assert snapshot(tmp_path) == before


def test_writers_at_the_same_time_leave_one_whole_artifact(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def many(seed: int) -> None:
        for _ in range(12):
            try:
                artifact.write(tmp_path / "out", *sample(seed), force=True)
            except UsageError:
                pass  # a look that fell into another's exchange: refused, and nothing lost
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert os.listdir(tmp_path) == ["out"]
    found = artifact.read(tmp_path / "out")
    assert any(same(found, sample(seed)) for seed in range(3))


# Failing while writing


def fail_at(
    monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException
) -> list[int]:
    """Let the call-th call of an os function raise; the list has the number of calls so far."""
    real = getattr(os, name)
    calls = [0]

    def failing(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, name, failing)
    return calls


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "_exchange_at_once", lambda one, other: False)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("old", ["none", "exchange", "renames"])
@pytest.mark.parametrize(
    ("function", "call"),
    [
        *[("fsync", call) for call in range(1, 6)],
        *[("rename", call) for call in range(1, 5)],
        ("mkdir", 2),  # the first finds the parent there
    ],
)
def test_a_failure_at_any_step_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    call: int,
    old: str,
    error: BaseException,
) -> None:
    target = tmp_path / "art"
    if old != "none":
        artifact.write(target, *sample())
    if old == "renames":
        without_exchange(monkeypatch)
    before = snapshot(tmp_path)
    calls = fail_at(monkeypatch, function, call, error)
    wanted = CannotOperate if isinstance(error, OSError) else KeyboardInterrupt
    with contextlib.suppress(wanted):
        artifact.write(target, *sample(1), force=True)
    monkeypatch.undo()
    if calls[0] < call:  # this way of writing does not take that step
        assert same(artifact.read(target), sample(1))
        assert os.listdir(tmp_path) == ["art"]
    else:
        assert snapshot(tmp_path) == before


def test_a_failure_takes_away_the_parents_that_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    fail_at(monkeypatch, "rename", 1, FULL)
    with pytest.raises(CannotOperate, match="bytes are needed"):
        artifact.write(tmp_path / "kept" / "a" / "b" / "out", *sample())
    assert snapshot(tmp_path) == {"kept": None}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; [0-9]{4,} bytes are needed"),
        (errno.EDQUOT, "quota is used up; [0-9]{4,} bytes are needed"),
        (errno.EACCES, "you may not write there"),
        (errno.EROFS, "read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_the_cause_of_a_failure_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    fail_at(monkeypatch, "fsync", 1, OSError(code, os.strerror(code)))
    with pytest.raises(CannotOperate, match=rf"out: cannot be written: .*{words}") as caught:
        artifact.write(tmp_path / "out", *sample())
    assert isinstance(caught.value.__cause__, OSError)


def test_a_file_system_that_cannot_sync_folders_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, "fsync", 5, OSError(errno.EINVAL, os.strerror(errno.EINVAL)))
    artifact.write(tmp_path / "out", *sample())
    assert same(artifact.read(tmp_path / "out"), sample())


def test_where_there_is_no_exchange_renames_do_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldLibrary:
        def __init__(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(ctypes, "CDLL", OldLibrary)
    artifact.write(folder, *sample(1), force=True)
    assert same(artifact.read(folder), sample(1))
    assert os.listdir(tmp_path) == ["art"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EACCES])
def test_the_exchange_falls_back_only_where_it_is_not_to_be_had(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Library:
        def __init__(self, *_: object, **__: object) -> None: ...

        def renameat2(self, *_: object) -> int:
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    if code == errno.EACCES:
        with pytest.raises(CannotOperate, match="you may not write there"):
            artifact.write(folder, *sample(1), force=True)
    else:
        artifact.write(folder, *sample(1), force=True)
    assert same(artifact.read(folder), sample(0 if code == errno.EACCES else 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk_keeps_the_old_artifact(small_disk: Path) -> None:
    artifact.write(small_disk / "art", *sample())
    before = snapshot(small_disk)
    plan, tensors, masks = sample(1)
    tensors["large"] = torch.zeros(100_000)
    for name, force in (("art", True), ("other", False)):
        with pytest.raises(CannotOperate, match=r"the disk is full; 40[0-9]{4} bytes are needed"):
            artifact.write(small_disk / name, plan, tensors, masks, force=force)
        assert snapshot(small_disk) == before
    assert same(artifact.read(small_disk / "art"), sample())


# Two artifacts are written in turn by children that are killed: half of them each at one system
# call after the other, half at random moments. After each kill the parent reads what is there.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from n2nfx import artifact

torch.set_num_threads(1)
target = Path(sys.argv[1]) / "art"
states = [({"turn": turn}, {"w": torch.full((40000,), turn + 1.0)}, {}) for turn in (0, 1)]
functions = ("fsync", "rename", "unlink", "open", "mkdir", "rmdir")

def die_at(step):
    left = [step]
    def counted(real):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call
    for name in functions:
        setattr(os, name, counted(getattr(os, name)))

def child(step):
    if step:
        die_at(step)
    turn = artifact.read(target).plan["turn"]
    while True:
        turn = 1 - turn
        artifact.write(target, *states[turn], force=True)

artifact.write(target, *states[0])
seen = set()
for step in [*range(1, 40), *[0] * 40]:
    pid = os.fork()
    if pid == 0:
        child(step)
    if not step:
        time.sleep(random.uniform(0.005, 0.06))
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found = artifact.read(target)
    turn = found.plan["turn"]
    assert torch.equal(found.tensors["w"], states[turn][1]["w"])
    seen.add(turn)
    artifact.write(target, *states[turn], force=True)
print(sorted(seen), len(list(target.parent.iterdir())) > 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs an exchange in one step")
def test_a_killed_writer_leaves_the_old_or_the_new_artifact_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1] True\n"  # both were seen, and some partial folder was left


# Damage


def test_a_path_without_an_artifact(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such directory")
    refused(tmp_path, "plan.json", "is missing")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not a directory")


def test_a_flipped_bit_anywhere_is_noticed(folder: Path) -> None:
    draw = random.Random(0)
    for _ in range(200):
        path = folder / draw.choice(os.listdir(folder))
        data = bytearray(path.read_bytes())
        whole = bytes(data)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        refused(folder, artifact.MANIFEST)
        path.write_bytes(whole)
    assert same(artifact.read(folder), sample())


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "MANIFEST.sha256"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_truncated_file_is_noticed(folder: Path, name: str, signed: bool) -> None:
    """Also where the manifest is right for it, except that JSON's last newline may go."""
    path = folder / name
    whole = path.read_bytes()
    step = 1 if name == "plan.json" or len(whole) < 500 else 37
    for length in range(0, len(whole) - 1, step):
        path.write_bytes(whole[:length])
        if signed and name != artifact.MANIFEST:
            sign(folder)
        refused(folder, name)


def test_bits_flipped_under_a_right_manifest_give_an_artifact_or_a_message(folder: Path) -> None:
    draw = random.Random(1)
    read = 0
    for _ in range(400):
        path = folder / draw.choice([artifact.PLAN, artifact.WEIGHTS, artifact.WEIGHTS])
        whole = path.read_bytes()
        data = bytearray(whole)
        # Half of the flips in the header of the weights, where the meaning is.
        end = len(data) if draw.random() < 0.5 else min(len(data), 800)
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        sign(folder)
        try:
            found = artifact.read(folder)
        except DamagedFile:
            refused(folder)
        else:
            read += 1
            artifact.verify(folder)
            for name, mask in found.masks.items():
                weight = found.tensors[name]
                assert mask.shape == weight.shape
                assert int(mask.sum()) == found.plan["weights"][name]["kept"]
                assert not bits(weight)[~mask].any()
        path.write_bytes(whole)
    assert 20 < read < 380


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "MANIFEST.sha256"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.unlink()
    refused(folder, name, "is missing")
    path.mkdir()
    refused(folder, name, "is not a file")
    path.rmdir()
    os.mkfifo(path)
    refused(folder, name, "is not a file")


def test_an_extra_file_is_named(folder: Path) -> None:
    (folder / "extra\x1b[31m.py").write_text("x")
    refused(folder, "extra\\x1b[31m.py")


def test_files_of_two_artifacts_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    artifact.write(tmp_path / "other", *sample(1))
    shutil.copy(tmp_path / "other" / artifact.WEIGHTS, folder)
    refused(folder, artifact.WEIGHTS, "SHA-256")


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", broken)
    refused(folder, "plan.json: cannot be read", os.strerror(errno.EIO))


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\xff\xfe",
        b"0" * 64 + b"  plan.json\n",
        b"0" * 64 + b"  plan.json\n" + b"0" * 64 + b"  ../plan.json\n",
        b"0" * 64 + b"  plan.json\n" * 3,
        b"0" * 5000,
    ],
)
def test_a_manifest_of_another_kind(folder: Path, manifest: bytes) -> None:
    (folder / artifact.MANIFEST).write_bytes(manifest)
    refused(folder, artifact.MANIFEST)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"[]", "a JSON list, not an object"),
        (b"null", "not an object"),
        (b"{}", "format None"),
        (b'{"format": 1, "weights": {}}', "the format 1"),
        (b'{"format": "n2nfx.artifact/2", "weights": 0}', "written by a newer n2nfx"),
        (b'{"format": "n2nfx.artifact/0", "weights": {}}', "format"),
        (b'{"format": "n2nfx.artifact/1"}', "weights"),
        (b'{"format": "n2nfx.artifact/1", "weights": []}', "weights"),
        (b'{"format": "n2nfx.artifact/1", "weights": {}, "weights": {}}', "'weights' stands twice"),
        (b'{"format": "n2nfx.artifact/1", "weights": {}, "x": NaN}', "NaN"),
        (b'{"format": "n2nfx.artifact/1", "weights": {}, "x": 1e999}', "1e999"),
        (b'{"format": "n2nfx.artifact/1", "weights": {}, "x": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 200_000, "JSON"),
    ],
)
def test_a_plan_of_another_kind_with_a_right_manifest(
    folder: Path, text: bytes, words: str
) -> None:
    (folder / artifact.PLAN).write_bytes(text)
    sign(folder)
    refused(folder, artifact.PLAN, words.replace("UTF-8", "utf-8"))


def test_a_file_of_an_absurd_size_is_not_read(folder: Path) -> None:
    with (folder / artifact.PLAN).open("r+b") as file:
        file.truncate(2**34)
    refused(folder, artifact.PLAN, f"{2**34} bytes")


def forge(folder: Path, declared: Any, stored: dict[str, Tensor]) -> None:
    """An artifact with whatever content, and the right manifest for it."""
    folder.mkdir()
    plan = {"format": artifact.FORMAT, "weights": declared}
    (folder / artifact.PLAN).write_text(json.dumps(plan))
    save_file(stored, folder / artifact.WEIGHTS)
    sign(folder)


def declare(shape: object, kept: object, dtype: object = "float32") -> dict[str, object]:
    return {"w": {"shape": shape, "dtype": dtype, "kept": kept}}


def codes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def coded(gap: Tensor, values: Tensor) -> dict[str, Tensor]:
    return {"gap/w": gap, "val/w": values}


HOSTILE: list[tuple[Any, dict[str, Tensor], str]] = [
    # What the plan declares
    ({"w": 3}, {}, "needs shape"),
    ({"w": {"shape": [], "dtype": "float32"}}, {}, "needs shape"),
    ({"w": {"shape": [], "dtype": "float32", "kept": 0, "more": 1}}, {}, "needs shape"),
    (declare("12", 0), {}, "no list of sizes"),
    (declare([1.0], 0), {}, "no list of sizes"),
    (declare([True], 0), {}, "no list of sizes"),
    (declare([-1, -1], 0), {}, "no list of sizes"),
    (declare([1] * 1000, 0), {}, "no list of sizes"),
    (declare([2**50], 0), {}, "absurd"),
    (declare([0, 2**62, 2**62], 0), {}, "absurd"),
    (declare([4], 0, "complex64"), {}, "dtype"),
    (declare([4], 0, ["float32"]), {}, "dtype"),
    (declare([4], 5), {}, "cannot keep"),
    (declare([4], -1), {}, "cannot keep"),
    (declare([4], True), {}, "cannot keep"),
    (declare([4], "4"), {}, "cannot keep"),
    # Which entries there are
    (declare([4], 0), {}, "nothing stored"),
    (declare([4], 0), {"gap/w": codes()}, "gap stored"),
    (declare([4], 4), {"dense/w": torch.ones(4), **coded(codes(), torch.ones(0))}, "stored"),
    ({}, {"gap/w": codes()}, "'gap/w'"),
    ({}, {"w": codes()}, "'w'"),
    ({}, {"dense": codes()}, "'dense'"),
    ({}, {"other/w": codes()}, "'other/w'"),
    ({}, {"dense/w": torch.zeros(1, dtype=torch.float8_e4m3fn)}, "never written"),
    ({}, {"dense/w": torch.zeros(1, dtype=torch.complex64)}, "never written"),
    # Gaps
    (declare([4], 1), coded(codes(4), torch.ones(1)), "runs to 5"),
    (declare([4], 1), coded(codes(255, 0), torch.ones(1)), "runs to 256"),
    (declare([2**39], 0), coded(codes(), torch.ones(0)), "runs to 0"),
    (declare([2**39], 1), coded(codes(0), torch.ones(1)), "runs to 1"),
    (declare([256], 1), coded(codes(0), torch.ones(1)), "runs to 1"),
    (declare([4], 2), coded(codes(0), torch.ones(1)), "says 2"),
    (declare([4], 1), coded(codes(0, 0), torch.ones(1)), "2 positions and 1 values"),
    (declare([4], 1), coded(codes(0), torch.ones(2)), "1 positions and 2 values"),
    (declare([4], 1), coded(codes(0).int(), torch.ones(1)), "wrong dtype"),
    (declare([4], 1), coded(codes(0)[None], torch.ones(1)), "wrong dtype"),
    (declare([4], 1), coded(codes(0), torch.ones(1).double()), "wrong dtype"),
    (declare([4], 1), coded(codes(0), torch.ones(1, 1)), "wrong dtype"),
    # Dense weights
    (declare([4], 4), {"dense/w": torch.ones(2, 2)}, "shape [2, 2]"),
    (declare([4], 4), {"dense/w": torch.ones(4).half()}, "float16"),
    (declare([4], 3), {"dense/w": torch.ones(4)}, "says 3"),
    (declare([4], 3), {"dense/w": torch.ones(4), "bits/w": codes(7)}, "not zero everywhere"),
    (declare([4], 3), {"dense/w": torch.full((4,), -0.0), "bits/w": codes(7)}, "not zero"),
    (declare([4], 2), {"dense/w": torch.zeros(4), "bits/w": codes(7)}, "says 2"),
    (declare([4], 4), {"dense/w": torch.zeros(4), "bits/w": codes(23)}, "beyond its end"),
    (declare([4], 3), {"dense/w": torch.zeros(4), "bits/w": codes(7, 0)}, "wrong dtype or length"),
    (declare([4], 3), {"dense/w": torch.zeros(4), "bits/w": codes(7).char()}, "wrong dtype or"),
]


@pytest.mark.parametrize(("declared", "stored", "words"), HOSTILE)
def test_hostile_content_with_a_right_manifest(
    tmp_path: Path, declared: Any, stored: dict[str, Tensor], words: str
) -> None:
    forge(tmp_path / "art", declared, stored)
    refused(tmp_path / "art", words)


def test_what_the_forger_does_is_read_where_it_is_right(tmp_path: Path) -> None:
    declared = declare([4, 100], 2)
    forge(tmp_path / "art", declared, coded(codes(3, 255, 0), torch.ones(2)))
    found = artifact.read(tmp_path / "art")
    assert found.tensors["w"].flatten().nonzero().flatten().tolist() == [3, 259]
    assert found.masks["w"].sum() == 2


@settings(max_examples=100, deadline=None)
@given(gap=st.binary(max_size=40), total=st.integers(0, 12_000), kept=st.integers(0, 40))
def test_random_bytes_as_gaps_are_decoded_or_refused(gap: bytes, total: int, kept: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "art"
        forge(folder, declare([total], kept), coded(codes(*gap), torch.ones(kept)))
        try:
            found = artifact.read(folder)
        except DamagedFile:
            refused(folder)
        else:
            assert found.masks["w"].sum() == kept == sum(code != 255 for code in gap)
            assert found.tensors["w"].shape == (total,)


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        header(b""),
        header(b"{"),
        header(b"\xff\xff"),
        header(b'{"a":' + b"[" * 100_000),
        (2**63).to_bytes(8, "little") + b"{}",
        header(b'{"__metadata__":{"a":1}}'),
        header(b'{"dense/a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"123"),
        header(b'{"dense/a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"1234"),
        header(b'{"dense/a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"),
        header(b'{"dense/a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"1"),
        header(b'{"dense/a":{"dtype":"X","shape":[2],"data_offsets":[0,1]}}', b"1"),
        header(b'{"dense/a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}', b"\1\2"),
        header(
            b'{"dense/a":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],'
            b'"data_offsets":[0,0]}}'
        ),
        header(b'{"dense/a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'),
        b"\x80\x04\x95pickle",
    ],
)
def test_a_weights_file_of_another_kind_with_a_right_manifest(
    tmp_path: Path, content: bytes
) -> None:
    forge(tmp_path / "art", {}, {})
    (tmp_path / "art" / artifact.WEIGHTS).write_bytes(content)
    sign(tmp_path / "art")
    refused(tmp_path / "art", artifact.WEIGHTS)
