"""What pruning did to a network's paths: effective weights, dead channels, collapse, its graph."""

from n2nfx.connectivity.channel_graph import channel_graph
from n2nfx.connectivity.collapse import Collapse, find_collapse
from n2nfx.connectivity.counting import count_effective
from n2nfx.connectivity.effective import Effective, EffectiveRow

__all__ = [
    "Collapse",
    "Effective",
    "EffectiveRow",
    "channel_graph",
    "count_effective",
    "find_collapse",
]
