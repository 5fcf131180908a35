"""A small network and small images for runs, and what other processes do with them.

Here and not in a test file: a run names its model and data by file and function, and a spawned
process imports what it runs by name.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from samples import Net
from torch import Tensor, distributed, nn

from n2nfx import atomic
from n2nfx.runspec import RunSpec, Training
from n2nfx.training import runs

TRAIN, TEST = 120, 50
PASSES = ("random{density=0.3 ends=dense}", "n2nskip{ratio=0.4 hops=2}")


class Dropped(nn.Module):
    """With a dropout, which draws in every step, before the network's end."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout, self.end = Net(), nn.Dropout(0.2), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.dropout(self.net(x).relu()))


def net() -> nn.Module:
    return Dropped()


class Exploding(nn.Module):
    """Trains until a weight has grown, and then gives infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 1e30


def exploding() -> nn.Module:
    return Exploding()


class Hungry(nn.Module):
    """Needs more memory than there is, for as many images as are trained on at once."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x.new_ones(2 ** (x.shape[0] + 20))[:5]


def hungry() -> nn.Module:
    return Hungry()


def images() -> Any:
    """Images whose class is the patch that is bright."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 180, (TRAIN + TEST, 3, 8, 8)).astype(np.uint8)
    labels = draw.integers(0, 5, TRAIN + TEST)
    labels[:5] = labels[TRAIN : TRAIN + 5] = range(5)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[label % 3, label : label + 3, label : label + 3] += 75
    return (pixels[:TRAIN], labels[:TRAIN]), (pixels[TRAIN:], labels[TRAIN:])


def spec(
    model: str = "net", seed: int = 0, passes: tuple[str, ...] = PASSES, **how: Any
) -> RunSpec:
    training: dict[str, Any] = {"epochs": 3, "batch_size": 16, "step_every": 1, **how}
    return RunSpec(
        model=f"{__file__}:{model}", data=f"{__file__}:images", passes=passes, seed=seed,
        scoring_images=32, training=Training(**training),
    )  # fmt: skip


def weights(folder: Path) -> bytes:
    """The weights that a run leaves, to the last bit."""
    return (folder / "network" / "weights.safetensors").read_bytes()


def results(folder: Path) -> list[dict[str, Any]]:
    """The result and all events of a run, but for the times."""
    lines = [(folder / runs.RESULT).read_text(), *(folder / runs.EVENTS).read_text().splitlines()]
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
