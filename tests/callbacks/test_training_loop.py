"""Callbacks in training loops that are not `fit`."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_adamax
from keras_adamax import AdamaxClipped, ClipRateLogger, WeightDeltaLogger
from tests.callbacks import training

BATCHES = 6


def make_model():
    return training.make_model(optimizer=AdamaxClipped(0.01))


def data():
    x, y = training.make_data()
    for i in range(0, len(x), 4):
        yield (
            ops.convert_to_tensor(x[i : i + 4]),
            ops.convert_to_tensor(y[i : i + 4]),
        )


def step_of(model):
    """One update in the way of the backend, which returns the loss."""
    if training.BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(model(x, training=True) - y))
            grads = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply(grads, model.trainable_variables)
            return loss

        return step
    if training.BACKEND == "torch":
        import torch

        def step(x, y):
            loss = ops.mean(ops.square(model(x, training=True) - y))
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                model.optimizer.apply(
                    [v.value.grad for v in model.trainable_variables],
                    model.trainable_variables,
                )
            return loss

        return step

    import jax

    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)

    def compute_loss(trainable, rest, x, y):
        prediction, _ = model.stateless_call(trainable, rest, x, training=True)
        return ops.mean(ops.square(prediction - y))

    @jax.jit
    def update(trainable, rest, state, x, y):
        loss, grads = jax.value_and_grad(compute_loss)(trainable, rest, x, y)
        return loss, *optimizer.stateless_apply(state, grads, trainable)

    def step(x, y):
        loss, trainable, state = update(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            [v.value for v in optimizer.variables],
            x,
            y,
        )
        for variable, value in zip(
            [*model.trainable_variables, *optimizer.variables],
            [*trainable, *state],
            strict=True,
        ):
            variable.assign(value)
        return loss

    return step


def train(callbacks, epochs=2):
    model = make_model()
    step = step_of(model)
    with keras_adamax.TrainingLoop(model, callbacks) as loop:
        for _ in loop.epochs(epochs):
            for x, y in data():
                loop.step(loss=step(x, y))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("update_freq", ["epoch", 4])
@pytest.mark.parametrize("logger", [ClipRateLogger, WeightDeltaLogger])
def test_the_records_are_those_of_fit(update_freq, logger):
    own, of_fit = logger(update_freq), logger(update_freq)
    model = train([own])
    other = make_model()
    training.fit(other, [of_fit], epochs=2)
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(two), rtol=1e-5
        )
    # At the end of an epoch, the window's loss and the epoch's change places.
    rows, expected = (
        sorted(training.rows(records.records)) for records in (own, of_fit)
    )
    assert [row[:6] for row in rows] == [row[:6] for row in expected]
    np.testing.assert_allclose(
        [row[6] for row in rows],
        [row[6] for row in expected],
        rtol=2e-4,
        atol=1e-7,
    )


def test_any_callback_of_keras_is_called(tmp_path):
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = keras.callbacks.History()
    train([table, history, ClipRateLogger()], epochs=3)
    assert history.epoch == [0, 1, 2]
    assert set(history.history) == {"loss", "clip_rate"}
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == 4


def test_training_goes_on_with_later_epochs():
    logger = ClipRateLogger()
    model = make_model()
    step = step_of(model)
    for first in (0, 2):
        with keras_adamax.TrainingLoop(model, [logger]) as loop:
            for _ in loop.epochs(2, first):
                for x, y in data():
                    loop.step(loss=step(x, y))
    rows = training.rows(logger.records, variable="", quantity="clip_rate")
    assert [row[:4] for row in rows] == [
        (0, epoch, BATCHES, BATCHES * (epoch + 1)) for epoch in range(4)
    ]


def test_a_loop_that_fails_keeps_what_was_recorded(tmp_path):
    logger = WeightDeltaLogger(2, filename=tmp_path / "records.csv")
    model = make_model()
    step = step_of(model)
    with (
        pytest.raises(KeyboardInterrupt),
        keras_adamax.TrainingLoop(model, [logger]) as loop,
    ):
        for _ in loop.epochs(1):
            for i, (x, y) in enumerate(data()):
                if i == 4:
                    raise KeyboardInterrupt
                loop.step(loss=step(x, y))
    losses = training.values(logger.records, quantity="loss")
    assert len(losses) == 2
    again = WeightDeltaLogger()
    again.load_records(tmp_path / "records.csv")
    assert training.values(again.records, quantity="loss") == losses


class TestBadInput:
    def test_step_outside_of_an_epoch(self):
        with (
            keras_adamax.TrainingLoop(make_model(), []) as loop,
            pytest.raises(RuntimeError, match="in a loop over the epochs"),
        ):
            loop.step(loss=1.0)

    def test_other_names_than_before(self):
        with keras_adamax.TrainingLoop(make_model(), []) as loop:
            for _ in loop.epochs(1):
                loop.step(loss=1.0)
                with pytest.raises(ValueError, match="loss. Received: other"):
                    loop.step(other=1.0)

    @pytest.mark.parametrize("number", [-1, 1.5, True])
    def test_numbers_of_epochs(self, number):
        loop = keras_adamax.TrainingLoop(make_model(), [])
        with pytest.raises((TypeError, ValueError), match="`number` must be"):
            next(loop.epochs(number))

    def test_an_optimizer_without_clip_rates(self):
        model = training.make_model(optimizer="adam")
        with (
            pytest.raises(ValueError, match="needs a model whose optimizer"),
            keras_adamax.TrainingLoop(model, [ClipRateLogger()]),
        ):
            pass
