"""`TargetClipRate`: the multiplier follows what was clipped."""

import json

import keras
import numpy as np
import pytest

import keras_adamax
from keras_adamax import AdamaxClipped, JoinedSchedule, TargetClipRate
from keras_adamax.kernel_choice import SETTING
from tests import support
from tests.gradients import numpy
from tests.support import BACKEND

SHAPES = ((40, 5), (), (3, 0), (50,))
# Updates before the multiplier may rise.
WARM_UP = 100
ELEMENTS = 40_000
# A long vector of noise, of which each step gets another part.
NOISE = 3_000_000
KERNELS = {
    "tensorflow": ("compiled", "fused", "reference"),
    "jax": ("compiled", "fused", "reference"),
    "torch": ("compiled", "eager", "reference"),
}[BACKEND]


def excess(optimizer):
    """`clip_multiplier - 1` for the next step."""
    return float(numpy(optimizer._clip_excess))


def make(target=0.1, shapes=SHAPES, **arguments):
    """Variables, an optimizer of them, and its oracle."""
    values = support.values_of(np.random.default_rng(0), shapes)
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(
        clip_multiplier=TargetClipRate(target), **arguments
    )
    arguments.pop("exclude_from_clipping", None)
    arguments.pop("skip_nonfinite", None)
    oracle = support.oracle_of(values, target_clip_rate=target, **arguments)
    return variables, optimizer, oracle


def begin_at(calls, optimizer, oracle):
    """Lets the calls count from another number than 0."""
    optimizer._iterations.assign(calls)
    oracle.calls = calls


def assert_follows(oracle, optimizer, variables):
    assert sum(oracle.uncertain) == 0
    support.assert_follows(oracle, optimizer, variables)
    error = abs(excess(optimizer) - oracle.excess.value)
    assert error <= oracle.excess.error


def run(step, oracle, gradients):
    """Steps of both; every value that the oracle's loop has."""
    history = []
    for g in gradients:
        step(g)
        oracle.step(g)
        history.append(float(oracle.excess.value))
    return history


def noise_of(kind, seed=0):
    rng = np.random.default_rng(seed)
    draw = {
        "normal": rng.standard_normal,
        "laplace": lambda size: rng.laplace(size=size),
        "t": lambda size: rng.standard_t(2, size),
    }[kind]
    noise = np.asarray(draw(NOISE), "float32")

    def gradient():
        start = rng.integers(0, NOISE - ELEMENTS)
        return noise[start : start + ELEMENTS]

    return gradient


class Noise:
    """An optimizer on noise.

    Args:
        kind: Distribution of the gradients.
        target: Of the clip rate.
    """

    def __init__(self, kind, target):
        [self.variable], self.optimizer, _ = make(target, [(ELEMENTS,)])
        self._gradient = noise_of(kind)
        self._step = support.make_step(
            support.COMPILED_LOOP, self.optimizer, [self.variable]
        )

    def steps(self, number, scale=1.0):
        """Takes some steps; returns the clip rate of all of them."""
        before = self.optimizer.clip_statistics()
        for _ in range(number):
            self._step([np.float32(scale) * self._gradient()])
        return self.optimizer.clip_rate(before)

    def rate_at_1(self):
        """The most that could be clipped now: with a multiplier of 1."""
        bound = numpy(self.optimizer._norms[0]) + 1e-4
        return np.mean(np.abs(self._gradient()) > bound)


def assert_stays_near(noise, target):
    """For 300 steps."""
    means = np.asarray([noise.steps(50) for _ in range(6)]) / target
    assert (means > 0.5).all() and (means < 2).all(), means
    assert 0.9 < means.mean() < 1.1, means


@pytest.mark.parametrize("target", [0.01, 0.05])
@pytest.mark.parametrize("kind", ["normal", "laplace", "t"])
class TestNoise:
    def test_the_rate_becomes_the_target(self, kind, target):
        noise = Noise(kind, target)
        noise.steps(500)
        assert_stays_near(noise, target)

    @pytest.mark.slow
    def test_it_is_back_soon_after_a_burst(self, kind, target):
        noise = Noise(kind, target)
        noise.steps(800)
        assert noise.steps(20, scale=1000.0) > 5 * target
        assert np.isfinite(excess(noise.optimizer))
        assert np.isfinite(numpy(noise.variable)).all()
        # Nothing that the multiplier could do helps until the norm has fallen.
        waited = 0
        while noise.rate_at_1() < target:
            noise.steps(50)
            waited += 50
        # A thousandth of the norm is left after 6,905 steps.
        assert 4000 < waited < 8000
        # With the 50 that it may have been within reach unnoticed, 500.
        noise.steps(450)
        assert_stays_near(noise, target)


class TestRule:
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_it_is_the_oracles(self, loop):
        variables, optimizer, oracle = make(0.3, clip_epsilon=0.5)
        step = support.make_step(loop, optimizer, variables)
        begin_at(WARM_UP - 4, optimizer, oracle)
        history = run(
            step,
            oracle,
            support.gradients_of(np.random.default_rng(12), SHAPES, 12),
        )
        assert_follows(oracle, optimizer, variables)
        changes = np.diff([0.2, *history])
        # Both ways, but not up in the four steps that belong to the warm-up.
        assert (changes < 0).any()
        assert (changes > 0).any()
        assert (changes[:4] <= 0).all()
        assert (changes[:4] == 0).any()
        if loop in ("graph", "jit", "stateless"):
            assert step.traces == 1

    @pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
    def test_it_is_the_oracles_in_fit(self, mode):
        steps = 4 if (BACKEND, mode) == ("jax", "eager") else 20
        variables, optimizer, oracle = make(clip_epsilon=0.5)
        begin_at(WARM_UP - 2, optimizer, oracle)
        model = support.start_fit(
            [numpy(v).astype("float32") for v in variables],
            optimizer,
            mode,
        )
        gradients = support.gradients_of(
            np.random.default_rng(2), SHAPES, steps
        )
        support.fit(model, gradients)
        support.run_oracle(oracle, gradients)
        assert_follows(oracle, optimizer, model.trainable_variables)
        assert excess(optimizer) != pytest.approx(0.2)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_every_kernel_has_it(self, kernel, monkeypatch):
        monkeypatch.setenv(SETTING, kernel)
        variables, optimizer, oracle = make(clip_epsilon=0.5)
        begin_at(WARM_UP - 2, optimizer, oracle)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        gradients = support.gradients_of(np.random.default_rng(3), SHAPES, 8)
        run(step, oracle, gradients)
        assert_follows(oracle, optimizer, variables)
        assert excess(optimizer) != pytest.approx(0.2)

    def test_a_step_uses_what_the_steps_before_it_left(self):
        [variable], optimizer, _ = make(
            0.25, [(4,)], beta_2=0.0, clip_epsilon=1.0
        )
        step = support.make_step(support.COMPILED_LOOP, optimizer, [variable])
        optimizer.iterations.assign(WARM_UP)
        # The bound is 1: one of four is clipped, and nothing changes.
        step([np.asarray([2, 1, 0.5, 0], "float32")])
        assert excess(optimizer) == np.float32(0.2)
        # The bounds are 1.2 u + 1 with u = (1, 1, 0.5, 0): two are clipped.
        step([np.asarray([2.5, 2.125, 0.5, 1.125], "float32")])
        assert excess(optimizer) == pytest.approx(0.2 * np.exp(0.1), rel=1e-6)
        assert optimizer.current_clip_multiplier() == pytest.approx(
            1 + 0.2 * np.exp(0.1), rel=1e-6
        )
        # 1.22103 * 2.2 + 1 = 3.686; with a multiplier of 1.2 it were 3.64.
        norm = numpy(optimizer._norms[0])[0]
        assert norm == pytest.approx(2.2)
        step([np.asarray([3.66, 0, 0, 0], "float32")])
        assert optimizer.clip_statistics().clipped == {"weight_0": 3}

    def test_its_limits(self):
        [variable], optimizer, oracle = make(0.001, [(4,)])
        step = support.make_step(support.COMPILED_LOOP, optimizer, [variable])
        begin_at(WARM_UP, optimizer, oracle)
        nothing = [np.zeros(4, "float32")]
        run(step, oracle, [nothing] * 80)
        assert excess(optimizer) == np.float32(1e-4)
        assert_follows(oracle, optimizer, [variable])
        # All of the elements, a thousand times the target, count as 5 targets.
        large = [np.full(4, 1e30, "float32")]
        run(step, oracle, [large])
        assert excess(optimizer) == pytest.approx(1e-4 * np.exp(0.4), rel=1e-5)
        run(step, oracle, [large] * 40)
        assert excess(optimizer) == 1000.0

    def test_each_element_counts_alike(self):
        variables, optimizer, oracle = make(0.5, [(1,), (9,), (5,)])
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        begin_at(WARM_UP, optimizer, oracle)
        # One of ten, the third without a gradient; a mean over variables would
        # be one half.
        gradients = [np.ones(1, "float32"), np.zeros(9, "float32"), None]
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            run(step, oracle, [gradients])
        assert excess(optimizer) == pytest.approx(0.2 * np.exp(-0.08), rel=1e-6)
        assert_follows(oracle, optimizer, variables)

    @pytest.mark.skipif(
        BACKEND != "tensorflow", reason="elsewhere `fit` has no sparse ones"
    )
    def test_of_sparse_gradients_the_summed_rows_count(self):
        variables, optimizer, oracle = make(0.5, [(6, 2)])
        step = support.make_step("graph", optimizer, variables)
        begin_at(WARM_UP, optimizer, oracle)
        rows = support.sparse_gradients_of(np.random.default_rng(4), 6, 2, 6)
        run(step, oracle, [[g] for g in rows])
        assert_follows(oracle, optimizer, variables)
        assert excess(optimizer) != pytest.approx(0.2)

    def test_what_is_excluded_does_not_count(self):
        variables, optimizer, _ = make(
            0.5, [(2,), (2,)], exclude_from_clipping=["weight_0"]
        )
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        optimizer.iterations.assign(WARM_UP)
        ones = [np.ones(2, "float32")] * 2
        step(ones)
        assert excess(optimizer) == pytest.approx(0.2 * np.exp(0.1), rel=1e-6)

    def test_a_step_in_which_nothing_counts_leaves_it(self):
        variables, optimizer, _ = make(
            0.5, [(2,)], exclude_from_clipping=["weight_0"]
        )
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        optimizer.iterations.assign(WARM_UP)
        step([np.ones(2, "float32")])
        assert excess(optimizer) == np.float32(0.2)

    def test_a_skipped_step_leaves_it(self):
        variables, optimizer, _ = make(0.5, [(2,)], skip_nonfinite=True)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        step([np.zeros(2, "float32")])
        before = excess(optimizer)
        assert before < 0.2
        step([np.asarray([np.nan, 0.0], "float32")])
        assert optimizer.skipped_steps() == 1
        assert excess(optimizer) == before

    def test_a_spike_that_is_left_out_leaves_it(self):
        variables, optimizer, oracle = make(
            0.25, [(4,)], clip_epsilon=1.0, spike_threshold=0.3
        )
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        small, large = [np.full(4, size, "float32") for size in (0.5, 99.0)]
        values = run(step, oracle, [[small], [large], [small]])
        assert optimizer.spike_steps() == 1
        assert values[1] == values[0] < 0.2
        assert values[2] < values[1]
        assert_follows(oracle, optimizer, variables)

    def test_accumulation_counts_updates(self):
        variables, optimizer, oracle = make(
            0.25, clip_epsilon=0.5, gradient_accumulation_steps=3
        )
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        begin_at(3 * WARM_UP - 3, optimizer, oracle)
        values = []
        for g in support.gradients_of(np.random.default_rng(5), SHAPES, 12):
            step(g)
            oracle.step(g)
            values.append(excess(optimizer))
        assert_follows(oracle, optimizer, variables)
        for i in range(0, 12, 3):
            assert values[i] == values[i + 1]
        assert len(set(values)) > 2


class TestState:
    @staticmethod
    def gradients(seed, steps=4):
        return support.gradients_of(np.random.default_rng(seed), SHAPES, steps)

    def trained(self, **arguments):
        """Variables and an optimizer whose multiplier has moved."""
        variables, optimizer, _ = make(0.9, clip_epsilon=0.5, **arguments)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        for g in self.gradients(6):
            step(g)
        assert 1e-4 < excess(optimizer) < 0.19
        return variables, optimizer, step

    @staticmethod
    def saved(optimizer):
        store = {}
        optimizer.save_own_variables(store)
        return store

    def test_there_is_one_variable_and_only_for_a_target(self):
        def names(**arguments):
            optimizer = AdamaxClipped(**arguments)
            optimizer.build(support.make_variables([np.ones(2, "float32")]))
            return [v.name for v in optimizer.variables]

        without = names()
        assert "clip_multiplier_minus_1" not in without
        with_target = names(clip_multiplier=TargetClipRate(0.1))
        with_target.remove("clip_multiplier_minus_1")
        assert with_target == without

    @pytest.mark.parametrize("is_built", [True, False])
    def test_a_saved_state_goes_on_exactly(self, is_built):
        variables, optimizer, step = self.trained()
        others, other, _ = make(0.9, clip_epsilon=0.5)
        for target, source in zip(others, variables, strict=True):
            target.assign(numpy(source))
        if is_built:
            other.build(others)
        other.load_own_variables(self.saved(optimizer))
        other_step = support.make_step(support.COMPILED_LOOP, other, others)
        for g in self.gradients(7):
            step(g)
            other_step(g)
        before = list(support.state_of(optimizer, variables).values())
        after = list(support.state_of(other, others).values())
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_a_model_that_is_saved_keeps_it(self, tmp_path):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(AdamaxClipped(clip_multiplier=TargetClipRate(0.9)), "mse")
        model.fit(np.zeros((8, 3)), np.zeros((8, 2)), batch_size=2, verbose=0)
        model.save(tmp_path / "model.keras")
        other = keras.models.load_model(tmp_path / "model.keras").optimizer
        assert other.clip_multiplier.target == 0.9
        assert excess(other) == excess(model.optimizer)
        assert excess(other) == pytest.approx(0.2 * np.exp(-0.4), rel=1e-5)

    def test_a_state_without_it_begins_at_the_start(self):
        variables, optimizer, _ = self.trained()
        plain = AdamaxClipped(clip_epsilon=0.5)
        plain.build(variables)
        optimizer.load_own_variables(self.saved(plain))
        assert excess(optimizer) == np.float32(0.2)

    def test_a_state_of_kerass_adamax_begins_at_the_start(self, tmp_path):
        def model(optimizer):
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [keras.Input((3,)), keras.layers.Dense(2, name="dense")]
            )
            model.compile(optimizer, "mse")
            model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
            return model

        model(keras.optimizers.Adamax()).save_weights(
            tmp_path / "adamax.weights.h5"
        )
        ours = model(AdamaxClipped(clip_multiplier=TargetClipRate(0.9)))
        assert excess(ours.optimizer) < 0.19
        ours.load_weights(tmp_path / "adamax.weights.h5")
        assert excess(ours.optimizer) == np.float32(0.2)

    def test_a_state_with_it_goes_to_an_optimizer_without(self):
        variables, optimizer, _ = self.trained()
        plain = AdamaxClipped(clip_multiplier=1.5)
        plain.build(variables)
        plain.load_own_variables(self.saved(optimizer))
        assert plain.clip_multiplier == 1.5
        assert int(plain.iterations) == 4
        assert plain.clip_statistics() == optimizer.clip_statistics()

    @pytest.mark.parametrize("has_target", [True, False])
    def test_a_state_that_does_not_fit_changes_nothing(self, has_target):
        arguments = {}
        if has_target:
            arguments["clip_multiplier"] = TargetClipRate(0.9)
        source = AdamaxClipped(**arguments)
        source.build(support.make_variables([np.ones(3, "float32")]))
        state = self.saved(source)
        other = AdamaxClipped(clip_multiplier=TargetClipRate(0.5))
        other._clip_excess.assign(0.125)
        other.load_own_variables(state)
        with pytest.raises(ValueError, match="does not fit"):
            other.build(support.make_variables([np.ones(2, "float32")]))
        assert excess(other) == 0.125
        # What was refused can still be saved.
        kept = self.saved(other)
        assert kept["clip_multiplier_minus_1"] == np.float32(0.2)
        np.testing.assert_array_equal(kept["norm.0"], state["norm.0"])

    def test_a_damaged_one_is_refused(self):
        variables, optimizer, _ = self.trained()
        state = self.saved(optimizer)
        state["clip_multiplier_minus_1"] = np.ones(2, "float32")
        with pytest.raises(ValueError, match="damaged"):
            optimizer.load_own_variables(state)
        assert excess(optimizer) < 0.19


class TestConfiguration:
    def test_it_survives_json(self):
        optimizer = AdamaxClipped(clip_multiplier=TargetClipRate(0.02))
        config = json.loads(json.dumps(optimizer.get_config()))
        written = config["clip_multiplier"]
        assert written["registered_name"] == "keras_adamax>TargetClipRate"
        assert written["config"] == {"target": 0.02}
        other = AdamaxClipped.from_config(config)
        assert isinstance(other.clip_multiplier, TargetClipRate)
        assert other.clip_multiplier.target == 0.02
        assert other.get_config() == optimizer.get_config()

    @pytest.mark.parametrize(
        "multiplier", [1.5, keras_adamax.LinearRamp(1.0, 2.0, 4)]
    )
    def test_the_current_multiplier_of_others(self, multiplier):
        optimizer = AdamaxClipped(clip_multiplier=multiplier)
        optimizer.iterations.assign(2)
        assert optimizer.current_clip_multiplier() == 1.5

    def test_it_cannot_be_set(self):
        optimizer = AdamaxClipped(clip_multiplier=TargetClipRate(0.02))
        with pytest.raises(AttributeError, match="cannot be set"):
            optimizer.clip_multiplier = 1.5
        with pytest.raises(AttributeError):
            optimizer.clip_multiplier.target = 0.5
        with pytest.raises(TypeError, match="clip_multiplier"):
            AdamaxClipped().clip_multiplier = TargetClipRate(0.02)

    @pytest.mark.parametrize(
        "target", [0, 1, 0.0, 1.0, -0.1, 1.5, np.nan, np.inf, 1e-60, 1 - 1e-12]
    )
    def test_a_target_out_of_range(self, target):
        with pytest.raises(ValueError, match=r"`target` must be .*\(0, 1\)"):
            TargetClipRate(target)

    @pytest.mark.parametrize("target", [None, "0.1", True, [0.1], {}, 1j])
    def test_a_target_that_is_no_number(self, target):
        with pytest.raises(TypeError, match="`target` must be"):
            TargetClipRate(target)

    @pytest.mark.parametrize(
        "name",
        [
            "learning_rate",
            "beta_1",
            "beta_2",
            "epsilon",
            "clip_epsilon",
            "weight_decay",
        ],
    )
    def test_for_another_hyperparameter(self, name):
        with pytest.raises(
            TypeError, match=f"`{name}` must not be a `TargetClipRate`"
        ):
            AdamaxClipped(**{name: TargetClipRate(0.1)})

    def test_as_a_live_learning_rate(self):
        with pytest.raises(TypeError, match="`learning_rate` must not"):
            AdamaxClipped().learning_rate = TargetClipRate(0.1)

    @pytest.mark.parametrize("threshold", [0.05, 0.1])
    def test_above_the_threshold_of_the_gate(self, threshold):
        with pytest.raises(ValueError, match="must be below `spike_threshold`"):
            AdamaxClipped(
                clip_multiplier=TargetClipRate(0.1), spike_threshold=threshold
            )

    def test_inside_of_others(self):
        with pytest.raises(TypeError, match=r"`schedules\[1\]` must not be a"):
            JoinedSchedule([1.5, TargetClipRate(0.1)], [10])

        class Half(keras.optimizers.schedules.LearningRateSchedule):
            def __init__(self, schedule):
                self.schedule = schedule

            def __call__(self, step):
                return 0.5 * self.schedule(step)

        with pytest.raises(TypeError, match="part of another schedule"):
            AdamaxClipped(clip_multiplier=Half(TargetClipRate(0.1)))

    @pytest.mark.parametrize("name", ["clip_gradients", "track_clip_rate"])
    def test_without_what_it_needs(self, name):
        with pytest.raises(ValueError, match=f"{name}=False"):
            AdamaxClipped(clip_multiplier=TargetClipRate(0.1), **{name: False})
