"""The artifact on disk: lossless, and never believed before it is checked."""

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from n2nfx import artifact
from n2nfx.errors import CannotOperate, DamagedFile, UsageError

State = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]


def sample(seed: int = 0) -> State:
    """A small artifact with every coding, every dtype of a weight, and plain tensors."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "sparse.weight": torch.rand(8, 5, 3, 3, generator=generator) < 0.05,
        "dense.weight": torch.rand(6, 7, generator=generator) < 0.95,
        "full.weight": torch.ones(4, 4, dtype=torch.bool),
        "empty.weight": torch.zeros(30, 30, dtype=torch.bool),
    }
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = {
        name: torch.randn(mask.shape, generator=generator).where(mask, 0).to(dtype)
        for (name, mask), dtype in zip(masks.items(), dtypes, strict=True)
    }
    tensors["bn.running_mean"] = torch.randn(6, generator=generator)
    tensors["bn.num_batches_tracked"] = torch.tensor(17 + seed)
    plan = {"model": "resnet18", "steps": ["a", {"b": [1, 2.5, None]}], "seed": seed}
    return plan, tensors, masks


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
    """The directory is refused with a DamagedFile whose message has the words."""
    with pytest.raises(DamagedFile) as caught:
        artifact.verify(folder)
    for word in words:
        assert word in str(caught.value)


# Round trips


def test_a_large_weight_at_two_percent_costs_less_than_six_bytes_a_weight(tmp_path: Path) -> None:
    mask = torch.rand(512, 512, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.02
    paths = artifact.write(tmp_path / "out", {}, {"w": mask.float()}, {"w": mask})
    assert sum(path.stat().st_size for path in paths) < 6 * int(mask.sum())


def test_any_state_comes_back(tmp_path: Path) -> None:
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
    artifact.write(tmp_path / "out", {}, tensors, masks)
    found = artifact.read(tmp_path / "out")
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
    paths = artifact.write(tmp_path / "again", plan, found.tensors, found.masks)
    assert paths == tuple(tmp_path / "again" / path.name for path in paths)
    assert {path.name for path in paths} == set(os.listdir(folder))
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in paths)


def test_the_files_are_what_they_are_said_to_be(folder: Path) -> None:
    text = (folder / "plan.json").read_text()
    plan = json.loads(text)
    assert text == json.dumps(plan, sort_keys=True, indent=2) + "\n"
    assert plan["format"] == "n2nfx.artifact/2"
    assert plan["weights"]["full.weight"] == {"shape": [4, 4], "dtype": "float32", "kept": 16}
    assert artifact.verify(folder) == plan
    sha256sum = shutil.which("sha256sum")
    if sha256sum is not None:
        subprocess.run([sha256sum, "-c", "--strict", "MANIFEST.sha256"], cwd=folder, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_another_device_come_back_on_the_cpu(tmp_path: Path) -> None:
    plan, *state = sample()
    there = [{name: tensor.cuda() for name, tensor in part.items()} for part in state]
    artifact.write(tmp_path / "out", plan, *there)
    assert same(artifact.read(tmp_path / "out"), sample())


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
    assert not os.listdir(tmp_path)


ONES = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("tensors", "masks", "error", "words"),
    [
        ({}, {"w": ONES.bool()}, UsageError, "no tensor of that name"),
        ({"w": ONES}, {"w": ONES}, UsageError, "torch.bool"),
        ({"w": ONES}, {"w": ONES.bool()[0]}, UsageError, "shape"),
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
    assert not os.listdir(tmp_path)


# Where it is written


def test_an_artifact_is_replaced_only_with_force(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"art: exists already; --force \(force=True\)"):
        artifact.require_free(folder, force=False)
    with pytest.raises(UsageError, match=r"art: exists already; --force \(force=True\)"):
        artifact.write(folder, *sample(1))
    assert same(artifact.read(folder), sample())
    artifact.require_free(folder, force=True)
    artifact.write(folder, *sample(1), force=True)
    assert same(artifact.read(folder), sample(1))
    assert os.listdir(tmp_path) == ["art"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "plan.json"])
def test_what_is_no_artifact_is_never_replaced(tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match="artifact"):
        artifact.require_free(tmp_path, force)
    with pytest.raises(UsageError, match="artifact"):
        artifact.write(tmp_path, *sample(), force=force)
    assert os.listdir(tmp_path) == [name]


# Damage


def test_a_path_without_an_artifact(tmp_path: Path) -> None:
    refused(tmp_path / "none", "No such file or directory")
    refused(tmp_path, "plan.json", "is missing")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "Not a directory")


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
            for name, mask in found.masks.items():
                weight = found.tensors[name]
                assert mask.shape == weight.shape
                assert int(mask.sum()) == found.plan["weights"][name]["kept"]
                assert not weight[~mask].view(torch.uint8).any()
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
    broken = Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))
    monkeypatch.setattr(Path, "read_bytes", broken)
    refused(folder, "MANIFEST.sha256: cannot be read", os.strerror(errno.EIO))


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
        (b'{"format": "n2nfx.artifact/3", "weights": 0}', "written by a newer n2nfx"),
        (b'{"format": "n2nfx.artifact/0", "weights": {}}', "format"),
        (b'{"format": "n2nfx.artifact/2"}', "weights"),
        (b'{"format": "n2nfx.artifact/2", "weights": []}', "weights"),
        (b'{"format": "n2nfx.artifact/2", "weights": {}, "weights": {}}', "'weights' stands twice"),
        (b'{"format": "n2nfx.artifact/2", "weights": {}, "x": NaN}', "NaN"),
        (b'{"format": "n2nfx.artifact/2", "weights": {}, "x": 1e999}', "1e999"),
        (b'{"format": "n2nfx.artifact/2", "weights": {}, "x": ' + b"9" * 5000 + b"}", "digits"),
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
    (declare("12", 0), {}, "no weight has"),
    (declare([1.0], 0), {}, "no weight has"),
    (declare([True], 0), {}, "no weight has"),
    (declare([-1, -1], 0), {}, "no weight has"),
    (declare([1] * 1000, 0), {}, "no weight has"),
    (declare([2**50], 0), {}, "no weight has"),
    (declare([0, 2**62, 2**62], 0), {}, "no weight has"),
    (declare([4], 0, "complex64"), {}, "dtype"),
    (declare([4], 0, ["float32"]), {}, "dtype"),
    (declare([4], 5), {"dense/w": torch.ones(4)}, "says 5"),
    (declare([4], -1), {"dense/w": torch.ones(4)}, "says -1"),
    (declare([4], True), {}, "cannot keep"),
    (declare([4], "4"), {}, "cannot keep"),
    # Which entries there are
    (declare([4], 0), {}, "nothing stored"),
    (declare([4], 0), {"gap/w": codes(), "other/w": codes()}, "gap, other stored"),
    ({}, {"gap/w": codes()}, "'gap/w'"),
    ({}, {"w": codes()}, "'w'"),
    ({}, {"dense": codes()}, "'dense'"),
    ({}, {"other/w": codes()}, "'other/w'"),
    ({}, {"dense/w": torch.zeros(1, dtype=torch.float8_e4m3fn)}, "never written"),
    ({}, {"dense/w": torch.zeros(1, dtype=torch.complex64)}, "never written"),
    # Codes that are damaged, and codes of another weight than is declared
    (declare([2**39], 0), coded(codes(), torch.ones(0)), "'w' has 549755813888 elements"),
    (declare([4], 2), coded(codes(0), torch.ones(1)), "says 2"),
    (declare([4], 3), {"dense/w": torch.ones(4)}, "says 3"),
]


@pytest.mark.parametrize(("declared", "stored", "words"), HOSTILE)
def test_hostile_content_with_a_right_manifest(
    tmp_path: Path, declared: Any, stored: dict[str, Tensor], words: str
) -> None:
    forge(tmp_path / "art", declared, stored)
    refused(tmp_path / "art", artifact.WEIGHTS if stored else "art", words)


def test_what_the_forger_does_is_read_where_it_is_right(tmp_path: Path) -> None:
    declared = declare([4, 100], 2)
    forge(tmp_path / "art", declared, coded(codes(3, 255, 0), torch.ones(2)))
    found = artifact.read(tmp_path / "art")
    assert found.tensors["w"].flatten().nonzero().flatten().tolist() == [3, 259]
    assert found.masks["w"].sum() == 2


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
