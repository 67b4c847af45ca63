"""What differs between backends: one file for each, and nothing else.

No file here knows the optimizer. `step.py` has what the optimizer gives to an
update.
"""

import contextlib
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol, cast

import keras
import numpy as np

Tensor = Any

BACKENDS = ("tensorflow", "jax", "torch")


class Backend(Protocol):
    """What each module of this folder that a backend is named after has.

    A sparse gradient has some whole rows of a variable.
    """

    def no_gradient(self) -> contextlib.AbstractContextManager:
        """A context in which the update is not recorded."""
        ...

    def outside_of_graph(self) -> contextlib.AbstractContextManager:
        """A context in which variables get values at once.

        Also while a step is being traced.
        """
        ...

    def to_numpy(self, variable: keras.Variable) -> np.ndarray:
        """The variable's value on the host."""
        ...

    def is_sparse(self, gradient: Any) -> bool:
        """Whether `gradient` holds some rows only."""
        ...

    def rows(self, gradient: Any) -> tuple[Tensor, Tensor]:
        """Indices, shape `(n,)`, and values, shape `(n, ...)`."""
        ...

    def summed_rows(self, gradient: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, summed values, and which rows to count, shape `(n,)`."""
        ...

    def with_values(self, gradient: Any, values: Tensor) -> Any:
        """The same rows with other values."""
        ...

    def to_dense(self, gradient: Any, shape: Sequence[int]) -> Tensor:
        """The gradient as a dense tensor of `shape`."""
        ...

    def take_rows(self, variable: Any, indices: Tensor) -> Tensor:
        """Some rows of a variable, read without reading the others."""
        ...

    def assign_rows(
        self, variable: Any, indices: Tensor, values: Tensor
    ) -> None:
        """Writes some rows of a variable in place."""
        ...

    def is_replicated(self) -> bool:
        """Whether each replica must be updated by itself.

        That is left to Keras and `update_step`.
        """
        ...

    def can_sample(self, variable: Any) -> bool:
        """Whether some elements can be had without all of a variable."""
        ...

    def sum_over_replicas(self, gradients: Sequence[Any]) -> list[Any]:
        """The sums that Keras is going to take."""
        ...

    def constant(
        self, values: tuple[float, ...], dtype: str, other: Tensor
    ) -> Tensor:
        """A vector of numbers, where `other` is."""
        ...

    def call_untraced(
        self, function: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Calls a function outside of what `torch.compile` traces.

        It makes a program of each of many small operations, which takes
        minutes. TensorFlow and JAX trace the call.
        """
        ...

    def value_if(
        self, condition: Tensor, function: Callable[[], Tensor], other: Tensor
    ) -> Tensor:
        """`function()` where the condition holds, else `other`.

        Args:
            condition: Boolean scalar.
            function: Makes a tensor like `other`.
            other: The tensor otherwise.
        """
        ...


def load() -> Backend:
    """The module of the running backend, imported on the first call."""
    return cast("Backend", module_of(__name__))


def module_of(package: str) -> ModuleType:
    """The module of a package that is named after the running backend.

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
    return importlib.import_module(f"{package}.{backend}")
