"""The compiled library for CPU tensors: if it serves, what it takes, names."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from keras_adamax.kernel_choice import SETTING
from keras_adamax.native import build
from keras_adamax.update_rule import Hyperparameters

# Dtypes of weight and gradient that are taken as they are, in the order of
# `kUpdates` in `update.h`.
KINDS = (
    ("float32", "float32"),
    ("float64", "float64"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
)
DTYPES = frozenset(weight for weight, _ in KINDS)
# Dtypes of state and gradient that elements above their bounds are counted of.
COUNTED_KINDS = frozenset(
    (
        ("float64", "float64"),
        *(("float32", name) for name in DTYPES - {"float64"}),
    )
)

# The handlers of `XLA_SOURCE`.
XLA_SOURCE = "xla.cpp"
UPDATE = "keras_adamax_update"
ADD_COUNTS = "keras_adamax_add_counts"
COUNT_NONFINITE = "keras_adamax_count_nonfinite"
COUNT_ABOVE = "keras_adamax_count_above"
# Variables of about so many elements go into a call of XLA: all of them in one
# would keep every gradient until the last is known.
ELEMENTS_A_CALL = 2**18


def failure_of(
    load: Callable[[], object], errors: Iterable[type[Exception]] = ()
) -> str | None:
    """Why there is no library, which the log says, too; `None` if there is one.

    Args:
        load: Loads it.
        errors: What that raises beside `CompilationError`.
    """
    try:
        load()
    except (build.CompilationError, *errors) as error:
        logging.getLogger(__name__).info(
            "Updates on the CPU are not by the compiled library: %s", error
        )
        return str(error)
    return None


def serves(
    kernel: str,
    dtypes: Iterable[str],
    find_failure: Callable[[], str | None],
    other: str = "fused",
) -> bool:
    """Whether the library takes tensors of `dtypes` under the chosen kernel.

    Args:
        kernel: The chosen one.
        dtypes: Names of the dtypes.
        find_failure: Gives what `failure_of` gave, or finds it.
        other: The kernel of the backend that needs no library.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    if kernel in (other, "reference"):
        return False
    failure = find_failure()
    if failure is not None and kernel == "compiled":
        raise RuntimeError(
            f"`{SETTING}` must be 'auto', '{other}' or 'reference' where no "
            "C++ compiler (GCC or Clang) works. "
            f"Received: {SETTING}='compiled'. "
            "Install one, or name it in the environment variable `CXX`. "
            f"{failure}"
        )
    return failure is None and DTYPES.issuperset(dtypes)


def scalars(hyperparameters: Hyperparameters) -> tuple[Any, ...]:
    """Those of a step, in the order of `Scalars` in `update.h`."""
    *others, bias_correction = hyperparameters
    return *others, 1.0 if bias_correction is None else bias_correction
