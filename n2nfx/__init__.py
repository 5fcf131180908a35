"""Model surgery over torch.fx graphs: sparse networks with neuron-to-neuron skips, counted exactly.

The names here are resolved when they are first used, so that importing n2nfx loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from n2nfx.bind import bake as bake
    from n2nfx.connectivity.channel_graph import channel_graph as channel_graph
    from n2nfx.connectivity.graph_files import load_graph as load_graph
    from n2nfx.errors import CannotOperate as CannotOperate
    from n2nfx.errors import DamagedFile as DamagedFile
    from n2nfx.errors import N2nfxError as N2nfxError
    from n2nfx.errors import UsageError as UsageError
    from n2nfx.loading import load as load
    from n2nfx.network import Layer as Layer
    from n2nfx.network import Network as Network
    from n2nfx.network import Probe as Probe
    from n2nfx.network import Skip as Skip
    from n2nfx.operate import transform as transform
    from n2nfx.outcome import Outcome as Outcome
    from n2nfx.pipeline import BrokenInvariant as BrokenInvariant
    from n2nfx.pipeline import Pipeline as Pipeline
    from n2nfx.tracing import trace as trace

_HOMES = {
    "bake": "bind",
    "channel_graph": "connectivity.channel_graph",
    "load_graph": "connectivity.graph_files",
    "CannotOperate": "errors",
    "DamagedFile": "errors",
    "N2nfxError": "errors",
    "UsageError": "errors",
    "load": "loading",
    "Layer": "network",
    "Network": "network",
    "Probe": "network",
    "Skip": "network",
    "Outcome": "outcome",
    "BrokenInvariant": "pipeline",
    "Pipeline": "pipeline",
    "trace": "tracing",
    "transform": "operate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'n2nfx' has no attribute {name!r}")
    value = getattr(import_module(f"n2nfx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
