"""Fig. 3 and Fig. 4, computed: graphs to draw, and curves of alpha(K, t)."""

from collections.abc import Iterable, Mapping

import numpy as np

from n2nfx.connectivity.eigenvalues import Method
from n2nfx.connectivity.graph import ChannelGraph
from n2nfx.connectivity.scree import Scree
from n2nfx.paper.networks import Setting, untrained
from n2nfx.source import network_of

SHARE = 0.06
"""K of Fig. 4: the share of the eigenvalues."""
TIMES = (0.0, 2.0, 101)
"""Fig. 4's times: from, to, and how many."""


def fig3(setting: Setting | None = None) -> dict[str, ChannelGraph]:
    """The MLP (3072-512-256-128-64) whole, pruned to 20%, and to 10% and 10% in skips, by title."""
    setting = setting or Setting()
    dense = network_of("n2nfx:mlp", seed=setting.seed)
    pruned = untrained(dense, setting, ("rp", "n2nskip-rp"), (0.2,))
    titles = ("(a) reference", "(b) pruned at random, 5x", "(c) N2NSkip, 5x")
    networks = (dense, *(network for _, _, network in pruned))
    return {title: setting.graph(one) for title, one in zip(titles, networks, strict=True)}


def fig4(
    reference: ChannelGraph,
    pruned: Iterable[tuple[str, float, ChannelGraph]],
    *,
    share: float = SHARE,
    method: Method = "auto",
    seed: int = 0,
) -> dict[str, Scree]:
    """alpha(K, t) over t in [0, 2] of a reference and of graphs pruned from it, by label."""
    graphs = {"reference": reference}
    graphs |= {f"{name}, {density:.0%}": graph for name, density, graph in pruned}
    return alphas(graphs, share=share, method=method, seed=seed)


def alphas(
    graphs: Mapping[str, ChannelGraph],
    *,
    share: float = SHARE,
    method: Method = "auto",
    seed: int = 0,
) -> dict[str, Scree]:
    """alpha(K, t) over Fig. 4's times of any graphs, by label."""
    times = np.linspace(*TIMES)
    return {
        label: graph.scree(share, times, method=method, seed=seed)
        for label, graph in graphs.items()
    }
