"""The pure functions of the update rule, against NumPy."""

import pathlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_adamax import update_rule


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x, dtype))


def array(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_compute_dtype(weight, expected):
    assert update_rule.compute_dtype(weight) == expected


def test_bound_is_finite():
    bound = update_rule.clip_bound(
        tensor([0, 1, 3e38]), tensor(1.5), tensor(0.5)
    )
    np.testing.assert_array_equal(
        array(bound), np.array([0.5, 2, np.finfo("float32").max], "float32")
    )


def test_clip_is_symmetric_and_keeps_nan():
    g = tensor([3, -3, 0.5, np.inf, -np.inf, np.nan])
    clipped = array(update_rule.clip(g, tensor(np.full(6, 2.0))))
    np.testing.assert_array_equal(clipped, [2, -2, 0.5, 2, -2, np.nan])
    marked = array(update_rule.is_clipped(g, tensor(np.full(6, 2.0))))
    np.testing.assert_array_equal(
        marked, [True, True, False, True, True, False]
    )


def test_an_element_at_its_bound_is_not_clipped():
    marked = update_rule.is_clipped(tensor([2, -2]), tensor([2, 2]))
    assert not array(marked).any()


def test_weight_change_of_nothing_is_nothing():
    change = update_rule.weight_change(
        tensor([0, 0, 1]), tensor([0, 2, 2]), tensor(0.5), tensor(0.0)
    )
    np.testing.assert_array_equal(array(change), [0, 0, 0.25])


def test_nan_in_the_moments_reaches_the_weight():
    change = update_rule.weight_change(
        tensor([np.nan, np.nan]),
        tensor([0, np.nan]),
        tensor(0.5),
        tensor(0.0),
    )
    assert np.isnan(array(change)).all()


@pytest.mark.parametrize("beta_1", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_bias_correction_keeps_its_digits(beta_1):
    exact = np.float64(np.float32(beta_1))
    for step in (1, 2, 3, 10, 1000, 10**6):
        log = ops.log(tensor(beta_1)) * float(step)
        factor = float(array(update_rule.bias_correction_factor(log)))
        expected = -np.expm1(step * np.log(exact)) if exact else 1.0
        # The logarithm is as exact as float32 has it: a few roundings.
        assert abs(factor - expected) <= 8 * 2**-24 * expected


@settings(deadline=None, max_examples=40)
@given(
    indices=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_sum_repeated_rows(indices, seed):
    # Small integers: their sums are exact in any order.
    rng = np.random.default_rng(seed)
    values = rng.integers(-8, 8, (len(indices), 2)).astype("float32")
    sums, is_first = update_rule.sum_repeated_rows(
        tensor(indices, "int32"), tensor(values)
    )
    sums, is_first = array(sums), array(is_first)
    for i, index in enumerate(indices):
        same = np.array(indices) == index
        np.testing.assert_array_equal(sums[i], values[same].sum(axis=0))
        assert is_first[same].sum() == 1


def test_rule_has_no_backend_of_its_own():
    source = pathlib.Path(update_rule.__file__).read_text()
    for backend in ("tensorflow", "jax", "torch"):
        assert f"import {backend}" not in source
    assert keras.backend.backend() in ("tensorflow", "jax", "torch")
