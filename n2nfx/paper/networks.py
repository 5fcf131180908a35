"""The paper's networks, pruned as it prunes them: untrained here, or trained, from artifacts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from n2nfx.connectivity import channel_graph
from n2nfx.connectivity.graph import Aggregation, ChannelGraph, Residual
from n2nfx.errors import UsageError, did_you_mean
from n2nfx.loading import load
from n2nfx.network import Network, Probe
from n2nfx.operate import PRUNERS, Batch
from n2nfx.paper.printed import NETWORKS, Place
from n2nfx.passes import N2NSkip
from n2nfx.pipeline import Pass, Pipeline
from n2nfx.seeds import derive
from n2nfx.source import network_of

METHODS = {"rp": "random", "n2nskip-rp": "random", "csp": "snip", "n2nskip-csp": "snip"}
DENSITIES = (0.5, 0.1, 0.05, 0.02)

_SHAPE, _CLASSES, _BATCH = (3, 32, 32), 10, 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that Table 3 depends on and the paper does not print.

    `ratio` is the share of the weights in skips, `hops` the layers that these bypass, `ends`
    whether the first and the last layer are pruned; `weight` and `residual` are those of
    `channel_graph`. `batch` is what CSP looks at: one that is drawn (normal images, uniform
    classes) where there is none.
    """

    ratio: float = 0.5
    hops: tuple[int, ...] = (3,)
    ends: str = "pruned"
    weight: Aggregation = "abs_sum"
    residual: Residual = "identity"
    seed: int = 0
    batch: Batch | None = None

    def graph(self, network: Network) -> ChannelGraph:
        """The channel graph of one network."""
        return channel_graph(network, weight=self.weight, residual=self.residual)

    def steps(self, method: str, density: float) -> list[Pass]:
        """The passes that make a network of the paper's of its reference."""
        _require_known("method", method, METHODS)
        steps: list[Pass] = [PRUNERS[METHODS[method]](density=density, ends=self.ends)]
        if method.startswith("n2nskip"):
            steps.append(
                N2NSkip(ratio=self.ratio, hops=self.hops, wiring="paper", pattern="random")
            )
        return steps

    def probe(self) -> Probe:
        """What the passes may look at."""
        batch = drawn_batch(self.seed) if self.batch is None else self.batch
        return Probe(seed=self.seed, batches=(batch,))


def drawn_batch(seed: int = 0) -> Batch:
    """Images (64, 3, 32, 32) from a normal distribution and classes (64,): no data at all."""
    generator = torch.Generator().manual_seed(derive(seed, "table 3") % 2**63)
    images = torch.randn(_BATCH, *_SHAPE, generator=generator)
    return images, torch.randint(_CLASSES, (_BATCH,), generator=generator)


def reference(network: str, setting: Setting) -> Network:
    """One of the paper's networks as it is initialized."""
    _require_known("network", network, NETWORKS)
    return network_of(
        NETWORKS[network], seed=setting.seed, num_classes=_CLASSES, input_shape=_SHAPE
    )


def untrained(
    dense: Network,
    setting: Setting,
    methods: Iterable[str] = tuple(METHODS),
    densities: Sequence[float] = DENSITIES,
) -> Iterator[tuple[str, float, Network]]:
    """The dense network pruned by every method to every density, one after the other."""
    for method in methods:
        for density in densities:
            made = Pipeline(setting.steps(method, density))(dense, setting.probe())
            yield method, density, made.network


def trained(folder: Path, network: str) -> tuple[Network, list[tuple[Place, Path]]]:
    """The trained reference of a network, and the artifacts that were pruned from it.

    They are `folder`/NETWORK-reference and `folder`/NETWORK-METHOD-DENSITY, such as
    vgg19-n2nskip-rp-0.02. Raises `UsageError` where there is no reference, or nothing to compare.
    """
    _require_known("network", network, NETWORKS)
    places = [Place(network, method, density) for method in METHODS for density in DENSITIES]
    paths = {place: folder / f"{network}-{place.method}-{place.density}" for place in places}
    dense = folder / f"{network}-reference"
    there = [(place, path) for place, path in paths.items() if path.is_dir()]
    if not dense.is_dir() or not there:
        raise UsageError(
            f"{folder}: needs the artifacts {dense.name} and one of "
            f"{next(iter(paths.values())).name} to {list(paths.values())[-1].name}"
        )
    return load(dense), there


def _require_known(what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise UsageError(
            f"there is no {what} {name!r}{did_you_mean(name, known)}; there is {', '.join(known)}"
        )
