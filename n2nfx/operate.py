"""The main job in one call: build, trace, prune, splice."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from n2nfx.errors import UsageError, did_you_mean
from n2nfx.fitting import Resolution
from n2nfx.network import Probe
from n2nfx.outcome import Outcome
from n2nfx.passes import N2NSkip, RandomPruning, Reinit, Shuffle
from n2nfx.pipeline import Pass, apply
from n2nfx.source import network_of
from n2nfx.tracing.tracer import Example
from n2nfx.wiring import Placement, Wiring

PRUNERS: dict[str, Callable[..., Pass]] = {"random": RandomPruning}


def transform(
    model: str | nn.Module,
    *,
    density: float,
    skip_ratio: float | Literal["learned"] = 0.0,
    pruner: str = "random",
    seed: int = 0,
    allocation: Literal["uniform", "er", "erk"] = "uniform",
    floor: int | Literal["channels"] = "channels",
    ends: Literal["pruned", "dense"] = "pruned",
    hops: tuple[int, ...] = (3,),
    placement: Placement = "every",
    wiring: Wiring = "paper",
    kernel: int | Literal["target"] = "target",
    resolution: Resolution = "stride",
    share: Literal["uniform", "global"] = "uniform",
    pattern: Literal["random", "identity", "scored"] = "random",
    degrees: Literal["uniform", "lognormal"] = "uniform",
    branch_norm: Literal["none", "batch"] = "none",
    init: Literal["kaiming", "zero"] = "kaiming",
    control: Literal["none", "shuffle", "reinit", "sequential"] = "none",
    example: Example | None = None,
    batch: tuple[Tensor, Tensor] | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Outcome:
    """Prune a model to `round(density * N)` weights and spend the share `skip_ratio` on skips.

    `model` is a name ("resnet50", "timm:resnet50", "n2nfx:vgg19_cifar", "file.py:function") or a
    module, which needs an `example` input and stays as it is. The pruning options are those of
    the pruner's pass, the others those of `N2NSkip`. `batch` and `loss` are for pruners that look
    at data. Raises `UsageError` for an argument that cannot be, `CannotOperate` for a job.

    `control` makes of it what it is to be compared with, at the same budget: the masks `shuffle`d
    within layers, the weights drawn anew (`reinit`), or the share of the skips spent on the layers
    (`sequential`), which is the pruned network without skips.
    """
    if pruner not in PRUNERS:
        raise UsageError(
            f"there is no pruner {pruner!r}{did_you_mean(pruner, PRUNERS)}; "
            f"there is {', '.join(PRUNERS)}"
        )
    steps: list[Pass] = [
        PRUNERS[pruner](density=density, allocation=allocation, floor=floor, ends=ends)
    ]
    skips = N2NSkip(
        ratio=skip_ratio, hops=hops, placement=placement, wiring=wiring, kernel=kernel,
        resolution=resolution, share=share, pattern=pattern, degrees=degrees,
        branch_norm=branch_norm, init=init,
    )  # fmt: skip
    if skip_ratio != 0 and control != "sequential":
        steps.append(skips)
    steps += _control(control)
    network = network_of(
        model, example=example, seed=seed, num_classes=num_classes, input_shape=input_shape
    )
    probe = Probe(seed=seed, batches=() if batch is None else (batch,), loss=loss)
    return apply(steps, network, probe)  # nobody else holds this network


def _control(control: str) -> tuple[Pass, ...]:
    """The passes of a control; "sequential" is none, as the skips are left out before."""
    known = {"none": (), "shuffle": (Shuffle(),), "reinit": (Reinit(),), "sequential": ()}
    if control not in known:
        raise UsageError(
            f"there is no control {control!r}{did_you_mean(control, known)}; "
            f"there is {', '.join(known)}"
        )
    return known[control]
