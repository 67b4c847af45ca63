"""Private names of Keras's optimizers that we need; each has a canary test.

No public name tells which variables an optimizer was built with.
"""

from collections.abc import Sequence
from typing import Any

import keras


def trained_variables(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built with, in its order."""
    return optimizer._trainable_variables


def place_of(optimizer: Any, variable: Any) -> int | None:
    """The number of a variable among those; `None` if it is none of them.

    As Keras looks for it, whatever the variable is called by now.
    """
    return optimizer._trainable_variables_indices.get(
        optimizer._var_key(variable)
    )


class NotDecayed:
    """Which variables of an optimizer Keras's weight decay leaves alone.

    Args:
        optimizer: The optimizer.

    Attributes:
        is_chosen_by_user: Whether the user has said it on this optimizer.
    """

    NAMES = (
        "_exclude_from_weight_decay",
        "_exclude_from_weight_decay_pattern",
    )

    def __init__(self, optimizer: Any):
        self._optimizer = optimizer
        self.is_chosen_by_user = False

    @property
    def pattern(self) -> str | None:
        """The regular expression of the names given to Keras."""
        pattern = getattr(
            self._optimizer, "_exclude_from_weight_decay_pattern", None
        )
        return pattern and pattern.pattern

    def restore(
        self,
        variables: Sequence[Any] | None = None,
        pattern: str | None = None,
    ) -> None:
        """Takes what a saved state says, unless the user has said it."""
        if self.is_chosen_by_user:
            return
        if pattern:
            keras.optimizers.Optimizer.exclude_from_weight_decay(
                self._optimizer, var_names=[pattern]
            )
        if variables is not None:
            keras.optimizers.Optimizer.exclude_from_weight_decay(
                self._optimizer, var_list=variables
            )

    def snapshot(self) -> dict[str, Any]:
        """What Keras keeps of it."""
        attributes = self._optimizer.__dict__
        return {n: attributes[n] for n in self.NAMES if n in attributes}

    def take_back(self, snapshot: dict[str, Any]) -> None:
        """Makes it what it was at a `snapshot`."""
        for name in self.NAMES:
            self._optimizer.__dict__.pop(name, None)
        self._optimizer.__dict__.update(snapshot)
