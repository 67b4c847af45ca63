"""All that trains a model is restored: each optimizer, and its averages."""

import os

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped, AtomicBackup
from keras_adamax.callbacks._backup import model_state
from keras_adamax.callbacks._backup.generations import Generations
from tests.callbacks import gan, training

EPOCHS = 4


def assert_same(one, other):
    """Bit for bit; torch's sums may depend on the memory."""
    for a, b in zip(one, other, strict=True):
        if training.BACKEND == "torch":
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_and_resumed(tmp_path):
    told = training.run_script("state_kill_script", tmp_path)
    assert len(told) == 4
    for scenario, result in told.items():
        assert result["values"] > 100, scenario
        if training.BACKEND == "torch":
            assert result["farthest"] < 1e-5, scenario
        else:
            assert result["differ"] == 0, scenario
            assert result["same history"], scenario


def interrupted(fit, stop, *callbacks):
    with pytest.raises(KeyboardInterrupt):
        fit([*callbacks, stop])


ADAM = (
    lambda: keras.optimizers.Adam(0.01),
    lambda: keras.optimizers.Adam(0.01),
)
OTHERS = (
    lambda: AdamaxClipped(0.01),
    lambda: keras.optimizers.SGD(0.01, momentum=0.9),
)


class TestOptimizersOfOneModel:
    @pytest.mark.parametrize(
        ("optimizers", "keep"),
        [
            (OTHERS, "dict"),
            pytest.param(ADAM, "attributes", marks=pytest.mark.slow),
            pytest.param(OTHERS, "list", marks=pytest.mark.slow),
        ],
    )
    def test_are_all_restored(self, optimizers, keep, tmp_path):
        def fit(callbacks):
            model = gan.make(optimizers, keep)
            history = gan.fit(model, callbacks, EPOCHS)
            return gan.state_of(model), history.history["d_loss"], model

        state, losses, _ = fit([])
        interrupted(fit, training.Stop(2, 1), AtomicBackup(tmp_path / "backup"))
        resumed, resumed_losses, model = fit(
            [AtomicBackup(tmp_path / "backup")]
        )
        assert_same(state, resumed)
        assert_same([losses], [resumed_losses])
        assert [int(o.iterations) for o in model.optimizers_of_both()] == [
            16,
            16,
        ]

    @pytest.mark.slow
    @pytest.mark.skipif(
        training.BACKEND == "jax", reason="Keras needs an optimizer there"
    )
    def test_without_one_of_keras_own(self, tmp_path):
        def fit(callbacks):
            model = gan.make(ADAM, optimizer=None)
            gan.fit(model, callbacks, EPOCHS)
            return gan.state_of(model)

        state = fit([])
        interrupted(fit, training.Stop(2, 1), AtomicBackup(tmp_path / "backup"))
        assert_same(state, fit([AtomicBackup(tmp_path / "backup")]))

    def stopped(self, tmp_path):
        interrupted(
            lambda callbacks: gan.fit(gan.make(ADAM), callbacks, EPOCHS),
            training.Stop(2, 1),
            AtomicBackup(tmp_path / "backup"),
        )
        return AtomicBackup(tmp_path / "backup")

    def test_of_another_kind_are_refused(self, tmp_path):
        backup = self.stopped(tmp_path)
        model = gan.make((ADAM[0], OTHERS[1]))
        before = gan.weights_of(model)
        with pytest.raises(ValueError) as caught:
            gan.fit(model, [backup], EPOCHS)
        assert "does not fit the optimizer `g_optimizer`" in str(caught.value)
        assert "'Adam'" in str(caught.value) and "'SGD'" in str(caught.value)
        assert "Build and compile the model as it was" in str(caught.value)
        assert_same(before, gan.weights_of(model))

    def test_with_other_options_are_refused(self, tmp_path):
        backup = self.stopped(tmp_path)
        model = gan.make(
            (ADAM[0], lambda: keras.optimizers.Adam(0.01, use_ema=True))
        )
        before = gan.weights_of(model)
        with pytest.raises(ValueError, match="number of variables of the opti"):
            gan.fit(model, [backup], EPOCHS)
        assert_same(before, gan.weights_of(model))

    def test_that_the_model_has_no_longer_are_refused(self, tmp_path):
        backup = self.stopped(tmp_path)
        with pytest.raises(ValueError, match="state of the optimizer `d_opti"):
            gan.fit(gan.make(ADAM, "list"), [backup], EPOCHS)

    def test_in_layers_and_wrappers_are_found(self):
        model = gan.make(ADAM)
        model.discriminator.compile("sgd")
        model.nested = {"a": ([keras.optimizers.SGD()],)}
        inner = keras.optimizers.SGD()
        model.scaled = keras.optimizers.LossScaleOptimizer(inner)
        model.inner = inner
        found = model_state.held_optimizers(model)
        assert set(found) == {
            "optimizer",
            "d_optimizer",
            "g_optimizer",
            "discriminator/optimizer",
            "nested/a/0/0",
            "scaled",
        }


class Outsider(keras.Model):
    """Its optimizer trains a variable that the model does not hold."""

    def __init__(self, is_built):
        super().__init__(name="outsider")
        self.dense = keras.layers.Dense(1)
        self.dense.build((None, 4))
        self.hidden = lambda: variable
        variable = keras.Variable(np.ones(3, "float32"), name="outside")
        self.built = True
        self.compile(
            loss="mse", run_eagerly=training.BACKEND == "jax", jit_compile=False
        )
        self.other = AdamaxClipped(0.1)
        if is_built:
            self.other.build([variable])

    def call(self, x):
        return self.dense(x)


class TrainOutside(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        variable = self.model.hidden()
        gradient = keras.ops.ones(3) * (0.5 + batch)
        self.model.other.apply([gradient], [variable])


class TestVariablesThatTheModelDoesNotHold:
    def fit(self, is_built, *callbacks):
        keras.utils.set_random_seed(0)
        model = Outsider(is_built)
        training.fit(model, [TrainOutside(), *callbacks], epochs=EPOCHS)
        return [
            np.array(keras.ops.convert_to_numpy(v))
            for v in [model.hidden(), *model.other.variables]
        ]

    def test_are_backed_up_and_restored(self, tmp_path):
        state = self.fit(True)
        with pytest.raises(KeyboardInterrupt):
            self.fit(True, AtomicBackup(tmp_path / "b"), training.Stop(2, 3))
        assert_same(state, self.fit(True, AtomicBackup(tmp_path / "b")))

    def test_are_an_error_where_the_optimizer_is_not_built(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            self.fit(False, AtomicBackup(tmp_path / "b"), training.Stop(2, 3))
        with pytest.raises(ValueError) as caught:
            self.fit(False, AtomicBackup(tmp_path / "b"))
        text = str(caught.value)
        assert "cannot build the optimizer `other` (AdamaxClipped)" in text
        assert "1 of the 1 variables that it trains are not weights" in text
        assert "`model.other.build(variables)`" in text


def with_averages(kind):
    arguments = {"use_ema": True, "ema_momentum": 0.8}
    if kind == "ours":
        return AdamaxClipped(0.05, **arguments)
    adam = keras.optimizers.Adam(0.05, **arguments)
    if kind == "scaled":
        return keras.optimizers.LossScaleOptimizer(adam)
    return adam


@pytest.mark.slow
def test_swapped_averages_are_resumed(tmp_path):
    def fit(callbacks):
        model = training.make_model(optimizer=with_averages("ours"))
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        training.fit(model, [swap, *callbacks], epochs=3)
        return training.state_of(model)

    state = fit([])
    interrupted(fit, training.Stop(1, 1), AtomicBackup(tmp_path / "b"))
    assert_same(state, fit([AtomicBackup(tmp_path / "b")]))


@pytest.mark.slow
class TestSwappedAverages:
    def fit(self, callbacks, kind="ours", epochs=EPOCHS):
        model = training.make_model(optimizer=with_averages(kind))
        history = training.fit(
            model,
            callbacks,
            epochs=epochs,
            validation_data=training.make_data(count=8),
        )
        return training.state_of(model), history.history

    def callbacks(self, order, backup=None, swap_on_epoch=True):
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
        both = [swap, backup] if order == "in front" else [backup, swap]
        return [callback for callback in both if callback is not None]

    @pytest.mark.parametrize("order", ["in front", "behind"])
    @pytest.mark.parametrize(
        ("kind", "save_freq", "swap_on_epoch"),
        [
            ("ours", "epoch", True),
            ("ours", 4, True),
            ("ours", "epoch", False),
            ("adam", "epoch", True),
            ("scaled", "epoch", True),
        ],
    )
    def test_are_resumed(self, order, kind, save_freq, swap_on_epoch, tmp_path):
        def callbacks(backup=None):
            return self.callbacks(order, backup, swap_on_epoch)

        state, history = self.fit(callbacks(), kind)
        # By batches, the last backup is of the second epoch's end as well.
        interrupted(
            lambda all_callbacks: self.fit(all_callbacks, kind),
            training.Stop(2, 1),
            *callbacks(AtomicBackup(tmp_path / "b", save_freq)),
        )
        resumed, resumed_history = self.fit(
            callbacks(AtomicBackup(tmp_path / "b", save_freq)), kind
        )
        assert_same(state, resumed)
        assert_same(history.values(), resumed_history.values())

    def test_are_not_in_a_backup_of_an_epochs_middle(self, tmp_path):
        seen = []

        class Look(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                seen.append(training.state_of(self.model))

        backup = AtomicBackup(tmp_path / "b", 4)
        interrupted(
            self.fit,
            training.Stop(2, 5),
            Look(),
            *self.callbacks("in front", backup),
        )
        before = seen[2 * 6 + 4]  # the backup after 16 batches
        seen.clear()
        backup = AtomicBackup(tmp_path / "b", 4)
        self.fit([Look(), *self.callbacks("in front", backup)])
        assert_same(before, seen[0])

    def test_by_a_run_without_the_callback(self, tmp_path):
        # Its validation swaps nothing, and so training is the same; the
        # averages end in the model all the same.
        interrupted(
            self.fit,
            training.Stop(2, 1),
            *self.callbacks("in front", AtomicBackup(tmp_path / "b")),
        )
        state, _ = self.fit([])
        resumed, _ = self.fit([AtomicBackup(tmp_path / "b")])
        for one, other in zip(state, resumed, strict=True):
            # Swapping rounds on TensorFlow.
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("order", ["in front", "behind"])
    def test_when_nothing_was_left_to_train(self, order, tmp_path):
        def callbacks():
            backup = AtomicBackup(tmp_path / "b", delete_checkpoint=False)
            return self.callbacks(order, backup)

        state, history = self.fit(callbacks())
        again, history_again = self.fit(callbacks())
        assert_same(state, again)
        assert history == history_again

    @pytest.mark.parametrize("order", ["in front", "behind"])
    def test_when_epochs_were_added(self, order, tmp_path):
        def callbacks():
            backup = AtomicBackup(tmp_path / "b", delete_checkpoint=False)
            return self.callbacks(order, backup)

        state, history = self.fit(self.callbacks(order))
        self.fit(callbacks(), epochs=2)
        longer, history_of_longer = self.fit(callbacks())
        assert_same(state, longer)
        assert_same(history.values(), history_of_longer.values())

    def test_when_no_weights_are_left_to_add_epochs_to(self, tmp_path):
        def callbacks():
            backup = AtomicBackup(tmp_path / "b", delete_checkpoint=False)
            return self.callbacks("in front", backup)

        self.fit(callbacks(), epochs=1)
        with pytest.raises(ValueError) as caught:
            self.fit(callbacks(), epochs=2)
        assert "it has the averages and not the weights" in str(caught.value)
        assert "Received: 2 epochs" in str(caught.value)


@pytest.mark.slow
class TestAnotherModel:
    def stopped(self, tmp_path):
        backup = AtomicBackup(tmp_path / "b")
        with pytest.raises(KeyboardInterrupt):
            training.fit(
                training.make_model(),
                [backup, training.Stop(2, 1)],
                epochs=EPOCHS,
            )
        return AtomicBackup(tmp_path / "b")

    @pytest.mark.parametrize("units", [6, 7])
    def test_is_refused_and_left_as_it_was(self, units, tmp_path):
        backup = self.stopped(tmp_path)
        files = sorted(str(p) for p in (tmp_path / "b").rglob("*"))
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(units, name="encoder"),
                keras.layers.Dense(1, name="decoder"),
            ],
            name="another",
        )
        model.compile("adamax_clipped", "mse", **training.COMPILE)
        model.optimizer.build(model.trainable_variables)
        before = training.state_of(model)
        with pytest.raises(ValueError) as caught:
            training.fit(model, [backup], epochs=EPOCHS)
        text = str(caught.value)
        assert "does not fit the weights of the model 'another'" in text
        assert "'first/kernel', [4, 6], 'float32'" in text
        assert f"'encoder/kernel', [4, {units}], 'float32'" in text
        assert "give another `backup_dir` or remove that one" in text
        assert_same(before, training.state_of(model))
        assert sorted(str(p) for p in (tmp_path / "b").rglob("*")) == files

    def test_is_not_one_that_was_built_a_second_time(self, tmp_path):
        def fit(callbacks):
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [
                    keras.Input((4,)),
                    keras.layers.Dense(3, "tanh"),
                    keras.layers.Dense(1),
                ]
            )
            model.compile("adamax_clipped", "mse", **training.COMPILE)
            training.fit(model, callbacks, epochs=EPOCHS)
            return training.state_of(model)

        state = fit([])
        interrupted(fit, training.Stop(2, 1), AtomicBackup(tmp_path / "b"))
        assert_same(state, fit([AtomicBackup(tmp_path / "b")]))

    def test_of_other_random_layers_is_refused(self, tmp_path):
        backup = self.stopped(tmp_path)
        model = training.make_model()
        model.noise = keras.random.SeedGenerator(1)
        with pytest.raises(ValueError, match="the shapes of seeds"):
            training.fit(model, [backup], epochs=EPOCHS)

    def test_that_fails_half_way_is_an_error(self, tmp_path):
        class Refusing(keras.layers.Dense):
            def load_own_variables(self, store):
                raise OSError("cannot be read")

        backup = self.stopped(tmp_path)
        model = training.make_model()
        model.layers[1].__class__ = Refusing
        with pytest.raises(ValueError) as caught:
            training.fit(model, [backup], epochs=EPOCHS)
        assert "is restored in parts only" in str(caught.value)
        assert "cannot be read" in str(caught.value)
        assert model._initial_epoch is None
        # The backup is as it was: the model as it was is restored.
        history = training.fit(training.make_model(), [backup], epochs=EPOCHS)
        assert history.epoch == [0, 1, 2, 3]


@pytest.mark.slow
class TestInitialEpoch:
    def test_of_the_backup_comes_first(self, tmp_path):
        # As in Keras: the script is run again as it was.
        def fit(*callbacks):
            return training.fit(
                training.make_model(),
                list(callbacks),
                initial_epoch=1,
                epochs=EPOCHS,
            )

        with pytest.raises(KeyboardInterrupt):
            fit(AtomicBackup(tmp_path / "b"), training.Stop(2, 1))
        assert fit(AtomicBackup(tmp_path / "b")).epoch == [1, 2, 3]

    def test_that_skips_epochs_is_refused(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            training.fit(
                training.make_model(),
                [AtomicBackup(tmp_path / "b", 2), training.Stop(0, 3)],
                epochs=EPOCHS,
            )
        with pytest.raises(ValueError, match="`initial_epoch` must be that of"):
            training.fit(
                training.make_model(),
                [AtomicBackup(tmp_path / "b", 2)],
                initial_epoch=3,
                epochs=EPOCHS,
            )

    def test_is_forgotten_when_a_resumed_fit_is_stopped(self, tmp_path):
        model = training.make_model()
        backup = AtomicBackup(tmp_path / "b")
        for epoch in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                training.fit(
                    model, [backup, training.Stop(epoch, 1)], epochs=EPOCHS
                )
        assert training.fit(model, [], epochs=2).epoch == [0, 1]


@pytest.mark.slow
def test_a_backup_of_an_earlier_version_is_restored(tmp_path):
    # It said nothing of the model.
    def fit(*callbacks):
        model = training.make_model(optimizer=with_averages("ours"))
        training.fit(model, list(callbacks), epochs=EPOCHS)
        return training.state_of(model)

    def swap():
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)

    state = fit(swap())
    backup = AtomicBackup(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(swap(), backup, training.Stop(2, 1))
    generations = Generations(tmp_path / "b")
    for path in generations.paths():
        content = generations.read(path)
        for name in ("model", "averages_in_model", "has_only_averages"):
            content.pop(name)
        files = {p.name: p.read_bytes() for p in path.iterdir()}
        files.pop("state.json")

        def write(folder, files=files):
            for name, data in files.items():
                (folder / name).write_bytes(data)

        for file in path.iterdir():
            file.unlink()
        generations._write_content(path, content, write)
    assert_same(state, fit(swap(), AtomicBackup(tmp_path / "b")))
