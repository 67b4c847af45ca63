"""The oracle itself: by hand, against plain float32, and against mistakes."""

import math
from typing import Any

import numpy as np
import pytest

from tests.oracle import (
    AdamaxClippedOracle,
    heavy_tailed_gradients,
    sparse_heavy_tailed_gradients,
)

STEPS = 100
# Numbers that float32 holds exactly, so that results by hand are exact too.
EXACT: dict[str, Any] = dict(
    learning_rate=0.25,
    beta_1=0.5,
    beta_2=0.5,
    epsilon=0.5,
    clip_multiplier=2.0,
    clip_epsilon=1.0,
)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-14, atol=0)


class TestByHand:
    def test_three_steps(self):
        oracle = AdamaxClippedOracle([np.array([1.0, 1.0])], **EXACT)

        oracle.step([np.array([3.0, -0.5])])  # bound = 1, 1
        assert_close(oracle.m[0], [0.5, -0.25])
        assert_close(oracle.u[0], [1.0, 0.5])
        assert_close(oracle.w[0], [1 - 0.125 / 1.5, 1 + 0.0625 / 1.0])
        assert (oracle.clipped, oracle.counted) == ([1], [2])

        oracle.step([np.array([3.0, -4.0])])  # bound = 3, 2
        assert_close(oracle.m[0], [1.75, -1.125])
        assert_close(oracle.u[0], [3.0, 2.0])
        assert_close(
            oracle.w[0],
            [11 / 12 - 0.4375 / 3.5, 1.0625 + 0.28125 / 2.5],
        )
        # An element that equals its bound is not clipped, but ambiguous.
        assert (oracle.clipped, oracle.counted) == ([2], [4])
        assert oracle.ambiguous == [1]

        oracle.step([np.array([0.0, 0.5])])  # bound = 7, 5
        assert_close(oracle.m[0], [0.875, -0.3125])
        assert_close(oracle.u[0], [1.5, 1.0])
        assert_close(
            oracle.w[0],
            [11 / 12 - 0.125 - 0.21875 / 2, 1.175 + 0.078125 / 1.5],
        )
        assert oracle.clip_rates() == [2 / 6]
        assert oracle.iterations == 3

    def test_defaults(self):
        oracle = AdamaxClippedOracle([np.array(0.5)])
        # Numbers are rounded to float32 first: relative differences of 1e-7.
        oracle.step([np.array(1.0)])
        assert oracle.u[0] == pytest.approx(1e-4, rel=2e-7)
        assert oracle.m[0] == pytest.approx(1e-5, rel=3e-7)
        w = 0.5 - 0.001 * 1e-5 / 1.0001e-4
        assert oracle.w[0] == pytest.approx(w, abs=1e-10)
        oracle.step([np.array(1.0)])
        assert oracle.u[0] == pytest.approx(2.2e-4, rel=2e-7)
        assert oracle.m[0] == pytest.approx(3.1e-5, rel=3e-7)
        w -= 0.001 * 3.1e-5 / 2.2001e-4
        assert oracle.w[0] == pytest.approx(w, abs=1e-10)

    def test_numbers_are_rounded_to_float32(self):
        oracle = AdamaxClippedOracle([np.array(0.0)], clip_gradients=False)
        oracle.step([np.array(1.0)])
        assert oracle.m[0] == 1.0 - float(np.float32(0.9))
        exact = AdamaxClippedOracle(
            [np.array(0.0)],
            clip_gradients=False,
            dtypes="float64",
            round_hyperparameters=False,
        )
        exact.step([np.array(1.0)])
        assert exact.m[0] == 1.0 - 0.9

    def test_constant_gradient_of_1_is_whole_from_step_42_on(self):
        # From u = 0 the bound is 1e-4 (1.2^t - 1) / 0.2 in step t: 0.88 in
        # step 41 and 1.06 in step 42.
        oracle = AdamaxClippedOracle([np.array(0.0)])
        totals = []
        for _ in range(60):
            oracle.step([np.array(1.0)])
            totals.append(oracle.clipped[0])
        assert totals[:41] == list(range(1, 42))
        assert totals[41:] == [41] * 19
        assert oracle.ambiguous == [0]

    def test_bias_correction(self):
        oracle = AdamaxClippedOracle(
            [np.array(0.0)], **EXACT, bias_correction=True
        )
        oracle.step([np.array(0.5)])  # m = 0.25, u = 0.5
        assert_close(oracle.w[0], -0.25 * 0.25 / 1.0 / 0.5)
        oracle.step([np.array(0.5)])  # m = 0.375, u = 0.5
        assert_close(oracle.w[0], -0.125 - 0.25 * 0.375 / 1.0 / 0.75)

    def test_bias_correction_of_a_schedule_is_a_product(self):
        oracle = AdamaxClippedOracle(
            [np.array(0.0)],
            **{**EXACT, "beta_1": lambda step: [0.5, 0.25][step]},
            bias_correction=True,
        )
        oracle.step([np.array(0.5)])
        oracle.step([np.array(0.5)])  # m = 0.25 * 0.25 + 0.75 * 0.5
        assert_close(oracle.w[0], -0.125 - 0.25 * 0.4375 / 1.0 / 0.875)

    def test_sparse_rows(self):
        oracle = AdamaxClippedOracle([np.ones((3, 1))], **EXACT)
        # As many slices as rows, and row 2 twice: 1.0 - 0.75 = 0.25.
        oracle.step([([2, 0, 2], np.array([[1.0], [0.5], [-0.75]]))])
        assert_close(oracle.m[0], [[0.25], [0.0], [0.125]])
        assert_close(oracle.u[0], [[0.5], [0.0], [0.25]])
        assert_close(oracle.w[0], [[1 - 0.0625], [1.0], [1 - 0.03125 / 0.75]])
        assert (oracle.clipped, oracle.counted) == ([0], [2])
        before = oracle.w[0].copy()
        oracle.step([([1], np.array([[-5.0]]))])  # bound = 1
        assert_close(oracle.m[0], [[0.25], [-0.5], [0.125]])
        assert_close(oracle.u[0], [[0.5], [1.0], [0.25]])
        assert_close(oracle.w[0] - before, [[0.0], [0.125 / 1.5], [0.0]])
        assert (oracle.clipped, oracle.counted) == ([1], [3])
        oracle.step([([], np.zeros((0, 1)))])
        assert oracle.counted == [3]
        assert oracle.iterations == 3

    def test_permuted_sparse_rows_equal_dense_ones(self):
        rng = np.random.default_rng(0)
        dense = AdamaxClippedOracle([np.ones((5, 2))])
        sparse = AdamaxClippedOracle([np.ones((5, 2))])
        for gradient in heavy_tailed_gradients(rng, (5, 2), 20):
            order = rng.permutation(5)
            dense.step([gradient])
            sparse.step([(order, gradient[order])])
        np.testing.assert_array_equal(dense.w[0], sparse.w[0])
        np.testing.assert_array_equal(dense.u[0], sparse.u[0])
        assert dense.clipped == sparse.clipped

    def test_none_leaves_a_weight_alone(self):
        oracle = AdamaxClippedOracle(
            [np.ones(2), np.ones(2)], **EXACT, weight_decay=0.5
        )
        oracle.step([None, np.array([0.5, 0.0])])
        assert_close(oracle.w[0], [1.0, 1.0])
        decayed = 1 - 0.5 * 0.25
        assert_close(oracle.w[1], [decayed - 0.0625, decayed])
        assert oracle.counted == [0, 2]
        assert math.isnan(oracle.clip_rates()[0])
        assert oracle.clip_rate() == 0.0
        with pytest.raises(ValueError, match="No gradients"):
            oracle.step([None, None])

    def test_weight_decay_exclusion_and_sparse_rows(self):
        oracle = AdamaxClippedOracle(
            [np.ones((2, 1)), np.ones(1)],
            **EXACT,
            weight_decay=0.5,
            exclude_from_weight_decay=[1],
        )
        oracle.step([([0], np.array([[0.0]])), np.zeros(1)])
        assert_close(oracle.w[0], [[0.875], [0.875]])  # Absent rows too.
        assert_close(oracle.w[1], [1.0])

    @pytest.mark.parametrize(
        "option, expected",
        [
            ({"clipvalue": 0.25}, [[0.25, 0.25], [0.25]]),
            ({"clipnorm": 0.5}, [[0.3, 0.4], [0.5]]),
            ({"clipnorm": 8.0}, [[3.0, 4.0], [8.0]]),
            ({"global_clipnorm": 1.0}, [[3 / 13, 4 / 13], [12 / 13]]),
            ({"global_clipnorm": 20.0}, [[3.0, 4.0], [12.0]]),
            ({"loss_scale_factor": 8.0}, [[0.375, 0.5], [1.5]]),
        ],
    )
    def test_what_keras_does_first(self, option, expected):
        oracle = AdamaxClippedOracle(
            [np.zeros(2), np.zeros(1)],
            **{**EXACT, "clip_epsilon": 16.0},
            **option,
        )
        oracle.step([np.array([3.0, 4.0]), np.array([12.0])])
        for u, size in zip(oracle.u, expected, strict=True):
            assert_close(u, size)

    def test_our_clipping_comes_after_keras_clipping(self):
        oracle = AdamaxClippedOracle([np.zeros(2)], **EXACT, clipnorm=2.5)
        oracle.step([np.array([3.0, 4.0])])  # 1.5, 2.0; bound = 1
        assert_close(oracle.u[0], [1.0, 1.0])
        assert oracle.clipped == [2]

    def test_gradient_accumulation(self):
        oracle = AdamaxClippedOracle(
            [np.ones((2, 1))],
            **{**EXACT, "learning_rate": lambda step: [0.0, 0.0, 0.25][step]},
            gradient_accumulation_steps=3,
        )
        assert not oracle.step([np.array([[1.0], [0.5]])])
        assert not oracle.step([([1, 1], np.array([[0.25], [0.75]]))])
        assert_close(oracle.w[0], [[1.0], [1.0]])
        assert oracle.counted == [0]
        assert oracle.step([np.array([[0.5], [0.75]])])  # means: 0.5, 0.75
        assert_close(oracle.u[0], [[0.5], [0.75]])
        assert_close(
            oracle.w[0], [[1 - 0.25 * 0.25 / 1.0], [1 - 0.25 * 0.375 / 1.25]]
        )
        assert (oracle.iterations, oracle.calls) == (1, 3)

    def test_functions_see_the_number_of_updates(self):
        seen = []

        def multiplier(step):
            seen.append(step)
            return 0.5  # Held at 1.

        oracle = AdamaxClippedOracle(
            [np.zeros(1)],
            **{**EXACT, "clip_multiplier": multiplier},
            gradient_accumulation_steps=2,
        )
        for _ in range(6):
            oracle.step([np.array([8.0])])
        assert seen == [0, 1, 2]
        assert_close(oracle.u[0], [3.0])  # Grows by clip_epsilon a step.

    def test_averages(self):
        oracle = AdamaxClippedOracle(
            [np.array([1.0])],
            **EXACT,
            use_ema=True,
            ema_momentum=0.75,
            ema_overwrite_frequency=3,
        )
        oracle.step([np.array([0.5])])
        first = oracle.w[0].copy()
        assert_close(oracle.average[0], first)
        oracle.step([np.array([0.5])])
        second = 0.75 * first + 0.25 * oracle.w[0]
        assert_close(oracle.average[0], second)
        oracle.step([np.array([0.5])])  # w = 15/16 - 3/32 - 7/64
        third = 0.75 * second + 0.25 * (15 / 16 - 3 / 32 - 7 / 64)
        assert_close(oracle.average[0], third)
        assert_close(oracle.w[0], third)

    def test_skip_nonfinite(self):
        oracle = AdamaxClippedOracle(
            [np.ones(2), np.ones((2, 1))],
            **EXACT,
            weight_decay=0.5,
            use_ema=True,
            skip_nonfinite=True,
        )
        bad = [np.array([np.inf, 0.0]), np.array([[0.0], [np.nan]])]
        assert not oracle.step([bad[0], np.zeros((2, 1))])
        assert not oracle.step([np.zeros(2), ([0, 1], bad[1])])
        assert not oracle.step([bad[0], None])
        assert (oracle.skipped_steps, oracle.calls) == (3, 0)
        assert_close(oracle.w[0], [1.0, 1.0])
        assert_close(oracle.average[0], [0.0, 0.0])
        assert oracle.counted == [0, 0]
        assert oracle.step([np.zeros(2), None])

    def test_infinite_and_nan_gradients(self):
        oracle = AdamaxClippedOracle([np.zeros(3)], **EXACT)
        oracle.step([np.array([np.inf, -np.inf, np.nan])])
        assert_close(oracle.u[0][:2], [1.0, 1.0])
        assert_close(oracle.m[0][:2], [0.5, -0.5])
        assert np.isfinite(oracle.w_error[0][:2]).all()
        assert np.isnan([oracle.m[0][2], oracle.w[0][2]]).all()
        assert (oracle.clipped, oracle.counted) == ([2], [3])

    def test_the_bound_is_finite(self):
        oracle = AdamaxClippedOracle([np.zeros(1)], **EXACT)
        oracle.u[0][:] = 3e38
        oracle.step([np.array([np.inf])])
        assert oracle.u[0] == np.finfo(np.float32).max

    def test_exclusion_and_no_clipping(self):
        weights = [np.zeros(1), np.zeros(1)]
        oracle = AdamaxClippedOracle(
            weights, **EXACT, exclude_from_clipping=[0]
        )
        oracle.step([np.array([8.0])] * 2)
        assert_close(oracle.u, [[8.0], [1.0]])
        assert (oracle.clipped, oracle.counted) == ([0, 1], [0, 1])
        oracle = AdamaxClippedOracle(weights, **EXACT, clip_gradients=False)
        oracle.step([np.array([8.0])] * 2)
        assert_close(oracle.u, [[8.0], [8.0]])
        assert oracle.clip_rates() == [0.0, 0.0]

    def test_no_gradient_and_no_state_does_not_move(self):
        oracle = AdamaxClippedOracle([np.ones(2)], epsilon=0.0)
        oracle.step([np.array([0.0, 1.0])])
        assert oracle.w[0][0] == 1.0
        assert oracle.m_error[0][0] == oracle.u_error[0][0] == 0.0
        assert oracle.w_error[0][0] <= 1.001 * 2.0**-24
        assert oracle.w[0][1] < 1.0

    def test_scalar_and_empty_weights(self):
        oracle = AdamaxClippedOracle([np.array(1.0), np.zeros((0, 3))], **EXACT)
        oracle.step([np.array(0.5), np.zeros((0, 3))])
        assert oracle.w[0].shape == ()
        assert_close(oracle.w[0], 1 - 0.0625)
        assert oracle.counted == [1, 0]

    def test_set_weights_forgets_earlier_errors(self):
        oracle = AdamaxClippedOracle([np.ones(3)])
        for _ in range(50):
            oracle.step([np.full(3, 0.1)])
        assert (oracle.w_error[0] > 20 * 2.0**-24).all()
        oracle.set_weights([np.ones(3)])
        oracle.step([np.full(3, 0.1)])
        assert (oracle.w_error[0] < 2 * 2.0**-24).all()


def to_bfloat16(values):
    """Rounds float32 values to bfloat16's, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


TO_WEIGHT = {
    "float16": lambda x: x.astype(np.float16).astype(np.float32),
    "bfloat16": to_bfloat16,
    "float32": lambda x: x,
    "float64": lambda x: x,
}


class PlainRule:
    """The rule in plain NumPy of low precision, with room for a `mistake`.

    It shares no code with the oracle. `form` chooses among the ways in which
    implementations write the same formulas.
    """

    def __init__(
        self, w, mistake="", form="literal", dtype="float32", **options
    ):
        self.real = np.float64 if dtype == "float64" else np.float32
        self.to_weight = TO_WEIGHT[dtype]
        self.w = np.array(w, self.real)
        self.m, self.u = np.zeros_like(self.w), np.zeros_like(self.w)
        self.mistake, self.form, self.options = mistake, form, options
        self.average, self.accumulator = np.zeros_like(self.w), 0.0
        self.calls, self.clipped, self.product = 0, 0, self.real(1.0)

    def option(self, name, default, step):
        value: Any = self.options.get(name, default)
        if callable(value):
            value = value(step + (self.mistake == "schedule one step late"))
        wrong = {
            "beta_1 0.9001": ("beta_1", 0.9001),
            "beta_2 0.9989": ("beta_2", 0.9989),
            "multiplier 1.1999": ("clip_multiplier", 1.1999),
            "clip_epsilon 1.0001e-4": ("clip_epsilon", 1.0001e-4),
            "learning rate 0.0010001": ("learning_rate", 0.0010001),
            "no weight decay": ("weight_decay", 0.0),
            "ema momentum 0.98999": ("ema_momentum", 0.98999),
        }.get(self.mistake)
        if wrong and wrong[0] == name:
            value = wrong[1]
        return self.real(np.float32(value))

    def step(self, gradient):
        if isinstance(gradient, tuple):
            rows, g = self.sum_rows(*gradient)
        else:
            rows, g = ..., self.real(gradient)
        accumulate = self.options.get("gradient_accumulation_steps", 1)
        updates = self.calls // accumulate
        if accumulate > 1:
            self.accumulator = self.accumulator + g
            if (self.calls + 1) % accumulate == 0:
                g = self.accumulator / self.real(accumulate)
                if self.mistake == "sum for mean":
                    g = self.accumulator
                self.update(rows, g, updates)
                self.accumulator = 0.0
        else:
            self.update(rows, g, updates)
        if "use_ema" in self.options:
            momentum = self.option("ema_momentum", 0.99, updates)
            if not updates and self.mistake != "average from zero":
                momentum = self.real(0.0)
            rest = self.real(1.0) - momentum
            self.average = momentum * self.average + rest * self.w
        self.calls += 1

    def sum_rows(self, indices, values):
        if self.mistake == "slices taken for rows" and len(indices) == len(
            self.w
        ):
            return np.arange(len(self.w)), values
        rows = np.unique(indices)
        sums = np.zeros((len(rows), values.shape[1]), self.real)
        for row, value in zip(indices, values, strict=True):
            place = np.searchsorted(rows, row)
            if self.mistake == "repeated indices not summed":
                sums[place] = value
            else:
                sums[place] += value
        if self.mistake == "absent rows decay":
            dense = np.zeros_like(self.w)
            dense[rows] = sums
            return ..., dense
        return rows, sums

    def update(self, rows, g, step):
        real, mistake = self.real, self.mistake
        one = real(1.0)
        beta_1 = self.option("beta_1", 0.9, step)
        beta_2 = self.option("beta_2", 0.999, step)
        epsilon = self.option("epsilon", 1e-8, step)
        rate = self.option("learning_rate", 0.001, step)
        multiplier = self.option("clip_multiplier", 1.2, step)
        offset = self.option("clip_epsilon", 1e-4, step)
        decay = self.option("weight_decay", 0.0, step)
        if decay:
            self.w = self.to_weight(self.w - self.w * decay * rate)
        if "clipnorm" in self.options:
            limit = real(self.options["clipnorm"])
            norm = np.sqrt(np.sum(g * g))
            g = g * limit / np.maximum(norm, limit)
        if "clipvalue" in self.options:
            limit = real(self.options["clipvalue"])
            g = np.clip(g, -limit, limit)
        if mistake == "epsilon forgotten":
            epsilon = real(0.0)

        m, u = self.m[rows], self.u[rows]
        unclipped = g
        if self.options.get("clip_gradients", True):
            old = u
            if mistake == "bound from u after the step":
                old = np.maximum(beta_2 * u, np.abs(g))
            if self.form == "in place":
                bound = multiplier * old + offset
                bound = np.maximum(beta_2 * u, np.minimum(np.abs(g), bound))
            else:
                bound = multiplier * old + offset
            self.clipped += int((np.abs(g) > bound).sum())
            g = np.clip(g, -bound, bound)
        if self.form == "lerp":
            m = m + (g - m) * (one - beta_1)
        else:
            m = beta_1 * m + (one - beta_1) * g
        if mistake == "u from the unclipped gradient":
            u = np.maximum(beta_2 * u, np.abs(unclipped))
        elif mistake == "u decays after the maximum":
            u = beta_2 * np.maximum(u, np.abs(g))
        else:
            u = np.maximum(beta_2 * u, np.abs(g))
        self.product = self.product * beta_1
        if self.options.get("bias_correction", False):
            power = self.product
            if mistake == "bias correction one step early":
                power = power / beta_1
            if mistake != "bias correction forgotten":
                rate = rate / (one - power) if power < 1 else rate
        divisor = u + epsilon
        divisor = np.where(divisor == 0, one, divisor)  # m is 0 there too.
        if self.form == "lerp":
            change = m / divisor * rate
        else:
            change = rate * m / divisor
        assert change.dtype == real
        self.m[rows], self.u[rows] = m, u
        self.w[rows] = self.to_weight(self.w[rows] - change)


def original_beta_2(step):
    """The schedule that the original's authors ran."""
    return 1.0 - max(0.0005, 0.01 * 0.5 ** (step / 2000))


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no clipping": {"clip_gradients": False},
    "Keras's Adamax": {
        "clip_gradients": False,
        "bias_correction": True,
        "epsilon": 1e-7,
    },
    "bias correction": {"bias_correction": True, "learning_rate": 0.01},
    "small betas": {"beta_1": 0.3, "beta_2": 0.6, "epsilon": 0.0},
    "no memory": {"beta_1": 0.0, "bias_correction": True},
    "wide bound": {"clip_multiplier": 3.0, "clip_epsilon": 1e-2},
    "schedules": {
        "beta_1": lambda step: 0.9 - 0.4 * 0.95**step,
        "beta_2": original_beta_2,
        "clip_multiplier": lambda step: 1.0 + 2.0 * 0.9**step,
        "clip_epsilon": lambda step: 1e-3 / (1 + step),
        "bias_correction": True,
    },
    "weight decay": {"weight_decay": 0.1, "learning_rate": 0.05},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0},
    "accumulation": {"gradient_accumulation_steps": 3},
    "average": {"use_ema": True, "learning_rate": 0.01},
}
SHAPE = (6, 40)


def run_both(
    options,
    *,
    dtype="float32",
    follow=False,
    form="literal",
    mistake="",
    seed=0,
    shape=SHAPE,
    sparse=False,
    steps=STEPS,
):
    """Yields the oracle and the plain rule after each step."""
    rng = np.random.default_rng(seed)
    start = TO_WEIGHT[dtype](rng.normal(0.0, 0.1, shape).astype(np.float32))
    start[rng.random(shape) < 0.1] = 0.0
    oracle = AdamaxClippedOracle([start], dtypes=dtype, **options)
    plain = PlainRule(start, mistake, form, dtype, **options)
    if sparse:
        rows, width = shape
        gradients = sparse_heavy_tailed_gradients(rng, rows, width, steps)
    else:
        gradients = heavy_tailed_gradients(rng, shape, steps)
    for gradient in gradients:
        if follow:
            oracle.set_weights([plain.w])
        with np.errstate(under="ignore", over="ignore"):
            plain.step(gradient)
        oracle.step([gradient])
        yield oracle, plain


def differences(oracle, plain):
    """Name, difference, bound of it, for every part of the state."""
    for name in ("w", "m", "u", "average"):
        exact = getattr(oracle, name)[0]
        error = getattr(oracle, name + "_error")[0]
        yield name, np.abs(np.float64(getattr(plain, name)) - exact), error


def is_violated(options, **how):
    """Whether the plain rule's weights ever leave their bound."""
    return any(
        (difference > error).any()
        for oracle, plain in run_both(options, **how)
        for name, difference, error in differences(oracle, plain)
        if name in ("w", "average")
    )


class TestErrorBound:
    @pytest.mark.parametrize(
        "name, sparse",
        [
            (name, sparse)
            for name in CONFIGURATIONS
            for sparse in (False, True)
            # Accumulation makes sparse gradients dense.
            if not (sparse and name == "accumulation")
        ],
    )
    @pytest.mark.parametrize("form", ["literal", "lerp", "in place"])
    def test_float32_stays_within(self, name, form, sparse):
        options = CONFIGURATIONS[name]
        for oracle, plain in run_both(options, form=form, sparse=sparse):
            for part, difference, error in differences(oracle, plain):
                assert np.isfinite(error).all(), part
                assert (difference <= error).all(), part
        gap = abs(plain.clipped - oracle.clipped[0])
        assert gap <= oracle.uncertain[0]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    @pytest.mark.parametrize("name", ["defaults", "bias correction"])
    @pytest.mark.parametrize("follow", [False, True])
    def test_other_precisions_stay_within(self, dtype, name, follow):
        options = CONFIGURATIONS[name]
        for oracle, plain in run_both(options, dtype=dtype, follow=follow):
            for part, difference, error in differences(oracle, plain):
                assert (difference <= error).all(), part
            if follow and dtype != "float64":
                # Little more than the one rounding of the weight.
                roundoff = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
                one_rounding = roundoff * np.abs(oracle.w[0]) + 2.0**-25
                limit = 1.05 * one_rounding + 1e-7
                assert (oracle.w_error[0] <= limit).all()
        # State is float32 all the same.
        if dtype != "float64":
            assert np.median(oracle.m_error[0] / np.abs(oracle.m[0])) < 1e-5

    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_is_not_silly(self, name):
        # Compared with what rounding did, or what a random walk of half units
        # in the last place would have done, whichever is more.
        *_, (oracle, plain) = run_both(CONFIGURATIONS[name])
        for part, difference, error in differences(oracle, plain):
            if part == "average" and not oracle.use_ema:
                continue
            value = np.abs(getattr(oracle, part)[0]).astype(np.float32)
            walk = 0.5 * np.float64(np.spacing(value)) * math.sqrt(STEPS)
            ratio = error / np.maximum(difference, walk)
            assert np.median(ratio) < 100, part

    def test_counts_are_those_of_float32(self):
        for seed in range(5):
            *_, (oracle, plain) = run_both({}, seed=seed)
            assert oracle.counted == [STEPS * math.prod(SHAPE)]
            gap = abs(plain.clipped - oracle.clipped[0])
            assert gap <= oracle.ambiguous[0]
            assert oracle.ambiguous[0] <= 2
            assert 0.1 < oracle.clip_rate() < 0.9

    @pytest.mark.parametrize(
        "mistake, options",
        [
            ("beta_1 0.9001", {}),
            ("beta_2 0.9989", {}),
            ("multiplier 1.1999", {}),
            ("clip_epsilon 1.0001e-4", {}),
            ("learning rate 0.0010001", {}),
            ("epsilon forgotten", {}),
            ("bound from u after the step", {}),
            ("u from the unclipped gradient", {}),
            ("u decays after the maximum", {}),
            ("bias correction forgotten", {"bias_correction": True}),
            ("bias correction one step early", {"bias_correction": True}),
            ("schedule one step late", {"beta_2": original_beta_2}),
            (
                "schedule one step late",
                {"clip_multiplier": lambda step: 1.2 + 1e-4 * step},
            ),
            ("no weight decay", {"weight_decay": 1e-4}),
            ("sum for mean", {"gradient_accumulation_steps": 3}),
            ("average from zero", {"use_ema": True}),
            ("ema momentum 0.98999", {"use_ema": True}),
        ],
    )
    def test_catches(self, mistake, options):
        assert not is_violated(options)
        assert is_violated(options, mistake=mistake)

    @pytest.mark.parametrize(
        "mistake",
        [
            "repeated indices not summed",
            "slices taken for rows",
            "absent rows decay",
            "beta_2 0.9989",
            "multiplier 1.1999",
            "bound from u after the step",
        ],
    )
    def test_catches_in_sparse_gradients(self, mistake):
        assert not is_violated({}, sparse=True)
        assert is_violated({}, sparse=True, mistake=mistake)

    def test_float32_bias_correction_of_a_float64_weight(self):
        errors = []
        for dtype in (None, "float32"):
            oracle = AdamaxClippedOracle(
                [np.ones(1)],
                bias_correction=True,
                dtypes="float64",
                bias_correction_dtype=dtype,
            )
            oracle.step([np.ones(1)])
            errors.append(oracle.w_error[0][0] / abs(1 - oracle.w[0][0]))
        assert errors[0] < 1e-12 and 1e-7 < errors[1] < 1e-5

    def test_inexact_schedules_are_granted_their_error(self):
        def exact(step):
            return 0.9 - 0.4 * 0.95**step

        def inexact(step):
            return exact(step) * (1 + 3 * 2.0**-24)

        rng = np.random.default_rng(0)
        start = np.zeros(SHAPE, np.float32)
        strict = AdamaxClippedOracle([start], beta_1=exact)
        lenient = AdamaxClippedOracle(
            [start], beta_1=exact, schedule_roundoffs=5
        )
        plain = PlainRule(start, beta_1=inexact)
        for gradient in heavy_tailed_gradients(rng, SHAPE, 30):
            plain.step(gradient)
            strict.step([gradient])
            lenient.step([gradient])
        assert (np.abs(plain.w - lenient.w[0]) <= lenient.w_error[0]).all()
        assert (lenient.w_error[0] >= strict.w_error[0]).all()


class TestGradients:
    def test_dense(self):
        rng = np.random.default_rng(0)
        gradients = heavy_tailed_gradients(rng, (7, 30), 90)
        assert gradients.shape == (90, 7, 30)
        assert gradients.dtype == np.float32
        sizes = np.abs(gradients[gradients != 0])
        assert 0.99e-6 <= sizes.min() < 2e-6
        assert 9e2 < sizes.max() <= 1.01e3
        decades = np.histogram(np.log10(sizes), bins=9, range=(-6.01, 3.01))[0]
        assert decades.min() > 0.03 * sizes.size
        assert 0.05 < np.mean(gradients == 0) < 0.3
        assert 0.3 < np.mean(gradients > 0) < 0.6
        assert heavy_tailed_gradients(rng, (), 3).shape == (3,)
        assert heavy_tailed_gradients(rng, (0, 2), 3).shape == (3, 0, 2)

    def test_sparse(self):
        rng = np.random.default_rng(0)
        rows = 9
        gradients = sparse_heavy_tailed_gradients(rng, rows, 4, 80)
        permuted = repeated = single = empty = 0
        for indices, values in gradients:
            assert indices.dtype == np.int32
            assert values.dtype == np.float32
            assert values.shape == (len(indices), 4)
            assert len(indices) == 0 or 0 <= indices.min() <= indices.max() < 9
            unique = len(np.unique(indices))
            if len(indices) == rows:
                assert (indices != np.arange(rows)).any()
                permuted += unique == rows
            repeated += unique < len(indices)
            single += len(indices) == 1
            empty += len(indices) == 0
        assert permuted >= 10
        assert repeated >= 40
        assert single and empty
