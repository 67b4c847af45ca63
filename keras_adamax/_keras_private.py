"""Private names of Keras's optimizers that we need; each has a canary test.

No public name tells which variables an optimizer was built with.
"""

from typing import Any


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
