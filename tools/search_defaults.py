"""The experiment that chooses the recommended wiring: small, on real images, in stages.

    python tools/search_defaults.py --stage 1 --out search.jsonl    every option at 1%, one seed
    python tools/search_defaults.py --stage 2 --out search.jsonl    the best, and the rivals,
                                                     at 2%, 1% and 0.5%, three seeds
    python tools/search_defaults.py --stage 3 --out search.jsonl    the same, seven times longer
    python tools/search_defaults.py --report search.jsonl           the tables

VGG19 at quarter width, 9,600 images of Fashion-MNIST as they are, 3 epochs of SGD with one cycle
of the learning rate, batches of 128, forwards in bfloat16. Stage 1 judges by 5,000 training images
that were held out, stage 2 by the 10,000 test images. Every run has exactly the same number of
weights at the same density. A search goes on where it was stopped. `--device cuda` trains on a GPU,
several runs at once (`--jobs`); a row says which.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
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
from n2nfx.training.augment import Augmentation
from n2nfx.training.data import Data, load
from n2nfx.training.images import Images
from n2nfx.zoo import vgg19_cifar

BATCH, PEAK, DECAY, HELD_OUT = 128, 0.1, 5e-4, 5_000
STAGES = {1: ("held out", 9_600, 3), 2: ("test", 9_600, 3), 3: ("test", 20_000, 8)}
DENSITIES, SEEDS = (0.02, 0.01, 0.005), (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One network to train: how it is made (the passes' text), on what, and what judges it."""

    passes: tuple[str, ...]
    density: float
    seed: int
    judge: str
    images: int
    epochs: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def run_of(row: Mapping[str, Any]) -> Run:
    """The run that a row came out of."""
    named = {field.name: row[field.name] for field in fields(Run)}
    return Run(**{**named, "passes": tuple(row["passes"])})


# What is tried


def pruner(name: str, floor: str = "channels", ends: str = "dense") -> str:
    allocation = "uniform" if name == "random" else "global"
    return f"{name}{{density=DENSITY allocation={allocation} floor={floor} ends={ends}}}"


def skips(**options: Any) -> str:
    return "n2nskip{" + " ".join(f"{key}={value}" for key, value in options.items()) + "}"


def first_stage() -> Iterator[tuple[str, ...]]:
    """Floors and ends under every kind of network, then every wiring with dense ends."""
    for name, floor, ends in product(("random", "snip"), ("channels", "0"), ("pruned", "dense")):
        plain = pruner(name, floor, ends)
        yield (plain,)
        yield from ((plain, f"resskip{{hops={hop}}}") for hop in (2, 3, 5))
        yield (plain, skips(ratio=0.5, hops=3, wiring="paper"))
        yield (plain, skips(ratio=0.5, hops=3, wiring="joint"))
        yield (plain, skips(ratio=0.1, hops=3, wiring="linear", pattern="identity"))
    for wiring, norm in product(("paper", "linear", "joint"), ("none", "batch")):
        for text in _branches(wiring, norm):
            yield (pruner("random"), text)
        for ratio, hops in product((0.25, 0.5, "learned"), ("2", "3")):
            scored = {"pattern": "scored", "share": "global", "branch_norm": norm}
            yield (pruner("snip"), skips(ratio=ratio, hops=hops, wiring=wiring, **scored))


def _branches(wiring: str, norm: str) -> Iterator[str]:
    """Random neurons, and identities that take all of their branch's share or a part of it."""
    options = {"wiring": wiring, "branch_norm": norm}
    for ratio, hops in product((0.25, 0.5), ("2", "3", "5")):
        yield skips(ratio=ratio, hops=hops, **options)
    for ratio, hops in product((0.05, 0.1, 0.25, 0.5), ("2", "3", "5", "2,3", "2,3,5")):
        yield skips(ratio=ratio, hops=hops, pattern="identity", **options)
    for ratio, hops in product((0.05, 0.1), ("2", "3")):
        yield skips(ratio=ratio, hops=hops, pattern="identity", kernel=1, **options)
    for ratio, hops in product((0.03, 0.05, 0.1), ("2", "3", "5")):
        yield skips(ratio=ratio, hops=hops, pattern="identity", placement="blocks", **options)


def later_stage(stage: int, rows: Sequence[dict[str, Any]], best: int) -> Iterator[tuple[str, ...]]:
    """The rivals, Eq. 2 as it stands, and what was best one stage before, over both pruners."""
    before = [row for row in rows if _stage(row) == STAGES[stage - 1] and "accuracy" in row]
    ranked = ranking(before)
    chosen = dict.fromkeys(passes[1] for passes in ranked if _blind(passes))
    rivals = dict.fromkeys(passes[1] for passes in ranked if "resskip" in passes[-1])
    paper = skips(ratio=0.5, hops=3, wiring="paper")
    for name in ("random", "snip"):
        plain = pruner(name)
        yield (plain,)
        for text in (*rivals, paper, *[text for text in chosen if text != paper][:best]):
            yield (plain, text)


def _blind(passes: Sequence[str]) -> bool:
    """Whether there are branches that need no scores, which any pruner can have."""
    return "n2nskip" in passes[-1] and "scored" not in passes[-1]


def runs(stage: int, rows: Sequence[dict[str, Any]], best: int) -> list[Run]:
    if stage == 1:
        return [Run(p, 0.01, 0, *STAGES[1]) for p in dict.fromkeys(first_stage())]
    made = [*dict.fromkeys(later_stage(stage, rows, best))]
    return [Run(p, d, s, *STAGES[stage]) for s, d, p in product(SEEDS, DENSITIES, made)]


# One run


def train(run: Run, device: str) -> dict[str, Any]:
    """Make the network and train it; the row says what came out."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    row: dict[str, Any] = {**asdict(run), "device": device}
    try:
        row.update(_trained(run, device))
    except CannotOperate as error:
        row["refused"] = str(error)
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def _trained(run: Run, device: str) -> dict[str, Any]:
    data = load("fashion-mnist").fitted((1, 32, 32), 10)
    if run.judge == "held out":
        data = data.held_out(HELD_OUT)
    outcome = _made(run, data.first(256))
    module = outcome.network.module.to(device).to(memory_format=torch.channels_last)
    small = replace(data, train=_plain(data.train, run.images)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=PEAK, momentum=0.9, weight_decay=DECAY)
    steps = run.epochs * (run.images // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=steps)
    module.train()
    for epoch in range(run.epochs):
        for images, wanted in small.epoch(epoch, BATCH, seed=run.seed, keep_last=False):
            optimizer.zero_grad()
            functional.cross_entropy(_logits(module, images), wanted).backward()
            optimizer.step()
            cycle.step()
    counts = outcome.counts
    return {"accuracy": _accuracy(module, small), "kept": counts.kept, "skip": counts.skip}


def _made(run: Run, batch: tuple[Tensor, Tensor]) -> n2nfx.Outcome:
    """The network, sparse and with its branches, untrained."""
    torch.manual_seed(run.seed)
    network = n2nfx.trace(quarter(), batch[0][:2])
    made = [from_text(text.replace("DENSITY", str(run.density)), passes()) for text in run.passes]
    return n2nfx.Pipeline(made)(network, Probe(seed=run.seed, batches=[batch]))


def _plain(images: Any, count: int) -> Images:
    """The first images, which training shows as they are."""
    return replace(images.subset(np.arange(count)), augmentation=Augmentation(0, flip=False))


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
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


def search(left: Sequence[Run], out: Path, jobs: int, device: str) -> None:
    """Train what is left, and write a row for each as it comes."""
    print(f"{len(left)} runs", file=sys.stderr)
    one = partial(train, device=device)
    with out.open("a") as file, multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, row in enumerate(pool.imap_unordered(one, left), 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            told = row.get("accuracy", row.get("refused"))
            print(f"{number}/{len(left)} {row['density']} {row['passes']} {told}", file=sys.stderr)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table a stage: accuracy in percent, mean and spread over the seeds."""
    parts = []
    for judge, images, epochs in dict.fromkeys(map(_stage, rows)):
        own = [row for row in rows if _stage(row) == (judge, images, epochs)]
        cells = ranking([row for row in own if "accuracy" in row])
        densities = sorted({d for by in cells.values() for d in by}, reverse=True)
        head = (
            f"| {judge}, {images:,} images, {epochs} epochs | "
            + " | ".join(f"{d:.1%}" for d in densities)
            + " |"
        )
        lines = [
            f"| {_told(passes)} | " + " | ".join(_cell(by.get(d, [])) for d in densities) + " |"
            for passes, by in cells.items()
        ]
        parts.append("\n".join([head, "|---" * (len(densities) + 1) + "|", *lines]))
    return "\n\n".join(parts) + "\n"


def ranking(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], dict[float, list[float]]]:
    """The accuracies of every network by density, the best network first."""
    cells: dict[tuple[str, ...], dict[float, list[float]]] = defaultdict(dict)
    for row in rows:
        cells[tuple(row["passes"])].setdefault(row["density"], []).append(row["accuracy"])
    return dict(sorted(cells.items(), key=_mean, reverse=True))


def _stage(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["judge"], row["images"], row["epochs"]


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
    parser.add_argument("--stage", type=int, choices=(1, 2, 3))
    parser.add_argument("--out", type=Path, default=Path("search.jsonl"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--best", type=int, default=3, help="how many go on to the second stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    if asked.report:
        print(report(read(asked.report)), end="")
    elif asked.stage:
        rows = read(asked.out)
        done = {run_of(row).key for row in rows}
        left = [run for run in runs(asked.stage, rows, asked.best) if run.key not in done]
        search(left, asked.out, asked.jobs, asked.device)
    else:
        parser.error("--stage or --report is needed")


if __name__ == "__main__":
    main()
