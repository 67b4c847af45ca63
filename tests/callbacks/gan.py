"""A GAN with two optimizers and a `train_step` of its own, in each backend."""

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()
LATENT = 3


class GAN(keras.Model):
    """As in Keras's examples: neither optimizer is built before `fit`.

    Args:
        keep: Where the optimizers stand: "attributes", "list" or "dict".
    """

    def __init__(self, keep="attributes"):
        super().__init__(name="gan")
        self.keep = keep
        self.seeds = keras.random.SeedGenerator(7)
        dense = keras.layers.Dense
        self.discriminator = keras.Sequential(
            [
                keras.Input((2,)),
                dense(6, activation="tanh", name="d_hidden"),
                keras.layers.Dropout(0.2, seed=3),
                dense(1, name="d_output"),
            ],
            name="discriminator",
        )
        self.generator = keras.Sequential(
            [
                keras.Input((LATENT,)),
                dense(5, activation="tanh", name="g_hidden"),
                dense(2, name="g_output"),
            ],
            name="generator",
        )
        self.built = True

    def compile(self, d_optimizer, g_optimizer, **arguments):
        super().compile(
            run_eagerly=BACKEND == "jax", jit_compile=False, **arguments
        )
        if self.keep == "list":
            self.both = [d_optimizer, g_optimizer]
        elif self.keep == "dict":
            self.both = {"d": d_optimizer, "g": g_optimizer}
        else:
            self.d_optimizer = d_optimizer
            self.g_optimizer = g_optimizer

    def optimizers_of_both(self):
        if self.keep == "attributes":
            return self.d_optimizer, self.g_optimizer
        return (
            self.both
            if self.keep == "list"
            else (self.both["d"], self.both["g"])
        )

    def _loss(self, logits, target):
        return ops.mean(ops.square(logits - target))

    def d_loss(self, real):
        noise = keras.random.normal(
            (ops.shape(real)[0], LATENT), seed=self.seeds
        )
        fake = self.generator(noise)
        return self._loss(
            self.discriminator(real, training=True), 1.0
        ) + self._loss(self.discriminator(fake, training=True), 0.0)

    def g_loss(self, real):
        noise = keras.random.normal(
            (ops.shape(real)[0], LATENT), seed=self.seeds
        )
        fake = self.generator(noise)
        return self._loss(self.discriminator(fake, training=True), 1.0)

    def turns(self):
        d_optimizer, g_optimizer = self.optimizers_of_both()
        return (
            (d_optimizer, self.discriminator, self.d_loss),
            (g_optimizer, self.generator, self.g_loss),
        )


if BACKEND == "jax":
    import jax

    def jax_step(self, state, data):
        trainable, others, own, metrics = state
        values = {
            id(v): value
            for v, value in zip(
                [*self.trainable_variables, *self.non_trainable_variables],
                [*trainable, *others],
                strict=True,
            )
        }
        every = [*self.trainable_variables, *self.non_trainable_variables]
        losses = {}
        for name, (optimizer, part, loss_of) in zip(
            ("d_loss", "g_loss"), self.turns(), strict=True
        ):
            weights = part.trainable_variables
            if not optimizer.built:
                optimizer.build(weights)

            def loss_and_state(given, weights=weights, loss_of=loss_of):
                mapping = values | {
                    id(v): g for v, g in zip(weights, given, strict=True)
                }
                pairs = [(v, mapping[id(v)]) for v in every]
                with keras.StatelessScope(state_mapping=pairs) as scope:
                    loss = loss_of(data)
                return loss, {id(v): scope.get_current_value(v) for v in every}

            (loss, new), gradients = jax.value_and_grad(
                loss_and_state, has_aux=True
            )([values[id(v)] for v in weights])
            for v in self.non_trainable_variables:
                values[id(v)] = new[id(v)]
            updated, optimizer_state = optimizer.stateless_apply(
                [v.value for v in optimizer.variables],
                gradients,
                [values[id(v)] for v in weights],
            )
            for v, value in zip(
                optimizer.variables, optimizer_state, strict=True
            ):
                v.assign(value)
            for v, value in zip(weights, updated, strict=True):
                values[id(v)] = value
            losses[name] = loss
        state = (
            [values[id(v)] for v in self.trainable_variables],
            [values[id(v)] for v in self.non_trainable_variables],
            own,
            metrics,
        )
        return losses, state

    GAN.train_step = jax_step

elif BACKEND == "torch":
    import torch

    def torch_step(self, data):
        losses = {}
        for name, (optimizer, part, loss_of) in zip(
            ("d_loss", "g_loss"), self.turns(), strict=True
        ):
            weights = part.trainable_variables
            self.zero_grad()
            loss = loss_of(data)
            loss.backward()
            gradients = [v.value.grad for v in weights]
            with torch.no_grad():
                optimizer.apply(gradients, weights)
            losses[name] = loss.detach()
        return losses

    GAN.train_step = torch_step

else:
    import tensorflow as tf

    def tensorflow_step(self, data):
        losses = {}
        for name, (optimizer, part, loss_of) in zip(
            ("d_loss", "g_loss"), self.turns(), strict=True
        ):
            weights = part.trainable_weights
            with tf.GradientTape() as tape:
                loss = loss_of(data)
            gradients = tape.gradient(loss, weights)
            optimizer.apply(gradients, weights)
            losses[name] = loss
        return losses

    GAN.train_step = tensorflow_step


def make(optimizers, keep="attributes", **arguments):
    """A compiled GAN, always the same.

    Args:
        optimizers: Two functions that make one.
        keep: See `GAN`.
        arguments: For Keras's `compile`.
    """
    keras.utils.set_random_seed(0)
    model = GAN(keep)
    model.compile(*(make_one() for make_one in optimizers), **arguments)
    return model


def fit(model, callbacks, epochs):
    """Four batches an epoch, in order."""
    real = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    return model.fit(
        real,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


def weights_of(model):
    """The values of weights and seeds."""
    return [np.array(ops.convert_to_numpy(v)) for v in model.variables]


def state_of(model):
    """All values: weights, seeds and the optimizers' states."""
    return weights_of(model) + [
        np.array(ops.convert_to_numpy(v))
        for optimizer in model.optimizers_of_both()
        for v in optimizer.variables
    ]
