"""A network seen part by part: what has a graph of its own is a network of its own, by short names.

Branches are looked for and spliced within a part; a part's input is a source like the network's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from n2nfx.graphmodule import join, parts_of
from n2nfx.masks import Masks
from n2nfx.network import Network, Refusal, Skip


def by_part(network: Network) -> Iterator[tuple[str, Network]]:
    """The network with its own graph, its path empty, and each part with its layers, its skips.

    What is said of the whole (masks, scores, history) is not said of a part.
    """
    bare = replace(
        network, masks=Masks(), scores=None, allocation=None, history=(), refused=(), notes=()
    )
    for path, part in parts_of(network.module):
        layers = tuple(
            replace(layer, name=_short(layer.name, path), weight=_short(layer.weight, path))
            for layer in network.layers
            if _is_below(layer.name, path) and _is_below(layer.weight, path)
        )
        skips = tuple(in_part(skip, path) for skip in skips_of(network.skips, path))
        yield path, replace(bare, module=part, layers=layers, skips=skips)


def skips_of(skips: Iterable[Skip], path: str) -> list[Skip]:
    """The skips that are in a part: their modules lie in a container of its own."""
    return [skip for skip in skips if skip.name.rsplit(".", 2)[:-2] == ([path] if path else [])]


def in_part(skip: Skip, path: str) -> Skip:
    """A skip by the names that its part has for what it joins."""
    ends = {name: _short(getattr(skip, name), path) for name in ("name", "source", "target")}
    return replace(skip, **ends)


def from_part(found: Skip | Refusal, path: str) -> Skip | Refusal:
    """What was found in a part by the names that the network has."""
    names = ("name", "source", "target") if isinstance(found, Skip) else ("source", "target")
    return replace(found, **{name: join(path, getattr(found, name)) for name in names})


def _is_below(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _short(name: str, path: str) -> str:
    return name.removeprefix(f"{path}.") if path else name
