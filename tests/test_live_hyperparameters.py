"""Numbers that are set on a live optimizer, and what cannot be set."""

import copy
import json
import pickle
import tempfile

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped, LinearRamp
from tests import support
from tests.gradients import numpy
from tests.support import (
    BACKEND,
    assign_variables,
    set_state_tree,
    set_weights,
)

STEPS = 9
# Before and after; every one of them shows in the weights.
CHANGES = {
    "learning_rate": (0.001, 0.25),
    "beta_1": (0.9, 0.25),
    "beta_2": (0.999, 0.5),
    "epsilon": (1e-8, 0.5),
    "clip_multiplier": (1.2, 4.0),
    "clip_epsilon": (0.125, 0.5),
    "weight_decay": (0.0, 0.5),
}
BEFORE = {name: values[0] for name, values in CHANGES.items()}
READ_ONLY = {
    "clip_gradients": False,
    "bias_correction": True,
    "exclude_from_clipping": ["weight"],
    "track_clip_rate": False,
    "track_gradient_norms": True,
    "skip_nonfinite": True,
    "clipnorm": 1.0,
    "clipvalue": 1.0,
    "global_clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 2,
    "loss_scale_factor": 2.0,
    "gradient_accumulation_steps": 2,
    "name": "other",
}
ALLOWED = {
    "learning_rate": ">= 0",
    "beta_1": r"\[0, 1\)",
    "beta_2": r"\[0, 1\)",
    "epsilon": ">= 0",
    "clip_multiplier": ">= 1",
    "clip_epsilon": ">= 0",
    "weight_decay": ">= 0",
}


def start(seed=0, shapes=support.SHAPES, steps=STEPS):
    rng = np.random.default_rng(seed)
    return (
        support.values_of(rng, shapes),
        support.gradients_of(rng, shapes, steps),
    )


def set_in_oracle(oracle, name, value):
    assert hasattr(oracle, name)
    setattr(oracle, name, value)


def run_oracle(values, gradients, changes, at, **config):
    """The oracle, with `changes` made before step `at`."""
    oracle = support.oracle_of(values, **config)
    for i, g in enumerate(gradients):
        if i == at:
            for name, value in changes.items():
                set_in_oracle(oracle, name, value)
        oracle.step(g)
    return oracle


def differ(oracle, other):
    return any(
        (np.abs(a - b) > 2 * (c + d)).any()
        for a, b, c, d in zip(
            oracle.w, other.w, oracle.w_error, other.w_error, strict=True
        )
    )


class TestLoops:
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_a_change_takes_effect_in_the_next_step(self, loop):
        """One after another, with a single trace."""
        values, gradients = start(steps=2 * len(CHANGES))
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**BEFORE, bias_correction=True)
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values, **BEFORE, bias_correction=True)
        names = iter(CHANGES)
        for i, g in enumerate(gradients):
            unchanged = copy.deepcopy(oracle)
            if i % 2:
                name = next(names)
                value = CHANGES[name][1]
                setattr(optimizer, name, value)
                set_in_oracle(oracle, name, value)
                assert optimizer.get_config()[name] == value
            step(g)
            oracle.step(g)
            support.assert_follows(oracle, optimizer, variables)
            if i % 2:
                # It shows in this very step.
                unchanged.step(g)
                assert differ(oracle, unchanged), name
        assert step.traces <= 1
        assert next(names, None) is None

    @pytest.mark.parametrize("new", [0.25, 0.0])
    def test_bias_correction_knows_every_beta_1_there_was(self, new):
        """Also after a reload, with a change back, and with accumulation."""
        config = {
            "beta_1": 0.75,
            "bias_correction": True,
            "gradient_accumulation_steps": 2,
        }
        values, gradients = start(steps=12)
        oracle = support.oracle_of(values, **config)
        changes = {3: new, 7: 0.75}
        results = []
        for reload in (False, True):
            variables = support.make_variables(values)
            optimizer = AdamaxClipped(**config)
            step = support.make_step(
                support.COMPILED_LOOP, optimizer, variables
            )
            for i, g in enumerate(gradients):
                if i in changes:
                    optimizer.beta_1 = changes[i]
                    oracle.beta_1 = changes[i]
                if i == 6 and reload:
                    store = {}
                    optimizer.save_own_variables(store)
                    optimizer = AdamaxClipped(**config)
                    step = support.make_step(
                        support.COMPILED_LOOP, optimizer, variables
                    )
                    optimizer.load_own_variables(store)
                step(g)
                if not reload:
                    oracle.step(g)
                    support.assert_follows(oracle, optimizer, variables)
            results.append(support.state_of(optimizer, variables))
        support.assert_same(*results)

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_all_at_once_with_everything_on(self, loop):
        config = BEFORE | {
            "gradient_accumulation_steps": 2,
            "global_clipnorm": 5.0,
            "use_ema": True,
        }
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(skip_nonfinite=True, **config)
        step = support.make_step(loop, optimizer, variables)
        changes = {name: change[1] for name, change in CHANGES.items()}
        for i, g in enumerate(gradients):
            if i == 4:
                for name, value in changes.items():
                    setattr(optimizer, name, value)
            step(g)
        oracle = run_oracle(values, gradients, changes, 4, **config)
        support.assert_follows(oracle, optimizer, variables)

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_sparse_rows(self, loop):
        rng = np.random.default_rng(1)
        values = support.values_of(rng, [(5, 2)])
        table = support.sparse_gradients_of(rng, 5, 2, STEPS)
        gradients = [[t] for t in table]
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**BEFORE)
        step = support.make_step(loop, optimizer, variables)
        changes = {name: change[1] for name, change in CHANGES.items()}
        for i, g in enumerate(gradients):
            if i == 4:
                for name, value in changes.items():
                    setattr(optimizer, name, value)
            step(g)
        oracle = run_oracle(values, gradients, changes, 4, **BEFORE)
        support.assert_follows(oracle, optimizer, variables)


class SetAt(keras.callbacks.Callback):
    """Sets hyperparameters at the end of a batch, reached as users do."""

    def __init__(self, batch, changes, find=lambda optimizer: optimizer):
        super().__init__()
        self.batch = batch
        self.changes = changes
        self.find = find
        self.times = 0

    def on_train_batch_end(self, batch, logs=None):
        if batch != self.batch:
            return
        self.times += 1
        optimizer = self.find(self.model.optimizer)
        for name, value in self.changes.items():
            setattr(optimizer, name, value)


class TestFit:
    @pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
    def test_a_callback_changes_everything(self, mode):
        values, gradients = start()
        optimizer = AdamaxClipped(**BEFORE)
        model = support.start_fit(values, optimizer, mode)
        changes = {name: change[1] for name, change in CHANGES.items()}
        callback = SetAt(2, changes)
        support.fit(model, gradients, callbacks=[callback])
        assert callback.times == 1
        oracle = run_oracle(values, gradients, changes, 3, **BEFORE)
        support.assert_follows(oracle, optimizer, model.weights)
        for name, value in changes.items():
            assert optimizer.get_config()[name] == value

    def test_through_a_loss_scale_optimizer(self):
        values, gradients = start()
        inner = AdamaxClipped(**BEFORE)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, 4.0)
        model = support.start_fit(values, optimizer)
        changes = {name: change[1] for name, change in CHANGES.items()}
        callback = SetAt(
            2, changes, lambda optimizer: optimizer.inner_optimizer
        )
        support.fit(model, gradients, callbacks=[callback])
        oracle = run_oracle(values, gradients, changes, 3, **BEFORE)
        support.assert_follows(oracle, inner, model.weights)

    def test_through_a_multi_optimizer(self):
        values, gradients = start()
        inner = AdamaxClipped(**BEFORE)
        optimizer = keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(inner)
        )
        model = support.start_fit(values, optimizer)
        changes = {name: change[1] for name, change in CHANGES.items()}
        callback = SetAt(2, changes, lambda optimizer: optimizer.optimizers[0])
        support.fit(model, gradients, callbacks=[callback])
        oracle = run_oracle(values, gradients, changes, 3, **BEFORE)
        support.assert_follows(oracle, inner, model.weights)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_learning_rate_scheduler(self, wrapped):
        values, gradients = start(steps=3)
        inner = AdamaxClipped()
        optimizer = inner
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(inner, 4.0)
        model = support.start_fit(values, optimizer)
        rates = [0.5, 0.25, 0.125]
        seen = []

        def schedule(epoch, rate):
            seen.append(rate)
            return rates[epoch]

        callback = keras.callbacks.LearningRateScheduler(schedule)
        history = support.fit(
            model, gradients, epochs=3, callbacks=[callback]
        ).history
        oracle = support.oracle_of(
            values, learning_rate=lambda step: rates[step // 3]
        )
        support.run_oracle(oracle, gradients * 3)
        support.assert_follows(oracle, inner, model.weights)
        np.testing.assert_allclose(seen, [0.001, 0.5, 0.25], rtol=1e-6)
        np.testing.assert_allclose(history["learning_rate"], rates)
        assert inner.get_config()["learning_rate"] == 0.125

    def test_reduce_lr_on_plateau(self):
        values, gradients = start(steps=3)
        optimizer = AdamaxClipped(0.1)
        model = support.start_fit(values, optimizer)
        callback = keras.callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.5, patience=1, min_delta=1e9
        )
        # The first epoch sets the mark, and no later one beats it.
        support.fit(model, gradients, epochs=4, callbacks=[callback])
        rates = [0.1, 0.1, 0.05, 0.025]
        oracle = support.oracle_of(
            values, learning_rate=lambda step: rates[step // 3]
        )
        support.run_oracle(oracle, gradients * 4)
        support.assert_follows(oracle, optimizer, model.weights)
        rate = optimizer.get_config()["learning_rate"]
        assert rate == 0.0125

    @pytest.mark.skipif(BACKEND != "jax", reason="fit holds the state on JAX")
    @pytest.mark.parametrize("mode", ["jit", "eager"])
    def test_a_held_reference_in_mid_fit_on_jax(self, mode):
        """It would read and set what `fit` does not use: an error says so."""
        values, gradients = start()
        optimizer = AdamaxClipped(**BEFORE)
        model = support.start_fit(values, optimizer, mode)
        tried = []

        class Careless(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if batch != 2:
                    return
                for use in (
                    optimizer.clip_rates,
                    optimizer.clip_rate,
                    optimizer.clip_statistics,
                    optimizer.reset_clip_rates,
                    optimizer.skipped_steps,
                    optimizer.get_config,
                    lambda: optimizer.weight_decay,
                    lambda: optimizer.clip_multiplier,
                    *(
                        lambda name=name: setattr(optimizer, name, 0.5)
                        for name in CHANGES
                        if name != "clip_multiplier"
                    ),
                    lambda: setattr(optimizer, "clip_multiplier", 2.0),
                ):
                    with pytest.raises(
                        RuntimeError, match=r"self\.model\.optimizer"
                    ):
                        use()
                    tried.append(use)

        support.fit(model, gradients, callbacks=[Careless()])
        assert len(tried) == 8 + len(CHANGES)
        oracle = support.oracle_of(values, **BEFORE)
        support.run_oracle(oracle, gradients)
        support.assert_follows(oracle, optimizer, model.weights)
        # Nothing of it has stuck.
        for name, value in BEFORE.items():
            assert optimizer.get_config()[name] == value

    def test_reading_in_mid_fit(self):
        """Through `self.model.optimizer`, on every backend."""
        values, gradients = start()
        optimizer = AdamaxClipped(clip_multiplier=1.5)
        model = support.start_fit(values, optimizer)
        oracle = support.oracle_of(values, clip_multiplier=1.5)
        seen = []

        class Reader(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                ours = self.model.optimizer
                oracle.step(gradients[batch])
                assert ours.clip_multiplier == 1.5
                assert ours.skipped_steps() == 0
                support.assert_follows(oracle, ours, self.model.weights)
                seen.append(ours.clip_rate())

        support.fit(model, gradients, callbacks=[Reader()])
        assert len(seen) == STEPS


class TestValues:
    def test_what_was_written_is_what_is_read(self):
        optimizer = AdamaxClipped(weight_decay=0.25)
        for name, value, expected in (
            ("beta_1", 0, 0),
            ("beta_1", np.float32(0.7), 0.7),
            ("beta_2", np.float64(0.1), 0.1),
            ("epsilon", np.float16(0.5), 0.5),
            ("clip_multiplier", np.int64(3), 3),
            ("clip_epsilon", np.array(0.3), 0.3),
            ("weight_decay", 0.1, 0.1),
        ):
            setattr(optimizer, name, value)
            read = getattr(optimizer, name)
            assert read == expected
            assert type(read) is type(expected)
            assert optimizer.get_config()[name] == expected
        json.dumps(optimizer.get_config())

    def test_ways_to_set_the_learning_rate(self):
        optimizer = AdamaxClipped()
        for value, expected in (
            (0.3, 0.3),
            (1, 1),
            (np.float32(0.7), 0.7),
            (np.array(0.2, "float32"), 0.2),
            (keras.ops.convert_to_tensor(0.6), 0.6),
            (keras.Variable(0.4), 0.4),
        ):
            optimizer.learning_rate = value
            assert optimizer.get_config()["learning_rate"] == expected
            np.testing.assert_allclose(
                numpy(optimizer.learning_rate), expected, rtol=1e-7
            )
        optimizer.learning_rate.assign(0.8)
        assert optimizer.get_config()["learning_rate"] == 0.8

    @pytest.mark.parametrize("name", CHANGES)
    def test_bad_values_change_nothing(self, name):
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**BEFORE)
        optimizer.build(variables)
        setattr(optimizer, name, CHANGES[name][1])
        state = support.state_of(optimizer)
        config = optimizer.get_config()
        bad = [
            -0.5,
            float("nan"),
            float("inf"),
            1e39,
            "0.5",
            True,
            None,
            [0.5],
            np.array([0.5]),
            0.5j,
        ]
        if name.startswith("beta"):
            bad += [1, 1.0, 0.99999999999]
        if name == "clip_multiplier":
            bad += [0, 0.999]
        if name != "learning_rate":
            bad += [LinearRamp(0.5, 0.5, 1), keras.Variable(0.5), len]
        for value in bad:
            with pytest.raises((TypeError, ValueError)) as error:
                setattr(optimizer, name, value)
            message = str(error.value)
            assert f"`{name}`" in message
            assert f"Received: {name}=" in message
            support.assert_same(state, support.state_of(optimizer))
            assert optimizer.get_config() == config
        with pytest.raises(ValueError, match=ALLOWED[name]):
            setattr(optimizer, name, -0.5)

    @pytest.mark.parametrize("name", READ_ONLY)
    def test_what_is_read_only_says_so(self, name):
        values, _ = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped()
        optimizer.build(variables)
        before = getattr(optimizer, name)
        config = optimizer.get_config()
        with pytest.raises(AttributeError) as error:
            setattr(optimizer, name, READ_ONLY[name])
        message = str(error.value)
        assert f"`{name}` is read-only" in message
        assert f"Received: {name}={READ_ONLY[name]!r}" in message
        assert getattr(optimizer, name) is before
        assert optimizer.get_config() == config

    def test_wrappers_may_set_the_loss_scale_factor(self):
        """Keras's do, before the optimizer is built and after."""
        optimizer = AdamaxClipped(loss_scale_factor=4.0)
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(optimizer), loss_scale_factor=8.0
        )
        assert optimizer.loss_scale_factor == 8.0
        keras.optimizers.LossScaleOptimizer(optimizer)
        assert optimizer.loss_scale_factor is None
        built = AdamaxClipped(loss_scale_factor=4.0)
        built.build(support.make_variables(start()[0]))
        keras.optimizers.LossScaleOptimizer(built)
        assert built.loss_scale_factor is None

    @pytest.mark.parametrize(
        "name", ["beta_1", "beta_2", "clip_multiplier", "clip_epsilon"]
    )
    def test_a_schedule_cannot_be_overwritten(self, name):
        value = 2.0 if name == "clip_multiplier" else 0.5
        schedule = LinearRamp(value, value, 10)
        optimizer = AdamaxClipped(**{name: schedule})
        state = support.state_of(optimizer)
        with pytest.raises(AttributeError, match="was given a schedule"):
            setattr(optimizer, name, value)
        assert getattr(optimizer, name) is schedule
        support.assert_same(state, support.state_of(optimizer))

    def test_a_learning_rate_schedule_cannot_be_overwritten(self):
        for schedule in (LinearRamp(0.5, 0.1, 10), lambda: 0.5):
            optimizer = AdamaxClipped(schedule)
            with pytest.raises(TypeError, match="was given a schedule"):
                optimizer.learning_rate = 0.5
            np.testing.assert_allclose(
                float(keras.ops.convert_to_numpy(optimizer.learning_rate)), 0.5
            )

    def test_a_learning_rate_cannot_become_a_schedule_once_built(self):
        optimizer = AdamaxClipped(0.25)
        optimizer.build(support.make_variables(start()[0]))
        with pytest.raises(AttributeError, match="once the optimizer is built"):
            optimizer.learning_rate = LinearRamp(0.5, 0.1, 10)
        assert optimizer.get_config()["learning_rate"] == 0.25

    def test_a_weight_decay_of_none_says_how_to_have_one(self):
        optimizer = AdamaxClipped()
        with pytest.raises(AttributeError, match=r"weight_decay=0\.0"):
            optimizer.weight_decay = 0.5
        assert optimizer.weight_decay is None


def restore_checkpoint(optimizer, values):
    import tensorflow as tf

    other = AdamaxClipped(**BEFORE)
    other.build(support.make_variables([np.zeros(2)]))
    assign_variables(other, values)
    with tempfile.TemporaryDirectory() as folder:
        path = tf.train.Checkpoint(optimizer=other).save(folder + "/state")
        tf.train.Checkpoint(optimizer=optimizer).restore(path)


def write_back(optimizer, values):
    """What a step of JAX without state gives, written to the variables."""
    weights = optimizer._trainable_variables
    _, state = optimizer.stateless_apply(
        [keras.ops.convert_to_tensor(v) for v in values],
        [keras.ops.zeros(2)],
        [w.value for w in weights],
    )
    assign_variables(optimizer, state)


ROUTES = [set_weights, assign_variables, set_state_tree]
if BACKEND == "tensorflow":
    ROUTES.append(restore_checkpoint)
if BACKEND == "jax":
    ROUTES.append(write_back)


class TestRestored:
    """The variables hold other numbers than Python has seen."""

    CHANGED = {name: change[1] for name, change in CHANGES.items()}

    @staticmethod
    def make(**config):
        optimizer = AdamaxClipped(**config)
        optimizer.build(support.make_variables([np.zeros(2)]))
        return optimizer

    def restored(self, route):
        """An optimizer with `CHANGED` in its variables."""
        other = self.make(**BEFORE)
        for name, value in self.CHANGED.items():
            setattr(other, name, value)
        optimizer = self.make(**BEFORE)
        route(optimizer, [np.array(numpy(v)) for v in other.variables])
        return optimizer

    @pytest.mark.parametrize("name", CHANGES)
    @pytest.mark.parametrize("route", ROUTES)
    def test_setting_one_keeps_the_others(self, route, name):
        optimizer = self.restored(route)
        value = 0.625 if name != "clip_multiplier" else 8.0
        setattr(optimizer, name, value)
        expected = self.CHANGED | {name: value}
        reference = self.make(**expected)
        assert optimizer.get_config() == reference.get_config()
        np.testing.assert_array_equal(
            numpy(optimizer._hyperparameters),
            numpy(reference._hyperparameters),
        )
        np.testing.assert_array_equal(
            numpy(optimizer.learning_rate), numpy(reference.learning_rate)
        )

    @pytest.mark.parametrize("route", ROUTES)
    def test_copies_and_saved_states_have_them(self, route):
        optimizer = self.restored(route)
        for other in (
            copy.deepcopy(optimizer),
            pickle.loads(pickle.dumps(optimizer)),
            AdamaxClipped.from_config(optimizer.get_config()),
        ):
            other.clip_multiplier = 8.0
            expected = self.CHANGED | {"clip_multiplier": 8.0}
            config = other.get_config()
            assert {name: config[name] for name in expected} == expected
        store = {}
        optimizer.save_own_variables(store)
        other = self.make(**BEFORE)
        other.load_own_variables(store)
        assert other.get_config() == optimizer.get_config()

    @pytest.mark.parametrize("route", ROUTES)
    def test_a_loaded_state_changes_what_it_has(self, route):
        """And not the rest: another configuration, a schedule."""
        store = {}
        AdamaxClipped(
            **BEFORE
            | {"beta_2": 0.25, "learning_rate": LinearRamp(0.0, 1.0, 5)}
        ).save_own_variables(store)
        optimizer = self.restored(route)
        optimizer.load_own_variables(store)
        config = optimizer.get_config()
        expected = BEFORE | {
            "learning_rate": self.CHANGED["learning_rate"],
            "beta_2": self.CHANGED["beta_2"],
        }
        assert {name: config[name] for name in expected} == expected

    def test_in_the_next_step(self):
        """What `get_config` says is what the step uses."""
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**BEFORE)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        packed = [v for v in optimizer.variables if v.name == "hyperparameters"]
        packed[0].assign([0.25, 0.5, 0.5, 4.0, 0.5, 0.5])
        optimizer.clip_multiplier = 8.0
        changes = self.CHANGED | {"clip_multiplier": 8.0}
        del changes["learning_rate"]
        for g in gradients:
            step(g)
        oracle = run_oracle(values, gradients, changes, 0, **BEFORE)
        support.assert_follows(oracle, optimizer, variables)
