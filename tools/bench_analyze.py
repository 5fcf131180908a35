"""What `n2nfx analyze MODEL` costs with its defaults, from small graphs to large ones.

    python tools/bench_analyze.py [MODEL ...] [--rounds 1]

Each command is a process of its own, as a user starts it; a round runs all of them once. Seconds
are of the clock and of the processor, everything from the start of Python on, and medians; memory
is the peak. `graph alone` is a process that builds the model, traces it and makes its channel
graph, and nothing else. The last line is the slope of the logarithm of the seconds over that of the
edges, where graphs have a million of them or more.
"""

import argparse
import json
import math
import statistics
import sys
from dataclasses import dataclass, field

from bench_process import cost
from rich.console import Console
from rich.table import Table

MODELS = (
    "resnet18", "resnet50", "swin_t", "efficientnet_b4", "resnet152", "vit_b_16", "convnext_base",
    "wide_resnet101_2", "vgg16", "vit_l_16",
)  # fmt: skip
GRAPH_ALONE = """
import sys
from n2nfx.connectivity import channel_graph
from n2nfx.source import network_of
graph = channel_graph(network_of(sys.argv[1]))
print(f'{{"nodes": {graph.n}, "edges": {graph.edges}}}')
"""


@dataclass
class Row:
    """One model, and what its commands took in each round."""

    nodes: int = 0
    edges: int = 0
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    megabytes: float = 0.0

    def run(self, model: str) -> None:
        command = [sys.executable, "-m", "n2nfx", "analyze", model, "--json"]
        whole = cost(command)
        self.clock.append(whole.clock)
        self.processor.append(whole.processor)
        self.megabytes = max(self.megabytes, whole.megabytes)
        alone = cost([sys.executable, "-c", GRAPH_ALONE, model])
        self.alone.append(alone.clock)
        told = json.loads(alone.printed)
        self.nodes, self.edges = told["nodes"], told["edges"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    rows = {model: Row() for model in asked.models}
    for _ in range(asked.rounds):
        for model, row in rows.items():
            row.run(model)
    table = Table("model", "nodes", "edges", "clock s", "processor s", "graph alone s", "peak MB")
    for model, row in sorted(rows.items(), key=lambda item: item[1].edges):
        medians = (statistics.median(one) for one in (row.clock, row.processor, row.alone))
        seconds = (f"{one:.1f}" for one in medians)
        table.add_row(model, f"{row.nodes:,}", f"{row.edges:,}", *seconds, f"{row.megabytes:,.0f}")
    Console(width=120).print(table)
    large = [row for row in rows.values() if row.edges >= 1e6]
    if len(large) > 1:
        sizes = [math.log(row.edges) for row in large]
        times = [math.log(statistics.median(row.clock)) for row in large]
        slope = statistics.linear_regression(sizes, times).slope
        print(f"slope of log seconds over log edges: {slope:.2f}")


if __name__ == "__main__":
    main()
