"""Imports packages in a process of its own, so that one that crashes or hangs is only a finding.

`python -m n2nfx.doctor.imports NAME...` is that process: it imports each package in turn, prints
a line of JSON after each, and one with torch's build and devices at the end.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from n2nfx.errors import described

_SECONDS = 300  # a cold import of torch from a network disk takes a minute


@dataclass(frozen=True)
class Tried:
    """What came of importing.

    errors: by package, why it cannot be imported. torch: its build, threads, instruction set and
    devices, as far as it says. end: how the process ended that asked torch for them, if it did.
    """

    errors: Mapping[str, str] = field(default_factory=dict)
    torch: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""


def try_imports(names: Sequence[str], seconds: float = _SECONDS) -> Tried:
    """Import packages in one child process; where one ends it, those behind it in another."""
    errors: dict[str, str] = {}
    left = list(names)
    while True:
        lines, end = _child(left, seconds)
        answers, torch = lines[: len(left)], lines[len(left) :]
        errors |= {name: line for name, line in zip(left, answers, strict=False) if line}
        left = left[len(answers) :]
        if not left:
            return Tried(errors, torch[0] if torch else {}, "" if torch else end)
        errors[left.pop(0)] = f"importing it {end}"


def _child(names: Sequence[str], seconds: float) -> tuple[list[Any], str]:
    """The lines that a child printed, and how it ended."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    command = [sys.executable, "-P", "-m", "n2nfx.doctor.imports", *names]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path}, timeout=seconds, check=False,
        )  # fmt: skip
        output, end = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, end = error.stdout or b"", f"takes more than {seconds:g} seconds"
    lines = output.decode(errors="replace").split("\n")[:-1]  # behind the last is half a line
    return [json.loads(line) for line in lines], end


def _ending(code: int) -> str:
    if code >= 0:
        return f"ends the process with code {code}"
    known = {sign.value: sign.name for sign in signal.Signals}
    return f"ends the process by {known.get(-code, f'signal {-code}')}"


# The child


def main() -> None:
    """Import the packages that are named on the command line."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what a package prints is not for the parent
        for name in sys.argv[1:]:
            print(json.dumps(_error(name)), file=out, flush=True)
        print(json.dumps(_torch()), file=out, flush=True)


def _error(name: str) -> str:
    """Why a package cannot be imported; empty where it can."""
    try:
        importlib.import_module(name)
    except BaseException as error:  # one that calls sys.exit, too
        return described(error)
    return ""


def _torch() -> dict[str, Any]:
    """Torch's build and the devices that it sees, as far as it can say."""
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # no torch, a stub of it, or a driver that fails
        torch: Any = importlib.import_module("torch")
        found["build"] = _build(torch)
        found["threads"] = torch.get_num_threads()
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["mps"] = bool(torch.backends.mps.is_available())
        found["gpus"] = [
            {"name": gpu.name, "bytes": gpu.total_memory}
            for gpu in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ]
    return found


def _build(torch: Any) -> str:
    for name in ("cuda", "hip", "xpu"):
        if number := getattr(torch.version, name, None):
            return f"{name.upper()} {number}"
    return "CPU"


if __name__ == "__main__":
    main()
