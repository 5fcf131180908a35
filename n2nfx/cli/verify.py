"""`n2nfx verify`: whether an artifact is whole and says the truth of itself."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2nfx.cli.text import printable

if TYPE_CHECKING:
    from n2nfx.recorded import Recorded

SCHEMA = "n2nfx.verify/1"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--rebuild", is_flag=True, help="Also build the model again and compare.")
@click.option("--model", help="Build this one: a name, or file.py:function. Implies --rebuild.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def verify(directory: Path, rebuild: bool, model: str | None, as_json: bool) -> None:
    """Check the artifact in DIRECTORY: its files, hashes, plan, masks, counts and sums.

    Nothing of it is executed or unpickled. With --rebuild its model is built again by the
    recorded name and run once; its layers, graph, tensors' shapes and branches must be those
    recorded. A model from a file of your own must be handed in by --model, for an artifact never
    has us run a file.
    """
    from n2nfx import recorded

    found = recorded.read(directory)
    rebuild = rebuild or model is not None
    if rebuild:
        _rebuild(directory, found, model)
    data = _as_data(directory, found, rebuild)
    click.echo(json.dumps({"schema": SCHEMA, **data}, indent=2) if as_json else _text(data))


def _rebuild(directory: Path, found: "Recorded", model: str | None) -> None:
    """Build the model again; raises DamagedFile where it is not the one recorded."""
    from n2nfx import artifact
    from n2nfx.cli.narrate import narrated
    from n2nfx.errors import DamagedFile
    from n2nfx.loading import load
    from n2nfx.plan import count
    from n2nfx.rehearsal import misfits

    with narrated():
        network = load(directory, model)
    if count(network) != found.plan.counts:
        raise DamagedFile(
            f"{directory / artifact.PLAN}: counts: the model built here has {count(network)}"
        )
    for fault in misfits(network):
        raise DamagedFile(f"{directory / artifact.PLAN}: {fault}; restore it or write it again")


def _as_data(directory: Path, found: "Recorded", rebuilt: bool) -> dict[str, Any]:
    from n2nfx import artifact

    plan, network = found.plan, found.network
    return {
        "directory": str(directory),
        "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir())},
        "format": artifact.FORMAT,
        "model": plan.origin.name or plan.origin.module_class,
        "density": network.density,
        "counts": asdict(plan.counts),
        "layers": len(plan.layers),
        "skips": len(network.skips),
        "tensors": len(found.tensors),
        "masks": len(found.masks),
        "steps": [step.spec for step in plan.steps],
        "versions": plan.versions,
        "graph_sha256": plan.graph_sha256,
        "rebuilt": rebuilt,
        "notes": list(_notes(found)),
    }


def _notes(found: "Recorded") -> Iterator[str]:
    """What is no fault, and worth knowing."""
    from n2nfx.plan import versions

    plan = found.plan
    if plan.steps and plan.steps[-1].nnz[1] != plan.counts.kept:
        before = plan.steps[-1].nnz[1]
        yield f"the masks were changed after the last step: it left {before:,} weights"
    here = versions()
    for name, number in plan.versions.items():
        if here.get(name, number) != number:
            yield f"written with {name} {number}; here is {here[name]}"


def _text(data: dict[str, Any]) -> str:
    """What was checked and what it says, a line each."""
    counts = data["counts"]
    model = "built again and run: layers, graph, tensors, branches and counts are as recorded"
    lines = {
        "files": f"{', '.join(data['files'])}: {sum(data['files'].values()):,} bytes, no other",
        "hashes": "SHA-256 of both files as in MANIFEST.sha256",
        "plan": f"{data['format']}: {data['layers']} layers, {data['skips']} skips, "
        f"{len(data['steps'])} steps",
        "masks": f"{data['masks']}, each with the count that the plan says, over "
        f"{data['tensors']} tensors",
        "sums": f"{counts['sequential']:,} sequential + {counts['skip']:,} in skips = "
        f"{counts['kept']:,} weights",
        "rebuilt": model if data["rebuilt"] else "no: --rebuild builds the model and compares",
        "": "",
        "model": data["model"] or "a module of no recorded class",
        "density": f"{data['density']:.4%} ({counts['kept']:,} of {counts['reference']:,} weights)",
        "multiply-adds": f"{counts['multiply_adds']:,} of {counts['reference_multiply_adds']:,}",
        "made by": " | ".join(data["steps"]) or "no step",
        "written by": ", ".join(f"{name} {number}" for name, number in data["versions"].items()),
    }
    rows = [*lines.items(), *(("note", note) for note in data["notes"])]
    return "\n".join(f"{name:<15}{printable(text)}".rstrip() for name, text in rows)
