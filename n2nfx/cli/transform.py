"""`n2nfx transform`: prune a model and splice skips, print the ledger, write the artifact."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from n2nfx.cli import options
from n2nfx.cli.options import NumberOr

if TYPE_CHECKING:
    from n2nfx.training.data import Data

SCHEMA = "n2nfx.transform/1"


@click.command()
@click.argument("model")
@click.option("--density", type=float, required=True, help="Share of the weights to keep: 0.02.")
@click.option(
    "--skip-ratio",
    type=NumberOr("learned", float),
    default=0.0,
    show_default=True,
    help="Share of the kept weights that goes to skip branches; learned: as the pruner ranks them.",
)
@click.option(
    "--pruner",
    default="random",
    show_default=True,
    help="How weights are chosen: random, expander, magnitude, synflow; by data: snip, "
    "iterative-snip, grasp.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything drawn.")
@options.hops(default="3", help="Layers a branch bypasses.")
@options.choice(
    "--placement", "every", "blocks", "stages", help="Which legal pairs of layers get a branch."
)
@options.wiring(
    help="Where a branch enters its target: behind the norm, the same with an inner nonlinearity "
    "(Eq. 2), before the norm, or as in the authors' VGG."
)
@click.option(
    "--kernel",
    type=NumberOr("target"),
    default="target",
    show_default=True,
    help="The branches' kernel size (odd).",
)
@options.choice("--resolution", "stride", "pool", help="How a branch meets a smaller map.")
@options.choice(
    "--share",
    "uniform",
    "global",
    help="What each branch gets: the same density, or by the pruner's scores.",
)
@options.choice("--pattern", "identity", "random", "scored", help="Which neurons a branch joins.")
@options.choice(
    "--degrees",
    "uniform",
    "lognormal",
    help="How many branch weights a neuron has, where neurons are drawn.",
)
@options.choice("--branch-norm", "none", "batch", help="A norm behind every branch.")
@options.choice("--init", "kaiming", "zero", help="The branches' weights at initialization.")
@options.choice(
    "--control",
    "none",
    "shuffle",
    "reinit",
    "sequential",
    help="A control at the same budget: masks shuffled, weights drawn anew, or no skips.",
)
@click.option(
    "--allocation",
    type=click.Choice(["uniform", "global", "er", "erk"]),
    help="How the budget is shared over layers; global, one ranking over all, where the pruner "
    "scores weights, else uniform.",
)
@click.option(
    "--floor",
    type=NumberOr("channels"),
    default="channels",
    show_default=True,
    help="The least weights a layer keeps.",
)
@options.choice(
    "--ends",
    "pruned",
    "dense",
    help="The first and the last layer: pruned like all, or kept whole.",
)
@click.option(
    "--norm",
    type=click.Choice(["batch", "running"]),
    help="The statistics of batch norms while scoring by data; batch.",
)
@click.option("--rounds", type=int, help="Of iterative-snip (60) and synflow (100).")
@click.option(
    "--revive/--no-revive",
    default=None,
    help="Whether iterative-snip lets weights come back between rounds (FORCE); no.",
)
@click.option("--temperature", type=float, help="Of grasp's logits; 200.")
@options.num_classes
@options.input_shape
@options.pretrained
@click.option("--data", help="Data set for pruners that look at one: a name, or file.py:function.")
@options.data_root("--data-root")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Images of it: the first of the training set, as they are.",
)
@click.option(
    "--batches",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many such batches count as one, which takes the memory of one.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write the artifact to.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there already.")
@options.as_json
def transform(
    model: str,
    data: str | None,
    data_root: Path | None,
    batch_size: int,
    batches: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Prune MODEL to exactly round(density * N) weights, a share of them in N2NSkip branches.

    MODEL is a torchvision or timm name (resnet50, timm:resnet50), one of ours
    (n2nfx:vgg19_cifar), or a function in a file of yours (net.py:build).
    """
    from n2nfx import artifact
    from n2nfx.cli.ledger import as_data, show
    from n2nfx.cli.narrate import narrated
    from n2nfx.operate import transform as operate

    if out is not None:
        if not out.name:
            raise click.UsageError("--out must name a directory")
        artifact.require_free(out, force)
    batch = None
    if data is not None:
        found, asked = _fitted(model, data, data_root, asked)
        inputs, labels = found.first(batch_size * batches)
        batch = [*zip(inputs.split(batch_size), labels.split(batch_size), strict=True)]
    with narrated():
        outcome = operate(model, batch=batch, **asked)
        files = outcome.save(out, force=force) if out is not None else ()
    if as_json:
        sizes = (batch_size, batches) if data is not None else (None, None)
        words = {"model": model, "data": data, "batch_size": sizes[0], "batches": sizes[1]}
        told = {"schema": SCHEMA, "asked": {**words, **asked}, **as_data(outcome)}
        click.echo(json.dumps({**told, "files": [str(file) for file in files]}, indent=2))
        return
    show(outcome, asked, files)
    if out is None:
        click.echo(f"Next: n2nfx {shlex.join(sys.argv[1:])} --out DIR   to keep it")
    else:
        own = f", model={model!r}" if ".py:" in model else ""
        code = f"import n2nfx; print(n2nfx.load({str(out)!r}{own}).density)"
        click.echo(f"Next: {shlex.join(['python', '-c', code])}")


def _fitted(
    model: str, data: str, root: Path | None, asked: dict[str, Any]
) -> tuple["Data", dict[str, Any]]:
    """The data, and what was asked, with the data's input and classes where none were given."""
    from n2nfx.training.data import load_for

    wanted = {name: asked[name] for name in ("input_shape", "num_classes")}
    found = load_for(model, data, root, **wanted)
    own = {"input_shape": found.shape, "num_classes": len(found.classes)}
    if asked["input_shape"] is None:
        shape = ",".join(map(str, found.shape))
        click.echo(f"{data}: --input {shape}; a larger one pads the images", err=True)
    given = {key: value for key, value in asked.items() if value is not None}
    return found, {**own, **given}
