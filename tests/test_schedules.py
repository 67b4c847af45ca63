"""Schedules against NumPy, compiled and not, and through serialization."""

import copy
import doctest
import json
import math
import re
from typing import Any

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras.optimizers.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

from keras_adamax import JoinedSchedule, LinearRamp, schedules

ROUNDOFF = 2.0**-24
LARGEST = 2**31 - 1
BACKEND = keras.backend.backend()


def evaluate_eagerly(schedule, steps):
    return [schedule(step) for step in steps]


def evaluate_tensors(schedule, steps):
    return [schedule(as_counter(step)) for step in steps]


def evaluate_compiled(schedule, steps, **options):
    """One trace for all steps, on a counter as Keras has it."""
    compiled: Any = schedule
    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(schedule.__call__, **options)
    elif BACKEND == "jax":
        import jax

        compiled = jax.jit(schedule.__call__)
    results = [compiled(as_counter(step)) for step in steps]
    if BACKEND == "tensorflow":
        assert compiled.experimental_get_tracing_count() == 1
    return results


def evaluate_with_xla(schedule, steps):
    if BACKEND != "tensorflow":
        return evaluate_compiled(schedule, steps)
    return evaluate_compiled(schedule, steps, jit_compile=True)


def as_counter(step):
    dtype = "int64" if BACKEND == "tensorflow" else "int32"
    return keras.ops.convert_to_tensor(step, dtype=dtype)


@pytest.fixture(
    params=[
        evaluate_eagerly,
        evaluate_tensors,
        evaluate_compiled,
        evaluate_with_xla,
    ],
    ids=lambda function: function.__name__.removeprefix("evaluate_"),
)
def evaluate(request):
    """A function of a schedule and steps that gives a float32 array."""

    def to_array(schedule, steps):
        results = request.param(schedule, [int(step) for step in steps])
        for result in results:
            assert keras.backend.standardize_dtype(result.dtype) == "float32"
            assert tuple(result.shape) == ()
        arrays = [keras.ops.convert_to_numpy(result) for result in results]
        return np.array(arrays, np.float32)

    return to_array


@keras.saving.register_keras_serializable("test_schedules")
class Countdown(LearningRateSchedule):
    """`sqrt(steps - 1 - step)`, and NaN outside of `0 <= step < steps`."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, step) -> Any:
        step = keras.ops.cast(step, "float32")
        left = keras.ops.sqrt(self.steps - 1 - step)
        return keras.ops.add(
            left, keras.ops.multiply(0.0, keras.ops.sqrt(step))
        )

    def get_config(self):
        return {"steps": self.steps}


class Unregistered(LearningRateSchedule):
    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return self.value

    def get_config(self):
        return {"value": self.value}


class Recorder(LearningRateSchedule):
    """Remembers the steps it was asked for."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(int(step))
        return 0.0


def numpy_ramp(step, start, end, num_steps, delay_steps=0):
    part = min(max(step - delay_steps, 0), num_steps) / num_steps
    return start * (1 - part) + end * part


def ramp_error(step, start, end, num_steps, delay_steps=0):
    """What rounding may cost: of the nearer end, and of the way from it."""
    part = min(max(step - delay_steps, 0), num_steps) / num_steps
    here = start if part < 0.5 else end
    way = abs(end - start) * min(part, 1 - part)
    return ROUNDOFF * (2 * abs(here) + 6 * way) + 1e-45


def around(*boundaries):
    return sorted(
        {
            boundary + shift
            for boundary in boundaries
            for shift in (-2, -1, 0, 1, 2)
            if 0 <= boundary + shift <= LARGEST
        }
    )


class TestLinearRamp:
    @pytest.mark.parametrize(
        "arguments",
        [
            (0.0, 1.0, 10),
            (1.0, 0.0, 10, 5),
            (3.0, 1.2, 7, 1),
            (0.1, 0.1, 9),
            (1e-8, 1.0, 13, 2),
            (1.0, 1e-8, 13, 2),
            (-2.5, 2.5, 8),
            (0.5, 4, 1),
            (2, 3, 1, 3),
            (1e-30, 3e-30, 12),
            (-1e38, 1e38, 12),
        ],
    )
    def test_every_step(self, arguments, evaluate):
        start, end, num_steps, *delay = arguments
        delay = delay[0] if delay else 0
        steps = range(num_steps + delay + 4)
        values = evaluate(LinearRamp(*arguments), steps)
        for step, value in zip(steps, values, strict=True):
            error = abs(float(value) - numpy_ramp(step, *arguments))
            assert error <= ramp_error(step, *arguments), step
        assert (values[: delay + 1] == np.float32(start)).all()
        assert (values[delay + num_steps :] == np.float32(end)).all()

    def test_a_constant_is_exact(self, evaluate):
        ramp = LinearRamp(0.1, 0.1, 1000)
        values = evaluate(ramp, range(0, 1003, 17))
        assert (values == np.float32(0.1)).all()

    @pytest.mark.parametrize(
        "arguments",
        [
            (0.0, 1.0, 4, 2**24 + 1),
            (0.0, 1.0, 1, 2**30 + 1),
            (0.0, 8.0, 8, LARGEST - 4),
            (0.0, 1.0, 2**24 + 3, 2**24 + 1),
            (1.0, 1e-6, 2**30, 2**30 - 1),
            (1.0, 2.0, LARGEST, LARGEST),
            (1.0, 2.0, LARGEST),
        ],
    )
    def test_large_steps(self, arguments, evaluate):
        _, _, num_steps, *delay = arguments
        begin = delay[0] if delay else 0
        end = begin + num_steps
        steps = around(0, begin, begin + num_steps // 2, end, LARGEST)
        values = evaluate(LinearRamp(*arguments), steps)
        for step, value in zip(steps, values, strict=True):
            error = abs(float(value) - numpy_ramp(step, *arguments))
            assert error <= ramp_error(step, *arguments), step

    @pytest.mark.skipif(
        BACKEND != "tensorflow", reason="Keras counts in 32 bits here."
    )
    def test_counters_of_64_bits(self, evaluate):
        steps = [2**31, 2**32 + 1, 2**40, 2**53 + 1]
        ramp = LinearRamp(1.0, 2.0, 4, 3)
        assert (evaluate(ramp, steps) == 2.0).all()
        joined = JoinedSchedule([1.0, LinearRamp(1.0, 3.0, 2**30)], [5])
        assert (evaluate(joined, steps) == 3.0).all()

    @pytest.mark.parametrize(
        "step",
        [
            3,
            np.int32(3),
            np.int64(3),
            np.uint8(3),
            np.int16(3),
            3.0,
            np.float32(3),
            np.float16(3),
        ],
    )
    def test_kinds_of_steps(self, step):
        # Boundaries that the step's own dtype could not hold.
        ramp = LinearRamp(0.0, 4.0, 4, 0)
        assert float(ramp(step)) == 3.0
        assert float(LinearRamp(7.0, 0.0, 10**6, 10**6)(step)) == 7.0
        joined = JoinedSchedule([ramp, 9.0], [70_000])
        assert float(joined(step)) == 3.0

    @hypothesis.settings(deadline=None, max_examples=50)
    @hypothesis.given(
        start=st.floats(-1e6, 1e6, width=32),
        end=st.floats(-1e6, 1e6, width=32),
        num_steps=st.integers(1, LARGEST),
        delay_steps=st.integers(0, LARGEST),
        data=st.data(),
    )
    def test_any_ramp(self, start, end, num_steps, delay_steps, data):
        arguments = (start, end, num_steps, delay_steps)
        ramp = LinearRamp(*arguments)
        last = min(delay_steps + num_steps + 5, LARGEST)
        step = data.draw(st.integers(0, last))
        value = float(ramp(as_counter(step)))
        error = abs(value - numpy_ramp(step, *arguments))
        # Backends may flush what is below float32's normal range.
        assert error <= ramp_error(step, *arguments) + 2.0**-125


class TestJoinedSchedule:
    def test_every_step(self, evaluate):
        joined = JoinedSchedule(
            [
                LinearRamp(0.0, 1.0, 4),
                ExponentialDecay(1.0, 2, 0.5),
                0.125,
                PolynomialDecay(0.5, 3, 0.25),
            ],
            [6, 10, 11],
        )
        values = evaluate(joined, range(18))
        expected = [0, 0.25, 0.5, 0.75, 1, 1]
        expected += [0.5 ** (step / 2) for step in range(4)]
        expected += [0.125]
        expected += [0.5 - 0.25 * min(step, 3) / 3 for step in range(7)]
        np.testing.assert_allclose(values, expected, rtol=1e-6)

    def test_equals_its_parts(self, evaluate):
        parts = [
            CosineDecay(1.0, 20, alpha=0.1),
            PiecewiseConstantDecay([3, 7], [1.0, 0.5, 0.25]),
            LinearRamp(1.0, 2.0, 6, 2),
        ]
        starts = [0, 13, 31]
        steps = around(*starts, 36, 40)
        values = evaluate(JoinedSchedule(parts, starts[1:]), steps)
        for step, value in zip(steps, values, strict=True):
            i = np.searchsorted(starts, step, side="right") - 1
            alone = float(parts[i](as_counter(step - starts[i])))
            assert value == pytest.approx(alone, rel=1e-6), step

    def test_boundary_belongs_to_the_later_one(self, evaluate):
        joined = JoinedSchedule([1.0, 2.0, 3.0], [1, 2])
        values = evaluate(joined, range(4))
        assert values.tolist() == [1.0, 2.0, 3.0, 3.0]

    def test_one_part(self, evaluate):
        joined = JoinedSchedule([LinearRamp(0.0, 1.0, 2)], [])
        assert evaluate(joined, range(4)).tolist() == [0.0, 0.5, 1.0, 1.0]

    def test_nested(self, evaluate):
        inner = JoinedSchedule([LinearRamp(0.0, 2.0, 2), 5], [3])
        joined = JoinedSchedule([1, inner, inner], [2, 7])
        values = evaluate(joined, range(12))
        expected = [1, 1, 0, 1, 2, 5, 5, 0, 1, 2, 5, 5]
        assert values.tolist() == expected

    def test_a_part_that_is_nan_elsewhere(self, evaluate):
        parts = [Countdown(4), Countdown(4), 7.0]
        assert math.isnan(float(Countdown(4)(4)))
        assert math.isnan(float(Countdown(4)(-1)))
        values = evaluate(JoinedSchedule(parts, [4, 8]), range(11))
        expected = 2 * [3**0.5, 2**0.5, 1, 0] + 3 * [7]
        np.testing.assert_allclose(values, expected, rtol=1e-6)

    def test_parts_see_their_own_steps_only(self):
        recorders = [Recorder(), Recorder(), Recorder()]
        joined = JoinedSchedule(recorders, [3, 5])
        for step in range(8):
            joined(step)
        assert recorders[0].steps == [0, 1, 2, 2, 2, 2, 2, 2]
        assert recorders[1].steps == [0, 0, 0, 0, 1, 1, 1, 1]
        assert recorders[2].steps == [0, 0, 0, 0, 0, 0, 1, 2]

    def test_large_steps(self, evaluate):
        first, second = 2**24 + 1, LARGEST - 6
        joined = JoinedSchedule(
            [1.0, LinearRamp(2.0, 6.0, 4), LinearRamp(8.0, 12.0, 4)],
            [first, second],
        )
        values = evaluate(joined, range(first - 2, first + 5))
        assert values.tolist() == [1, 1, 2, 3, 4, 5, 6]
        values = evaluate(joined, range(second - 1, second + 6))
        assert values.tolist() == [6, 8, 9, 10, 11, 12, 12]

    def test_half_precision_floatx_does_not_round(self):
        keras.config.set_floatx("float16")
        try:
            joined = JoinedSchedule([0.1, LinearRamp(0.1, 0.2, 3000)], [1])
            assert float(joined(0)) == np.float32(0.1)
            assert float(joined(3001)) == np.float32(0.2)
            expected = numpy_ramp(2999, 0.1, 0.2, 3000, 1)
            value = float(joined(as_counter(2999)))
            assert value == pytest.approx(expected, rel=1e-6)
        finally:
            keras.config.set_floatx("float32")

    def test_arguments_are_copied(self):
        parts, boundaries = [1.0, 2.0], [4]
        joined = JoinedSchedule(parts, boundaries)
        parts.append(3.0)
        boundaries.append(5)
        assert joined.schedules == (1.0, 2.0)
        assert joined.boundaries == (4,)
        joined = JoinedSchedule((x for x in [1.0, 2.0]), np.array([4]))
        assert joined.get_config() == {
            "schedules": [1.0, 2.0],
            "boundaries": [4],
        }


def round_trip(schedule, **options):
    config = keras.saving.serialize_keras_object(schedule)
    config = json.loads(json.dumps(config))
    return keras.saving.deserialize_keras_object(config, **options)


def assert_same(schedule, restored, steps):
    assert type(restored) is type(schedule)
    first, second = schedule.get_config(), restored.get_config()
    assert json.dumps(first) == json.dumps(second)
    for step in steps:
        a, b = float(schedule(step)), float(restored(step))
        assert a == b, step


def numbers():
    return st.one_of(
        st.floats(-1e3, 1e3),
        st.integers(-100, 100),
        st.floats(-1e3, 1e3, width=32).map(np.float32),
        st.integers(0, 100).map(np.int64),
    )


def leaves():
    ramps = st.builds(
        LinearRamp,
        numbers(),
        numbers(),
        st.integers(1, 40),
        st.integers(0, 10),
    )
    decays = st.builds(
        ExponentialDecay,
        st.floats(0.1, 10.0),
        st.integers(1, 40),
        st.floats(0.1, 1.0),
        st.booleans(),
    )
    countdowns = st.builds(Countdown, st.integers(50, 90))
    return st.one_of(ramps, decays, countdowns, numbers())


@st.composite
def joined_schedules(draw, parts):
    parts = draw(st.lists(parts, min_size=1, max_size=4))
    boundaries = st.lists(
        st.integers(1, 30),
        min_size=len(parts) - 1,
        max_size=len(parts) - 1,
        unique=True,
    )
    return JoinedSchedule(parts, sorted(draw(boundaries)))


class TestSerialization:
    @pytest.mark.parametrize(
        "schedule",
        [
            LinearRamp(0.001, 0.1, 10),
            LinearRamp(1, 2, 10, 3),
            JoinedSchedule([LinearRamp(0.0, 0.001, 10), 0.001], [10]),
            JoinedSchedule([1, 2.5, ExponentialDecay(1.0, 5, 0.5)], [3, 8]),
            JoinedSchedule(
                [JoinedSchedule([Countdown(60), 1], [7]), CosineDecay(1.0, 9)],
                [15],
            ),
        ],
    )
    def test_round_trip(self, schedule):
        assert_same(schedule, round_trip(schedule), range(20))
        config = keras.optimizers.schedules.serialize(schedule)
        restored = keras.optimizers.schedules.deserialize(config)
        assert_same(schedule, restored, range(20))
        assert_same(schedule, copy.deepcopy(schedule), range(20))

    @hypothesis.settings(
        deadline=None,
        max_examples=30,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(
        schedule=joined_schedules(
            st.recursive(leaves(), joined_schedules, max_leaves=6)
        ),
        steps=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    )
    def test_any_round_trip(self, schedule, steps):
        assert_same(schedule, round_trip(schedule), steps)

    @pytest.mark.parametrize(
        "schedule",
        [LinearRamp(0, 1.0, 4), JoinedSchedule([0, LinearRamp(0, 1, 4)], [2])],
    )
    def test_registered_name(self, schedule):
        config: Any = keras.saving.serialize_keras_object(schedule)
        name = type(schedule).__name__
        assert config["registered_name"] == f"keras_adamax>{name}"

    def test_numbers_come_back_as_written(self):
        parts: list[Any] = [1, 0.1, np.float32(0.1), np.int64(3)]
        joined = JoinedSchedule(parts, [1, 2, 3])
        restored = round_trip(joined)
        assert [*map(repr, restored.schedules)] == ["1", "0.1", "0.1", "3"]
        arguments: list[Any] = [1, np.float32(0.001), np.int32(5)]
        ramp = round_trip(LinearRamp(*arguments))
        assert ramp.get_config() == {
            "start": 1,
            "end": 0.001,
            "num_steps": 5,
            "delay_steps": 0,
        }
        assert isinstance(ramp.start, int)

    def test_from_config_leaves_the_dictionary_alone(self):
        joined = JoinedSchedule(
            [JoinedSchedule([LinearRamp(0, 1, 3), 2], [5]), 3], [9]
        )
        config = joined.get_config()
        before = copy.deepcopy(config)
        restored = JoinedSchedule.from_config(config)
        assert config == before
        assert_same(joined, restored, range(12))
        # Nor does the schedule share what it was given.
        restored.get_config()["boundaries"].append(1)
        assert restored.boundaries == (9,)
        config = LinearRamp(0, 1, 3).get_config()
        before = dict(config)
        LinearRamp.from_config(config)
        assert config == before

    def test_custom_objects(self):
        joined = JoinedSchedule([Unregistered(0.5), 1.0], [3])
        restored = round_trip(
            joined, custom_objects={"Unregistered": Unregistered}
        )
        assert_same(joined, restored, range(5))
        with pytest.raises(TypeError, match="Unregistered"):
            round_trip(joined)

    def test_inside_an_optimizer(self):
        joined: Any = JoinedSchedule([LinearRamp(0.0, 0.1, 5), 0.01], [8])
        optimizer = keras.optimizers.Adam(joined)
        config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
        restored = keras.optimizers.deserialize(config)
        assert_same(joined, restored._learning_rate, range(12))


BAD_RAMPS = [
    # argument, value, error, the allowed range in words
    *[
        ("num_steps", value, ValueError, "an integer >= 1")
        for value in (0, -1, np.int64(0))
    ],
    *[
        ("num_steps", value, TypeError, "an integer >= 1")
        for value in (1.0, "3", None, True, math.nan, np.float32(2), [4])
    ],
    ("num_steps", 2**31, ValueError, "an integer <= 2147483647"),
    ("delay_steps", -1, ValueError, "an integer >= 0"),
    *[
        ("delay_steps", value, TypeError, "an integer >= 0")
        for value in (0.0, "0", None, False, math.inf)
    ],
    ("delay_steps", 2**31, ValueError, "an integer <= 2147483647"),
    *[
        (name, value, ValueError, "a number in the range [-1e+38, 1e+38]")
        for name in ("start", "end")
        for value in (
            math.nan,
            math.inf,
            -math.inf,
            np.float32(np.nan),
            2e38,
            -(10**400),
        )
    ],
    *[
        (name, value, TypeError, "a number in the range [-1e+38, 1e+38]")
        for name in ("start", "end")
        for value in ("1.0", None, True, np.bool_(False), [1.0], 1j)
    ],
]


class TestBadInput:
    @pytest.mark.parametrize("name, value, error, constraint", BAD_RAMPS)
    def test_ramp(self, name, value, error, constraint):
        arguments = {"start": 0.0, "end": 1.0, "num_steps": 5, name: value}
        with pytest.raises(error) as caught:
            LinearRamp(**arguments)
        message = str(caught.value)
        assert message.startswith(f"`{name}` must be {constraint}.")
        assert f"Received: {name}={value!r}" in message

    def test_message(self):
        message = "`num_steps` must be an integer >= 1. Received: num_steps=0."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            LinearRamp(0.0, 1.0, 0)

    def test_a_ramp_of_schedules(self):
        ramp: Any = LinearRamp(0.0, 1.0, 3)
        with pytest.raises(TypeError, match="`end` must be a number"):
            LinearRamp(0.0, ramp, 4)

    @pytest.mark.parametrize(
        "parts, boundaries, error, message",
        [
            ([], [], ValueError, "`schedules` must hold at least one"),
            ([1.0], [3], ValueError, "`boundaries` must have one item fewer"),
            ([1.0, 2.0], [], ValueError, "`boundaries` must have one item"),
            ([1.0, 2.0], [3, 4], ValueError, "`boundaries` must have one"),
            ([1, 2, 3], [4, 4], ValueError, "must be strictly increasing"),
            ([1, 2, 3], [5, 4], ValueError, "must be strictly increasing"),
            (
                [1, 2],
                [0],
                ValueError,
                "`boundaries[0]` must be an integer >= 1",
            ),
            ([1, 2], [-3], ValueError, "Received: boundaries[0]=-3"),
            ([1, 2], [2**31], ValueError, "`boundaries[0]` must be an integer"),
            ([1, 2], [3.0], TypeError, "`boundaries[0]` must be an integer"),
            ([1, 2], [True], TypeError, "Received: boundaries[0]=True"),
            ([1, 2], ["3"], TypeError, "Received: boundaries[0]='3'"),
            ([1, 2], [None], TypeError, "Received: boundaries[0]=None"),
            ([1, 2], 3, TypeError, "`boundaries` must be a list"),
            ([1, 2], None, TypeError, "`boundaries` must be a list"),
            ([1, 2], "3", TypeError, "`boundaries` must be a list"),
            ([1, 2], {3: 4}, TypeError, "`boundaries` must be a list"),
            (1.0, [], TypeError, "`schedules` must be a list"),
            (None, [], TypeError, "`schedules` must be a list"),
            ("12", [3], TypeError, "`schedules` must be a list"),
            (LinearRamp(0, 1, 3), [], TypeError, "`schedules` must be a list"),
            ([math.nan], [], ValueError, "`schedules[0]` must be a number"),
            ([1, math.inf], [3], ValueError, "Received: schedules[1]=inf"),
            ([1, 1e39], [3], ValueError, "Received: schedules[1]=1e+39"),
            ([True, 1], [3], TypeError, "Received: schedules[0]=True"),
            ([1, "0.1"], [3], TypeError, "`schedules[1]` must be a number or"),
            ([1, None], [3], TypeError, "Received: schedules[1]=None"),
            ([1, [2]], [3], TypeError, "Received: schedules[1]=[2]"),
            (
                [1, LinearRamp],
                [3],
                TypeError,
                "must be a number or an instance",
            ),
            ([1, lambda step: 1.0], [3], TypeError, "of type function"),
            ([1, {"class_name": "X"}], [3], TypeError, "of type dict"),
        ],
    )
    def test_joined(self, parts, boundaries, error, message):
        with pytest.raises(error, match=re.escape(message)):
            JoinedSchedule(parts, boundaries)

    @hypothesis.settings(deadline=None)
    @hypothesis.given(
        st.one_of(
            st.none(), st.booleans(), st.text(), st.just(math.nan), st.binary()
        ),
        st.sampled_from(["start", "end", "num_steps", "delay_steps"]),
    )
    def test_anything_else(self, value, name):
        arguments = {"start": 0.0, "end": 1.0, "num_steps": 5, name: value}
        with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
            LinearRamp(**arguments)


class TestInTraining:
    @pytest.mark.parametrize(
        "optimizer", ["SGD", "Adam", "Adamax"], ids=str.lower
    )
    def test_fit(self, optimizer):
        joined = JoinedSchedule(
            [LinearRamp(0.0, 0.5, 4, 1), ExponentialDecay(0.5, 2, 0.5)], [6]
        )
        model: Any = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(1)]
        )
        optimizer = getattr(keras.optimizers, optimizer)(learning_rate=joined)
        model.compile(optimizer, loss="mse")
        x = np.ones((16, 3), np.float32)
        before = model.get_weights()
        model.fit(x[:2], x[:2, :1], batch_size=2, verbose=0)
        # The ramp begins at 0: the first step changes nothing.
        np.testing.assert_array_equal(before[0], model.get_weights()[0])
        model.fit(x, x[:, :1], batch_size=2, verbose=0)
        assert not np.array_equal(before[0], model.get_weights()[0])
        assert int(optimizer.iterations) == 9
        rate = float(optimizer.learning_rate)
        assert rate == pytest.approx(0.5 * 0.5**1.5, rel=1e-6)

    def test_every_step_of_sgd(self):
        ramp = LinearRamp(1.0, 0.25, 3, 1)
        joined: Any = JoinedSchedule([ramp, 2.0], [5])
        optimizer = keras.optimizers.SGD(joined)
        weight = keras.Variable(0.0)
        values: list[Any] = [0.0]
        for _ in range(7):
            gradient = keras.ops.convert_to_tensor(1.0)
            optimizer.apply([gradient], [weight])
            values.append(keras.ops.convert_to_numpy(weight))
        expected = [-1.0, -1.0, -0.75, -0.5, -0.25, -2.0, -2.0]
        np.testing.assert_allclose(np.diff(values), expected, rtol=1e-6)


def test_docstring_examples():
    result = doctest.testmod(schedules)
    assert result.attempted >= 5
    assert result.failed == 0
