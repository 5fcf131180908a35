"""The packages that n2nfx needs: installed, new enough, and importable beside each other."""

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version

from n2nfx.doctor.finding import Finding
from n2nfx.doctor.imports import Tried

_NEED = re.compile(r"(?P<name>[\w.-]+)>=(?P<least>[\d.]+)")
_PAIR = ("torch", "torchvision")  # releases of the two belong together
_CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
_SAFE_TORCH = "2.10"
_UNSAFE = (
    f"below {_SAFE_TORCH}, torch.load of a file that somebody else made is unsafe, with "
    "weights_only too (CVE-2026-24747); n2nfx itself unpickles nothing"
)


@dataclass(frozen=True)
class Need:
    """A package, and the oldest release that will do."""

    name: str
    least: str

    @property
    def upgrade(self) -> str:
        """The command that brings it, or a newer one."""
        return f"pip install --upgrade '{self.name}>={self.least}'"

    @property
    def reinstall(self) -> str:
        """The command that brings it anew, with what it must fit."""
        if self.name in _PAIR:
            return _upgrade_pair("--force-reinstall ")
        return f"pip install --force-reinstall '{self.name}>={self.least}'"


def _upgrade_pair(option: str = "") -> str:
    """The command for torch and torchvision together, of the CPU build where it is that one."""
    command = f"pip install --upgrade {option}{' '.join(_PAIR)}"
    return f"{command} --index-url {_CPU_BUILDS}" if version("torch").endswith("+cpu") else command


def requirements() -> list[Need]:
    """What n2nfx's own metadata asks for, extras left out; nothing where it is not installed."""
    try:
        lines = requires("n2nfx") or []
    except PackageNotFoundError:
        return []
    found = [_NEED.fullmatch(line) for line in lines]
    return [Need(match["name"], match["least"]) for match in found if match]


def examine_packages(needs: Sequence[Need], tried: Tried) -> Iterator[Finding]:
    """Python, n2nfx and every package that it needs."""
    yield Finding("packages", "python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield _own()
    for need in needs:
        yield _package(need, tried)


def _own() -> Finding:
    finding = partial(Finding, "packages", "n2nfx", required=True)
    try:
        return finding("ok", version("n2nfx"))
    except PackageNotFoundError:
        return finding("broken", "not installed, so what it needs is unknown", "pip install n2nfx")


def _package(need: Need, tried: Tried) -> Finding:
    finding = partial(Finding, "packages", need.name, required=True)
    try:
        here = version(need.name)
    except PackageNotFoundError:
        return finding("missing", f"{need.least} or newer is needed", need.upgrade)
    if release(here) < release(need.least):
        return finding("broken", f"{here}: {need.least} or newer is needed", need.upgrade)
    if error := tried.errors.get(need.name):
        return finding("broken", f"{here}: {error}{_beside(need, tried)}", need.reinstall)
    if need.name != "torch":
        return finding("ok", f"{here} (needs {need.least})")
    told = f"{here} (needs {need.least}), {tried.torch.get('build', 'unknown')} build"
    if release(here) < release(_SAFE_TORCH):
        return finding("warning", f"{told}; {_UNSAFE}", _upgrade_pair())
    return finding("ok", told)


def _beside(need: Need, tried: Tried) -> str:
    """What torchvision must fit, where it is not torch itself that is broken."""
    if need.name != "torchvision" or "torch" in tried.errors:
        return ""
    return "; it must be the release that belongs to the torch beside it"


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version, to be compared: 2.9.0+cpu is 2.9."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
