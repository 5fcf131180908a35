"""The paper's connectivity analysis: Table 3, Fig. 3 and Fig. 4, under declared conventions.

    python tools/paper_tables.py table3 --out table3.jsonl       a line for each cell
    python tools/paper_tables.py report table3.jsonl > docs/connectivity.md
    python tools/paper_tables.py fig3 --out fig3.png
    python tools/paper_tables.py fig4 --out fig4.png [--density 0.02]

Networks are untrained, unless --artifacts names a folder of trained ones: NETWORK-reference and
NETWORK-METHOD-DENSITY, such as vgg19-n2nskip-rp-0.02. CSP looks at one batch of 64: normal noise
that is drawn, or real images by --data fashion-mnist (grey, in three equal channels). A table
goes on where it was stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from n2nfx.connectivity import plots
from n2nfx.loading import load
from n2nfx.operate import Batch
from n2nfx.paper import table3
from n2nfx.paper.figures import fig3, fig4
from n2nfx.paper.networks import (
    DENSITIES,
    METHODS,
    NETWORKS,
    Setting,
    reference,
    trained,
    untrained,
)
from n2nfx.paper.table3 import Cell
from n2nfx.training.data import load as load_data

_BATCH = 64
_METHODS = list(METHODS)

Row = dict[str, Any]


def real_batch(name: str) -> Batch:
    """The first images of a data set for networks of three channels, 32x32."""
    data = load_data(name)
    data = data.fitted((data.shape[0], 32, 32), None)
    images, labels = data.first(_BATCH)
    return images.expand(-1, 3, -1, -1).contiguous(), labels


def sweep(asked: argparse.Namespace) -> None:
    """Compute the cells that the file does not have, and write each as it is done."""
    setting = _setting(asked)
    words = {"ends": asked.ends, "data": asked.data or "drawn", "trained": bool(asked.artifacts)}
    rows = read(asked.out)
    done = {tuple(row["cell"]["place"]) for row in rows if words.items() <= row.items()}
    for network in asked.networks:
        left = [
            (method, density)
            for method in asked.methods
            for density in asked.densities
            if (network, method, density) not in done
        ]
        start = time.process_time()
        for cell in _cells(network, left, setting, asked.artifacts):
            seconds = round(time.process_time() - start, 1)
            with asked.out.open("a") as file:
                file.write(json.dumps({"cell": cell.as_data(), **words, "seconds": seconds}) + "\n")
            print(*cell.place, seconds, file=sys.stderr, flush=True)
            start = time.process_time()


def _cells(
    network: str, left: Sequence[tuple[str, float]], setting: Setting, artifacts: Path | None
) -> Iterator[Cell]:
    if not left:
        return
    if artifacts is not None:
        dense, there = trained(artifacts, network)
        found = [(place, path) for place, path in there if place[1:] in left]
        pruned = ((place.method, place.density, load(path)) for place, path in found)
    else:
        dense = reference(network, setting)
        pruned = (
            one
            for method, density in left
            for one in untrained(dense, setting, [method], [density])
        )
    graphs = ((method, density, setting.graph(one)) for method, density, one in pruned)
    yield from table3.cells(network, setting.graph(dense), graphs)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _setting(asked: argparse.Namespace) -> Setting:
    batch = real_batch(asked.data) if asked.data else None
    return Setting(ends=asked.ends, seed=asked.seed, batch=batch)


_INTRODUCTION = """\
# Connectivity, and what Table 3 cannot be

Made by `python tools/paper_tables.py report`. A network is a graph: nodes are the channels of its \
input and of every layer, edges weigh the sum of the absolute kernel weights between two channels, \
a residual sum is an identity edge of weight 1. Heat starts at the input's channels (A = 1 there) \
and spreads by S(t) = exp(-tL) A. F(t) = ||S_reference(t) - S_pruned(t)|| (Eqs. 3 to 6).

The numbers that the paper prints in its Table 3 "at saturated heat distribution" cannot be F at \
saturation, and some cannot be F at all:

* **F is at most sqrt(2a)** with a sources, at every t, since 0 <= S <= 1 and both sum up to a. \
With an image's three channels that is 2.449: the printed 6.5, 9.2 and 12 are beyond it. Once the \
reference is saturated the bound is sqrt(a), 1.732, which the printed 2.3 is beyond.
* **At saturation F is exact, from connected components alone**: S is the mean of A over each. Two \
connected graphs have F = 0, and m nodes cut off from every source give \
a sqrt(m / (n (n - m))): for one channel of VGG19 already 5.4e-4. The printed 1e-6 to 1e-5 are \
smaller, so they are what is left at some finite t, which is not printed.
* **Signed weights have no heat**: L is then indefinite, and exp(-tL) grows without bound. What \
the paper made of the signs of its weights is not printed either.
* **One t measures the scale of weights.** Pruning to a density d scales all eigenvalues by about \
d; at a fixed t, F is then mostly the answer to "how much weight is left".
* **F has no sign.** A network that spreads heat faster than its reference is as far from it as \
one that spreads it slower. Saturation times over the reference's do have one: below 1 is faster.

So nothing here is tuned to the printed numbers. F is given at declared times in two conventions, \
`reference` (t = tau / smallest nonzero eigenvalue of the reference, the same t for both, as it \
seems to be in the paper) and `degree` (t = tau / mean degree, each graph's own, which takes the \
scale away), and at infinity, where 0 is exact. A value with an asterisk stands to its twin, the \
same pruning with skips or without, as the paper prints it. A graph that is saturated long before \
its reference has the F that is left of the reference's own heat, whatever the graph: values that \
are the same down a column are these, and tell no two graphs apart.

Fig. 4, computed (untrained VGG19 at 2%, absolute t as in the paper, made by \
`python tools/paper_tables.py fig4 --out docs/fig4.png --data fashion-mnist --alpha slq`):

![alpha(K, t) of VGG19 and of four networks pruned to 2%](fig4.png)
"""
_LEFT = """\
What is left of each network, and when its heat is saturated (R(t) at most 1% of ||A||), over the \
reference's: below 1 is sooner. By `degree` each time is counted in its own unit. Graphs in \
several components are saturated in another state, and their ratios are no measure of speed.
"""
_SUMMARY = """\
The order of the printed numbers, by reading: of the pairs *with and without skips*, of all pairs \
of *methods* at one density, and of all pairs of *densities* within one method, how many stand as \
printed. Two numbers no further apart than their certificates stand in no order.
"""


def report(rows: Sequence[Row]) -> str:
    """Three tables for every network and setting, and the text that belongs to them."""
    parts = [_INTRODUCTION]
    for key in dict.fromkeys(map(_setting_of, rows)):
        own = [Cell.from_data(row["cell"]) for row in rows if _setting_of(row) == key]
        own.sort(key=lambda cell: (_METHODS.index(cell.place.method), -cell.place.density))
        parts += [f"## {_title(*key)}", "", _values(own), "", _LEFT, _counts(own), ""]
        parts += [_SUMMARY, _summary(own), ""]
    return "\n".join(parts)


def _setting_of(row: Row) -> tuple[str, str, str, bool]:
    return row["cell"]["place"][0], row["ends"], row["data"], row["trained"]


def _title(network: str, ends: str, data: str, is_trained: bool) -> str:
    state = "trained" if is_trained else "untrained"
    batch = "a drawn batch of normal noise" if data == "drawn" else f"a batch of {data}"
    kept = "pruned like all" if ends == "pruned" else "kept whole"
    return f"{network}, {state}, first and last layer {kept}, CSP by {batch}"


def _values(cells: Sequence[Cell]) -> str:
    """F of every cell beside what is printed."""
    readings = list(cells[0].figures)
    head = ["method", "density", "printed", *readings, "order as printed"]
    lines = []
    for cell in cells:
        agreeing = table3.skips_stand_as_printed(cell, cells)
        figures = [
            (f"{figure.value:.1e}" if figure.value else "0") + "*" * (reading in agreeing)
            for reading, figure in cell.figures.items()
        ]
        printed = "" if cell.printed is None else f"{cell.printed:.1e}"
        told = f"{len(agreeing)} of {len(readings)}"
        lines.append([cell.place.method, f"{cell.place.density:.0%}", printed, *figures, told])
    return _markdown(head, lines)


def _counts(cells: Sequence[Cell]) -> str:
    """What is left of every network, and how soon its heat is saturated."""
    head = [
        "method", "density", "effective", "dead channels", "edges", "components",
        "nodes without a source", "saturation time (reference)", "saturation time (degree)",
    ]  # fmt: skip
    lines = [
        [
            cell.place.method,
            f"{cell.place.density:.0%}",
            "" if cell.effective_density is None else f"{cell.effective_density:.3%}",
            "" if cell.dead_channels is None else f"{cell.dead_channels:,}",
            *(f"{count:,}" for count in (cell.edges, cell.components, cell.unreached)),
            *("" if ratio is None else f"{ratio:.3g}" for ratio in cell.ratios.values()),
        ]
        for cell in cells
    ]
    return _markdown(head, lines)


def _summary(cells: Sequence[Cell]) -> str:
    """How much of the printed order there is in each reading."""
    head = ["reading", "skips", "methods", "densities"]
    found = table3.orders(cells)
    lines = [[reading, *map(str, row)] for reading, row in found.items()]
    return _markdown(head, lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw_fig3(asked: argparse.Namespace) -> None:
    """Draw the adjacency matrices of the MLP at a compression of 5x."""
    print(plots.save(plots.adjacency(fig3(Setting(seed=asked.seed))), asked.out))


def draw_fig4(asked: argparse.Namespace) -> None:
    """Draw alpha(K, t) of VGG19 and of what the four methods make of it."""
    setting = _setting(asked)
    dense = reference("vgg19", setting)
    pruned = untrained(dense, setting, asked.methods, (asked.density,))
    graphs = ((method, density, setting.graph(one)) for method, density, one in pruned)
    curves = fig4(setting.graph(dense), graphs, method=asked.alpha, seed=asked.seed)
    print(plots.save(plots.scree(curves), asked.out))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    jobs = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True)
    shared.add_argument("--seed", type=int, default=0)
    pruning = argparse.ArgumentParser(add_help=False, parents=[shared])
    pruning.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    pruning.add_argument("--ends", choices=("pruned", "dense"), default="pruned")
    pruning.add_argument("--data", help="what CSP looks at, by default noise that is drawn")
    table = jobs.add_parser("table3", parents=[pruning])
    table.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    table.add_argument("--densities", nargs="*", type=float, default=list(DENSITIES))
    table.add_argument("--artifacts", type=Path, help="a folder of trained networks")
    table.set_defaults(job=sweep)
    figure = jobs.add_parser("fig3", parents=[shared])
    figure.set_defaults(job=draw_fig3)
    figure = jobs.add_parser("fig4", parents=[pruning])
    figure.add_argument("--density", type=float, default=0.02)
    figure.add_argument("--alpha", choices=("auto", "dense", "slq"), default="auto")
    figure.set_defaults(job=draw_fig4)
    printed = jobs.add_parser("report")
    printed.add_argument("rows", type=Path)
    printed.set_defaults(job=lambda asked: print(report(read(asked.rows)), end=""))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.job(asked)


if __name__ == "__main__":
    main()
