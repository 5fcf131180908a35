"""The build table names every package, the links are in place, importing costs nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_in_the_build_table() -> None:
    table = SETTINGS["tool"]["setuptools"]
    named = {ROOT / table["package-dir"].get(p, p.replace(".", "/")) for p in table["packages"]}
    found = {file.parent for top in ("n2nfx", "passes") for file in (ROOT / top).rglob("*.py")}
    found = {folder for folder in found if not folder.is_relative_to(ROOT / "n2nfx" / "passes")}
    assert found | {ROOT / "recipes"} == named


@pytest.mark.parametrize("name", ["passes", "recipes"])
def test_the_links_lead_to_the_top_folders(name: str) -> None:
    assert (ROOT / "n2nfx" / name).is_symlink()
    assert (ROOT / "n2nfx" / name).resolve() == ROOT / name


def test_passes_refuse_another_name() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import passes"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert "import n2nfx.passes" in result.stderr


def test_the_package_is_typed_and_its_public_names_resolve() -> None:
    import n2nfx

    assert (ROOT / "n2nfx" / "py.typed").exists()
    for name in dir(n2nfx):
        assert getattr(n2nfx, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = n2nfx.no_such_name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, n2nfx; assert not {'torch', 'numpy', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dependencies_have_lower_bounds_and_no_upper_ones() -> None:
    for line in SETTINGS["project"]["dependencies"]:
        assert ">=" in line, line
        assert "<" not in line, line


def test_the_wheel_has_the_passes_and_recipes(tmp_path: Path) -> None:
    """Built from a tree without links, as a system that knows none would check it out."""
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    subprocess.run(
        [sys.executable, "-c", build], check=True, cwd=_copy(tmp_path), capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in (
        "n2nfx/passes/n2nskip.py", "n2nfx/py.typed", "n2nfx/tracing/recorder.py",
        "n2nfx/recipes/table1.toml", "n2nfx/recipes/_paper.toml",
        "n2nfx/training/sample/t10k-labels-idx1-ubyte.gz", "n2nfx/training/sample/LICENSE",
    ):  # fmt: skip
        assert name in names


def _copy(folder: Path) -> Path:
    """The tree, its links left out."""
    import shutil

    target = folder / "tree"
    shutil.copytree(
        ROOT, target, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"),
        symlinks=True,
    )  # fmt: skip
    for link in (target / "n2nfx" / "passes", target / "n2nfx" / "recipes"):
        link.unlink()
    return target
