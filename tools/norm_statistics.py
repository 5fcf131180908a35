"""What the statistics of batch norms do to the accuracy of trained networks.

    python tools/norm_statistics.py ~/.cache/n2nfx/runs/*-snip-d0-01-*

For each folder of a run that is done, the accuracy on the test images in percent, by batches of
128: with the running statistics that training left, with each batch's own, and with running ones
taken anew, as the mean over the first 64 batches of the training images, not augmented; and the
most that a mean moved by then, in deviations of its channel as the norm sees them.
"""

import argparse
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

import n2nfx
from n2nfx.training.data import Data, load_for

BATCH, BATCHES = 128, 64
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def norms_of(module: nn.Module) -> Iterator[Norm]:
    return (part for part in module.modules() if isinstance(part, Norm))


def by_batch(module: nn.Module) -> nn.Module:
    """A copy in evaluation, but that its norms go by each batch."""
    found = deepcopy(module).eval()
    for norm in norms_of(found):
        norm.train()
    return found


@torch.no_grad()
def accuracy(module: nn.Module, data: Data) -> float:
    """The percentage of the test images that are right, in the modes that its parts are in."""
    batches = data.testing(BATCH)
    return 100 * sum(right(module(x), y) for x, y in batches) / len(data.test)


def right(scores: Tensor, labels: Tensor) -> int:
    return int((scores.argmax(1) == labels).sum())


@torch.no_grad()
def anew(module: nn.Module, data: Data) -> nn.Module:
    """A copy in evaluation, its running statistics the means over batches of training images."""
    fresh = by_batch(module)
    for norm in norms_of(fresh):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    images, _ = data.first(min(BATCH * BATCHES, len(data.train)))
    for batch in images.split(BATCH):
        fresh(batch)
    return fresh.eval()


def moved(before: nn.Module, after: nn.Module) -> float:
    """The most that a running mean moved, in the deviations that the norm divides by."""
    pairs = zip(norms_of(before), norms_of(after), strict=True)
    return max((float(_deviations(*pair).max()) for pair in pairs), default=0.0)


def _deviations(one: Norm, other: Norm) -> Tensor:
    before, after = one.get_buffer("running_mean"), other.get_buffer("running_mean")
    return (after - before).abs() / (one.get_buffer("running_var") + one.eps).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    print(f"{'run':<76} {'loss':>7} {'left':>6} {'batch':>6} {'anew':>6} {'moved':>9}")
    for folder in parser.parse_args().runs:
        config = json.loads((folder / "config.json").read_text())
        result = json.loads((folder / "result.json").read_text())
        if result["status"] != "done":
            print(f"{folder.name:<76} {result['status']}")
            continue
        data = load_for(config["model"], config["data"])
        module = n2nfx.bake(n2nfx.load(folder / "network")).module
        if config["training"]["channels_last"]:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        fresh = anew(module, data)
        found = (
            accuracy(module.eval(), data),
            accuracy(by_batch(module), data),
            accuracy(fresh, data),
        )
        numbers = " ".join(f"{one:6.2f}" for one in found)
        loss, most = result["final_loss"], moved(module, fresh)
        print(f"{folder.name:<76} {loss:7.4f} {numbers} {most:9.3g}", flush=True)


if __name__ == "__main__":
    main()
