"""What differs between backends, one file for each, and nothing else.

`load()` gives the module of the backend that Keras runs on. All of them have
the same functions:

- `no_gradient()`: a context in which the update is not recorded.
- `outside_of_graph()`: a context in which variables get values at once, also
  while a step is being traced.
- `to_numpy(variable)`: the variable's value on the host.
- `is_sparse(gradient)`, `rows(gradient)`, `summed_rows(gradient)`,
  `with_values(gradient, values)` and `to_dense(gradient, shape)`: sparse
  gradients of whole rows.
- `take_rows(variable, indices)` and
  `assign_rows(optimizer, variable, indices, values)`: read and write rows in
  place, at a cost that does not grow with the number of rows.
- `is_finite(gradients)` and `apply_if(finite, optimizer, apply, ...)`: the
  decision and the branch behind `skip_nonfinite`.
- `measure(function, pack, previous, current, step)`, with `overwrite(kept,
  values)`, `after(event, *values)`, `count_integers(values, length)` and
  `place_like(value, other)`: reductions of how far weights moved, without a
  copy of the differences.

The fused update of a backend belongs into the same file.
"""

import importlib
from types import ModuleType

import keras

BACKENDS = ("tensorflow", "jax", "torch")


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
