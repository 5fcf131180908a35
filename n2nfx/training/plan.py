"""What a recipe will take, before anything starts: runs, epochs, hours and disk."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from n2nfx import catalogue, ownfile
from n2nfx.errors import CannotOperate
from n2nfx.recipe import Recipe, Run
from n2nfx.registry import passes
from n2nfx.runspec import RunSpec, Training
from n2nfx.spec import from_text
from n2nfx.training.sampler import sampler_of
from n2nfx.training.status import Standing, standing

STEPS = 20
"""Steps of a probe."""

_WEIGHT = 4  # bytes
_STILL = 1e-12  # a learning rate under which nothing diverges

Key = tuple[str, str]  # of a model and a data set


@dataclass(frozen=True)
class Speed:
    """What a probe measured of runs on one device: seconds for one, and bytes on disk.

    `rest` are the bytes of a finished run beside its weights, of which the reference has `size`;
    `working` those of its checkpoints meanwhile.
    """

    seconds: float
    rest: int
    size: int
    working: int


@dataclass(frozen=True)
class Plan:
    """A recipe's runs, and where each stands; `speeds` by model and data, as far as probed.

    `absent` says by data set why it could not be probed.
    """

    recipe: Recipe
    runs: tuple[tuple[Run, Standing], ...]
    speeds: Mapping[Key, Speed]
    absent: Mapping[str, str]
    free: int
    at_once: int = 1

    @property
    def left(self) -> list[Run]:
        """The runs that are not over; those that failed are run again on request only."""
        return [run for run, stands in self.runs if stands.is_left]

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return sum(stands.state == "failed" for _, stands in self.runs)

    @property
    def epochs(self) -> int:
        """Epochs of all runs that are left; those that are begun count whole."""
        return len(self.left) * self.recipe.training.epochs

    @property
    def hours(self) -> float | None:
        """Hours that they take, so many at once; None where it is not known."""
        speeds = self._speeds()
        if speeds is None:
            return None
        at_once = max(1, min(self.at_once, len(speeds)))
        return sum(one.seconds for one in speeds) / at_once / 3600

    @property
    def bytes(self) -> int | None:
        """Bytes that they take on disk; None where it is not known."""
        speeds = self._speeds()
        if speeds is None:
            return None
        working = sorted((one.working for one in speeds), reverse=True)[: self.at_once]
        return sum(map(self.kept, self.left)) + sum(working)

    def kept(self, run: Run) -> int:
        """Bytes of a run when it is finished, of a model and data set that were probed."""
        speed = self.speeds[_key(run)]
        return speed.rest + _stored(round(_density(run.spec) * speed.size), speed.size)

    def _speeds(self) -> list[Speed] | None:
        """Those of all runs that are left, if they are known."""
        found = [speed for run in self.left if (speed := self.speeds.get(_key(run)))]
        return found if len(found) == len(self.left) else None


def plan(
    recipe: Recipe,
    out: Path,
    *,
    probing: bool = True,
    device: str = "cpu",
    data_root: Path | None = None,
    at_once: int = 1,
) -> Plan:
    """What is left of a recipe; one run of each model and data set is probed for its speed.

    That is the one whose method has most passes; it is probed alone, with the threads that torch
    has in this process. What the others leave on disk follows from it by their densities. Nothing
    is left there by the probe.
    """
    runs = tuple((run, standing(out / run.spec.name)) for run in recipe.distinct)
    absent = {name: why for name in recipe.matrix.data if (why := _absence(name, data_root))}
    speeds: dict[Key, Speed] = {}
    if probing:
        left = [run for run, stands in runs if stands.is_left]
        for run in _probed(one for one in left if one.cell.data not in absent):
            speeds[_key(run)] = probe(run.spec, device=device, data_root=data_root)
    return Plan(recipe, runs, speeds, absent, _free(out), at_once)


def probe(spec: RunSpec, *, device: str = "cpu", data_root: Path | None = None) -> Speed:
    """How long a run takes, from 20 steps of it and one look at all test images."""
    from n2nfx.training.runs import EVENTS, run

    training = spec.training
    images = sampler_of(training, _available(spec, data_root), spec.seed, 1).images
    few = min(images, STEPS * training.batch_size * training.accumulate)
    few_steps = {"epochs": 1, "images": few, "warmup": 0, "lr": _STILL}
    short = spec.model_copy(update={"training": training.model_copy(update=few_steps)})
    with tempfile.TemporaryDirectory(prefix="n2nfx-probe-") as folder:
        start = time.monotonic()
        result = run(short, Path(folder) / "run", device=device, data_root=data_root)
        wall = time.monotonic() - start
        text = (Path(folder) / "run" / EVENTS).read_text()
        kept = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    if not text:
        raise CannotOperate(f"{spec.name}: gives no finite loss to begin with: {result.reason}")
    per_second = json.loads(text.splitlines()[0])["images_per_second"]
    testing = result.seconds - few / per_second
    epoch = images / per_second + testing
    seconds = wall - result.seconds + training.epochs * epoch
    kept += (training.epochs - 1) * len(text)  # a line for each epoch
    rest = kept - _stored(result.nnz, result.size)
    return Speed(seconds, rest, result.size, _checkpoints(result.size, training))


def _stored(nnz: int, size: int) -> int:
    """About how many bytes so many weights of a network take in an artifact (`n2nfx.gapcode`)."""
    if nnz == size:
        return _WEIGHT * size
    gaps = nnz + size // 255
    return min(_WEIGHT * nnz + gaps, _WEIGHT * size + size // 8)


def _density(spec: RunSpec) -> float:
    """The share of weights that a run keeps, by its passes; all where none of them says less."""
    known = passes()
    said = (getattr(from_text(text, known), "density", 1.0) for text in spec.passes)
    return min(said, default=1.0)


def _checkpoints(size: int, training: Training) -> int:
    """Bytes of two checkpoints: weights, what the optimizer holds for each, and their average."""
    each = 1 + (2 if training.optimizer == "adamw" else 1) + (training.ema > 0)
    return 2 * _WEIGHT * size * each


def _probed(runs: Iterable[Run]) -> list[Run]:
    """The run with most passes of each model and data set."""
    chosen: dict[Key, Run] = {}
    for run in runs:
        other = chosen.get(_key(run))
        if other is None or len(run.spec.passes) > len(other.spec.passes):
            chosen[_key(run)] = run
    return list(chosen.values())


def _key(run: Run) -> Key:
    return run.cell.model, run.cell.data


def _available(spec: RunSpec, root: Path | None) -> int:
    """Training images that there are."""
    if not ownfile.is_file(spec.data):
        return catalogue.entry(spec.data).images[0]
    from n2nfx.training.data import load

    return len(load(spec.data, root).train)


def _absence(name: str, root: Path | None) -> str:
    """Why a data set is not here, and what brings it; empty where it is."""
    if ownfile.is_file(name):
        return ""
    try:
        catalogue.require(catalogue.entry(name), catalogue.data_root(root))
    except CannotOperate as error:
        return str(error)
    return ""


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
