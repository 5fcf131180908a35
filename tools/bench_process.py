"""What `n2nfx transform` costs as a whole process, beside what it cannot do without.

    python tools/bench_process.py [--model resnet50] [--rounds 5]

Each round runs, in turn: an interpreter that imports torch and torchvision; one that builds the
model too; and the command. Seconds are CPU seconds (user and system, all threads), memory is the
peak of the process; the model's weights are counted in their own bytes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from n2nfx import models

IMPORT = "import torch, torchvision"
BUILD = "torchvision.models.get_model({!r}, weights=None)"


class Cost(NamedTuple):
    """Seconds of the clock and of the processor, and the peak MB of a process; what it printed."""

    clock: float
    processor: float
    megabytes: float
    printed: bytes


def cost(command: list[str]) -> Cost:
    """What a process costs, from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    clock = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return Cost(clock, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    module = models.build(f"torchvision:{asked.model}").module
    weights = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
    transform = ["transform", asked.model, "--density", "0.02", "--skip-ratio", "0.5"]
    commands = {
        "import torch, torchvision": [sys.executable, "-c", IMPORT],
        "and build the model": [sys.executable, "-c", f"{IMPORT}\n{BUILD.format(asked.model)}"],
        "n2nfx transform": [sys.executable, "-m", "n2nfx", *transform],
    }
    taken: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(asked.rounds + 1):
        for name, command in commands.items():
            taken[name].append(cost(command))
    report(asked, weights, {name: costs[1:] for name, costs in taken.items()})


def report(asked: argparse.Namespace, weights: float, taken: dict[str, list[Cost]]) -> None:
    table = Table(f"{asked.model}, {asked.rounds} rounds", "CPU s", "peak MB", box=None)
    seconds = {name: [one.processor for one in costs] for name, costs in taken.items()}
    memory = {name: [one.megabytes for one in costs] for name, costs in taken.items()}
    for name in taken:
        row = statistics.median(seconds[name]), statistics.median(memory[name])
        table.add_row(name, f"{row[0]:.2f}", f"{row[1]:.0f}")
    console = Console(width=100)
    console.print(table)
    bare, built, ours = taken
    ratio = statistics.median(b / a for a, b in zip(seconds[built], seconds[ours], strict=True))
    more = statistics.median(b - a for a, b in zip(memory[bare], memory[ours], strict=True))
    console.print(f"time: {ratio:.2f}x that of importing and building")
    console.print(f"memory above the imports: {more:.0f} MB = {more / weights:.2f}x the weights")


if __name__ == "__main__":
    main()
