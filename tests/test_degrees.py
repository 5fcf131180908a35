"""Lognormal degrees: the logarithms, the distribution, and that nothing depends on the machine."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from n2nfx import degrees
from n2nfx.degrees import lognormal_order


def taken(shape: tuple[int, ...], count: int, key: int) -> np.ndarray:
    order = lognormal_order(shape, key).reshape(-1)
    kept = np.zeros(order.size, dtype=bool)
    kept[np.argsort(-order, kind="stable")[:count]] = True
    return kept.reshape(shape)


@given(st.integers(1, 2**33 - 1))
def test_logarithms_are_right_to_a_millionth(value: int) -> None:
    found = degrees._log2(np.array([value], dtype=np.uint64))[0] / 2**degrees._POINT
    assert found == pytest.approx(np.log2(value), abs=2e-6)


def test_no_entry_of_the_table_hangs_on_how_a_machine_rounds() -> None:
    exact = np.log2(1 + np.arange(2**12 + 1) / 2**12) * 2**degrees._POINT
    assert np.abs(np.abs(exact - np.rint(exact)) - 0.5).min() > 1e-6
    assert abs(2**degrees._POINT / np.log(2) % 1 - 0.5) > 1e-6


def test_the_order_is_the_same_everywhere() -> None:
    digest = hashlib.sha256(lognormal_order((48, 64, 3, 3), 7).astype("<i8").tobytes())
    assert digest.hexdigest() == (
        "434968cd6d438b0e31e13761bb08959de86bcbdd99271ef0e5430096ec926c43"
    )


def test_degrees_are_lognormal_and_those_of_uniform_neurons_are_not() -> None:
    """The spread of the logarithm of what 400 neurons write: that of the weights, and noise."""
    for axis in (0, 1):
        spreads = []
        for key in range(5):
            degree = taken((400, 400), 16_000, key).sum(axis=1 - axis)
            spreads.append(np.log(degree[degree > 0]).std())
        assert 0.75 < np.mean(spreads) < 1.05
    uniform = np.random.default_rng(0).permutation(160_000).reshape(400, 400) < 16_000
    assert np.log(uniform.sum(axis=1)).std() < 0.25


def test_a_neurons_chance_is_the_product_of_both_weights() -> None:
    """Over all kernel positions alike, and over many draws as proportional sampling has it."""
    shape, key = (20, 30, 3, 3), 3
    stream = np.random.Philox(key=key)
    weights = [np.exp2(degrees._normal(stream, n) / 2**degrees._POINT) for n in shape[:2]]
    expected = np.outer(*weights)
    count = 60
    sides = np.log2(expected)[:, :, None, None] * 2**degrees._POINT
    hits = np.zeros(shape[:2])
    for draw in range(400):
        raw = np.random.Philox(key=1000 + draw).random_raw(shape)
        order = (sides - degrees._logit(raw)).reshape(-1)
        kept = np.zeros(order.size)
        kept[np.argsort(-order)[:count]] = 1
        hits += kept.reshape(*shape[:2], 9).sum(axis=2)
    wanted = expected / expected.sum() * count * 400
    often = wanted > 100
    assert often.sum() > 20
    assert np.abs(hits[often] / wanted[often] - 1).mean() < 0.12


@given(st.integers(0, 2**64 - 1), st.integers(0, 59), st.integers(0, 60))
def test_fewer_are_a_subset_of_more(key: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert not (taken((4, 5, 3), few, key) & ~taken((4, 5, 3), more, key)).any()
