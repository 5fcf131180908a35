"""The learning rate at a step: a number that depends on nothing but the step."""

from math import cos, pi

from n2nfx.runspec import Training

# One cycle as in Smith and Topin (2018), with the numbers that torch's OneCycleLR has, of the rate
# alone: the momentum stays.
_RISE, _START, _END = 0.3, 1 / 25, 1 / 250_000


def rate(training: Training, step: int, per_epoch: int) -> float:
    """The learning rate of a step, counted from 0, where an epoch has `per_epoch` of them.

    Warmup multiplies whatever the schedule says, so that a step schedule still falls at its epochs.
    """
    total = training.epochs * per_epoch
    warm = min(1.0, (step + 1) / (training.warmup * per_epoch)) if training.warmup else 1.0
    if training.schedule == "step":
        share = training.step_factor ** (step // per_epoch // training.step_every)
    elif training.schedule == "cosine":
        share = _between(1.0, 0.0, step / total)
    else:
        share = _one_cycle(step, total)
    return training.lr * warm * share


def _one_cycle(step: int, total: int) -> float:
    top, last = max(_RISE * total - 1, 0.0), total - 1
    if step <= top:
        return _between(_START, 1.0, step / top if top else 1.0)
    return _between(1.0, _END, (step - top) / (last - top))


def _between(start: float, end: float, part: float) -> float:
    """Half a cosine from one value to another."""
    return end + (start - end) * (1 + cos(pi * part)) / 2
