"""Pictures of channel graphs: adjacency (Fig. 3), scree (Fig. 4), and heat over time.

Figures are matplotlib's own objects, made without pyplot: nothing global is read or changed, and
no window is needed. numpy only, no torch.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from scipy import sparse

from n2nfx.atomic import put_file
from n2nfx.connectivity.compare import Comparison
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.heat import Heat
from n2nfx.connectivity.scree import Scree
from n2nfx.errors import UsageError, did_you_mean

SUFFIXES = (".png", ".svg", ".pdf")
_BINS = 600  # points along a picture of an adjacency matrix, at most
_LONGEST = 32  # characters of a label, which would leave no room for the picture
_METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def adjacency(graphs: Mapping[str, ChannelGraph]) -> Figure:
    """The binary adjacency matrices of graphs side by side, as in Fig. 3, by title."""
    figure = _figure(len(graphs), 1)
    _draw_row(figure, [partial(draw_adjacency, graph, title) for title, graph in graphs.items()])
    return figure


def scree(curves: Mapping[str, Scree]) -> Figure:
    """alpha(K, t) over t at every K, as in Fig. 4, by label; a band is an estimate's interval."""
    figure = _figure(1, 1)
    _draw_row(figure, [partial(draw_scree, curves)])
    return figure


def overview(
    graphs: Mapping[str, ChannelGraph],
    screes: Mapping[str, Scree],
    heats: Mapping[str, Heat],
    comparisons: Mapping[str, Comparison],
) -> Figure:
    """Adjacency above, by title; below, over time, alpha, R(t) and F(t), what there is of them."""
    above = [partial(draw_adjacency, graph, title) for title, graph in graphs.items()]
    curves = (draw_scree, screes), (draw_residual, heats), (draw_distance, comparisons)
    below = [partial(draw, given) for draw, given in curves if given]
    figure = _figure(max(len(above), len(below)), 2)
    grid = figure.add_gridspec(2, 1)
    for place, row in enumerate((above, below)):
        _draw_row(figure.add_subfigure(grid[place]), row)
    return figure


def _figure(columns: int, rows: int) -> Figure:
    figure = Figure(figsize=(4.2 * columns, 4.0 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_row(figure: FigureBase, row: Sequence[Callable[[Axes], None]]) -> None:
    for axis, draw in zip(figure.subplots(1, len(row), squeeze=False)[0], row, strict=True):
        draw(axis)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a picture at once or not at all, as png, svg or pdf by the suffix of its path.

    Raises `UsageError` for another suffix, `CannotOperate` where it cannot be written.
    """
    target = Path(path)
    suffix = require_picture(target)
    stream = io.BytesIO()
    figure.savefig(stream, format=suffix[1:], metadata=_METADATA[suffix])
    put_file(target, stream.getvalue())
    return target


def require_picture(path: Path) -> str:
    """The suffix of a picture's path; raises `UsageError` where it names no format."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        near = did_you_mean(suffix, SUFFIXES)
        raise UsageError(f"{path}: a picture is {', '.join(SUFFIXES)}{near}")
    return suffix


def draw_adjacency(graph: ChannelGraph, title: str, axis: Axes) -> None:
    """One adjacency matrix; a point of a large one is the share of pairs that have an edge."""
    picture, borders = picture_of(graph)
    axis.imshow(picture**0.5, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    if len(borders) < len(picture) / 8:  # where more, they would hide it
        for border in borders:
            axis.axhline(border, color="0.85", linewidth=0.6)
            axis.axvline(border, color="0.85", linewidth=0.6)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(f"{_short(title)}\n{graph.n:,} nodes, {graph.edges:,} edges", fontsize=9)


def picture_of(graph: ChannelGraph, bins: int = _BINS) -> tuple[np.ndarray, np.ndarray]:
    """A graph's adjacency, each group in bins of its own, and where groups meet.

    A point (i, j) is the share of node pairs between two bins that have an edge: 0 or 1 where a
    bin is one node. Every group has at least one bin, so a picture of many groups is larger than
    `bins` along a side.
    """
    bin_of, starts = _bins(graph, bins)
    size = int(starts[-1])
    counts = np.bincount(bin_of, minlength=size).astype(np.float64)
    found = np.zeros((size, size))
    for block in graph.blocks:
        source, target = bin_of[graph.span(block.source)], bin_of[graph.span(block.target)]
        joined = sparse.coo_array(block.weights != 0)
        rows, columns = target[joined.coords[0]], source[joined.coords[1]]
        places = np.bincount(rows * size + columns, minlength=size * size)
        found += places.reshape(size, size)
    found /= np.outer(counts, counts)
    return found + found.T, starts[1:-1] - 0.5


def _bins(graph: ChannelGraph, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The bin of every node, and the first bin of every group with the number of bins last."""
    scale = max(1.0, graph.n / bins)
    found, starts = [], [0]
    for group in graph.groups:
        own = max(1, round(group.size / scale)) if group.size else 0
        found.append(starts[-1] + np.arange(group.size) * own // max(group.size, 1))
        starts.append(starts[-1] + own)
    return np.concatenate(found), np.asarray(starts)


def draw_scree(curves: Mapping[str, Scree], axis: Axes) -> None:
    """alpha(K, t) over t; t is in powers of ten where it does not begin at 0."""
    for label, curve in curves.items():
        for row, share in enumerate(curve.K):
            (line,) = axis.plot(
                curve.times, curve.alpha[row], label=f"{_short(label)}, K = {share:.3g}"
            )
            if not curve.exact:
                band = curve.low[row], curve.high[row]
                axis.fill_between(curve.times, *band, color=line.get_color(), alpha=0.2)
    if all(curve.times[0] > 0 for curve in curves.values()):
        axis.set_xscale("log")
    axis.set_ylim(0.0, 1.02)
    _name(axis, "alpha(K, t)")


def draw_residual(heats: Mapping[str, Heat], axis: Axes) -> None:
    """R(t) over t, both in powers of ten."""
    curves = {label: (one.times, one.residual) for label, one in heats.items()}
    _draw_positive(axis, curves)
    _name(axis, "R(t) = ||S(t) - S(infinity)||")


def draw_distance(comparisons: Mapping[str, Comparison], axis: Axes) -> None:
    """F(t) over the reference's t, both in powers of ten."""
    curves = {label: (one.times, one.frobenius) for label, one in comparisons.items()}
    _draw_positive(axis, curves)
    _name(axis, "F(t)")


def _draw_positive(axis: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Curves in powers of ten, which zero has no place among."""
    found = False
    for label, (times, values) in curves.items():
        shown = (times > 0) & (values > 0)
        axis.plot(times[shown], values[shown], label=_short(label))
        found = found or bool(shown.any())
    if found:
        axis.set_xscale("log")
        axis.set_yscale("log")


def _short(label: str) -> str:
    """The end of a label, which tells paths apart."""
    return label if len(label) <= _LONGEST else f"...{label[-_LONGEST:]}"


def _name(axis: Axes, what: str) -> None:
    axis.set_xlabel("t")
    axis.set_title(what, fontsize=9)
    axis.grid(color="0.92")
    axis.legend(fontsize=8)
