"""Whatever three files say, reading them gives the network or a line that names the file.

The same holds for the library's two ways of reading (`artifact.read`, `n2nfx.load`) and for
`n2nfx verify`; and whatever they say, nothing is unpickled.
"""

import copy
import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import n2nfx
from n2nfx import artifact, lock
from n2nfx.cli import main
from n2nfx.errors import DamagedFile, N2nfxError, UsageError
from n2nfx.outcome import Outcome

FILES = (artifact.PLAN, artifact.WEIGHTS, artifact.MANIFEST)
NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    )

def other():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
"""


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def small(seed: int = 0) -> Outcome:
    return n2nfx.transform(
        build(), density=0.5, skip_ratio=0.4, hops=(2,), seed=seed, example=torch.zeros(1, 4)
    )


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


# Three ways to read: each gives None, or what it says against the files.


def by_reading(folder: Path) -> str | None:
    try:
        artifact.read(folder)
    except DamagedFile as error:
        return str(error)
    return None


def by_loading(folder: Path) -> str | None:
    try:
        n2nfx.load(folder, build())
    except DamagedFile as error:
        return str(error)
    return None


def by_verifying(folder: Path, *arguments: object) -> str | None:
    """The one line on stderr, with the exit code of a damaged file; never a traceback."""
    result = verify(folder, *arguments)
    return None if result.exit_code == 0 else _line(result, DamagedFile)


def _line(result: Result, error: type[N2nfxError]) -> str:
    assert result.exit_code == error.exit_code, (result.output, result.exception)
    assert result.stdout == ""
    *narration, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not any(told.startswith("error: ") or "Traceback" in told for told in narration)
    return line


READERS = pytest.mark.parametrize("reader", [by_reading, by_loading, by_verifying])
Reader = Callable[[Path], str | None]


class _Unpickler(pickle.Unpickler):
    """Forbidden while the tests run; torch may have made subclasses of it by then."""

    forbidden = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        assert not self.forbidden, "something was unpickled"
        super().__init__(*arguments, **options)


@pytest.fixture(scope="module", autouse=True)
def no_pickle() -> Iterator[None]:
    """Every way of unpickling ends the test."""

    def unpickled(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "loads"):
            patch.setattr(pickle, name, unpickled)
        patch.setattr(torch, "load", unpickled)
        patch.setattr(pickle, "Unpickler", _Unpickler)
        yield
        _Unpickler.forbidden = False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small artifact with skips, whose model comes from a file."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "net.py").write_text(NET)
    outcome = n2nfx.transform(
        f"{folder}/net.py:build", density=0.5, skip_ratio=0.4, hops=(2,), input_shape=(4,)
    )
    outcome.save(folder / "out")
    return {name: (folder / "out" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the function that builds the model again, and another's."""
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return file


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        rewrite(folder / name, bytes(data))
    return folder


def rewrite(file: Path, data: bytes) -> None:
    """Write a file anew: a file system may wait for the disk where one is cut off and filled."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def signed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with the right manifest for whatever they say."""
    lines = [f"{sha256(files[name]).hexdigest()}  {name}\n" for name in FILES[:2]]
    return {**files, artifact.MANIFEST: "".join(lines).encode()}


def planned(
    files: dict[str, bytes], change: Callable[[dict[str, Any]], object]
) -> dict[str, bytes]:
    """The files with a changed plan, and right hashes."""
    plan = json.loads(files[artifact.PLAN])
    change(plan)
    return signed({**files, artifact.PLAN: json.dumps(plan).encode()})


# What verify says of a whole one


@READERS
def test_a_whole_artifact_is_read(reader: Reader, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert reader(put(tmp_path / "out", whole)) is None


def test_the_text_and_the_data_say_what_was_checked_and_what_it_is(
    whole: dict[str, bytes], tmp_path: Path, net: Path
) -> None:
    folder = put(tmp_path / "out", whole)
    for arguments, rebuilt in ((), False), (("--model", f"{net}:build"), True):
        data = json.loads(verify(folder, *arguments, "--json").stdout)
        assert data["schema"] == "n2nfx.verify/1"
        assert data["files"] == {name: len(whole[name]) for name in sorted(FILES)}
        assert data["model"].endswith("net.py:build")
        assert data["counts"]["kept"] == 34
        assert data["density"] == 34 / 69
        assert data["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert data["rebuilt"] == rebuilt
        assert data["notes"] == []
        text = verify(folder, *arguments).stdout
        for piece in ("net.py:build", "34 of 69 weights", "20 sequential + 14 in skips", "torch"):
            assert piece in text
        assert ("built again" in text) == rebuilt


def test_a_named_model_is_rebuilt_by_its_name(tmp_path: Path) -> None:
    n2nfx.transform("n2nfx:mlp", density=0.01).save(tmp_path / "out")
    assert json.loads(verify(tmp_path / "out", "--rebuild", "--json").stdout)["rebuilt"]


@pytest.mark.parametrize("made_from", ["a file", "a module"])
def test_a_model_that_must_be_handed_in_is_asked_for(
    made_from: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    if made_from == "a file":
        put(tmp_path / "out", whole)
    else:
        small().save(tmp_path / "out")
    result = verify(tmp_path / "out", "--rebuild")
    assert result.exit_code == 2
    assert "--model file.py:function" in result.stderr
    assert verify(tmp_path / "out").exit_code == 0


def test_other_versions_and_other_masks_are_notes_and_no_faults(tmp_path: Path) -> None:
    one = small()
    one.network.module.load_state_dict(small(seed=1).network.module.state_dict())
    one.save(tmp_path / "same-count")
    assert json.loads(verify(tmp_path / "same-count", "--json").stdout)["notes"] == []
    files = {name: (tmp_path / "same-count" / name).read_bytes() for name in FILES}

    def older(plan: dict[str, Any]) -> None:
        plan["versions"]["torch"] = "2.9.0"
        plan["steps"][-1]["nnz"] = [40, 40]

    result = verify(put(tmp_path / "out", planned(files, older)))
    assert result.exit_code == 0
    assert (
        f"written with torch 2.9.0; here is {torch.__version__.partition('+')[0]}" in result.stdout
    )
    assert "the masks were changed after the last step: it left 40 weights" in result.stdout


def test_names_cannot_write_on_the_terminal(whole: dict[str, bytes], tmp_path: Path) -> None:
    def colour(plan: dict[str, Any]) -> None:
        plan["origin"]["name"] = "\x1b[31mred\n"

    result = verify(put(tmp_path / "out", planned(whole, colour)))
    assert "\\x1b[31mred\\n" in result.stdout
    assert "\x1b" not in result.output

    def bell(plan: dict[str, Any]) -> None:
        plan["kept"]["\a\n"] = 1

    assert "\a" not in str(by_verifying(put(tmp_path / "out", planned(whole, bell))))


# Damage that the hashes show


@READERS
def test_a_flipped_bit_anywhere_is_noticed(
    reader: Reader, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder, draw = put(tmp_path / "out", whole), random.Random(0)
    for _ in range(1000):
        name = draw.choice(FILES)
        data = bytearray(whole[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        rewrite(folder / name, bytes(data))
        told = reader(folder)
        assert told is not None
        assert any(str(folder / file) in told for file in (name, artifact.PLAN, artifact.WEIGHTS))
        rewrite(folder / name, whole[name])
    assert reader(folder) is None


@READERS
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_at_any_byte_is_noticed(
    reader: Reader, name: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = put(tmp_path / "out", whole)
    for length in range(len(whole[name])):
        rewrite(folder / name, whole[name][:length])
        told = reader(folder)
        assert told is not None
        assert str(folder / name) in told


@pytest.mark.parametrize("name", FILES[:2])
def test_a_file_cut_off_at_any_byte_is_noticed_under_right_hashes(
    name: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """All but JSON's last newline, without which it says the same."""
    for length in range(len(whole[name]) - (name == artifact.PLAN)):
        files = signed({**whole, name: whole[name][:length]})
        told = by_verifying(put(tmp_path / "out", files))
        assert told is not None
        assert str(tmp_path / "out" / name) in told


@READERS
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_one_too_many_are_named(
    reader: Reader, name: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = put(tmp_path / "out", whole)
    (folder / name).unlink()
    assert f"{folder / name}: is missing" in str(reader(folder))
    (folder / name).write_bytes(whole[name])
    (folder / f"{name}.bak").write_bytes(whole[name])
    assert f"{name}.bak" in str(reader(folder))


@READERS
@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_random_bytes_as_a_file_are_refused(
    reader: Reader, name: str, sign: bool, whole: dict[str, bytes], tmp_path: Path
) -> None:
    draw = random.Random(0)
    for size in [*range(40), 1000, 100_000]:
        files = {**whole, name: draw.randbytes(size)}
        folder = put(tmp_path / "out", signed(files) if sign and name in FILES[:2] else files)
        assert str(folder / name) in str(reader(folder))


@READERS
def test_a_pickle_as_a_file_is_refused_and_not_opened(
    reader: Reader, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for name in FILES[:2]:
        files = signed({**whole, name: pickle.dumps({"a": 1})})
        assert str(tmp_path / "out" / name) in str(reader(put(tmp_path / "out", files)))


# Plans under right hashes


@READERS
def test_a_plan_of_a_newer_version_says_to_update(
    reader: Reader, whole: dict[str, bytes], tmp_path: Path
) -> None:
    files = planned(whole, lambda plan: plan.update(format="n2nfx.artifact/3", new={}))
    told = str(reader(put(tmp_path / "out", files)))
    assert str(tmp_path / "out" / artifact.PLAN) in told
    assert "update n2nfx" in told


@READERS
def test_the_plan_of_another_model_is_refused(
    reader: Reader, whole: dict[str, bytes], tmp_path: Path
) -> None:
    n2nfx.transform("n2nfx:mlp", density=0.01, skip_ratio=0.5).save(tmp_path / "other")
    plan = (tmp_path / "other" / artifact.PLAN).read_bytes()
    folder = put(tmp_path / "out", signed({**whole, artifact.PLAN: plan}))
    assert str(folder / artifact.WEIGHTS) in str(reader(folder))


def test_a_wrong_model_handed_in_is_refused(
    whole: dict[str, bytes], tmp_path: Path, net: Path
) -> None:
    folder = put(tmp_path / "out", whole)
    for wrong in (f"{net}:other", "n2nfx:mlp", "timm:resnet18"):
        assert str(folder) in str(by_verifying(folder, "--model", wrong))
    mistyped = {f"{net}:bild": "did you mean build", f"{net.parent}/nte.py:build": "net.py"}
    for wrong, meant in mistyped.items():
        assert meant in _line(verify(folder, "--model", wrong), UsageError)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_was_moved_to_another_precision_is_verified_in_it(
    dtype: torch.dtype, tmp_path: Path, net: Path
) -> None:
    outcome = n2nfx.transform(
        f"{net}:build", density=0.5, skip_ratio=0.4, hops=(2,), input_shape=(4,)
    )
    outcome.network.module.to(dtype)
    outcome.save(tmp_path / "out")
    assert by_verifying(tmp_path / "out", "--model", f"{net}:build") is None


@READERS
@pytest.mark.parametrize("depth", [10, 500, 900, 100_000])
def test_deeply_nested_json_is_refused(
    reader: Reader, depth: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    nested = b"[" * depth + b"]" * depth
    for value in (nested, b'{"x": ' * depth + b"1" + b"}" * depth):
        text = whole[artifact.PLAN].replace(b'"steps": [', b'"steps": [' + value + b", ", 1)
        folder = put(tmp_path / "out", signed({**whole, artifact.PLAN: text}))
        told = reader(folder)
        if reader is not by_reading or depth == 100_000:
            assert f"{folder / artifact.PLAN}: " in str(told)


NUMBERS = re.compile(rb"(?<=[ \[])-?\d+(?:\.\d+)?(?=[,\n])")


@pytest.mark.parametrize("number", ["1" * 4000, "1" * 5000, "-" + "1" * 4000, "1e308", "1e999"])
def test_a_huge_number_anywhere_gives_an_artifact_or_a_message(
    number: str, whole: dict[str, bytes], tmp_path: Path, net: Path
) -> None:
    text = whole[artifact.PLAN]
    found = list(NUMBERS.finditer(text))
    assert len(found) > 50
    for match in found:
        huge = text[: match.start()] + number.encode() + text[match.end() :]
        folder = put(tmp_path / "out", signed({**whole, artifact.PLAN: huge}))
        for arguments in ((), ("--model", f"{net}:build")):
            told = by_verifying(folder, *arguments)
            assert told is None or str(folder) in told


def test_bits_flipped_under_right_hashes_give_an_artifact_or_a_message(
    whole: dict[str, bytes], tmp_path: Path, net: Path
) -> None:
    draw, read = random.Random(1), 0
    for _ in range(500):
        name = draw.choice(FILES[:2])
        data = bytearray(whole[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        folder = put(tmp_path / "out", signed({**whole, name: bytes(data)}))
        told = by_verifying(folder)
        assert told is None or str(folder) in told
        rebuilt = by_verifying(folder, "--model", f"{net}:build")
        assert rebuilt is None or str(folder) in rebuilt
        assert told is None or rebuilt is not None
        read += told is None
    assert 20 < read < 480


STRIDED = """
from torch import nn

def build():
    def conv(into, out, stride):
        return nn.Conv2d(into, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*conv(3, 4, 1), *conv(4, 6, 2), *conv(6, 6, 1), *pooled, nn.Linear(6, 5))
"""


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("stride", [1, 1], "the network cannot run; after skips.0__6"),
        ("stride", [8, 8], "a branch gives 6x1x1 and its target has 6x4x4"),
        ("places", [2, 8], r"skip 'skips.0__6' gives \[4, 4\] places, not \[2, 8\]"),
        ("stride", [4, 4], "the network cannot run"),
        ("padding", [0, 0], "the network cannot run"),
        ("padding", [9, 9], "the network cannot run"),
        ("stride", [0, 0], "cannot run|cannot be built again"),
        ("stride", [2, 2, 2], "cannot run|cannot be built again"),
        ("padding", [-1, -1], "cannot run|cannot be built again"),
    ],
)
def test_a_branch_of_another_stride_padding_or_places_is_refused(
    key: str, value: list[int], told: str, tmp_path: Path
) -> None:
    """By what the module there is set to, and by a run where that is not recorded."""
    net = tmp_path / "net.py"
    net.write_text(STRIDED)
    n2nfx.transform(
        f"{net}:build", density=0.5, skip_ratio=0.3, hops=(2,), input_shape=(3, 8, 8)
    ).save(tmp_path / "whole")
    files = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}
    assert by_verifying(tmp_path / "whole", "--model", f"{net}:build") is None

    def change(plan: dict[str, Any]) -> None:
        (skip,) = [skip for skip in plan["steps"][-1]["skips"] if skip["name"] == "skips.0__6"]
        assert (skip["stride"], skip["padding"], skip["places"]) == ([2, 2], [1, 1], [4, 4])
        skip[key] = value

    folder = put(tmp_path / "out", planned(files, change))
    first = str(by_verifying(folder, "--model", f"{net}:build"))
    assert key == "places" or f"skips.0__6 has {key}" in first or "built again" in first

    def forget(plan: dict[str, Any]) -> None:
        change(plan)
        del plan["settings"]["skips.0__6"]

    folder = put(tmp_path / "forged", planned(files, forget))
    line = str(by_verifying(folder, "--model", f"{net}:build"))
    assert str(folder) in line
    assert re.search(told, line), line


@READERS
@pytest.mark.parametrize(
    ("key", "value"),
    [("num_classes", 0), ("num_classes", -3), ("num_classes", 2**40),
     ("input_shape", []), ("input_shape", [0]), ("input_shape", [2**20, 2**20])],
)  # fmt: skip
def test_a_model_that_nobody_can_build_is_refused(
    reader: Reader, key: str, value: object, whole: dict[str, bytes], tmp_path: Path, net: Path
) -> None:
    """As damage, though the model is handed in: the numbers are the plan's."""

    def change(plan: dict[str, Any]) -> None:
        plan["origin"][key] = value

    folder = put(tmp_path / "out", planned(whole, change))
    assert reader is by_reading or key in str(reader(folder))
    assert key in str(by_verifying(folder, "--model", f"{net}:build"))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 10**12, -(10**4000), 10**4000]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["input", "0.weight", "timm:resnet18", "quint8", "complex64", "n2nfx:mlp"]),
    st.lists(st.integers(-2, 3), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside JSON data."""
    inner = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else inner:
        yield (*at, key)
        yield from places(part, (*at, key))


def changed(plan: dict[str, Any], at: tuple[Any, ...], how: str, value: object) -> None:
    """Put another value at a place; or take it away, name it otherwise, or have it twice."""
    holder: Any = plan
    for key in at[:-1]:
        holder = holder[key]
    if how == "set":
        holder[at[-1]] = copy.deepcopy(value)
    elif how == "remove":
        del holder[at[-1]]
    elif isinstance(holder, dict):
        holder[f"{at[-1]}x"] = holder.pop(at[-1])
    else:
        holder.append(holder[at[-1]])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_change_of_the_plan_gives_an_artifact_or_a_message(
    whole: dict[str, bytes],
    net: Path,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    where = list(places(json.loads(whole[artifact.PLAN])))
    changes = data.draw(
        st.lists(
            st.tuples(st.sampled_from(where), st.sampled_from(["set", "remove", "rename"]), ODD),
            min_size=1, max_size=1,
        )
    )  # fmt: skip

    def change(plan: dict[str, Any]) -> None:
        for at, how, value in changes:
            changed(plan, at, how, value)

    folder = put(tmp_path_factory.getbasetemp() / "changed", planned(whole, change))
    told = by_verifying(folder)
    rebuilt = by_verifying(folder, "--model", f"{net}:build")
    assert told is None or str(folder) in told
    assert rebuilt is None or str(folder) in rebuilt
    assert told is None or rebuilt is not None  # to rebuild checks no less


# Writers that end in the middle, and two at once

# Two outcomes are saved in turn by children, each of which is killed at a random moment of the
# two saves after its second.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path

import torch
from torch import nn

import n2nfx
from n2nfx import recorded

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
outcomes = [
    n2nfx.transform(model, density=d, skip_ratio=0.4, hops=(2,), example=torch.zeros(1, 4))
    for d in (0.4, 0.6)
]
target = Path(sys.argv[1]) / "out"
seen = set()
for turn in range(15):
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        for at in range(turn, 10**9):
            outcomes[at % 2].save(target, force=True)
            os.write(writable, b".")
    os.close(writable)
    os.read(readable, 1)
    start = time.monotonic()
    os.read(readable, 1)
    time.sleep(random.uniform(0, 2) * (time.monotonic() - start))
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found = recorded.read(target)
    assert n2nfx.load(target, model).nnz == found.network.nnz
    seen.add(found.network.nnz)
outcomes[0].save(target, force=True)
assert os.listdir(target.parent) == ["out"], os.listdir(target.parent)
print(sorted(seen) == sorted(outcome.network.nnz for outcome in outcomes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs an exchange in one step")
def test_a_save_that_is_killed_leaves_the_old_or_the_new_artifact(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"  # both were seen
    assert verify(tmp_path / "out").exit_code == 0


def test_a_disk_that_fills_up_keeps_the_old_artifact(small_disk: Path) -> None:
    small().save(small_disk / "out")
    command = ["transform", "n2nfx:mlp", "--density", "0.2", "--out", str(small_disk / "out")]
    result = CliRunner().invoke(main, [*command, "--force"])
    assert result.exit_code == 3
    assert "No space left on device" in result.stderr
    assert verify(small_disk / "out").exit_code == 0
    assert os.listdir(small_disk) == ["out"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_transform_is_told_of_another_writer(force: list[str], tmp_path: Path) -> None:
    command = ["transform", "n2nfx:mlp", "--density", "0.01", "--out", str(tmp_path / "out")]
    with lock.held(tmp_path / ".out.partial-lock"):
        result = CliRunner().invoke(main, [*command, *force])
    assert result.exit_code == 2
    assert f"out: another writer is at work on it (process {os.getpid()} on " in result.stderr
    assert CliRunner().invoke(main, [*command, *force]).exit_code == 0


# What is typed


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["verfy", "out"], 2, "did you mean verify?"),
        (["verify"], 2, "DIRECTORY"),
        (["verify", "out", "--rebuidl"], 2, "--rebuild"),
        (["verify", "out", "--modle", "x"], 2, "--model"),
        (["verify", "out", "more"], 2, "more"),
        (["verify", "no/such"], 4, "no/such: is no directory that can be read"),
        (["verify", __file__], 4, "test_verify.py: is no directory that can be read"),
    ],
)
def test_bad_input_gets_a_line_that_says_what_would_work(
    arguments: list[str], code: int, told: str
) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert told in result.stderr
    assert "Traceback" not in result.output
