"""Where a training stands, on disk: two places, written in turn, so that one is always whole.

A checkpoint is an artifact (`n2nfx.artifact`): JSON and safetensors under a SHA-256 manifest, put
in place by one rename when all of it is durable, and read only where every hash is right. Nothing
is unpickled.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from n2nfx import artifact
from n2nfx.errors import CannotWrite, DamagedFile

_PLACES = ("a", "b")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """After how many steps it was made, tensors by name, and what else is to be known (JSON)."""

    step: int
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass
class Checkpoints:
    """The checkpoints of one run, in a folder of their own, with one writer at a time."""

    folder: Path
    _free: str = field(default=_PLACES[0], init=False)
    _damaged: set[str] = field(default_factory=set, init=False)

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The last checkpoint that is whole, if there is one, and what is wrong with others."""
        found: dict[str, Checkpoint] = {}
        notes: list[str] = []
        for place in _PLACES:
            if not (self.folder / place).exists():
                continue
            try:
                found[place] = _read(self.folder / place)
            except DamagedFile as error:
                notes.append(str(error))
                self._damaged.add(place)
        if not found:
            return None, tuple(notes)
        newest = max(found, key=lambda place: found[place].step)
        self._free = next(place for place in _PLACES if place != newest)
        return found[newest], tuple(notes)

    def write(self, checkpoint: Checkpoint) -> None:
        """Write one in the place of the one before the last, which stays until this is safe.

        Raises CannotWrite (a full disk): the last one is as it was then.
        """
        plan = {"step": checkpoint.step, "facts": dict(checkpoint.facts)}
        if self._free in self._damaged:  # it may be damaged so that nothing replaces it
            _remove(self.folder / self._free)
            self._damaged.discard(self._free)
        try:
            artifact.write(self.folder / self._free, plan, checkpoint.tensors, {}, force=True)
        except CannotWrite as error:
            raise CannotWrite(
                f"{error}; then start the same run again: it goes on from the last checkpoint, "
                "which is whole"
            ) from error
        self._free = next(place for place in _PLACES if place != self._free)

    def discard(self) -> None:
        """Delete them all: the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read(folder: Path) -> Checkpoint:
    found = artifact.read(folder)
    match found.plan:
        case {"step": int(step), "facts": dict(facts)}:
            return Checkpoint(step, facts, found.tensors)
    raise DamagedFile(f"{folder}: is an artifact, but not a checkpoint")
