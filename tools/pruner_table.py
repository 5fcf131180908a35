"""What every pruner makes of the paper's networks: where the weights go, and what stays alive.

    python tools/pruner_table.py --out pruners.jsonl [--pruners snip ...]  one line a network
    python tools/pruner_table.py --report pruners.jsonl > docs/pruners.md  the tables

VGG19 and ResNet50 in their CIFAR forms, one batch of Fashion-MNIST (64 images padded to 32x32),
every pruner's own defaults. A sweep goes on where it was stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import n2nfx
from n2nfx.connectivity import count_effective, find_collapse
from n2nfx.network import Network, Probe
from n2nfx.operate import PRUNERS
from n2nfx.source import network_of
from n2nfx.training.data import load

NETWORKS = ("n2nfx:vgg19_cifar", "n2nfx:resnet50_cifar")
DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.005)
BATCH = 64

Row = dict[str, Any]


def measure(reference: Network, pruner: str, density: float, batch: tuple[Tensor, Tensor]) -> Row:
    """One network pruned: counts, paths, and the processor time of choosing the weights."""
    start = time.process_time()
    made = PRUNERS[pruner](density=density)
    outcome = n2nfx.Pipeline([made])(reference, Probe(seed=0, batches=[batch]))
    seconds = time.process_time() - start
    network = outcome.network
    found = count_effective(network)
    dead = find_collapse(network, (batch[0][:8],), effective=found)
    rows = found.layers
    return {
        "weights": network.nnz,
        "flop_density": network.flop_density,
        "effective_density": found.effective_density,
        "dead_channels": sum(row.dead for row in rows),
        "channels": sum(row.channels for row in rows),
        "collapse": None if dead is None else str(dead),
        "layers": {row.name: row.kept / row.size for row in network.ledger()},
        "seconds": round(seconds, 1),
    }


def sweep(out: Path, pruners: Sequence[str], networks: Sequence[str]) -> None:
    torch.set_num_threads(1)
    done = {(row["network"], row["pruner"], row["density"]) for row in read(out)}
    batch = load("fashion-mnist").fitted((1, 32, 32), 10).first(BATCH)
    for name in networks:
        reference = network_of(name, num_classes=10, input_shape=(1, 32, 32))
        for pruner, density in product(pruners, DENSITIES):
            if (name, pruner, density) in done:
                continue
            row = {"network": name, "pruner": pruner, "density": density}
            row |= measure(reference, pruner, density, batch)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            told = row["collapse"] or "alive"
            print(name, pruner, density, told, row["seconds"], file=sys.stderr)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(rows: Sequence[Row]) -> str:
    """Two tables a network: all pruners at all densities, and the layers' densities at 2%."""
    parts = [
        "# What every pruner makes of the paper's networks\n",
        "Made by `python tools/pruner_table.py --report`: one batch of 64 images of Fashion-MNIST, "
        "each pruner with its own defaults (floor `channels`, ends pruned), no skips. Seconds are "
        "processor time of one thread for choosing the weights. *Effective* weights lie on a path "
        "of kept weights from input to output; *dead* channels on none.\n",
    ]
    absent = [name for name in PRUNERS if name not in {row["pruner"] for row in rows}]
    if absent:
        parts.append(f"Not run: {', '.join(absent)}.\n")
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        parts += [f"## {name}\n", _counts(own), "", _layers(name, own), ""]
    return "\n".join(parts)


def _counts(rows: Sequence[Row]) -> str:
    head = "| pruner | density | multiply-adds | effective | dead channels | | seconds |"
    lines = [
        f"| {row['pruner']} | {row['density']:.1%} | {row['flop_density']:.2%} "
        f"| {row['effective_density']:.3%} | {row['dead_channels']:,} of {row['channels']:,} "
        f"| {'alive' if row['collapse'] is None else row['collapse']} | {row['seconds']} |"
        for row in rows
    ]
    return "\n".join([head, "|---" * 7 + "|", *lines])


def _layers(name: str, rows: Sequence[Row]) -> str:
    at = {row["pruner"]: row["layers"] for row in rows if row["density"] == 0.02}
    if not at:
        return ""
    head = f"| layer at 2% | {' | '.join(at)} |"
    lines = [
        f"| {layer} | " + " | ".join(f"{own[layer]:.2%}" for own in at.values()) + " |"
        for layer in next(iter(at.values()))
    ]
    return "\n".join([head, "|---" * (len(at) + 1) + "|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("pruners.jsonl"))
    parser.add_argument("--pruners", nargs="*", choices=list(PRUNERS), default=list(PRUNERS))
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--report", type=Path, help="print the tables of a file, and run nothing")
    asked = parser.parse_args()
    if asked.report:
        print(report(read(asked.report)), end="")
    else:
        sweep(asked.out, asked.pruners, asked.networks)


if __name__ == "__main__":
    main()
