"""One run in a directory of its own, which is the truth about it.

config.json       what is run (`RunSpec`); another run is never put in the same directory
environment.json  where it ran: one entry for each different environment that it was trained in
events.jsonl      one line for every epoch: loss, accuracy, images/s, seconds
tensorboard/      the same for TensorBoard, where it was asked for
checkpoints/      where it stands, until it is done (`n2nfx.training.checkpoint`)
network/          what it became: an artifact, to be read by `n2nfx.load`
result.json       what came out: there when the run is done, and only then
MANIFEST.sha256   the files' SHA-256, as `sha256sum -c` reads them
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import fx

from n2nfx import lock, ownfile
from n2nfx.atomic import put_file
from n2nfx.errors import CannotOperate, CannotWrite, DamagedFile, UsageError, first_line
from n2nfx.network import Network, Probe
from n2nfx.outcome import Outcome
from n2nfx.pipeline import apply
from n2nfx.registry import passes
from n2nfx.runspec import RunSpec
from n2nfx.source import network_of
from n2nfx.spec import from_text
from n2nfx.training import tensorboard as event_files
from n2nfx.training.checkpoint import Checkpoint, Checkpoints
from n2nfx.training.data import Data, load_for
from n2nfx.training.environment import environment
from n2nfx.training.lease import Taken
from n2nfx.training.loop import Diverged, Epoch, Progress, is_of_memory, train
from n2nfx.training.ranks import Ranks, joined, own_device
from n2nfx.training.runresult import MANIFEST, RESULT, Result, contents, manifest_line, read
from n2nfx.training.unlike import ENVIRONMENT

CONFIG, EVENTS = "config.json", "events.jsonl"
CHECKPOINTS, NETWORK = "checkpoints", "network"

_log = logging.getLogger(__name__)


def run(
    spec: RunSpec,
    folder: Path,
    *,
    device: str = "cpu",
    data_root: Path | None = None,
    watch: Callable[[Progress], None] | None = None,
    save_every: float = 60.0,
    tensorboard: bool = False,
) -> Result:
    """Train what the spec says, or go on where the directory's newest checkpoint stands.

    A run that is done is returned at once. A checkpoint is written every `save_every` seconds.
    With `tensorboard` its epochs are written for TensorBoard too, as long as nothing goes wrong
    with that.
    Started by torchrun, all processes train one network. Raises UsageError (the directory has
    another run, or another process is at it), CannotOperate (no data, no memory), CannotWrite (a
    full disk) and DamagedFile (what stands there is no longer what was written).
    """
    _require_unchanged(spec)
    place = own_device(device)
    with joined(place) as ranks:
        result = _finished(folder, spec)
        if result is None:
            with _alone(folder, ranks):
                session = _Session(spec, folder, place, ranks, tensorboard)
                result = session.result(data_root, watch, save_every)
        return ranks.of_first(result)


def make(spec: RunSpec, data: Data) -> Outcome:
    """The network that a run trains, untrained, for the data's input and classes."""
    network = network_of(
        spec.model, seed=spec.seed, num_classes=len(data.classes), input_shape=data.shape
    )
    _require_classes(network, spec, len(data.classes))
    known = passes()
    batch = data.first(min(spec.scoring_images, len(data.train)))
    probe = Probe(seed=spec.seed, batches=(batch,))
    try:
        return apply([from_text(text, known) for text in spec.passes], network, probe)
    except Exception as error:
        if is_of_memory(error) or is_of_memory(error.__cause__):
            raise CannotOperate(
                f"the memory is too small to score {len(batch[1])} images as one batch "
                f"({first_line(error)}); fewer scoring_images take less"
            ) from error
        raise


def _require_classes(network: Network, spec: RunSpec, classes: int) -> None:
    """Raise CannotOperate where a network is seen to have fewer outputs than there are classes."""
    (output,) = network.module.graph.output_node().args
    given = output.meta.get("spec") if isinstance(output, fx.Node) else None
    shape = given[0].shape if isinstance(given, tuple) else ()
    if len(shape) == 2 and shape[1] < classes:
        raise CannotOperate(
            f"{spec.model} gives {shape[1]} numbers for an image, and {spec.data} has {classes} "
            "classes: it must give one for each"
        )


def _require_unchanged(spec: RunSpec) -> None:
    """Raise UsageError where a file of one's own is no longer the one that was meant."""
    named = [name for name in (spec.model, spec.data) if ownfile.is_file(name)]
    for name, digest in zip(named, spec.files, strict=False):
        if ownfile.digest(name) != digest:
            path = name.rpartition(":")[0]
            raise UsageError(f"{path}: was changed meanwhile: what is in it now is another run")


# What stands in the directory


def _finished(folder: Path, spec: RunSpec) -> Result | None:
    """What came out, where the run is done; raises where the directory is another run's."""
    _require_of(folder, spec)
    result = read(folder)
    if result is not None:
        Checkpoints(folder / CHECKPOINTS).discard()  # being killed may have left them
    return result


def _require_of(folder: Path, spec: RunSpec) -> None:
    path = folder / CONFIG
    if not path.exists():
        return
    try:
        there = RunSpec.model_validate_json(contents(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise DamagedFile(
            f"{path}: is not the configuration of a run: {where}{first['msg']}; restore it, or "
            f"delete {folder} to train again"
        ) from error
    if there.canonical != spec.canonical:
        key, found, asked = next(_differences(there.model_dump(), spec.model_dump()))
        raise UsageError(
            f"{folder}: has the run {there.name}, with {key}={found!r}, not {asked!r}; name "
            "another directory"
        )


def _differences(
    one: Mapping[str, Any], other: Mapping[str, Any], at: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in {**one, **other}:
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _differences(mine, theirs, f"{at}{key}.")
        elif mine != theirs:
            yield f"{at}{key}", mine, theirs


class Busy(Taken, UsageError):
    """Another process trains in the directory, with a lease or without."""


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only one who trains in the directory: the first rank for all of them."""
    if not ranks.first:
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(folder / ".training.lock"))
        except lock.Held as error:
            who = f" ({error.holder})" if error.holder else ""
            raise Busy(f"{folder}: another process trains there{who}; wait for it") from error
        except OSError as error:
            raise CannotWrite(f"{folder}: cannot be written: {error.strerror}") from error
        yield


@dataclass(frozen=True)
class _Session:
    """One process's work on a run, from wherever it stands to its result; rank 0 writes."""

    spec: RunSpec
    folder: Path
    device: torch.device
    ranks: Ranks
    tensorboard: bool

    def result(
        self, data_root: Path | None, watch: Callable[[Progress], None] | None, save_every: float
    ) -> Result:
        data = load_for(self.spec.model, self.spec.data, data_root)
        outcome = make(self.spec, data)
        checkpoints = Checkpoints(self.folder / CHECKPOINTS)
        saved = self._opened(checkpoints)
        first = self.ranks.first
        try:
            with self._telling(saved) as tell:
                trained = train(
                    outcome.network, data, self.spec.training, seed=self.spec.seed,
                    device=self.device, ranks=self.ranks, saved=saved,
                    save=checkpoints.write if first else None, save_every=save_every,
                    on_epoch=tell if first else None, watch=watch if first else None,
                )  # fmt: skip
        except Diverged as error:
            _log.warning("%s: %s", self.spec.name, error)
            return self._closed(outcome, error.epochs, reason=str(error))
        outcome = replace(outcome, network=trained.network)
        if first:
            outcome.save(self.folder / NETWORK, force=True)
        return self._closed(outcome, trained.epochs)

    def _opened(self, checkpoints: Checkpoints) -> Checkpoint | None:
        """Where to go on, the directory in the state in which it was then."""
        saved, notes = checkpoints.newest()
        for note in notes:
            _log.warning("%s; going on from %s", note, "the one before" if saved else "the start")
        named = (self.spec.model, self.spec.data)
        here = environment(self.device, self.ranks.count, named)
        if not self.ranks.first:
            return saved
        for name in (CONFIG, ENVIRONMENT, EVENTS, MANIFEST, RESULT):
            for left in self.folder.glob(f".{name}.partial-*"):
                left.unlink()  # of a process that was killed: nobody else is at work here
        before = self._environments() if saved else []
        if before and here not in before:
            key, then, now = next(_differences(before[-1], here))
            told = f"{key} was {then!r} and is {now!r}"
            _log.warning("%s: goes on in another environment: %s", self.folder, told)
        put_file(self.folder / CONFIG, f"{self.spec.model_dump_json(indent=2)}\n".encode())
        put_file(self.folder / ENVIRONMENT, _text([*(e for e in before if e != here), here]))
        epochs = _epochs(saved)
        put_file(self.folder / EVENTS, b"".join(_line(asdict(epoch)) for epoch in epochs))
        return saved

    def _environments(self) -> list[dict[str, Any]]:
        """Those of this run so far; one that is not known where their file is damaged."""
        path = self.folder / ENVIRONMENT
        try:
            found = json.loads(contents(path))
            if isinstance(found, list) and all(isinstance(one, dict) for one in found):
                return found
        except (DamagedFile, ValueError):
            pass
        _log.warning("%s: is damaged; where the run was trained before is not known", path)
        return [{"unknown": f"{ENVIRONMENT} was damaged"}]

    @contextmanager
    def _telling(self, saved: Checkpoint | None) -> Iterator[Callable[[Epoch], None]]:
        """What each epoch is told to: the events, and TensorBoard where it was asked for."""
        if not (self.tensorboard and self.ranks.first):
            yield self._tell
            return
        with event_files.written(self.folder, _epochs(saved)) as also:

            def tell(epoch: Epoch) -> None:
                self._tell(epoch)
                also(epoch)

            yield tell

    def _tell(self, epoch: Epoch) -> None:
        """One more line of events, which stays."""
        path = self.folder / EVENTS
        try:
            with path.open("ab") as file:
                file.write(_line(asdict(epoch)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CannotWrite(
                f"{path}: cannot be written: {error.strerror}; make room and start the same run "
                "again: it goes on from its last checkpoint"
            ) from error

    def _closed(
        self, outcome: Outcome, epochs: Sequence[Epoch], reason: str | None = None
    ) -> Result:
        """Write the sums of all files and the result, which comes last and ends the checkpoints."""
        last = epochs[-1] if epochs and reason is None else None
        counts = outcome.counts
        result = Result(
            name=self.spec.name,
            status="done" if reason is None else "diverged",
            final_accuracy=last and last.accuracy,
            best_accuracy=max((epoch.accuracy for epoch in epochs), default=None),
            final_loss=last and last.loss,
            nnz=counts.kept,
            skip_nnz=counts.skip,
            size=counts.reference,
            multiply_adds=counts.multiply_adds,
            epochs=len(epochs),
            seconds=epochs[-1].seconds if epochs else 0.0,
            environments=len(self._environments()) if self.ranks.first else 1,
            reason=reason,
        )
        if self.ranks.first:
            text = _text(asdict(result))
            names = [CONFIG, ENVIRONMENT, EVENTS, *self._network_files()]
            lines = [manifest_line(name, contents(self.folder / name)) for name in names]
            manifest = "".join([*lines, manifest_line(RESULT, text)])
            put_file(self.folder / MANIFEST, manifest.encode())
            put_file(self.folder / RESULT, text)
            Checkpoints(self.folder / CHECKPOINTS).discard()
        return result

    def _network_files(self) -> list[str]:
        network = self.folder / NETWORK
        if not network.is_dir():
            return []
        return sorted(f"{NETWORK}/{path.name}" for path in network.iterdir())


def _epochs(saved: Checkpoint | None) -> list[Epoch]:
    """The epochs that were done when a checkpoint was made."""
    return [Epoch(**epoch) for epoch in saved.facts["epochs"]] if saved else []


def _text(data: Any) -> bytes:
    return f"{json.dumps(data, indent=2)}\n".encode()


def _line(data: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(data)}\n".encode()
