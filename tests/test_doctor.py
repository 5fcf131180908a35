"""What is missing, broken or old is a line and a command; nothing of it ends the doctor."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from n2nfx import catalogue
from n2nfx import doctor as library
from n2nfx.cli import main
from n2nfx.doctor import Finding, data, imports, machine, packages
from n2nfx.doctor.imports import Tried, try_imports
from n2nfx.doctor.packages import Need, release

Usage = namedtuple("Usage", "total used free")


def process(*arguments: str, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a folder first on its path."""
    path = os.pathsep.join(filter(None, [first and str(first), *sys.path]))
    return subprocess.run(
        [sys.executable, "-m", "n2nfx", "doctor", *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def stub(folder: Path, name: str, code: str) -> Path:
    """A package of that name whose import runs the code."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    return folder


def listed(result: subprocess.CompletedProcess[str] | Result) -> dict[str, dict[str, Any]]:
    """The findings that were printed as JSON, by name."""
    shown = json.loads(result.stdout)
    assert shown["schema"] == "n2nfx.doctor/1"
    return {finding["name"]: finding for finding in shown["findings"]}


# As it is here


def test_here_it_works_and_says_what_there_is() -> None:
    result = process("--json")
    assert result.returncode == 0, result.stderr
    found = listed(result)
    assert json.loads(result.stdout)["works"]
    for name in ("torch", "torchvision", "timm", "numpy", "click", "pydantic", "safetensors"):
        assert (found[name]["state"], found[name]["required"]) == ("ok", True), found[name]
    assert "build" in found["torch"]["detail"]
    assert "its instructions" in found["cpu"]["detail"]
    assert {finding["topic"] for finding in found.values()} == {
        "packages", "devices", "tools", "room", "data"
    }  # fmt: skip


def test_the_doctor_itself_imports_none_of_its_patients() -> None:
    code = (
        "import sys\nfrom n2nfx.cli import main\n"
        "try: main(['doctor'])\nexcept SystemExit: pass\n"
        "loaded = {'torch', 'numpy', 'timm', 'rich', 'pydantic'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Packages that are broken, in real processes


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('libcudart.so: cannot open\\nmore')", "ImportError: libcudart.so"),
        ("raise OSError('undefined symbol')", "OSError: undefined symbol"),
        ("raise SystemExit(5)", "SystemExit: 5"),
        ("print('hello'); raise ValueError", "ValueError"),
        ("import os; os._exit(3)", "importing it ends the process with code 3"),
        ("import os; os._exit(0)", "importing it ends the process with code 0"),
        ("import os; os.abort()", "importing it ends the process by SIGABRT"),
        ("import os; os.write(1, b'x' * 9)\nos.kill(os.getpid(), 11)", "by SIGSEGV"),
    ],
)
def test_a_broken_torch_is_a_line_with_a_command(tmp_path: Path, code: str, told: str) -> None:
    result = process("--json", first=stub(tmp_path, "torch", code))
    assert result.returncode == 3, result.stderr
    assert result.stderr == ""
    found = listed(result)
    assert found["torch"]["state"] == "broken"
    assert told in found["torch"]["detail"]
    assert "more" not in found["torch"]["detail"]
    assert found["torch"]["remedy"].startswith("pip install --upgrade --force-reinstall torch tor")
    assert found["numpy"]["state"] == found["safetensors"]["state"] == "ok"
    assert not json.loads(result.stdout)["works"]


def test_an_empty_torch_says_nothing_of_devices_and_breaks_those_who_need_it(
    tmp_path: Path,
) -> None:
    found = listed(process("--json", first=stub(tmp_path, "torch", "")))
    assert found["torchvision"]["state"] == "broken"
    assert "cores" in found["cpu"]["detail"]
    assert "instructions" not in found["cpu"]["detail"]


def test_a_torchvision_of_another_torch_is_told_to_fit(tmp_path: Path) -> None:
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    result = process(first=stub(tmp_path, "torchvision", code))
    assert result.returncode == 3
    assert "nms does not exist; it must be the release that belongs to the torch" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("n2nfx cannot work here: torchvision")


def test_an_import_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, "torch", "")
    monkeypatch.syspath_prepend(str(stub(tmp_path, "sleeper", "import time\ntime.sleep(99)")))
    tried = try_imports(["json", "sleeper", "csv"], seconds=5)
    assert tried.errors == {"sleeper": "importing it takes more than 5 seconds"}
    assert tried.end == ""


def test_a_driver_that_crashes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os\nclass version:\n    pass\ndef get_num_threads():\n    os.abort()\n"
    monkeypatch.syspath_prepend(str(stub(tmp_path, "torch", code)))
    tried = try_imports(["torch"])
    assert (tried.errors, tried.end) == ({}, "ends the process by SIGABRT")
    (gpu,) = [finding for finding in machine.examine_machine(tried) if finding.name == "gpu"]
    assert gpu.detail == "asking torch for its devices ends the process by SIGABRT"


# Packages that are missing or old, by their metadata


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions by package, to be changed; what is not there is not installed."""
    versions = {"n2nfx": "0.1.0", "torch": "2.14.1", "torchvision": "0.29.1", "timm": "1.0.31"}

    def version(name: str) -> str:
        if name not in versions:
            raise packages.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(library, "try_imports", lambda names: Tried(torch={"build": "CPU"}))
    needs = [Need("torch", "2.9"), Need("torchvision", "0.24"), Need("timm", "1.0.19")]
    monkeypatch.setattr(library, "requirements", lambda: needs)
    return versions


def test_what_n2nfx_asks_for_is_read_from_its_own_metadata() -> None:
    """All of it, and nothing of the extras."""
    needs = [f"{need.name}>={need.least}" for need in packages.requirements()]
    assert needs == [line for line in requires("n2nfx") or [] if "extra ==" not in line]
    assert "torch>=2.9" in needs


def test_a_missing_package_is_told_with_its_command(installed: dict[str, str]) -> None:
    assert run().exit_code == 0
    del installed["timm"]
    result = run()
    assert result.exit_code == 3
    assert "missing timm" in result.stdout
    assert "pip install --upgrade 'timm>=1.0.19'" in result.stdout
    assert result.stdout.endswith("n2nfx cannot work here: timm\n")


def test_a_package_that_is_too_old_stops_the_work(installed: dict[str, str]) -> None:
    installed["timm"] = "1.0.9"
    found = listed(run("--json"))
    assert found["timm"]["state"] == "broken"
    assert found["timm"]["detail"] == "1.0.9: 1.0.19 or newer is needed"
    assert run("--json").exit_code == 3


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.9.1", "warning"), ("2.9.1+cpu", "warning"), ("2.10.0", "ok"), ("2.14.1+cu130", "ok")],
)
def test_a_torch_whose_unpickler_is_unsafe_is_a_warning(
    installed: dict[str, str], version: str, state: str
) -> None:
    installed["torch"] = version
    torch = listed(run("--json"))["torch"]
    assert torch["state"] == state
    assert ("CVE-2026-24747" in torch["detail"]) == (state == "warning")
    assert torch["remedy"].endswith("/whl/cpu") == version.endswith("+cpu")
    assert run().exit_code == 0


def test_n2nfx_that_is_not_installed_is_told(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del installed["n2nfx"]

    def unknown(name: str) -> list[str]:
        raise packages.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", unknown)
    monkeypatch.setattr(library, "requirements", packages.requirements)
    result = run()
    assert result.exit_code == 3
    assert "pip install n2nfx" in result.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [("2.9", "2.10"), ("2.9.1", "2.10"), ("1.0.9", "1.0.19"), ("2.9", "2.9.1"), ("x", "0.1")],
)
def test_releases_are_compared_by_their_numbers(old: str, new: str) -> None:
    assert release(old) < release(new)
    assert release(f"{old}.0+cpu") == release(old)


# The machine


def named(tried: Tried, name: str) -> Finding:
    (finding,) = [one for one in machine.examine_machine(tried) if one.name == name]
    return finding


def test_gpus_are_named_with_their_memory() -> None:
    gpus = [{"name": "H100", "bytes": 80 * 2**30}, {"name": "T4", "bytes": 15 * 2**30}]
    tried = Tried(torch={"build": "CUDA 13.0", "gpus": gpus, "mps": False})
    assert named(tried, "gpu 0").detail == "H100, 80.0 GiB"
    assert named(tried, "gpu 1").state == "ok"
    assert named(Tried(torch={"gpus": [], "mps": True}), "mps").state == "ok"
    assert named(Tried(), "gpu").state == "missing"


def command(folder: Path, name: str, script: str = "exit 0") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that commands are looked for in."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_a_driver_that_the_cpu_build_does_not_use_is_a_warning(commands: Path) -> None:
    tried = Tried(torch={"build": "CPU", "gpus": [], "mps": False})
    assert named(tried, "gpu").state == "missing"
    command(commands, "nvidia-smi")
    assert named(tried, "gpu").state == "warning"
    assert "pip install" in named(tried, "gpu").remedy


def test_a_compiler_is_found_or_brought(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert named(Tried(), "C++ compiler").remedy == ""  # no manager is known here
    command(commands, "apt-get")
    missing = named(Tried(), "C++ compiler")
    assert (missing.state, missing.remedy) == ("missing", "apt install g++")
    assert "torch.compile" in missing.detail
    command(commands, "clang++", "echo clang 19; echo more")
    assert named(Tried(), "C++ compiler").detail == f"{commands}/clang++, clang 19"
    command(commands, "g++", "exit 1")
    assert named(Tried(), "C++ compiler").detail == f"{commands}/g++"
    command(commands, "icpc")
    monkeypatch.setenv("CXX", "icpc -m64")
    assert named(Tried(), "C++ compiler").detail == f"{commands}/icpc"
    monkeypatch.setenv("CXX", "icpx")
    wrong = named(Tried(), "C++ compiler")
    assert wrong.state == "missing"
    assert "CXX is 'icpx'" in wrong.detail


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((2**36, "ok"), (2**29, "warning")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(2**40, 0, free))
        monkeypatch.setattr(machine, "bytes_of_memory", lambda free=free: (free, 2**37))
        assert named(Tried(), "memory").state == named(Tried(), "disk").state == state
    assert "0.5 GiB free in " in named(Tried(), "disk").detail
    assert "0.5 GiB free of 128.0 GiB" in named(Tried(), "memory").detail


def test_the_memory_of_this_machine_is_known() -> None:
    free, total = machine.bytes_of_memory()
    assert total is not None
    assert total > 2**28
    assert free is None or 0 < free <= total


# The data


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and a place of its own for Debian's package."""
    monkeypatch.setenv("N2NFX_DATA", str(tmp_path))
    fashion = replace(catalogue.ENTRIES["fashion-mnist"], elsewhere=(tmp_path / "debian",))
    entries = {**catalogue.ENTRIES, "fashion-mnist": fashion}
    monkeypatch.setattr(catalogue, "ENTRIES", entries)
    return tmp_path


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def sets() -> dict[str, Finding]:
    return {finding.name: finding for finding in data.find_data()}


def test_missing_data_is_told_with_where_it_was_looked_for_and_what_brings_it(root: Path) -> None:
    found = sets()
    assert found.pop("fashion-mnist-sample").state == "ok"  # it comes with the package
    assert {finding.state for finding in found.values()} == {"missing"}
    assert "n2nfx data fetch fashion-mnist" in found["fashion-mnist"].remedy
    assert "apt install dataset-fashion-mnist" in found["fashion-mnist"].remedy
    assert str(root / "FashionMNIST" / "raw") in found["fashion-mnist"].detail
    assert str(root / "debian") in found["fashion-mnist"].detail
    assert found["cifar10"].remedy == "n2nfx data fetch cifar10"
    assert str(root / "imagenet") in found["imagenet"].remedy


def test_data_is_found_where_fetch_and_debian_put_it(root: Path) -> None:
    parts = [f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]
    fill(root / "debian", *(f"{part}.gz" for part in parts))
    assert sets()["fashion-mnist"].detail == str(root / "debian")
    fill(root / "FashionMNIST" / "raw", *parts)
    assert sets()["fashion-mnist"].detail == str(root / "FashionMNIST" / "raw")
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    fill(root / "cifar-10-batches-bin", "test_batch.bin", *batches)
    fill(root / "cifar-100-binary", "train.bin", "test.bin")
    fill(root / "imagenet", "train", "val")
    assert {finding.state for finding in sets().values()} == {"ok"}


def test_data_of_which_a_part_is_missing_is_a_warning_that_names_it(root: Path) -> None:
    batches = [f"data_batch_{number}.bin" for number in range(1, 5)]
    fill(root / "cifar-10-batches-bin", "test_batch.bin", *batches)
    assert sets()["cifar10"].state == "warning"
    assert "lacks data_batch_5.bin" in sets()["cifar10"].detail


def test_a_data_folder_that_is_none_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2NFX_DATA", str(root / "not there"))
    assert sets()["N2NFX_DATA"].state == "warning"
    assert sets()["N2NFX_DATA"].remedy == f"mkdir -p '{root}/not there'"
    monkeypatch.delenv("N2NFX_DATA")
    monkeypatch.setenv("HOME", str(root))
    assert str(root / ".cache" / "n2nfx") in sets()["cifar10"].detail


# What is typed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["docter"], "did you mean doctor?"),
        (["doctor", "--jsno"], "--json"),
        (["doctor", "torch"], "torch"),
    ],
)
def test_bad_input_gets_a_line_that_says_what_would_work(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_the_child_is_told_how_it_ended() -> None:
    assert imports._ending(-64) == "ends the process by SIGRTMAX"
    assert imports._ending(-200) == "ends the process by signal 200"
