"""Fixed masks beside SET and RigL, layer by layer and all together, on Fashion-MNIST.

    python tools/compare_rewiring.py [--data-root FOLDER] [--density 0.01] [--seeds 2] [--epochs 3]

VGG19 at quarter width, half of the kept weights in skips, ends dense; SGD with one cycle of the
learning rate, rewired every 25 steps through three quarters of the training. The images are
those of `n2nfx data fetch fashion-mnist`, or of Debian's package.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.bind import as_it_acts
from n2nfx.network import Network
from n2nfx.training.data import load
from n2nfx.training.rewiring import Rewiring
from n2nfx.zoo import vgg19_cifar

BATCH = 128
CONTESTANTS: dict[str, dict[str, Any] | None] = {
    "fixed": None,
    "set, layer": {"method": "set", "scope": "layer"},
    "set, global": {"method": "set", "scope": "global"},
    "rigl, layer": {"method": "rigl", "scope": "layer"},
    "rigl, global": {"method": "rigl", "scope": "global"},
}


class Run(NamedTuple):
    """Test accuracy in percent, connections grown, weights kept, and CPU seconds of rewiring."""

    accuracy: float
    grown: int
    kept: int
    in_skips: int
    seconds: float


def pruned(density: float, seed: int) -> Network:
    torch.manual_seed(seed)
    return n2nfx.transform(
        vgg19_cifar(in_channels=1, width=0.25), example=torch.zeros(1, 1, 32, 32),
        density=density, skip_ratio=0.5, ends="dense", seed=seed,
    ).network  # fmt: skip


def train(
    network: Network, data: tuple[Tensor, Tensor], epochs: int, rules: Any, seed: int
) -> tuple[int, float]:
    """Gives how many connections were grown, and the seconds that rewiring took."""
    module, (images, labels) = network.module.train(), data
    total = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
    rewiring = rules and Rewiring(
        network, optimizer, every=25, until=3 * total // 4, seed=seed, **rules
    )
    order = torch.Generator().manual_seed(seed)
    grown, seconds = 0, 0.0
    for _ in range(epochs):
        for at in torch.randperm(len(images), generator=order).split(BATCH)[: total // epochs]:

            def loss(at: Tensor = at) -> Tensor:
                return functional.cross_entropy(module(images[at]), labels[at])

            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            schedule.step()
            start = time.process_time()
            grown += rewiring.step(loss) if rewiring else 0
            seconds += time.process_time() - start
    return grown, seconds


def accuracy(module: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    module.eval()
    with torch.no_grad():
        found = torch.cat([module(part).argmax(1) for part in data[0].split(500)])
    return 100 * (found == data[1]).double().mean().item()


def run(
    args: argparse.Namespace,
    rules: dict[str, Any] | None,
    seed: int,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> Run:
    network = pruned(args.density, seed)
    grown, seconds = train(network, data, args.epochs, rules, seed)
    now = as_it_acts(network)
    assert now.nnz == network.nnz
    in_skips = sum(skip.nnz for skip in now.skips)
    return Run(accuracy(network.module, test), grown, now.nnz, in_skips, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=9600)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fashion = load("fashion-mnist", args.data_root).fitted((1, 32, 32), None)
    data, test = fashion.first(args.images), next(fashion.testing(2000))

    table = Table("masks", "accuracy", "of them", "grown", "kept", "in skips", "CPU s")
    for name, rules in track(CONTESTANTS.items(), console=Console(stderr=True)):
        runs = [run(args, rules, seed, data, test) for seed in range(args.seeds)]
        table.add_row(
            name,
            f"{np.mean([one.accuracy for one in runs]):.1f}",
            " ".join(f"{one.accuracy:.1f}" for one in runs),
            f"{np.mean([one.grown for one in runs]):,.0f}",
            " ".join(sorted({f"{one.kept:,}" for one in runs})),
            f"{np.mean([one.in_skips / one.kept for one in runs]):.1%}",
            f"{np.mean([one.seconds for one in runs]):.1f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
