"""What a pipeline gives: the network that came of it, and the record of every step."""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from n2nfx import artifact
from n2nfx.bind import masks_at_work, plain_state
from n2nfx.masked import keep
from n2nfx.network import Network
from n2nfx.plan import Counts, Plan, Step, count, make_plan


@dataclass(frozen=True, eq=False)
class Outcome:
    """A network whose masks are at work in its module, and how it came about.

    `graph_sha256` names the graph as the passes left it, before the masks were bound.
    """

    network: Network
    record: tuple[Step, ...]
    seed: int
    graph_sha256: str

    @property
    def counts(self) -> Counts:
        """Exact counts: reference and kept, sequential and skip, weights and multiply-adds."""
        return count(self.network)

    @property
    def plan(self) -> Plan:
        """Everything about the outcome but its tensors."""
        return make_plan(self.network, self.record, self.seed, self.graph_sha256)

    def save(self, directory: str | PathLike[str], *, force: bool = False) -> tuple[Path, ...]:
        """Write the artifact to a new directory (or, with `force`, over an older artifact).

        Gives the files written. Nothing stands under the final name unless all of it does.
        """
        masks = masks_at_work(self.network)
        tensors = plain_state(self.network.module)
        kept = {
            name: keep(tensors[name], mask.to(tensors[name].device)) for name, mask in masks.items()
        }
        plan = make_plan(
            replace(self.network, masks=masks), self.record, self.seed, self.graph_sha256
        )
        return artifact.write(
            Path(directory), plan.model_dump(mode="json"), tensors | kept, masks, force=force
        )
