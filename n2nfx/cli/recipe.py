"""`n2nfx recipe`: whole tables of networks, from a file to the numbers beside the paper's."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2nfx.cli import options
from n2nfx.cli.text import printable

if TYPE_CHECKING:
    from n2nfx.recipe import Recipe
    from n2nfx.training.local import Local
    from n2nfx.training.report import Report
    from n2nfx.training.sweep import Executor

SCHEMA_LS = "n2nfx.recipe-ls/1"
SCHEMA_SHOW = "n2nfx.recipe/1"
SCHEMA_VALIDATE = "n2nfx.recipe-validate/1"
SCHEMA_PLAN = "n2nfx.recipe-plan/1"
SCHEMA_STATUS = "n2nfx.recipe-status/1"

_LOOK_EVERY = 5.0  # seconds


def of_recipe(command: Any) -> Any:
    """The arguments that name a recipe, and what stands for what its file says."""
    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    return click.argument("recipe")(overrides(command))


def on_devices(command: Any) -> Any:
    """The options that say where runs are run on this machine."""
    devices = click.option(
        "--device", "devices", multiple=True,
        help="cpu, cuda:0; may be repeated. By default all GPUs, or else the CPU.",
    )  # fmt: skip
    slots = click.option(
        "--slots", type=click.IntRange(min=1),
        help="Runs at once on each device; by default 1 on a GPU, up to 4 on the CPU.",
    )  # fmt: skip
    return devices(slots(command))


@click.group()
def recipe() -> None:
    """Run recipes: files that span runs over models, data, methods, densities and seeds.

    RECIPE is one of the package's, or a file.toml of yours. KEY=VALUE stands for what the file
    says: training.epochs=30, matrix.seeds=0,1.
    """


@recipe.command("ls")
@options.as_json
def ls(as_json: bool) -> None:
    """List the recipes of the package."""
    from n2nfx.recipe import read, shipped

    found = [read(name) for name in shipped()]
    if as_json:
        rows = [
            {"name": one.name, "title": one.title, "cells": len(one.cells),
             "runs": len(one.distinct), "epochs": one.training.epochs}
            for one in found
        ]  # fmt: skip
        click.echo(json.dumps({"schema": SCHEMA_LS, "recipes": rows}, indent=2))
        return
    from n2nfx.cli.tables import console, table

    made = table("recipe", "what", "cells", "runs", "epochs each")
    for one in found:
        counts = (f"{n:,}" for n in (len(one.cells), len(one.distinct), one.training.epochs))
        made.add_row(one.name, one.title, *counts)
    console().print(made)


@recipe.command("show")
@of_recipe
@options.as_json
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe: its file as it is, or as overrides make it."""
    from n2nfx.recipe import read

    found = read(recipe, overrides)
    if as_json:
        said = found.model_dump(mode="json")
        click.echo(json.dumps({"schema": SCHEMA_SHOW, "id": found.id, **said}, indent=2))
        return
    click.echo(_text_of(found, recipe, overrides), nl=False)


@recipe.command("cp")
@click.argument("recipe")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
def cp(recipe: str, file: Path, overrides: tuple[str, ...], force: bool) -> None:
    """Copy a recipe to FILE, a .toml of yours to change."""
    from n2nfx.atomic import put_file
    from n2nfx.errors import UsageError
    from n2nfx.recipe import read

    if file.suffix != ".toml":
        raise UsageError(f"{file}: a recipe's file ends in .toml: {file}.toml")
    text = _text_of(read(recipe, overrides), recipe, overrides)
    if os.path.lexists(file) and not force:
        raise UsageError(f"{file}: exists already; --force replaces it")
    put_file(file, text.encode())
    click.echo(f"{file}: next: n2nfx recipe validate {file}")


def _text_of(found: "Recipe", name: str, overrides: Sequence[str]) -> str:
    from n2nfx.recipe import as_toml, find, text_of

    file = find(name)
    return as_toml(found, file.name) if overrides else text_of(file)


@recipe.command("validate")
@of_recipe
@options.as_json
def validate(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a recipe: its keys and values, and that there is every model, data set and pass.

    Whatever is wrong is told at once, a line each; exit code 2.
    """
    found = _checked(recipe, overrides)
    if as_json:
        counts = {"cells": len(found.cells), "runs": len(found.distinct)}
        told = {"schema": SCHEMA_VALIDATE, "id": found.id, **counts}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{found.id}: right; {len(found.cells)} cells, {len(found.distinct)} runs")


def _checked(name: str, overrides: Sequence[str]) -> "Recipe":
    """The recipe, with all that it names known to be there."""
    from n2nfx.recipe import read
    from n2nfx.training.check import faults

    return read(name, overrides, faults)


@recipe.command("plan")
@of_recipe
@options.out_of_runs
@click.option(
    "--probe/--no-probe",
    "probing",
    default=True,
    help="Train 20 steps of one run of each model and data set, to know how long all take.",
)
@on_devices
@options.data_root("--data-root")
@options.as_json
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    probing: bool,
    devices: tuple[str, ...],
    slots: int | None,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """Say what a recipe will take, before anything starts: runs, epochs, hours and disk."""
    from n2nfx.cli.recipe_text import planned, show_plan
    from n2nfx.training.plan import plan as make

    found = _checked(recipe, overrides)
    local = _local(devices, slots)
    if probing:
        click.echo("probing: 20 steps of one run of each model and data set", err=True)
    with _threads(local.threads):
        made = make(
            found, out, probing=probing, device=local.devices[0], data_root=data_root,
            at_once=local.slots * len(local.devices),
        )  # fmt: skip
    if as_json:
        told = {"schema": SCHEMA_PLAN, "devices": local.devices, "slots": local.slots}
        click.echo(json.dumps({**told, **planned(made)}, indent=2))
        return
    show_plan(made, local.devices)


def _local(devices: Sequence[str], slots: int | None) -> "Local":
    from n2nfx.training.local import Local, default_slots
    from n2nfx.training.ranks import own_device

    places = tuple(devices) or _devices()
    for place in places:
        own_device(place)
    return Local(places, slots or default_slots(places))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch work with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _devices() -> tuple[str, ...]:
    """Every GPU, or else the CPU."""
    import torch

    count = torch.cuda.device_count()
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)


class Share(click.ParamType):
    """One of so many shares, as 2/8."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)/([1-9]\d*)", str(value))
        if match is None:
            self.fail(f"{value!r} is no share, such as 2/8", param, ctx)
        return int(match[1]), int(match[2])


@recipe.command("run")
@of_recipe
@options.out_of_runs
@click.option("--retry", is_flag=True, help="Run those again that failed.")
@click.option("--shard", type=Share(), help="Run only this share of the runs, such as 2/8.")
@options.choice("--executor", "local", "ray", "slurm", help="What spreads runs over processes.")
@on_devices
@click.option("--cpus", type=float, help="Of ray: for each run.  [default: 1]")
@click.option("--gpus", type=float, help="Of ray: for each run.  [default: 0]")
@click.option("--address", help="Of ray: a cluster's.")
@click.option(
    "--slurm", "slurm_options", multiple=True, metavar="KEY=VALUE",
    help="Of slurm: submitit's, such as slurm_partition=gpu gpus_per_node=1 timeout_min=240.",
)  # fmt: skip
@click.option(
    "--tensorboard", is_flag=True,
    help="Write runs' epochs for TensorBoard too: tensorboard --logdir OUT.",
)  # fmt: skip
@options.data_root("--data-root")
def run(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    retry: bool,
    shard: tuple[int, int] | None,
    tensorboard: bool,
    data_root: Path | None,
    **asked: Any,
) -> None:
    """Run a recipe, or go on with it: what is done stays, what was interrupted goes on.

    Then its report is printed. Exit code 5 where runs failed: the others were run all the same.
    Started by torchrun (torchrun --nproc-per-node 8 -m n2nfx recipe run ...), all processes train
    one network after the other together.
    """
    from n2nfx.cli.narrate import narrated
    from n2nfx.cli.recipe_text import narrated_sweep, show_report
    from n2nfx.training import sweep
    from n2nfx.training.check import require_data
    from n2nfx.training.ranks import is_first, launched, leave
    from n2nfx.training.results import report
    from n2nfx.training.tensorboard import require_installed
    from n2nfx.training.together import Silent

    found = _checked(recipe, overrides)
    executor = _executor(out, **asked)
    require_data(found, data_root)
    if tensorboard:
        require_installed()
    specs = [one.spec for one in found.distinct]
    if shard is not None:
        specs = sweep.share(specs, *shard)
    jobs = sweep.left(specs, out, data_root=data_root, retry=retry, tensorboard=tensorboard)
    if not is_first():
        executor(jobs, Silent())
        leave()
    epochs = len(jobs) * found.training.epochs
    click.echo(
        f"{found.id}: {len(jobs)} of {len(specs)} runs to do, {epochs:,} epochs, in {out}", err=True
    )
    failed: Mapping[str, str] = {}
    with narrated():
        if jobs or launched():  # the other processes may have seen some
            with narrated_sweep(jobs) as teller:
                executor(jobs, teller)
            failed = teller.failed
        show_report(report(found, out))
    _require_all_right(specs, out, failed)
    leave()


def _executor(
    out: Path,
    *,
    executor: str,
    devices: tuple[str, ...],
    slots: int | None,
    cpus: float | None,
    gpus: float | None,
    address: str | None,
    slurm_options: tuple[str, ...],
) -> "Executor":
    from n2nfx.training.ranks import launched

    of_ray = {"--cpus": cpus, "--gpus": gpus, "--address": address}
    _require_executor("ray", executor, of_ray)
    _require_executor("slurm", executor, {"--slurm": slurm_options or None})
    if launched():
        return _together(executor, devices, slots)
    if executor == "ray":
        from n2nfx.training.ray_tasks import Ray

        _require_none("ray", "--cpus and --gpus say what a run takes", devices, slots)
        return Ray(1.0 if cpus is None else cpus, gpus or 0.0, address)
    if executor == "slurm":
        from n2nfx.training.slurm import Slurm

        _require_none("slurm", "every run is a job, on one --device", devices[1:], slots)
        device = devices[0] if devices else ""
        return Slurm(out / "slurm", dict(map(_pair, slurm_options)), device)
    return _local(devices, slots)


def _require_executor(owner: str, executor: str, options: Mapping[str, object]) -> None:
    """Raise `UsageError` where an option is given that is of another executor."""
    from n2nfx.errors import UsageError

    given = [name for name, value in options.items() if value is not None]
    if given and executor != owner:
        raise UsageError(f"{given[0]} is of --executor {owner}, and this is {executor}")


def _require_none(executor: str, told: str, devices: Sequence[str], slots: int | None) -> None:
    """Raise `UsageError` for options that are the local executor's."""
    from n2nfx.errors import UsageError

    if devices or slots:
        what = "--slots" if slots else "--device"
        raise UsageError(f"--executor {executor} takes no {what} like this: {told}")


def _together(executor: str, devices: Sequence[str], slots: int | None) -> "Executor":
    """All processes that torchrun started, on each run."""
    import torch

    from n2nfx.errors import UsageError
    from n2nfx.training.together import Together

    if executor != "local" or slots or len(devices) > 1:
        raise UsageError(
            "torchrun trains every run on all its processes: leave --executor and --slots out, and "
            "name one --device (cuda, of which each process has its own)"
        )
    return Together(devices[0] if devices else "cuda" if torch.cuda.is_available() else "cpu")


def _pair(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value a number where it is one."""
    from n2nfx.errors import UsageError

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--slurm {text!r} is not KEY=VALUE, such as slurm_partition=gpu")
    for number in (int, float):
        with suppress(ValueError):
            if str(number(value)) == value:  # 007 is a name
                return key, number(value)
    return key, value


def _require_all_right(specs: Sequence[Any], out: Path, told: Mapping[str, str]) -> None:
    """Say what other processes are at; raise `RunFailed` where runs failed.

    `told` is why, of those whose folders could not be written.
    """
    from n2nfx.errors import RunFailed
    from n2nfx.training.status import standing

    stands = {spec.name: standing(out / spec.name) for spec in specs}
    elsewhere = [name for name, one in stands.items() if one.state == "running"]
    if elsewhere:
        click.echo(f"{len(elsewhere)} runs are at work in other processes", err=True)
    failed = {name: one.told for name, one in stands.items() if one.state == "failed"}
    failed |= {name: why for name, why in told.items() if not stands[name].is_over}
    if failed:
        for name, why in failed.items():
            click.echo(printable(f"  {name}: {why}"), err=True)
        asked = any(one.state == "failed" for one in stands.values())
        again = "--retry runs them again" if asked else "the same command goes on with them"
        raise RunFailed(f"{len(failed)} of {len(stands)} runs failed; {again}")


@recipe.command("status")
@of_recipe
@options.out_of_runs
@options.as_json
def status(recipe: str, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Say where every run of a recipe stands."""
    from n2nfx.cli.recipe_text import show_status
    from n2nfx.training.status import epochs_done, standing

    found = _begun(recipe, overrides)
    _require_folder(out)
    stands = {run.spec.name: standing(out / run.spec.name) for run in found.runs}
    epochs = {name: epochs_done(out / name) for name in stands}
    if as_json:
        rows = [
            {"name": name, "state": one.state, "told": one.told, "epochs": epochs[name]}
            for name, one in stands.items()
        ]
        click.echo(json.dumps({"schema": SCHEMA_STATUS, "id": found.id, "runs": rows}, indent=2))
        return
    show_status(stands, epochs, found.training.epochs)


@recipe.command("report")
@of_recipe
@options.out_of_runs
@options.choice("--format", "text", "markdown", "csv", "json", help="How the numbers are printed.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the recipe's figure to this file: .png, .svg, .pdf.",
)  # fmt: skip
@click.option("--watch", is_flag=True, help="Print it again whenever a run has ended.")
def report(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    format: str,
    as_json: bool,
    figure: Path | None,
    watch: bool,
) -> None:
    """Print a recipe's numbers: mean ± deviation over seeds, and the paper's under them.

    Cells whose runs are missing, at work or failed say so.
    """
    from n2nfx.cli.narrate import narrated

    found = _begun(recipe, overrides)
    if figure is not None:
        from n2nfx.training.results import require_figure

        require_figure(found, figure)
    if watch and not out.exists():
        click.echo(f"{out}: there is no such folder yet: waiting for it", err=True)
    else:
        _require_folder(out)
    with narrated():
        _print_reports(found, out, "json" if as_json else format, watch)
    if figure is not None:
        from n2nfx.training.results import draw

        with narrated():
            draw(found, out, figure)
        click.echo(f"{figure}: drawn", err=True)


def _begun(name: str, overrides: Sequence[str]) -> "Recipe":
    """The recipe, its data sets known: else what is misspelt would be told as missing.

    What models there are, only torch could tell.
    """
    from n2nfx.recipe import read
    from n2nfx.training.named import unknown_data

    return read(name, overrides, unknown_data)


def _require_folder(out: Path) -> None:
    from n2nfx.errors import UsageError, did_you_mean

    if not out.is_dir():
        near = did_you_mean(out.name, [one.name for one in out.parent.glob("*/")])
        raise UsageError(f"--out {out}: there is no such folder{near}")


def _print_reports(found: "Recipe", out: Path, format: str, watch: bool) -> None:
    """Print the report; to watch, again whenever it changes, until nothing is left to wait for."""
    from n2nfx.training.results import report

    before = report(found, out)
    _print_report(before, format)
    while watch and any(row.is_open for row in before.rows):
        time.sleep(_LOOK_EVERY)
        now = report(found, out)
        if now != before:
            _print_report(now, format)
        before = now


def _print_report(found: "Report", format: str) -> None:
    from n2nfx.cli.recipe_text import show_report
    from n2nfx.training.report import FORMATS

    if format == "text":
        show_report(found)
        return
    click.echo(FORMATS[format](found), nl=False)
    sys.stdout.flush()
