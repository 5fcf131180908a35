"""What heat and scree diagrams cost on graphs of the size of networks, beside other libraries.

    python tools/bench_heat.py [--only vgg19|scree|resnet50|vit|slope ...] [--rounds 3] [--no-long]

One process and one thread. Graphs are random masks on the layers of VGG19, ResNet50 and ViT-L.
Contestants take turns and medians are compared; rows marked `once` run a single time, since they
take a minute. Seconds are of the processor, and of the clock beside them; every row of ours
includes its set-up (blocks, transposes, components). Memory is the peak of the whole process while
the row ran, the graph and what Python imported included (Linux). Errors are of the 2-norm, the
worst over the times, against dense eigenvectors; for scree, of alpha at K = 0.01, 0.05, 0.1 and
0.25 against eigvalsh. PyGSP, NetLSD and imate are left out where they are not installed.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import sparse
from scipy.linalg import eigh, eigvalsh
from scipy.sparse.linalg import expm_multiply

from n2nfx.connectivity.graph import ChannelGraph, layered
from n2nfx.connectivity.laplacian import Laplacian
from n2nfx.connectivity.spectrum import smallest_nonzero

VGG19 = (3, 64, 64, 128, 128, *[256] * 4, *[512] * 8, 10)
TAUS = np.array([0.01, 0.1, 1.0, 5.0, 20.0])  # times the smallest nonzero eigenvalue
FRACTIONS = (0.01, 0.05, 0.1, 0.25)
Blocks = dict[tuple[int, int], Any]


@dataclass
class Row:
    """One contestant: what it does, what its answer is worth, and what it took so far."""

    name: str
    work: Callable[[], Any]
    judge: Callable[[Any], tuple[str, str]]  # error and certificate
    long: bool = False
    processor: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    memory: int = 0
    answer: Any = None

    def run(self) -> None:
        reset_peak()
        clock, processor = time.perf_counter(), time.process_time()
        self.answer = self.work()
        self.processor.append(time.process_time() - processor)
        self.clock.append(time.perf_counter() - clock)
        self.memory = max(self.memory, peak())


def reset_peak() -> None:
    """Forget the peak of resident memory so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak of resident memory, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def weights(
    generator: np.random.Generator, out: int, into: int, kernel: int, density: float
) -> Any:
    """Sums of |weight| over a kernel of initial weights, kept at random."""
    spread, total = np.sqrt(2 / (out * kernel**2)), np.zeros((out, into))
    for _ in range(kernel**2):
        kept = generator.random((out, into)) < density
        total += kept * np.abs(generator.standard_normal((out, into))) * spread
    filled = np.count_nonzero(total) > total.size / 4
    return total if filled else sparse.csr_array(total)


def graph_of(sizes: Sequence[int], blocks: Blocks) -> ChannelGraph:
    return layered(sizes, [(source, target, found) for (source, target), found in blocks.items()])


def vgg19(density: float, seed: int = 0) -> ChannelGraph:
    generator, last = np.random.default_rng(seed), len(VGG19) - 2
    blocks = {
        (at, at + 1): weights(generator, VGG19[at + 1], VGG19[at], 3 if at < last else 1, density)
        for at in range(last + 1)
    }
    return graph_of(VGG19, blocks)


def resnet50(density: float, seed: int = 0) -> ChannelGraph:
    """A residual add is identity edges of weight 1 from its shortcut to the block's output."""
    generator, sizes, blocks = np.random.default_rng(seed), [3], Blocks()

    def convolution(source: int, channels: int, kernel: int) -> int:
        sizes.append(channels)
        found = weights(generator, channels, sizes[source], kernel, density)
        blocks[source, len(sizes) - 1] = found
        return len(sizes) - 1

    now = convolution(0, 64, 7)
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for place in range(count):
            into = now
            narrow = convolution(convolution(into, width, 1), width, 3)
            now = convolution(narrow, 4 * width, 1)
            shortcut = convolution(into, 4 * width, 1) if place == 0 else into
            blocks[min(shortcut, now), max(shortcut, now)] = sparse.eye_array(
                4 * width, format="csr"
            )
            now = max(shortcut, now)
    convolution(now, 10, 1)
    return graph_of(sizes, blocks)


def vit_large(density: float, seed: int = 0) -> ChannelGraph:
    """24 blocks of 1024 channels; queries, keys and values all lead to what attention gives."""
    generator, sizes, blocks = np.random.default_rng(seed), [3, 1024], Blocks()
    blocks[0, 1] = weights(generator, 1024, 3, 16, density)
    now = 1
    for _ in range(24):
        qkv, mixed, hidden, out = range(len(sizes), len(sizes) + 4)
        sizes += [3072, 1024, 4096, 1024]
        for source, target in ((now, qkv), (qkv, mixed), (mixed, hidden), (hidden, out)):
            found = weights(generator, sizes[target], sizes[source], 1, density)
            blocks[source, target] = found
        for source, target in ((now, mixed), (mixed, out)):
            blocks[source, target] = sparse.eye_array(1024, format="csr")
        now = out
    sizes.append(1000)
    blocks[now, len(sizes) - 1] = weights(generator, 1000, 1024, 1, density)
    return graph_of(sizes, blocks)


def chain(width: int, layers: int = 16) -> ChannelGraph:
    generator, sizes = np.random.default_rng(0), [3, *[width] * layers]
    pairs = zip(range(layers), range(1, layers + 1), strict=True)
    blocks = {(one, two): weights(generator, sizes[two], sizes[one], 1, 1.0) for one, two in pairs}
    return graph_of(sizes, blocks)


def compete(title: str, rows: Sequence[Row], rounds: int, long: bool) -> None:
    """Every row in turn, long ones in the first round only; then the table."""
    for turn in range(rounds):
        for row in rows:
            if not row.long or (long and turn == 0):
                row.run()
    columns = ("", "s of CPU", "s of clock", "MiB", "error", "certificate")
    table = Table(*columns, title=title, box=None)
    for row in rows:
        if not row.processor:
            continue
        error, certificate = row.judge(row.answer)
        times = (f"{statistics.median(taken):.3g}" for taken in (row.processor, row.clock))
        name = row.name + (" (once)" if row.long else "")
        table.add_row(name, *times, f"{row.memory / 1024:.0f}", error, certificate)
    Console(width=140).print(table)


def ours(graph: ChannelGraph, times: np.ndarray, reference: Callable[[], Any]) -> Row:
    def judge(heat: Any) -> tuple[str, str]:
        known = reference()
        error = "-" if known is None else f"{distance(heat.signature, known):.1e}"
        told = f"{heat.certificate.max():.1e} ({heat.method}, {heat.products} products)"
        return error, told

    return Row("n2nfx heat, five times", lambda: graph.heat(times), judge)


def distance(found: np.ndarray, known: np.ndarray) -> float:
    return float(np.linalg.norm(found - known, axis=1).max())


def rows_of_heat(graph: ChannelGraph) -> list[Row]:
    """Heat on a graph that dense eigenvectors can be had for."""
    value = smallest_nonzero(graph).value
    times, start = TAUS / value, graph.sources
    matrix = sparse.csr_array(sparse.diags_array(graph.degrees) - graph.to_scipy())

    def dense() -> np.ndarray:
        values, vectors = eigh(Laplacian(graph).toarray(), overwrite_a=True, check_finite=False)
        values[: Laplacian(graph).components] = 0.0
        return (np.exp(-np.multiply.outer(times, values)) * (vectors.T @ start)) @ vectors.T

    row = Row("dense eigh, five times", dense, lambda _: ("reference", "none"), long=True)

    def against(places: Sequence[int]) -> Callable[[Any], tuple[str, str]]:
        def judge(found: np.ndarray) -> tuple[str, str]:
            if row.answer is None:
                return "-", "none"
            return f"{distance(np.atleast_2d(found), row.answer[list(places)]):.1e}", "none"

        return judge

    def multiplied(place: int) -> Row:
        return Row(
            f"expm_multiply, t = {TAUS[place]:g} / lambda_2 only",
            lambda: expm_multiply(-times[place] * matrix, start),
            against([place]),
            long=True,
        )

    return [
        ours(graph, times, lambda: row.answer),
        row,
        multiplied(2),
        multiplied(3),
        *pygsp_rows(graph, times, start, against(range(len(times)))),
    ]


def pygsp_rows(
    graph: ChannelGraph,
    times: np.ndarray,
    start: np.ndarray,
    judge: Callable[[Any], tuple[str, str]],
) -> list[Row]:
    if importlib.util.find_spec("pygsp") is None:
        return []
    from pygsp import filters, graphs  # pyright: ignore[reportMissingImports]

    def filtered(order: int) -> np.ndarray:
        theirs = graphs.Graph(sparse.csr_matrix(graph.to_scipy()))
        theirs.estimate_lmax()
        bank = filters.Heat(theirs, scale=list(times * theirs.lmax))
        return bank.filter(start, method="chebyshev", order=order).T

    return [
        Row(f"PyGSP, order {order}", lambda order=order: filtered(order), judge)
        for order in (30, 250)
    ]


def rows_of_scree(graph: ChannelGraph) -> list[Row]:
    value = smallest_nonzero(graph).value
    times = np.linspace(0, 5 / value, 60)

    def exactly() -> np.ndarray:
        return eigvalsh(Laplacian(graph).toarray(), overwrite_a=True, check_finite=False)

    row = Row("eigvalsh", exactly, lambda _: ("reference", "none"), long=True)

    def known(counts: Sequence[int]) -> np.ndarray:
        late = np.exp(-np.multiply.outer(times, row.answer[1:] - row.answer[1]))
        return np.array([late[:, :count].sum(axis=1) / late.sum(axis=1) for count in counts])

    def judge(found: Any) -> tuple[str, str]:
        if row.answer is None:
            return "-", "-"
        exact = known(found.counts)
        errors = np.abs(found.alpha - exact).max(axis=1)
        inside = ((found.low <= exact) & (exact <= found.high)).mean()
        told = f"95% interval up to {(found.high - found.low).max():.1e} wide, holds {inside:.0%}"
        return " ".join(f"{error:.1e}" for error in errors), told

    ours = [
        Row(
            f"n2nfx scree, 60 times, seed {seed}",
            lambda seed=seed: graph.scree(FRACTIONS, times, method="slq", seed=seed),
            judge,
        )
        for seed in (0, 1)
    ]
    return [*ours, row, *trace_rows(graph, row, 5 / value)]


def trace_rows(graph: ChannelGraph, exact: Row, latest: float) -> list[Row]:
    """Peers that give tr exp(-t L) only: the denominator of alpha, with lambda_1."""
    rows: list[Row] = []
    matrix = sparse.csc_matrix(sparse.diags_array(graph.degrees) - graph.to_scipy())

    def judge(at: np.ndarray) -> Callable[[Any], tuple[str, str]]:
        def judged(found: Any) -> tuple[str, str]:
            if exact.answer is None:
                return "-", "none"
            true = np.exp(-np.multiply.outer(at, exact.answer)).sum(axis=1)
            return f"{np.abs(np.asarray(found) / true - 1).max():.0%} of the trace", "none"

        return judged

    if importlib.util.find_spec("netlsd") is not None:
        import netlsd  # pyright: ignore[reportMissingImports]

        adjacency = sparse.csr_matrix(graph.to_scipy())
        at = np.geomspace(latest / 500, latest, 250)

        def theirs() -> Any:
            return netlsd.heat(adjacency, at, normalization=None, normalized_laplacian=False)

        rows.append(Row("NetLSD, 250 traces", theirs, judge(at), long=True))
    if importlib.util.find_spec("imate") is not None:
        import imate  # pyright: ignore[reportMissingImports]

        def slq() -> Any:
            samples = {"min_num_samples": 16, "max_num_samples": 16, "lanczos_degree": 60}
            return imate.trexp(matrix, coeff=-latest, method="slq", num_threads=1, **samples)

        rows.append(Row("imate, one trace", slq, judge(np.array([latest])), long=True))
    return rows


def title(name: str, graph: ChannelGraph) -> str:
    return f"{name}: {graph.n:,} nodes, {graph.edges:,} edges"


def slope(rounds: int) -> None:
    """Seconds of CPU for five times, against the number of edges."""
    graphs = [chain(width) for width in (80, 160, 320, 480, 640, 816)]
    rows = []
    for graph in graphs:
        times = TAUS / graph.degrees.mean()
        row = ours(graph, times, lambda: None)
        row.name = f"{graph.n:,} nodes, {graph.edges:,} edges"
        rows.append(row)
    compete("Chains of 16 dense layers, five times", rows, rounds, long=True)
    taken = [statistics.median(row.processor) for row in rows]
    edges = [graph.edges for graph in graphs]
    whole = np.polyfit(np.log(edges), np.log(taken), 1)[0]
    print(f"cost grows with edges to the power {whole:.2f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = ("vgg19", "scree", "resnet50", "vit", "slope")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-long", action="store_true", help="leave out rows that take a minute")
    given = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # is read when numpy is imported
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"}
        )
    warnings.filterwarnings("ignore", module="pygsp|netlsd|imate")

    for density in (1.0, 0.1):
        graph = vgg19(density)
        if "vgg19" in given.only:
            name = title(f"VGG19 at {density:.0%}", graph)
            compete(name, rows_of_heat(graph), given.rounds, not given.no_long)
        if "scree" in given.only and density < 1:
            name = title(f"Scree of VGG19 at {density:.0%}", graph)
            compete(name, rows_of_scree(graph), given.rounds, not given.no_long)
    for name, build, density in (("resnet50", resnet50, 1.0), ("vit", vit_large, 0.02)):
        if name in given.only:
            graph = build(density)
            times = TAUS / smallest_nonzero(graph).value
            rows = [ours(graph, times, lambda: None)]
            compete(title(f"{name} at {density:.0%}", graph), rows, given.rounds, long=True)
    if "slope" in given.only:
        slope(given.rounds)


if __name__ == "__main__":
    main()
