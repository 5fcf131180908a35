"""Draws docs/picture.png: the connections of an MLP before pruning, after, and with skips.

    python tools/readme_picture.py

The network of the paper's Fig. 3 (3072-512-256-128-64 neurons) at 20% density. A point is the
share of kept connections between two groups of neurons; the budgets of the last two are equal.
"""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

import n2nfx
from n2nfx.network import Network

NEURONS = (3072, 512, 256, 128, 64)
GROUP = 16  # neurons a point
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "picture.png"


def adjacency(network: Network) -> np.ndarray:
    """Share of kept connections between groups of neurons, all layers in a row."""
    starts = np.cumsum((0, *NEURONS)) // GROUP
    picture = np.zeros((starts[-1], starts[-1]))
    place = {"input": 0} | {layer.name: index + 1 for index, layer in enumerate(network.layers)}
    names = [(layer.name, layer.weight) for layer in network.layers]
    before = {name: source for (source, _), (name, _) in pairwise((("input", ""), *names))}
    edges = [(before[name], name, weight) for name, weight in names]
    edges += [(skip.source, skip.target, skip.weight) for skip in network.skips]
    for source, target, weight in edges:
        kept = network.masks[weight].double().numpy()
        rows, columns = kept.shape[0] // GROUP, kept.shape[1] // GROUP
        share = kept.reshape(rows, GROUP, columns, GROUP).mean((1, 3))
        row, column = starts[place[target]], starts[place[source]]
        picture[row : row + rows, column : column + columns] = share
    return picture + picture.T


def main() -> None:
    matplotlib.use("agg")
    cases = {
        "reference": n2nfx.transform("n2nfx:mlp", density=1.0),
        "pruned at random, 20%": n2nfx.transform("n2nfx:mlp", density=0.2),
        "N2NSkip, 10% + 10%": n2nfx.transform("n2nfx:mlp", density=0.2, skip_ratio=0.5),
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(9.6, 3.7), dpi=110, layout="constrained")
    for axis, (title, outcome) in zip(axes, cases.items(), strict=True):
        axis.imshow(adjacency(outcome.network) ** 0.5, cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"{title}\n{outcome.network.nnz:,} weights", fontsize=10)
        for edge in np.cumsum(NEURONS)[:-1] // GROUP - 0.5:
            axis.axhline(edge, color="0.85", linewidth=0.6)
            axis.axvline(edge, color="0.85", linewidth=0.6)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()
