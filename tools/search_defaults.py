"""The experiment that chooses the recommended wiring: small, on real images, in stages.

    python tools/search_defaults.py --stage 1 --out search.jsonl    every option at 1%, one seed
    python tools/search_defaults.py --stage 2 --out search.jsonl    the best, and the rivals,
                                                     at 2%, 1% and 0.5%, three seeds
    python tools/search_defaults.py --report search.jsonl           the tables

VGG19 at quarter width, 9,600 images of Fashion-MNIST, 3 epochs of SGD with one cycle of the
learning rate, batches of 128, forwards in bfloat16. Stage 1 judges by 5,000 training images that
were held out, stage 2 by the 10,000 test images. Every run has exactly the same number of weights
at the same density. A search goes on where it was stopped.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx import CannotOperate
from n2nfx.network import Probe
from n2nfx.registry import passes
from n2nfx.spec import from_text
from n2nfx.training.data import Data, load
from n2nfx.zoo import vgg19_cifar

EPOCHS, BATCH, PEAK, DECAY = 3, 128, 0.1, 5e-4
IMAGES, HELD_OUT = 9_600, 5_000
DENSITIES, SEEDS = (0.02, 0.01, 0.005), (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One network to train: how it is made (the passes' text), and by what it is judged."""

    passes: tuple[str, ...]
    density: float
    seed: int
    judge: str

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


# What is tried


def pruner(name: str, floor: str = "channels", ends: str = "dense") -> str:
    allocation = "uniform" if name == "random" else "global"
    return f"{name}{{density=DENSITY allocation={allocation} floor={floor} ends={ends}}}"


def skips(**options: Any) -> str:
    return "n2nskip{" + " ".join(f"{key}={value}" for key, value in options.items()) + "}"


def first_stage() -> Iterator[tuple[str, ...]]:
    """Floors and ends for the plain network and the rival, then every wiring over the best."""
    for floor, ends in (("channels", "pruned"), ("channels", "dense"), ("0", "pruned")):
        plain = pruner("random", floor, ends)
        yield (plain,)
        for hop in (2, 3, 5):
            yield (plain, f"resskip{{hops={hop}}}")
        yield (plain, skips(ratio=0.5, hops=3, wiring="paper"))
        yield (plain, skips(ratio=0.5, hops=3, wiring="joint"))
    wirings = ("paper", "linear", "joint"), ("none", "batch")
    for (wiring, norm), pattern, hop, ratio in product(
        product(*wirings), ("random", "identity"), (2, 3, 5), (0.25, 0.5)
    ):
        yield (
            pruner("random"),
            skips(ratio=ratio, hops=hop, wiring=wiring, branch_norm=norm, pattern=pattern),
        )


def second_stage(rows: Sequence[dict[str, Any]], best: int) -> Iterator[tuple[str, ...]]:
    """The rivals, Eq. 2 as it stands, and what was best in the first stage, over both pruners."""
    first = [row for row in rows if row["judge"] == "held out"]
    ranked = sorted(first, key=lambda row: -row["accuracy"])
    chosen = [
        row["passes"][1] for row in ranked if row["passes"][1:2] and "n2nskip" in row["passes"][1]
    ]
    rival = next(row["passes"][1] for row in ranked if "resskip" in row["passes"][-1])
    for name in ("random", "snip"):
        plain = pruner(name)
        yield (plain,)
        yield (plain, rival)
        yield (plain, skips(ratio=0.5, hops=3, wiring="paper"))
        for text in dict.fromkeys(chosen[:best]):
            yield (plain, text)


def runs(stage: int, rows: Sequence[dict[str, Any]], best: int) -> list[Run]:
    if stage == 1:
        return [Run(passes, 0.01, 0, "held out") for passes in dict.fromkeys(first_stage())]
    made = [*dict.fromkeys(second_stage(rows, best))]
    return [Run(p, d, s, "test") for s, d, p in product(SEEDS, DENSITIES, made)]


# One run


def train(run: Run) -> dict[str, Any]:
    """Make the network and train it; the row says what came out."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    row: dict[str, Any] = asdict(run)
    try:
        row.update(_trained(run))
    except CannotOperate as error:
        row["refused"] = str(error)
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def _trained(run: Run) -> dict[str, Any]:
    data = load("fashion-mnist").fitted((1, 32, 32), 10)
    if run.judge == "held out":
        data = data.held_out(HELD_OUT)
    inputs, labels = data.first(256)
    torch.manual_seed(run.seed)
    network = n2nfx.trace(quarter(), inputs[:2])
    made = [from_text(text.replace("DENSITY", str(run.density)), passes()) for text in run.passes]
    probe = Probe(seed=run.seed, batches=[(inputs, labels)])
    outcome = n2nfx.Pipeline(made)(network, probe)
    module = outcome.network.module.to(memory_format=torch.channels_last)
    small = replace(data, train=data.train.subset(np.arange(IMAGES)))
    optimizer = torch.optim.SGD(module.parameters(), lr=PEAK, momentum=0.9, weight_decay=DECAY)
    steps = EPOCHS * (IMAGES // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=steps)
    module.train()
    for epoch in range(EPOCHS):
        for images, wanted in small.epoch(epoch, BATCH, seed=run.seed, keep_last=False):
            optimizer.zero_grad()
            functional.cross_entropy(_logits(module, images), wanted).backward()
            optimizer.step()
            cycle.step()
    counts = outcome.counts
    return {"accuracy": _accuracy(module, data), "kept": counts.kept, "skip": counts.skip}


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module(images.contiguous(memory_format=torch.channels_last)).float()


def quarter() -> nn.Module:
    """VGG19 in its CIFAR form at a quarter of its width, for one channel."""
    return vgg19_cifar(in_channels=1, width=0.25)


def _accuracy(module: nn.Module, data: Data) -> float:
    module.eval()
    right = seen = 0
    with torch.no_grad():
        for images, wanted in data.testing(500):
            right += int((_logits(module, images).argmax(1) == wanted).sum())
            seen += len(wanted)
    return 100 * right / seen


# A search, and its report


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def search(stage: int, out: Path, jobs: int, best: int) -> None:
    rows = read(out)
    done = {Run(tuple(r["passes"]), r["density"], r["seed"], r["judge"]).key for r in rows}
    left = [run for run in runs(stage, rows, best) if run.key not in done]
    print(f"{len(left)} runs", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    with out.open("a") as file, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for number, row in enumerate(pool.map(train, left), 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            told = row.get("accuracy", row.get("refused"))
            print(f"{number}/{len(left)} {row['density']} {row['passes']} {told}", file=sys.stderr)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table a stage: accuracy in percent, mean and spread over the seeds."""
    parts = []
    for judge in dict.fromkeys(row["judge"] for row in rows):
        cells: dict[tuple[str, ...], dict[float, list[float]]] = defaultdict(dict)
        for row in (row for row in rows if row["judge"] == judge and "accuracy" in row):
            found = cells[tuple(row["passes"])].setdefault(row["density"], [])
            found.append(row["accuracy"])
        densities = sorted({d for by in cells.values() for d in by}, reverse=True)
        head = f"| passes ({judge}) | " + " | ".join(f"{d:.1%}" for d in densities) + " |"
        ranked = sorted(cells.items(), key=_mean, reverse=True)
        lines = [
            f"| {_told(passes)} | " + " | ".join(_cell(by.get(d, [])) for d in densities) + " |"
            for passes, by in ranked
        ]
        parts.append("\n".join([head, "|---" * (len(densities) + 1) + "|", *lines]))
    return "\n\n".join(parts) + "\n"


def _mean(cell: tuple[Any, Mapping[float, Sequence[float]]]) -> float:
    """Over densities, of the mean over seeds."""
    return statistics.mean(statistics.mean(values) for values in cell[1].values())


def _cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _told(passes: Sequence[str]) -> str:
    return ", ".join(f"`{text.replace('density=DENSITY ', '')}`" for text in passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", type=int, choices=(1, 2))
    parser.add_argument("--out", type=Path, default=Path("search.jsonl"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--best", type=int, default=3, help="how many go on to the second stage")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    if asked.report:
        print(report(read(asked.report)), end="")
    elif asked.stage:
        search(asked.stage, asked.out, asked.jobs, asked.best)
    else:
        parser.error("--stage or --report is needed")


if __name__ == "__main__":
    main()
