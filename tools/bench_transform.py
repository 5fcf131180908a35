"""How fast the main job is, beside what it can be compared with, in one run, turn by turn.

    python tools/bench_transform.py [--model torchvision:resnet50] [--density 0.02] [--rounds 7]

Two ratios: random pruning by `torch.nn.utils.prune.random_unstructured` over the same layers
against ours; and ours from trace to spliced network against building the model. Each round runs
every contestant once, so that a machine that slows down slows all of them. Seconds are CPU
seconds of the process (all threads), which neighbours on the machine disturb least.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.utils import prune

import n2nfx
from n2nfx.models import build
from n2nfx.network import Network, Probe
from n2nfx.passes import N2NSkip, RandomPruning
from n2nfx.pipeline import apply
from n2nfx.tracing import record


def torch_prune(modules: list[nn.Module], amount: float) -> None:
    for module in modules:
        prune.random_unstructured(module, "weight", amount)


def fresh_layers(network: Network) -> list[nn.Module]:
    """The network's layers again, for torch's pruning changes them."""
    made: list[nn.Module] = []
    for layer in network.layers:
        module = nn.Module()
        module.register_parameter("weight", nn.Parameter(torch.zeros(layer.weight_shape)))
        made.append(module)
    return made


def operate(module: nn.Module, example: torch.Tensor, density: float, ratio: float) -> None:
    network = record(module, example)  # as `n2nfx transform` does: nobody else holds the model
    apply([RandomPruning(density=density), N2NSkip(ratio=ratio)], network, Probe(seed=0))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()

    model = build(given.model)
    assert isinstance(model.example, torch.Tensor)
    network = n2nfx.trace(model.module, model.example)
    random = RandomPruning(density=given.density)
    taken: dict[str, list[float]] = {}
    for _ in range(given.rounds + 1):
        peers, built = fresh_layers(network), build(given.model)
        contestants: dict[str, Callable[[], object]] = {
            "torch random_unstructured": partial(torch_prune, peers, 1 - given.density),
            "n2nfx random": partial(random, network, Probe(seed=0)),
            "build the model": partial(build, given.model, seed=1),
            "trace, prune, splice": partial(
                operate, built.module, model.example, given.density, given.ratio
            ),
        }
        for name, work in contestants.items():
            taken.setdefault(name, []).append(seconds(work))
    report(given, {name: times[1:] for name, times in taken.items()})  # the first round warms up


def report(given: argparse.Namespace, taken: dict[str, list[float]]) -> None:
    title = f"{given.model}, density {given.density}, {given.rounds} rounds"
    table = Table("", "median s", "min s", "max s", "ratio", title=title, box=None)
    pairs = {
        "n2nfx random": "torch random_unstructured",
        "trace, prune, splice": "build the model",
    }
    for name, times in taken.items():
        ratio = ""
        if name in pairs:
            peers = taken[pairs[name]]
            quotient = statistics.median(a / b for a, b in zip(peers, times, strict=True))
            ratio = f"{quotient:.1f}x faster" if quotient > 1 else f"{1 / quotient:.2f}x its time"
        numbers = (statistics.median(times), min(times), max(times))
        table.add_row(name, *(f"{number:.3f}" for number in numbers), ratio)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
