"""What the machine has: processors, a C++ compiler, memory and disk."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from n2nfx.doctor.finding import Finding
from n2nfx.doctor.imports import Tried

_GIB = 2**30
_LEAST_MEMORY = 2 * _GIB  # a ResNet50 is transformed in less than one
_LEAST_DISK = _GIB  # an artifact needs megabytes, and a compiler its scratch files
_COMPILERS = ("g++", "clang++", "c++", "cl")


def examine_machine(tried: Tried) -> Iterator[Finding]:
    """Processors, compiler, memory and disk."""
    yield _cpu(tried)
    yield from _gpus(tried)
    yield _compiler()
    yield _memory()
    yield _disk()


def _cpu(tried: Tried) -> Finding:
    told = f"{_cpu_name()}, cores for this process: {_cores()}"
    if "instructions" in tried.torch:
        threads, instructions = tried.torch["threads"], tried.torch["instructions"]
        told += f", torch's threads: {threads}, its instructions: {instructions}"
    return Finding("devices", "cpu", "ok", told)


def _cores() -> int:
    """The cores that this process may use, which in a container are not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _gpus(tried: Tried) -> Iterator[Finding]:
    if tried.end:
        yield Finding("devices", "gpu", "warning", f"asking torch for its devices {tried.end}")
        return
    for index, gpu in enumerate(tried.torch.get("gpus", ())):
        name = f"{gpu['name']}, {gpu['bytes'] / _GIB:.1f} GiB"
        yield Finding("devices", f"gpu {index}", "ok", name)
    if tried.torch.get("mps"):
        yield Finding("devices", "mps", "ok", "Apple's GPU, which shares the machine's memory")
    if tried.torch.get("gpus") or tried.torch.get("mps"):
        return
    if tried.torch.get("build") == "CPU" and shutil.which("nvidia-smi"):
        told = "there is an NVIDIA driver, and torch's CPU build does not use it"
        command = "pip install --force-reinstall torch torchvision"
        yield Finding("devices", "gpu", "warning", told, command)
        return
    yield Finding("devices", "gpu", "missing", "torch sees none; the CPU does everything")


def _compiler() -> Finding:
    use = "torch.compile needs one, and so will the sparse engine"
    own = os.environ.get("CXX")
    for name in own.split()[:1] if own else _COMPILERS:  # it may have options behind it
        if path := shutil.which(name):
            return Finding("tools", "C++ compiler", "ok", f"{path}{_version(path)}")
    told = f"CXX is {own!r}, which is no command; {use}" if own else use
    return Finding("tools", "C++ compiler", "missing", told, _bring_compiler())


def _version(path: str) -> str:
    """The first line of what a compiler says of itself, or nothing."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    return f", {lines[0]}" if lines and not done.returncode else ""


def _bring_compiler() -> str:
    match sys.platform:
        case "darwin":
            return "xcode-select --install"
        case "win32":
            return "winget install Microsoft.VisualStudio.2022.BuildTools"
    for manager, package in (("apt-get", "g++"), ("dnf", "gcc-c++"), ("apk", "g++")):
        if shutil.which(manager):
            verb = "add" if manager == "apk" else "install"
            return f"{manager.removesuffix('-get')} {verb} {package}"
    return ""


def _memory() -> Finding:
    free, total = bytes_of_memory()
    if total is None:
        return Finding("room", "memory", "warning", "its size cannot be found out here")
    told = f"{total / _GIB:.1f} GiB"
    if free is None:
        return Finding("room", "memory", "ok", told)
    told = f"{free / _GIB:.1f} GiB free of {told}"
    if free < _LEAST_MEMORY:
        return Finding("room", "memory", "warning", f"{told}; large models will not fit")
    return Finding("room", "memory", "ok", told)


def bytes_of_memory() -> tuple[int | None, int | None]:
    """Available and total, as far as the system says."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        text = ""
    sizes = dict(re.findall(r"^(MemAvailable|MemTotal):\s*(\d+) kB$", text, re.MULTILINE))
    if len(sizes) == 2:
        return int(sizes["MemAvailable"]) * 1024, int(sizes["MemTotal"]) * 1024
    try:
        return None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None, None


def _disk() -> Finding:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    told = f"{free / _GIB:.1f} GiB free in {here}"
    if free < _LEAST_DISK:
        return Finding("room", "disk", "warning", f"{told}; use --out on another disk")
    return Finding("room", "disk", "ok", told)
