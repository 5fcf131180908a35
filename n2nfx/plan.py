"""What plan.json says: how a network was made, so that it can be made again and checked."""

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from n2nfx.network import InputSpec, Layer, Network, Origin, Step
from n2nfx.settings import Settings, settings_of


@dataclass(frozen=True)
class Counts:
    """Exact counts of a whole network: weights, and multiply-adds for one example."""

    reference: int
    kept: int
    sequential: int
    skip: int
    multiply_adds: int
    reference_multiply_adds: int


class Plan(BaseModel):
    """Everything about an outcome but its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    origin: Origin
    versions: dict[str, str]
    inputs: tuple[InputSpec, ...]
    layers: tuple[Layer, ...]
    kept: dict[str, int]
    counts: Counts
    steps: tuple[Step, ...]
    settings: Settings
    graph_sha256: str


def make_plan(network: Network, graph: str) -> Plan:
    """The plan of a network; `graph` is its graph's hash, masks unbound."""
    return Plan(
        origin=network.origin,
        versions=versions(),
        inputs=network.inputs,
        layers=network.layers,
        kept={row.weight: row.kept for row in network.ledger() if row.size},
        counts=count(network),
        steps=network.history,
        settings=settings_of(network.module),
        graph_sha256=graph,
    )


def count(network: Network) -> Counts:
    """The network's counts."""
    sequential = sum(row.kept for row in network.ledger()[: len(network.layers)])
    return Counts(
        reference=network.size,
        kept=network.nnz,
        sequential=sequential,
        skip=network.nnz - sequential,
        multiply_adds=network.flops,
        reference_multiply_adds=network.dense_flops,
    )


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    found = {name: version(name) for name in ("n2nfx", "torch", "torchvision", "timm", "numpy")}
    return {"python": platform.python_version(), **found}


def graph_sha256(network: Network) -> str:
    """The name of a network's graph: the hash of its text."""
    return hashlib.sha256(network.text().encode()).hexdigest()
