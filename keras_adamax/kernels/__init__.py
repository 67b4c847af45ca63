"""What differs between backends, one file for each, and nothing else.

`load()` gives the module of the backend that Keras runs on. All of them have
the same functions:

- `update_dense(step)`: the fused update by all dense gradients of a `Step`,
  with the results of `update_rule.update`. Where the backend has no fused
  update that serves, the next best takes over. Gives the positions in the step
  that none serves: the optimizer runs the rule itself for these.
- `update_rows(step)`: the same for sparse gradients.
- `is_replicated()`: whether each replica must be updated by itself, which is
  left to Keras and `update_step`.
- `CHOICES`: the kernels that the user can choose between.

- `no_gradient()`: a context in which the update is not recorded.
- `outside_of_graph()`: a context in which variables get values at once, also
  while a step is being traced.
- `shared_compilations(given)`: a context in which one program is compiled
  once, where the backend can do that. Another process shares it if it is
  given what the context gave here; it may have imported the backend before.
- `to_numpy(variable)`: the variable's value on the host.
- `is_sparse(gradient)`, `rows(gradient)`, `summed_rows(gradient)`,
  `with_values(gradient, values)` and `to_dense(gradient, shape)`: sparse
  gradients of whole rows.
- `take_rows(variable, indices)` and
  `assign_rows(variable, indices, values)`: read and write rows in place, at a
  cost that does not grow with the number of rows.
- `is_finite(gradients, kernel)`: the decision behind `skip_nonfinite`.
- `count_above(gradients, are_samples, norms, strides, multiplier, epsilon,
  kernel)`, with `can_sample(variable)`, `sum_over_replicas(gradients)`,
  `constant(values, dtype, other)` and `value_if(condition, function, other)`:
  what the decision behind `spike_threshold` needs.
- `apply_if(is_applied, apply, gradients, variables, find_changes)`: the branch
  behind both.
- `measure(function, pack, previous, current, step)`, with `overwrite(kept,
  values)`, `after(event, *values)`, `count_integers(values, length)` and
  `place_like(value, other)`: reductions of how far weights moved, without a
  copy of the differences.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import keras

from keras_adamax.update_rule import Hyperparameters

Tensor = Any

BACKENDS = ("tensorflow", "jax", "torch")
# The one setting: "auto", "reference" or what else the backend has.
SETTING = "KERAS_ADAMAX_KERNEL"


@dataclass(frozen=True)
class Step:
    """One update of variables by dense gradients, or one by sparse ones.

    Attributes:
        kernel: The chosen kernel, one of the backend's `CHOICES`.
        indices: Which of the optimizer's variables they are.
        gradients: A gradient each, of any float dtype; all are dense, or all
            are sparse.
        weights: The variables.
        momentums: First moment of each.
        norms: Infinity norm of each.
        dtype: Dtype of `momentums` and `norms`.
        learning_rate: Scalar, a tensor or a variable.
        hyperparameters: Function of the learning rate and a dtype that gives
            the scalars of the step. A function, because TensorFlow takes twice
            as long for an eager step if it computes them outside of a graph.
        has_schedules: Whether that function calls code of users.
        clip_gradients: Whether gradients are clipped at all.
        exclusions: Variable of all the optimizer's variables, > 0 where one is
            not clipped; `None` where all are alike.
        clip_counts: Variable with a row of statistics for each of the
            optimizer's variables; `None` where nothing is counted.
        kept: What a backend keeps from step to step; the optimizer's own.
    """

    kernel: str
    indices: tuple[int, ...]
    gradients: list[Tensor]
    weights: list[Any]
    momentums: list[Any]
    norms: list[Any]
    dtype: str
    learning_rate: Tensor
    hyperparameters: Callable[[Tensor, str], Hyperparameters]
    has_schedules: bool
    clip_gradients: bool
    exclusions: Any | None
    clip_counts: Any | None
    kept: dict[str, Any]


class Changes(NamedTuple):
    """What a call of `apply` may change.

    Attributes:
        kernel: The chosen kernel.
        weights: The variables of the call.
        all: All that it may change.
        small: Those that the fused updates do not write, where these alone
            write the others; `None` where something else does.
    """

    kernel: str
    weights: list[Any]
    all: list[Any]
    small: list[Any] | None


def load() -> ModuleType:
    """The module of the running backend, imported on the first call.

    Raises:
        RuntimeError: If Keras runs on a backend without one.
    """
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise RuntimeError(
            f"keras_adamax runs on the Keras backends {', '.join(BACKENDS)}. "
            f"Received: backend={backend!r}. Set the environment variable "
            "KERAS_BACKEND to one of these before importing keras."
        )
    return importlib.import_module(f"keras_adamax.kernels.{backend}")


def choice() -> str:
    """The kernel that the environment variable `KERAS_ADAMAX_KERNEL` names.

    Returns:
        One of the backend's `CHOICES`; "auto" where the variable is not set.

    Raises:
        ValueError: If the backend does not have it.
    """
    name = os.environ.get(SETTING, "auto")
    choices = load().CHOICES
    if name not in choices:
        raise ValueError(
            f"The environment variable `{SETTING}` must be one of "
            f"{', '.join(map(repr, choices))} on this backend. "
            f"Received: {SETTING}={name!r}."
        )
    return name
