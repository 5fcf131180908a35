"""How fast models are traced, beside `torch.export.export(strict=False)`, in one run, turn by turn.

    python tools/bench_trace.py [--models timm:resnet18 ...] [--rounds 3]

Export traces one mode at one batch size; ours three or four runs (both modes, three batch sizes).
The last lines are how the time grows with the number of nodes: the slope of log(seconds) over
log(nodes), for blocks of one kind stacked ever deeper. Seconds are CPU seconds of the process.
"""

import argparse
import copy
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from n2nfx import models
from n2nfx.tracing import record

MODELS = [
    *("torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:densenet121"),
    *("torchvision:efficientnet_b0", "torchvision:vit_b_16", "torchvision:swin_t"),
    *("timm:resnet50", "timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:levit_128s"),
    *("timm:mixer_s32_224", "timm:regnetx_002", "timm:ghostnet_050", "timm:pvt_v2_b0"),
    *("timm:hrnet_w18_small", "timm:edgenext_xx_small"),
]
DEPTHS = (8, 16, 32, 64, 128)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, rounds: int) -> tuple[int, float | None, float]:
    """Nodes of our graph, and the median seconds of each tracer, export first, if it can."""
    built = models.build(name)
    one: Any = built.example if isinstance(built.example, tuple) else (built.example,)
    example = tuple(torch.cat((x, x)) for x in one)  # export specialises a batch of 1
    model = built.module.eval()
    theirs: list[float] = []
    ours: list[float] = []
    nodes = 0
    for _ in range(rounds):
        with suppress(Exception):  # what export cannot take has no seconds
            theirs.append(seconds(lambda: torch.export.export(model, example, strict=False)))
        own = copy.deepcopy(model)
        start = time.process_time()
        nodes = len(record(own, example).module.graph.nodes)
        ours.append(time.process_time() - start)
    return nodes, statistics.median(theirs) if theirs else None, statistics.median(ours)


def block(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
    )


def slope() -> tuple[list[tuple[int, float]], float]:
    """(nodes, seconds) for ever deeper stacks, and the slope of their logarithms."""
    points = []
    for depth in DEPTHS:
        model = nn.Sequential(*(block(8) for _ in range(depth)))
        example = torch.zeros(1, 8, 8, 8)
        taken = statistics.median(seconds(lambda m=model, x=example: record(m, x)) for _ in "abc")
        points.append((3 * depth + 2, taken))
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    return points, statistics.linear_regression(xs, ys).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    compare("torchvision:alexnet", 1)  # torch's own imports
    table = Table("model", "nodes", "export", "ours", "ratio", box=None)
    ratios = []
    for name in asked.models:
        nodes, theirs, ours = compare(name, asked.rounds)
        if theirs is None:
            table.add_row(name, str(nodes), "fails", f"{ours:.2f} s", "")
            continue
        ratios.append(theirs / ours)
        table.add_row(name, str(nodes), f"{theirs:.2f} s", f"{ours:.2f} s", f"{ratios[-1]:.1f}x")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"median ratio of {len(ratios)} {statistics.median(ratios):.2f}x, least {min(ratios):.2f}x"
    )
    points, steepness = slope()
    console.print("nodes and seconds: " + ", ".join(f"{n}: {s:.3f}" for n, s in points))
    console.print(f"slope of log seconds over log nodes: {steepness:.2f}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
