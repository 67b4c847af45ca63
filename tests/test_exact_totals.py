"""Exact counting in float32, however large the totals grow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_adamax import ClipStatistics, exact_totals


def add(row, clipped, counted):
    return ops.convert_to_numpy(
        exact_totals.add_to_rows(
            ops.convert_to_tensor(row[np.newaxis]),
            ops.convert_to_tensor([clipped], dtype="int32"),
            ops.convert_to_tensor([counted], dtype="int32"),
        )
    )[0]


@settings(deadline=None, max_examples=60)
@given(
    start=st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)),
    steps=st.lists(
        st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
        max_size=6,
    ),
)
def test_totals_are_exact_integers(start, steps):
    row = exact_totals.rows_from_totals([start])[0]
    clipped, counted = start
    for more_clipped, more_counted in steps:
        row = add(row, more_clipped, more_counted)
        clipped, counted = clipped + more_clipped, counted + more_counted
        assert row.dtype == np.float32
        assert (row < 2**24).all()
    assert exact_totals.totals_from_rows([row]) == [(clipped, counted)]


@settings(deadline=None, max_examples=60)
@given(
    start=st.lists(
        st.tuples(st.integers(0, 2**59), st.integers(0, 2**59)),
        min_size=1,
        max_size=3,
    ),
    step=st.tuples(st.integers(0, 2**22), st.integers(0, 2**22)),
)
def test_what_a_step_counted_is_exact_after_any_number_of_steps(start, step):
    before = exact_totals.rows_from_totals(start)
    after = np.stack([add(row, *step) for row in before])
    totals = exact_totals.step_totals(
        ops.convert_to_tensor(before), ops.convert_to_tensor(after)
    )
    assert [int(total) for total in totals] == [n * len(start) for n in step]


def test_one_float32_would_have_stopped_counting():
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)
    row = exact_totals.rows_from_totals([(2**24, 2**60)])[0]
    assert exact_totals.totals_from_rows([add(row, 1, 1)]) == [
        (2**24 + 1, 2**60 + 1)
    ]


def test_rates():
    now = ClipStatistics({"a": 5, "b": 0, "c": 0}, {"a": 10, "b": 30, "c": 0})
    rates = now.rates()
    assert (rates["a"], rates["b"]) == (0.5, 0.0)
    assert np.isnan(rates["c"])
    assert now.rate() == 5 / 40
    assert np.isnan(ClipStatistics({}, {}).rate())


def test_since():
    first = ClipStatistics({"a": 5}, {"a": 10})
    second = ClipStatistics({"a": 6}, {"a": 20})
    assert second.since(first) == ClipStatistics({"a": 1}, {"a": 10})
    with pytest.raises(ValueError, match="taken earlier"):
        first.since(second)
    with pytest.raises(ValueError, match="same variables"):
        second.since(ClipStatistics({"b": 1}, {"b": 1}))
    with pytest.raises(TypeError, match="Received: since=3"):
        second.since(3)
