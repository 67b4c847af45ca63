"""Which kernel updates: the one setting, for tests and for finding faults."""

import os
from collections.abc import Sequence

# "auto", "reference" or what else the backend has.
SETTING = "KERAS_ADAMAX_KERNEL"


def kernel_choice(choices: Sequence[str]) -> str:
    """The kernel that the environment variable `KERAS_ADAMAX_KERNEL` names.

    Args:
        choices: The kernels of the running backend.

    Returns:
        One of `choices`; "auto" where the variable is not set.

    Raises:
        ValueError: If the backend does not have it.
    """
    name = os.environ.get(SETTING, "auto")
    if name not in choices:
        raise ValueError(
            f"The environment variable `{SETTING}` must be one of "
            f"{', '.join(map(repr, choices))} on this backend. "
            f"Received: {SETTING}={name!r}."
        )
    return name
