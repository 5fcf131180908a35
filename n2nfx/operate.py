"""The main job in one call: build, trace, prune, splice."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from n2nfx.errors import UsageError, did_you_mean
from n2nfx.fitting import Resolution
from n2nfx.network import Probe
from n2nfx.outcome import Outcome
from n2nfx.passes import (
    SNIP,
    Expander,
    GraSP,
    IterativeSNIP,
    Magnitude,
    N2NSkip,
    RandomPruning,
    Reinit,
    Shuffle,
    SynFlow,
)
from n2nfx.pipeline import Pass, apply
from n2nfx.saliency import Norm
from n2nfx.source import network_of
from n2nfx.tracing.tracer import Example
from n2nfx.wiring import Placement, Wiring

PRUNERS: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (RandomPruning, Expander, SNIP, IterativeSNIP, GraSP, SynFlow, Magnitude)
}
# A control comes last, but for "sequential", where the skips are left out: the same budget without.
CONTROLS: dict[str, tuple[Pass, ...]] = {
    "none": (),
    "shuffle": (Shuffle(),),
    "reinit": (Reinit(),),
    "sequential": (),
}

Batch: TypeAlias = tuple[Tensor, Tensor]


def transform(
    model: str | nn.Module,
    *,
    density: float,
    skip_ratio: float | Literal["learned"] = 0.0,
    pruner: str = "random",
    seed: int = 0,
    allocation: Literal["uniform", "global", "er", "erk"] | None = None,
    floor: int | Literal["channels"] = "channels",
    ends: Literal["pruned", "dense"] = "pruned",
    norm: Norm | None = None,
    rounds: int | None = None,
    revive: bool | None = None,
    temperature: float | None = None,
    hops: tuple[int, ...] = (3,),
    placement: Placement = "every",
    wiring: Wiring = "linear",
    kernel: int | Literal["target"] = "target",
    resolution: Resolution = "stride",
    share: Literal["uniform", "global"] = "uniform",
    pattern: Literal["random", "identity", "scored"] = "identity",
    degrees: Literal["uniform", "lognormal"] = "uniform",
    branch_norm: Literal["none", "batch"] = "none",
    init: Literal["kaiming", "zero"] = "kaiming",
    control: Literal["none", "shuffle", "reinit", "sequential"] = "none",
    example: Example | None = None,
    batch: Batch | list[Batch] | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    pretrained: bool = False,
) -> Outcome:
    """Prune a model to `round(density * N)` weights and spend the share `skip_ratio` on skips.

    `model` is a name ("resnet50", "timm:resnet50", "n2nfx:vgg19_cifar", "file.py:function") or a
    module, which needs an `example` input and stays as it is. The pruning options, from
    `allocation` to `temperature`, are those of the pruner's pass, whose own default stands for
    None; the others are those of `N2NSkip`. `batch`, (inputs, targets) or a list of several that
    count as one, and `loss` are for pruners that look at data. `control` makes of it what it is to
    be compared with, at the same budget: the masks `shuffle`d within layers, the weights drawn anew
    (`reinit`), or the share of the skips spent on layers (`sequential`). `pretrained` gives a model
    of torchvision or timm the trained weights that this machine has. Raises `UsageError` for an
    argument that cannot be, `CannotOperate` for a job.
    """
    _require_known("pruner", pruner, PRUNERS)
    _require_known("control", control, CONTROLS)
    batches = batch if isinstance(batch, list) else [] if batch is None else [batch]
    asked = {
        "allocation": allocation, "norm": norm, "rounds": rounds, "revive": revive,
        "temperature": temperature,
    }  # fmt: skip
    options = _options(pruner, {key: value for key, value in asked.items() if value is not None})
    if batches and "batches" in _arguments(pruner):
        options["batches"] = len(batches)
    steps: list[Pass] = [PRUNERS[pruner](density=density, floor=floor, ends=ends, **options)]
    skips = N2NSkip(
        ratio=skip_ratio, hops=hops, placement=placement, wiring=wiring, kernel=kernel,
        resolution=resolution, share=share, pattern=pattern, degrees=degrees,
        branch_norm=branch_norm, init=init,
    )  # fmt: skip
    if skip_ratio != 0 and control != "sequential":
        steps.append(skips)
    steps += CONTROLS[control]
    probe = Probe(seed=seed, batches=tuple(batches), loss=loss)
    network = network_of(
        model, example=example, seed=seed, num_classes=num_classes, input_shape=input_shape,
        pretrained="yes" if pretrained else "no",
    )  # fmt: skip
    return apply(steps, network, probe)  # nobody else holds this network


def _options(pruner: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked of a pruner; raises `UsageError` where it has no such argument."""
    for key in asked.keys() - _arguments(pruner):
        takers = [name for name in PRUNERS if key in _arguments(name)]
        raise UsageError(f"pruner {pruner!r} takes no {key}; it is for {', '.join(takers)}")
    return asked


def _arguments(pruner: str) -> set[str]:
    return {field.name for field in fields(PRUNERS[pruner])}


def _require_known(what: str, name: str, known: Mapping[str, object]) -> None:
    if name not in list(known):  # what has no hash is in none
        near = did_you_mean(str(name), known)
        raise UsageError(f"there is no {what} {name!r}{near}; there is {', '.join(known)}")
