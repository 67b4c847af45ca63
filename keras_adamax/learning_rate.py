"""The learning rate of `AdamaxClipped`, as it was written."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_adamax import hyperparameters
from keras_adamax.backends import Backend


class LearningRate:
    """A number in Keras's variable, or a schedule in its place.

    Args:
        given: Checked number, schedule or callable.
        variable: What Keras keeps a number in.
        backend: The running one.

    Attributes:
        variable: The same.
        schedule: The schedule or callable; `None` for a number.
        written: The number, as the user wrote it.
        is_set: Whether the user has set it since a state was loaded.
    """

    def __init__(self, given: Any, variable: keras.Variable, backend: Backend):
        self.variable = variable
        self.schedule = given if callable(given) else None
        self.written: int | float = 0.0 if callable(given) else given
        self.is_set = False
        self._to_numpy = backend.to_numpy

    def set_schedule(self, value: Any, is_built: bool) -> None:
        """Puts a schedule or a callable in place of what there is.

        Raises:
            AttributeError: If the optimizer is built.
        """
        if is_built:
            raise AttributeError(
                "`learning_rate` cannot be given a schedule or a callable "
                "once the optimizer is built: compiled steps would not "
                f"see it. Received: learning_rate={value!r}. Make an "
                "optimizer with it."
            )
        self.schedule = hyperparameters.check("learning_rate", value)

    def set(self, value: Any) -> None:
        """Sets the number, from the next step on.

        Raises:
            TypeError: If the learning rate is a schedule, or `value` is no
                number.
            ValueError: If `value` is out of range.
        """
        if self.schedule is not None:
            raise TypeError(
                "`learning_rate` was given a schedule or a callable when the "
                "optimizer was made, and cannot be set. Make the optimizer "
                "with a number to set it later. "
                f"Received: learning_rate={value!r}."
            )
        if ops.is_tensor(value) or isinstance(value, keras.Variable):
            value = ops.convert_to_numpy(value)
        value = hyperparameters.check("learning_rate", value)
        # Fails where `fit` holds the state and would not see the change.
        self._to_numpy(self.variable)
        self.is_set = True
        self.variable.assign(float(value))
        # Callbacks compute it from the variable, and 0.5 times what stands
        # there for 0.001 is 0.0005000000237.
        shortest = hyperparameters.shortest_decimal(
            self._to_numpy(self.variable)
        )
        self.written = value if value == shortest else shortest

    def restore(self, number: int | float) -> None:
        """Takes a number from a saved state, which was checked."""
        self.written = number
        self.variable.assign(float(number))

    def present(self, value: np.ndarray | None = None) -> int | float:
        """What the user wrote, as long as the variable holds its rounding.

        Args:
            value: What the variable holds. Defaults to `None`: it is read.
        """
        if value is None:
            value = self._to_numpy(self.variable)
        return hyperparameters.written_or_shortest(self.written, value)

    def config(self) -> Any:
        """The number, or the schedule in Keras's configuration."""
        if self.schedule is not None:
            return keras.saving.serialize_keras_object(self.schedule)
        return self.present()
