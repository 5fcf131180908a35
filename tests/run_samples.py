"""A small network and small images for runs, and what other processes do with them.

Here and not in a test file: a run names its model and data by file and function, and a spawned
process imports what it runs by name.
"""

import json
import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rewiring_samples import leave_together
from samples import Model, Net
from torch import Tensor, distributed, nn

from n2nfx import atomic
from n2nfx.runspec import RunSpec, Training
from n2nfx.training import runs
from n2nfx.training.ranks import Ranks, RanksDiffer

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


def exploding() -> nn.Module:
    """Gives infinities where float32 ends."""
    return Model(lambda m, x: m.net(x) * 1e30 * 1e8, net=Net())


def hungry() -> nn.Module:
    """Needs ten times the memory for every image more in a batch."""
    return Model(lambda m, x: m.net(x) + x.new_ones(10 ** x.shape[0])[:5], net=Net())


def steep() -> nn.Module:
    """Gives finite numbers, and gradients that are none."""
    return Model(lambda m, x: m.net(x) + (m.net(x) * 0).sqrt(), net=Net())


def narrow() -> nn.Module:
    """Takes any batch but one of 16."""
    return Model(lambda m, x: m.net(x) + x.new_ones(x.shape[0] % 16 or 3, 5), net=Net())


def plain() -> nn.Module:
    """Without norms and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(6, 5)
    )


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
    steps = {"step_every": 1} if "schedule" not in how else {}
    training: dict[str, Any] = {"epochs": 3, "batch_size": 16, **steps, **how}
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


def same(one: Path, other: Path) -> bool:
    return weights(one) == weights(other) and results(one) == results(other)


# What is done in processes of their own

KILLED = -signal.SIGKILL


def process(job: Callable[..., None], *given: Any) -> Any:
    """A process that does the job, started."""
    # What a fork server has imported, no process imports again; it does not know of our path.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_samples", "torch._dynamo"])
    started = context.Process(target=job, args=given)
    started.start()
    return started


def ended(started: Any) -> int:
    """A process's exit code, once it has ended."""
    started.join(60)
    assert started.exitcode is not None
    return started.exitcode


def train(folder: Path, how: dict[str, Any]) -> None:
    """A run that writes a checkpoint after every step."""
    torch.set_num_threads(1)
    runs.run(spec(**how), folder, save_every=0)


def train_and_die(folder: Path, at: int, torn: bool) -> None:
    """The same, killed at one of the moments where a file or a name is being made durable.

    With `torn`, only half of what was written last has reached the disk by then.
    """
    left = at

    def dying(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            if torn and call is fsync and stat.S_ISREG(os.fstat(given[0]).st_mode):
                os.truncate(given[0], os.fstat(given[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)

    fsync = os.fsync
    for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink")):
        setattr(module, name, partial(dying, getattr(module, name)))
    atomic._exchange_at_once = partial(dying, atomic._exchange_at_once)
    train(folder, {})


def train_rank(rank: int, ranks: int, folder: Path, store: Path, how: dict[str, Any]) -> None:
    """One of several processes that train one network."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks
    )
    train(folder, how)
    leave_together()


def differ(rank: int, store: Path, equal: bool) -> None:
    """One of two processes that compare masks, which are not equal, or are."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mask = torch.tensor([True, equal or rank == 0])
    told = nullcontext() if equal else pytest.raises(RanksDiffer, match="the masks of rank 1")
    with told:
        Ranks(rank, 2).require_same("the masks", [mask])
    leave_together()
