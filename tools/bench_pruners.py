"""What scoring costs, beside the passes over the network that it is made of.

    python tools/bench_pruners.py [--model torchvision:resnet50] [--batch 16] [--rounds 5]
        [--threads 1] [--only snip|synflow|top-k]

SNIP over one batch against a forward and a backward over it; SynFlow's rounds against as many of
the same network in float64 on its one example; the exact top-k against `torch.topk`. Contestants
take turns, so that a machine that slows down slows all of them, and medians are compared.
Seconds are of the clock: what several threads do at a time counts once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.masks import top_k
from n2nfx.models import build
from n2nfx.network import Network, Probe, blank_inputs
from n2nfx.passes import SNIP, SynFlow

Contestants = dict[str, Callable[[], object]]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def take_turns(contestants: Contestants, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; a first round warms up and does not count."""
    taken = [{name: seconds(work) for name, work in contestants.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in taken[1:]] for name in contestants}


def forward_and_backward(
    module: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]
) -> Callable[[], object]:
    def work() -> None:
        module.zero_grad(set_to_none=True)
        loss(module(inputs)).backward()

    return work


def snip(network: Network, given: argparse.Namespace) -> dict[str, list[float]]:
    inputs = torch.randn(given.batch, *network.inputs[0].shape[1:])
    targets = torch.zeros(given.batch, dtype=torch.long)
    pruner, probe = SNIP(density=given.density), Probe(batches=[(inputs, targets)])
    module = n2nfx.Pipeline([])(network).network.module.train()
    plain = forward_and_backward(module, inputs, lambda out: functional.cross_entropy(out, targets))
    return take_turns(
        {
            "forward and backward": plain,
            "SNIP's scores": lambda: pruner.score(network, probe),
            "SNIP, masks and all": lambda: pruner(network, probe),
        },
        given.rounds,
    )


def synflow(network: Network, given: argparse.Namespace) -> dict[str, list[float]]:
    """All rounds of SynFlow, once, between passes over the network, before and after."""
    (blank,) = blank_inputs(network.inputs, 1)
    inputs = torch.ones_like(blank, dtype=torch.float64)
    module = n2nfx.Pipeline([])(network).network.module.double().train(given.train)
    plain = forward_and_backward(module, inputs, Tensor.sum)
    pruner = SynFlow(density=given.density, rounds=given.synflow_rounds)
    before = take_turns({"plain": plain}, given.rounds)["plain"]
    whole = seconds(lambda: pruner(network, Probe()))
    after = take_turns({"plain": plain}, given.rounds)["plain"]
    return {
        "forward and backward, float64": before + after,
        "a round of SynFlow": [whole / given.synflow_rounds],
    }


def ranking(_: Network, given: argparse.Namespace) -> dict[str, list[float]]:
    size = 25_000_000
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0)).abs()
    count = round(size * given.density)
    return take_turns(
        {
            "torch.topk of 25 M": lambda: scores.topk(count, sorted=False),
            "exact top-k of 25 M": lambda: top_k(scores, count),
        },
        given.rounds,
    )


BENCHES = {"snip": snip, "synflow": synflow, "top-k": ranking}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--synflow-rounds", type=int, default=100)
    parser.add_argument("--train", action="store_true", help="batch norms of the peer in training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=BENCHES)
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    model = build(given.model)
    network = n2nfx.trace(model.module, model.example)
    title = f"{given.model}, density {given.density}, threads {given.threads}"
    table = Table("", "median s", "min s", "max s", "of the first", title=title, box=None)
    for name, bench in BENCHES.items():
        if given.only in (None, name):
            add_rows(table, bench(network, given))
    Console(width=100).print(table)


def add_rows(table: Table, taken: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(taken.values())))
    for name, times in taken.items():
        median = statistics.median(times)
        numbers = (median, min(times), max(times))
        table.add_row(name, *(f"{number:.3f}" for number in numbers), f"{median / first:.2f}x")


if __name__ == "__main__":
    main()
