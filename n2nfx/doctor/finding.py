"""One line of a diagnosis."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    `state` is "ok", "warning" (it works, and something should be known), "missing", or "broken"
    (it is there and cannot be used). Without what is `required`, n2nfx cannot work. `remedy` is
    the command that helps, or empty.
    """

    topic: str
    name: str
    state: State
    detail: str
    remedy: str = ""
    required: bool = False

    @property
    def stops(self) -> bool:
        """Whether n2nfx cannot work because of this."""
        return self.required and self.state in ("missing", "broken")
