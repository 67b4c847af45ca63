"""The product of all values of `beta_1`, for the bias correction."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_adamax.hyperparameters import PACKED, LiveHyperparameters

Tensor = Any


class Beta1Product:
    """The logarithm of the product of all values of `beta_1` so far.

    0 stands for a number that was the same in all steps so far: their product
    is then more exact than a sum of logarithms.

    Args:
        variable: Scalar that holds it.
        live: The hyperparameters.
        calls_per_update: `gradient_accumulation_steps`, or 1.
    """

    def __init__(
        self,
        variable: keras.Variable,
        live: LiveHyperparameters,
        calls_per_update: int,
    ):
        self.variable = variable
        self._live = live
        self._calls_per_update = calls_per_update

    def next(self, updates: Tensor, dtype: str) -> Tensor:
        """The logarithm with the value of the next update.

        Args:
            updates: How many updates were applied.
            dtype: Dtype of the result.
        """
        beta_1 = self._live.tensor("beta_1", updates, dtype)
        product = ops.cast(self.variable, dtype)
        if "beta_1" in self._live.schedules:
            return product + ops.log(beta_1)
        steps = ops.convert_to_tensor(updates) + 1
        # Operators do not copy their numbers to a GPU, as `ops.equal` does,
        # which waits for it.
        return ops.where(
            product == 0.0,
            ops.cast(steps, dtype) * ops.log(beta_1),
            product + ops.log(beta_1),
        )

    def advance(self, updates: Tensor, corrects_bias: bool) -> None:
        """Goes on by one update.

        Args:
            updates: How many were applied before it.
            corrects_bias: Whether the rule reads the product.
        """
        is_scheduled = "beta_1" in self._live.schedules
        if not (is_scheduled or corrects_bias):
            return
        following = self.next(updates, self.variable.dtype)
        if not is_scheduled:
            value = ops.convert_to_tensor(self.variable)
            following = ops.where(value == 0.0, value, following)
        self.variable.assign(following)

    def so_far(self, scalars: Mapping[str, np.ndarray]) -> np.ndarray:
        """The logarithm, also where the variable is 0.

        Args:
            scalars: Role to value of the optimizer's scalar variables.
        """
        product = scalars["log_beta_1_product"]
        if "beta_1" in self._live.schedules or product != 0:
            return product
        updates = int(scalars["iterations"]) // self._calls_per_update
        beta_1 = float(scalars["hyperparameters"][PACKED.index("beta_1")])
        logarithm = math.log(beta_1) if beta_1 > 0 else -math.inf
        return np.asarray(updates * logarithm if updates else 0, product.dtype)

    def go_on_from(
        self, product: np.ndarray, scalars: Mapping[str, np.ndarray]
    ) -> None:
        """Keeps the logarithm so far, whatever `beta_1` is now.

        Args:
            product: The logarithm so far.
            scalars: As for `so_far`, with the `beta_1` of now.
        """
        if "beta_1" not in self._live.schedules:
            zero = {"log_beta_1_product": np.zeros_like(product)}
            if product == self.so_far({**scalars, **zero}):
                product = zero["log_beta_1_product"]
        self.variable.assign(product)
