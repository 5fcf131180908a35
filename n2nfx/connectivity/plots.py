"""Pictures of channel graphs: adjacency (Fig. 3), scree (Fig. 4), and heat over time.

Figures are matplotlib's own objects, made without pyplot: nothing global is read or changed, and
no window is needed. numpy only, no torch.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import sparse

from n2nfx.atomic import put_file
from n2nfx.connectivity.compare import Comparison
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.heat import Heat
from n2nfx.connectivity.scree import Scree
from n2nfx.errors import UsageError, did_you_mean

SUFFIXES = (".png", ".svg", ".pdf")
_BINS = 600  # points along a picture of an adjacency matrix, at most
_METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def adjacency(graphs: Mapping[str, ChannelGraph]) -> Figure:
    """The binary adjacency matrices of graphs side by side, as in Fig. 3, by title."""
    figure, axes = _row(len(graphs))
    for axis, (title, graph) in zip(axes, graphs.items(), strict=True):
        draw_adjacency(axis, graph, title)
    return figure


def scree(curves: Mapping[str, Scree]) -> Figure:
    """alpha(K, t) over t at every K, as in Fig. 4, by label; a band is an estimate's interval."""
    figure, (axis,) = _row(1)
    draw_scree(axis, curves)
    return figure


def heat(heats: Mapping[str, Heat]) -> Figure:
    """R(t) = ||S(t) - S(infinity)|| over t of every graph, by label."""
    figure, (axis,) = _row(1)
    draw_residual(axis, heats)
    return figure


def distance(comparisons: Mapping[str, Comparison]) -> Figure:
    """F(t) over t of every comparison, by label, with its bound and its value at infinity."""
    figure, (axis,) = _row(1)
    draw_distance(axis, comparisons)
    return figure


def overview(
    graphs: Mapping[str, ChannelGraph],
    screes: Mapping[str, Scree],
    heats: Mapping[str, Heat],
    comparisons: Mapping[str, Comparison],
) -> Figure:
    """All of these in one picture: adjacency above; below, what there is of the curves."""
    curves = [
        (draw, given)
        for draw, given in (
            (draw_scree, screes), (draw_residual, heats), (draw_distance, comparisons),
        )
        if given
    ]  # fmt: skip
    columns = max(len(graphs), len(curves))
    figure = Figure(figsize=(4.2 * columns, 8.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1)
    for axis, (title, graph) in zip(above.subplots(1, len(graphs), squeeze=False)[0], graphs.items(), strict=True):
        draw_adjacency(axis, graph, title)
    for axis, (draw, given) in zip(below.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        draw(axis, given)
    return figure


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


def draw_adjacency(axis: Axes, graph: ChannelGraph, title: str) -> None:
    """One adjacency matrix; a point of a large one is the share of pairs that have an edge."""
    picture, edges = picture_of(graph)
    axis.imshow(picture**0.5, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    for edge in edges:
        axis.axhline(edge, color="0.85", linewidth=0.6)
        axis.axvline(edge, color="0.85", linewidth=0.6)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(f"{title}\n{graph.n:,} nodes, {graph.edges:,} edges", fontsize=9)


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


def draw_scree(axis: Axes, curves: Mapping[str, Scree]) -> None:
    """alpha(K, t) over t."""
    for label, curve in curves.items():
        for row, share in enumerate(curve.K):
            name = label if len(curve.K) == 1 else f"{label}, K = {share:.3g}"
            (line,) = axis.plot(curve.times, curve.alpha[row], label=name)
            if not curve.exact:
                band = curve.low[row], curve.high[row]
                axis.fill_between(curve.times, *band, color=line.get_color(), alpha=0.2)
    _finish(axis, "t", "alpha(K, t)", {share for curve in curves.values() for share in curve.K})
    axis.set_ylim(0.0, 1.02)


def draw_residual(axis: Axes, heats: Mapping[str, Heat]) -> None:
    """R(t) over t, in parts of ||A||, both in powers of ten."""
    for label, one in heats.items():
        axis.loglog(one.times, one.residual, label=label)
    _finish(axis, "t", "R(t) = ||S(t) - S(inf)||")


def draw_distance(axis: Axes, comparisons: Mapping[str, Comparison]) -> None:
    """F(t) over the reference's t, both in powers of ten."""
    for label, one in comparisons.items():
        axis.loglog(one.times, one.frobenius, label=label)
    _finish(axis, "t", "F(t)")
