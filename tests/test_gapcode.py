"""The code of a masked weight: not a bit is lost, and no code is believed before it is checked."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from n2nfx import gapcode
from n2nfx.gapcode import CodeError

WIDTHS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bits, which tell -0 from +0 and one NaN from another."""
    return tensor.contiguous().view(WIDTHS[tensor.dtype])


def random_weight(mask: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all where kept: infinities, negative zeros, subnormals, NaNs with payloads."""
    width = torch.empty((), dtype=dtype).element_size()
    data = np.random.default_rng(seed).bytes(mask.numel() * width)
    integers = torch.from_numpy(np.frombuffer(data, dtype=f"i{width}").copy())
    return torch.where(mask, integers.reshape(mask.shape), 0).view(dtype)


def random_mask(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    chosen = np.random.default_rng(seed + 1).random(math.prod(shape)) < density
    return torch.from_numpy(chosen).reshape(shape)


def round_trip(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The code, from which the same weight and mask come back, +0 where dropped."""
    code = gapcode.encode(weight, mask)
    found, found_mask = gapcode.decode(code, tuple(weight.shape), weight.dtype)
    assert found.dtype == weight.dtype
    assert torch.equal(bits(found), torch.where(mask, bits(weight), 0))
    assert torch.equal(found_mask, mask)
    return code


@settings(max_examples=300, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), max_size=4).map(tuple),
    dtype=st.sampled_from(list(WIDTHS)),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.8, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_any_weight_comes_back_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, seed: int
) -> None:
    mask = random_mask(shape, density, seed)
    round_trip(random_weight(mask, dtype, seed), mask)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 253, 254, 255, 256, 509, 510, 511, 765, 1020]), max_size=6))
def test_gaps_around_the_multiples_of_255(gaps: list[int]) -> None:
    """The last gap is the one behind the last kept element."""
    *inner, last = gaps or [0]
    mask = torch.tensor([kept for gap in inner for kept in [False] * gap + [True]] + [False] * last)
    mask = mask.bool()
    code = round_trip(random_weight(mask, torch.float64, len(gaps)), mask)
    if "gap" in code:
        assert len(code["gap"]) == sum(gap // 255 + 1 for gap in inner) + last // 255


def test_the_gap_code_is_what_the_format_says() -> None:
    mask = torch.zeros(800, dtype=torch.bool)
    mask[[0, 1, 257, 513]] = True  # gaps 0, 0, 255, 255, and 286 behind
    code = round_trip(mask.float(), mask)
    assert code["gap"].tolist() == [0, 0, 255, 0, 255, 0, 255]
    assert code["val"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("density", "forms"),
    [(0.0, ["gap", "val"]), (0.02, ["gap", "val"]), (0.9, ["bits", "dense"]), (1.0, ["dense"])],
)
def test_the_smaller_form_is_stored(density: float, forms: list[str]) -> None:
    mask = random_mask((50, 40), density, 3)
    assert sorted(round_trip(mask.float(), mask)) == forms


def test_negative_zero_is_kept_where_kept_and_dropped_where_dropped() -> None:
    position = torch.arange(40)
    for mask, form in ((position != 7, "dense"), (position == 7, "gap")):
        assert form in round_trip(torch.full((40,), -0.0), mask)


@pytest.mark.parametrize("value", [1.0, math.nan, -math.inf, 1e-40])
@pytest.mark.parametrize("dropped", [1, 30])
def test_what_a_mask_drops_is_not_stored(value: float, dropped: int) -> None:
    mask = torch.arange(40) >= dropped
    round_trip(torch.full((40,), value), mask)


@pytest.mark.parametrize("kept", [0, 3, 39, 40])
def test_a_code_shares_nothing_with_its_weight(kept: int) -> None:
    weight = torch.arange(40.0)
    code = gapcode.encode(weight, weight < kept)
    before = {form: part.clone() for form, part in code.items()}
    weight.zero_()
    assert all(torch.equal(part, before[form]) for form, part in code.items())


def codes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def gaps(gap: Tensor, values: Tensor) -> dict[str, Tensor]:
    return {"gap": gap, "val": values}


@pytest.mark.parametrize(
    ("shape", "code", "words"),
    [
        # Which entries there are
        ((4,), {}, "nothing stored"),
        ((4,), {"gap": codes()}, "gap stored"),
        ((4,), {"dense": torch.ones(4), "other": codes()}, "dense, other stored"),
        ((4,), {"dense": torch.ones(4), **gaps(codes(), torch.ones(0))}, "stored"),
        # Gaps
        ((4,), gaps(codes(4), torch.ones(1)), "runs to 5"),
        ((4,), gaps(codes(255, 0), torch.ones(1)), "runs to 256"),
        ((2**39,), gaps(codes(), torch.ones(0)), "runs to 0"),
        ((2**39,), gaps(codes(0), torch.ones(1)), "runs to 1"),
        ((256,), gaps(codes(0), torch.ones(1)), "runs to 1"),
        ((4,), gaps(codes(0, 0), torch.ones(1)), "2 positions and 1 values"),
        ((4,), gaps(codes(0), torch.ones(2)), "1 positions and 2 values"),
        ((4,), gaps(codes(0).int(), torch.ones(1)), "wrong dtype"),
        ((4,), gaps(codes(0)[None], torch.ones(1)), "wrong dtype"),
        ((4,), gaps(codes(0), torch.ones(1).double()), "wrong dtype"),
        ((4,), gaps(codes(0), torch.ones(1, 1)), "wrong dtype"),
        # Dense weights
        ((4,), {"dense": torch.ones(2, 2)}, r"shape \[2, 2\]"),
        ((4,), {"dense": torch.ones(4).half()}, "float16"),
        ((4,), {"dense": torch.ones(4), "bits": codes(7)}, "not zero everywhere"),
        ((4,), {"dense": torch.full((4,), -0.0), "bits": codes(7)}, "not zero"),
        ((4,), {"dense": torch.zeros(4), "bits": codes(23)}, "beyond its end"),
        ((4,), {"dense": torch.zeros(4), "bits": codes(7, 0)}, "wrong dtype or length"),
        ((4,), {"dense": torch.zeros(4), "bits": codes(7).char()}, "wrong dtype or length"),
    ],
)
def test_what_is_no_code_is_refused(
    shape: tuple[int, ...], code: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(CodeError, match=words):
        gapcode.decode(code, shape, torch.float32)


@settings(max_examples=200, deadline=None)
@given(gap=st.binary(max_size=40), total=st.integers(0, 12_000), kept=st.integers(0, 40))
def test_random_bytes_as_gaps_are_decoded_or_refused(gap: bytes, total: int, kept: int) -> None:
    try:
        weight, mask = gapcode.decode(gaps(codes(*gap), torch.ones(kept)), (total,), torch.float32)
    except CodeError:
        return
    assert mask.sum() == kept == sum(code != 255 for code in gap)
    assert torch.equal(weight, mask.float())
    assert mask.shape == (total,)
