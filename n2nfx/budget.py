"""Integer arithmetic only: who may keep how many weights.

No floating-point number decides anything here except the density and the ratio that the user gave;
from the budget on, every count is an int and every comparison is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal, Protocol, get_args

from n2nfx.errors import CannotOperate, UsageError, did_you_mean, require_number

Method = Literal["uniform", "global", "er", "erk"]
Floor = int | Literal["channels"]
Ends = Literal["pruned", "dense"]


class Sized(Protocol):
    """What an allocation needs to know of one layer."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Number of weights."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels on the wider side."""
        ...

    @property
    def weight_shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Split:
    """A budget in its two shares, in weights: for the layers themselves and for skip branches."""

    sequential: int
    skip: int


@dataclass(frozen=True)
class Allocation:
    """How a budget is shared over layers.

    `method` gives the shares: "uniform" (the same density everywhere), "er", "erk", or "global"
    (one ranking of the scores over all layers, so that only the bounds are known beforehand).
    `floor` is the least number of weights a layer keeps, or "channels": as many as it has channels
    on its wider side. `ends` says whether the first and the last layer are kept whole.
    Raises UsageError for any other value.
    """

    method: Method = "uniform"
    floor: Floor = "channels"
    ends: Ends = "pruned"

    def __post_init__(self) -> None:
        _check_choice("allocation method", self.method, get_args(Method))
        _check_choice("ends", self.ends, get_args(Ends))
        _check_floor(self.floor)


def budget(density: float, total: int) -> int:
    """The number of weights that `density` keeps of `total`: round(density * total).

    Raises UsageError unless 0 < density <= 1 and the result is at least one weight.
    """
    require_density(density)
    if total < 1:
        raise UsageError(f"there must be at least one weight to keep a share of, not {total}")
    # float() first: a 32-bit density would carry the product of a large network in 24 bits.
    kept = round(float(density) * total)
    if kept < 1:
        raise UsageError(
            f"density {density} keeps none of {total} weights; density {1 / total:.3g} keeps one"
        )
    return kept


def require_density(density: float) -> None:
    """Raise UsageError unless 0 < density <= 1."""
    require_number("density", density)
    if not 0 < density <= 1:
        raise UsageError(f"density must be above 0 and at most 1, not {density}")


def split(budget: int, ratio: float) -> Split:
    """The sequential and the skip share of `budget`: skip is round(ratio * budget), in weights.

    The two add up to the budget exactly. Raises UsageError unless 0 <= ratio < 1.
    """
    require_number("ratio", ratio)
    if not 0 <= ratio < 1:
        raise UsageError(f"the skip ratio must be at least 0 and below 1, not {ratio}")
    if budget < 0:
        raise UsageError(f"a budget of {budget} weights cannot be split; it must be at least 0")
    skip = round(float(ratio) * budget)
    return Split(sequential=budget - skip, skip=skip)


def apportion(
    weights: Sequence[int], total: int, lower: Sequence[int], upper: Sequence[int]
) -> tuple[int, ...]:
    """Share `total` in proportion to `weights`, within bounds, by Webster's divisor method.

    Everyone starts at `lower`; the next unit always goes to the largest weights[i] / (2 n[i] + 1)
    among n[i] < upper[i], ties to the lower index. So the sum is exact, a weight of 0 is served
    last, and nobody loses a unit when `total` grows. The time grows with the number of digits of
    `total`, not with `total`. Raises CannotOperate where the bounds leave no room for `total`.
    Source: Balinski & Young, Fair Representation (1982).
    """
    _check_shares(weights, total, lower, upper)
    entries = list(zip(weights, lower, upper, strict=True))
    # A weight of 0 has the smallest quotient, and the same one for ever: it waits for all others.
    served = [high if weight else low for weight, low, high in entries]
    if total >= sum(served):
        return _fill_in_order(served, upper, total)
    counts = _quotas(entries, total)
    # The units that one more step would claim, at most one an entry, rank above all others and
    # outnumber the rest: so the rest is handed out singly, and one sort is enough.
    open_entries = [i for i, (_, _, high) in enumerate(entries) if counts[i] < high]
    # sorted() is stable: where quotients tie, the lower index stays first.
    ranking = sorted(open_entries, key=lambda i: Fraction(-weights[i], 2 * counts[i] + 1))
    for i in ranking[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def bounds(layers: Sequence[Sized], total: int, allocation: Allocation) -> tuple[int, ...]:
    """The least number of weights that each layer keeps of a budget of `total` weights.

    `layers` are in order of execution. An integer floor is required, min(floor, size) a layer.
    The floor "channels", min(channels, size) a layer, and dense ends are desired: where `total`
    cannot pay for them they are scaled down evenly. Raises CannotOperate where `total` exceeds the
    layers' capacity or cannot pay for an integer floor; the message says what is possible.
    """
    sizes = [layer.size for layer in layers]
    _check_capacity(total, sum(sizes))
    required = [0] * len(sizes)
    if allocation.floor != "channels":
        _check_affordable(allocation.floor, sizes, total)
        required = [min(allocation.floor, size) for size in sizes]
    desired = _desired(layers, required, allocation)
    return apportion(desired, min(total, sum(desired)), required, desired)


def allocate(layers: Sequence[Sized], total: int, allocation: Allocation) -> tuple[int, ...]:
    """The number of weights that each layer keeps; the numbers add up to `total` exactly.

    Nobody loses a weight when `total` grows, so that masks of the same scores are nested.
    Raises CannotOperate like `bounds`, and UsageError for the method "global", whose numbers
    come from scores. Sources: "er": Mocanu et al. (2018), a layer's density is proportional to
    (n_in + n_out) / (n_in * n_out); "erk": Evci et al. (2020, RigL), the same with the kernel.
    """
    if allocation.method == "global":
        raise UsageError(
            "allocation 'global' ranks the scores of all layers at once, so there are no numbers "
            "to give before the scores; without scores use 'uniform', 'er' or 'erk'"
        )
    # Nobody loses a weight when the total grows: while the total cannot pay for what is desired,
    # the bounds spend all of it and are the answer, one apportionment with fixed bounds of its
    # own; from there on the bounds stay as desired, and this apportionment has fixed bounds. At
    # the total where the two meet, both give exactly what is desired.
    lower = bounds(layers, total, allocation)
    weights = [_share(layer, allocation.method) for layer in layers]
    return apportion(weights, total, lower, [layer.size for layer in layers])


def _share(layer: Sized, method: Method) -> int:
    """What a layer's count is proportional to: its size times its density under the method."""
    shape = layer.weight_shape
    if method == "er":
        return sum(shape[:2]) * prod(shape[2:])
    if method == "erk":
        return sum(shape)
    return layer.size


def _desired(layers: Sequence[Sized], required: Sequence[int], allocation: Allocation) -> list[int]:
    desired = list(required)
    if allocation.floor == "channels":
        desired = [min(layer.channels, layer.size) for layer in layers]
    if allocation.ends == "dense" and layers:
        desired[0] = layers[0].size
        desired[-1] = layers[-1].size
    return desired


def _quotas(entries: Sequence[tuple[int, int, int]], total: int) -> list[int]:
    """Counts at a common divisor that add up to `total` or less than one unit an entry below it.

    `entries` are (weight, lower, upper); `total` is less than all the positive weights can take.
    """
    widest = max(weight for weight, _, _ in entries)

    # The divisor is widest / step: an entry claims every k with weight / (2k + 1) >= divisor.
    # One step more raises weight * step / (2 * widest) by half a unit at most, so each count by
    # one at most: at the last step within the total, the rest is less than one unit an entry.
    def counts(step: int) -> list[int]:
        return [
            min(max((weight * step + widest) // (2 * widest), low), high)
            for weight, low, high in entries
        ]

    # At this step even a weight of 1 claims its whole upper bound.
    everything = 2 * widest * max(high for _, _, high in entries)
    return counts(_last(lambda step: sum(counts(step)) <= total, 0, everything))


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last number for which `holds` is true, given that it is at `low` and is not at `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _fill_in_order(counts: Sequence[int], upper: Sequence[int], total: int) -> tuple[int, ...]:
    """Raise the counts to `total`, the lower index to its upper bound first."""
    rest = total - sum(counts)
    filled: list[int] = []
    for count, high in zip(counts, upper, strict=True):
        taken = min(rest, high - count)
        filled.append(count + taken)
        rest -= taken
    return tuple(filled)


def _check_shares(
    weights: Sequence[int], total: int, lower: Sequence[int], upper: Sequence[int]
) -> None:
    if not len(weights) == len(lower) == len(upper):
        raise UsageError(
            f"{len(weights)} weights need as many bounds, not {len(lower)} lower "
            f"and {len(upper)} upper"
        )
    for i, (weight, low, high) in enumerate(zip(weights, lower, upper, strict=True)):
        if weight < 0 or not 0 <= low <= high:
            raise UsageError(
                f"entry {i} must have weight >= 0 and 0 <= lower <= upper, "
                f"not weight {weight}, lower {low}, upper {high}"
            )
    if not sum(lower) <= total <= sum(upper):
        raise CannotOperate(
            f"cannot share {total} among {len(weights)}: the lower bounds need {sum(lower)} "
            f"and the upper bounds allow {sum(upper)}"
        )


def _check_capacity(total: int, capacity: int) -> None:
    if not 0 <= total <= capacity:
        raise CannotOperate(
            f"cannot keep {total} weights: the layers have {capacity}, "
            f"so a budget from 0 to {capacity} is possible"
        )


def _check_affordable(floor: int, sizes: Sequence[int], total: int) -> None:
    def needed(floor: int) -> int:
        return sum(min(floor, size) for size in sizes)

    if needed(floor) <= total:
        return
    largest = _last(lambda lower_floor: needed(lower_floor) <= total, 0, floor)
    raise CannotOperate(
        f"a floor of {floor} in {len(sizes)} layers needs {needed(floor)} weights and there are "
        f"{total}; the largest floor possible is {largest}, and 'channels' scales down by itself"
    )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise UsageError(f"{name} must be one of {', '.join(known)}, not {value!r}{hint}")


def _check_floor(floor: Floor) -> None:
    if floor == "channels":
        return
    if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
        hint = did_you_mean(str(floor), ["channels"])
        raise UsageError(f"floor must be an integer >= 0 or 'channels', not {floor!r}{hint}")
