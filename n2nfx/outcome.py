"""What a pipeline gives: the network that came of it, and the record of every step."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from n2nfx import artifact
from n2nfx.atomic import as_path
from n2nfx.bind import as_it_acts, plain_state
from n2nfx.network import Network, Step
from n2nfx.plan import Counts, Plan, count, make_plan


@dataclass(frozen=True, eq=False)
class Outcome:
    """A network whose masks are at work in its module, and how it came about.

    `record` has the steps of this pipeline (`network.history` those of earlier ones too), and
    `graph_sha256` names the graph as the passes left it, before the masks were bound.
    """

    network: Network
    record: tuple[Step, ...]
    graph_sha256: str

    @property
    def counts(self) -> Counts:
        """Exact counts: reference and kept, sequential and skip, weights and multiply-adds.

        They are of the masks at work, which change where the network is rewired.
        """
        return count(as_it_acts(self.network))

    @property
    def plan(self) -> Plan:
        """Everything about the outcome but its tensors."""
        return make_plan(as_it_acts(self.network), self.graph_sha256)

    def save(self, directory: str | PathLike[str], *, force: bool = False) -> tuple[Path, ...]:
        """Write the artifact to a new directory (or, with `force`, over an older artifact).

        Gives the files written. Nothing stands under the final name unless all of it does.
        """
        path = as_path(directory)
        network = as_it_acts(self.network)
        plan = make_plan(network, self.graph_sha256).model_dump(mode="json")
        state = plain_state(network.module)
        return artifact.write(path, plan, state, network.masks, force=force)
