"""What a training step costs: masks, skip branches, bfloat16 and the input, beside a dense step.

    python tools/bench_step.py [--width 0.25] [--batch 128] [--rounds 15] [--device cpu]

VGG19 in its CIFAR form at 2%, random bytes of CIFAR's shape. Every round takes one step of each
contestant, one after the other, so that all meet the same machine; told are medians of seconds, and
the median of each round's ratios to the dense step. On a CPU they are seconds of this process, of
one thread. `timm's parts` is a dense step as timm's train.py takes it: its optimizer and its
loader, whose own 2 processes (PIL) are not counted. train.py itself is in no wheel.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.data.loader import create_loader
from timm.optim._optim_factory import create_optimizer_v2
from torch.nn import functional

import n2nfx
from n2nfx.network import Network
from n2nfx.operate import transform
from n2nfx.runspec import Training
from n2nfx.training.data import Data
from n2nfx.training.images import Images
from n2nfx.training.loop import Trainer
from n2nfx.training.ranks import Ranks
from n2nfx.zoo import vgg19_cifar

DENSITY, CLASSES = 0.02, 10
FAST = {"precision": "bf16", "channels_last": True}

Step = Callable[[], float]


class Told(NamedTuple):
    """A contestant: what takes a step and says what share of it the input took, and its skips."""

    step: Step
    skips: int = 0


def images(count: int) -> Data:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    part = Images(pixels, labels)
    return Data("random", part, part, tuple(map(str, range(CLASSES))), (0.5,) * 3, (0.25,) * 3)


def network(width: float, skips: float, wiring: Any = "linear") -> Network:
    torch.manual_seed(0)
    model = vgg19_cifar(width=width)
    return transform(
        model, example=torch.zeros(1, 3, 32, 32), density=DENSITY, skip_ratio=skips, ends="dense",
        wiring=wiring,
    ).network  # fmt: skip


def dense(width: float) -> Network:
    torch.manual_seed(0)
    return n2nfx.trace(vgg19_cifar(width=width), torch.zeros(1, 3, 32, 32))


def ours(made: Network, data: Data, batch: int, device: str, **how: Any) -> Told:
    """A step of the loop, with the batch that it takes from the data."""
    training = Training(batch_size=batch, lr=1e-3, **how)
    trainer = Trainer(made, data.to(device), training, 0, torch.device(device), Ranks())
    steps = _forever(trainer)

    def step() -> float:
        start = time.perf_counter()
        batches, count = next(steps)
        micro = list(batches)
        drawn = time.perf_counter() - start
        trainer.step(micro, count)
        return drawn / (time.perf_counter() - start)

    return Told(step, len(made.skips))


def _forever(trainer: Trainer) -> Iterator[Any]:
    while True:
        trainer.steps = 0
        yield from trainer.batches()


class _Pictures(torch.utils.data.Dataset):
    """The images as a folder gives them to timm."""

    def __init__(self, data: Data) -> None:
        assert isinstance(data.train, Images)
        self.pixels, self.labels = data.train.pixels.permute(0, 2, 3, 1).numpy(), data.train.labels
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(np.ascontiguousarray(self.pixels[index]))), int(
            self.labels[index]
        )


def timms(width: float, data: Data, batch: int) -> Told:
    torch.manual_seed(0)
    model = vgg19_cifar(width=width).train()
    optimizer = create_optimizer_v2(model, "sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)
    pictures: Any = _Pictures(data)
    loader = create_loader(
        pictures, (3, 32, 32), batch, is_training=True, no_aug=False, use_prefetcher=False,
        scale=(0.9, 1.0), num_workers=2, persistent_workers=True, device=torch.device("cpu"),
    )  # fmt: skip
    batches = (pair for _ in iter(int, 1) for pair in loader)

    def step() -> float:
        start = time.perf_counter()
        pixels, labels = next(batches)
        drawn = time.perf_counter() - start
        functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return drawn / (time.perf_counter() - start)

    return Told(step)


def contestants(width: float, batch: int, device: str) -> dict[str, Told]:
    data = images(16 * batch)

    def of(made: Network, **how: Any) -> Told:
        return ours(made, data, batch, device, **how)

    kinds: tuple[Literal["linear", "joint", "paper"], ...] = ("linear", "joint", "paper")
    found = {
        "dense": of(dense(width)),
        "masked": of(network(width, 0.0)),
        **{f"N2NSkip, {wiring}": of(network(width, 0.5, wiring), augment=True) for wiring in kinds},
        "masked, set": of(network(width, 0.0), rewiring="set"),
        "masked, average": of(network(width, 0.0), ema=0.99),
        "dense, bf16": of(dense(width), **FAST),
        "masked, bf16": of(network(width, 0.0), **FAST),
    }
    return found | ({"timm's parts": timms(width, data, batch)} if device == "cpu" else {})


def seconds(step: Step, device: str) -> tuple[float, float]:
    """Of one step, and the share of it that the input took."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    share = step()
    if device != "cpu":
        torch.accelerator.synchronize()
    return clock() - start, share


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="parts of names beside dense: masked,bf16")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    told = {
        name: one
        for name, one in contestants(asked.width, asked.batch, asked.device).items()
        if name == "dense" or any(part in name for part in asked.only.split(","))
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in told}
    for one in told.values():
        one.step()
    for _ in track(range(asked.rounds), console=Console(stderr=True)):
        for name, one in told.items():
            times[name].append(seconds(one.step, asked.device))
    show(told, times, asked.batch)


def show(told: dict[str, Told], times: dict[str, list[tuple[float, float]]], batch: int) -> None:
    table = Table("step", "seconds", "images/s", "to dense", "input", "a branch")
    base = [one for one, _ in times["dense"]]
    plain = [one for one, _ in times.get("masked", times["dense"])]
    for name, rows in times.items():
        took = [one for one, _ in rows]
        middle = statistics.median(took)
        ratio = statistics.median(one / other for one, other in zip(took, base, strict=True))
        share = statistics.median(share for _, share in rows)
        more = statistics.median(one / other for one, other in zip(took, plain, strict=True)) - 1
        branch = f"{more / told[name].skips:.2%}" if told[name].skips else ""
        table.add_row(
            name, f"{middle:.4f}", f"{batch / middle:,.0f}", f"{ratio:.3f}", f"{share:.1%}", branch
        )
    Console().print(table)


if __name__ == "__main__":
    main()
