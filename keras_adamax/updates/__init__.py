"""The update rule in the operations of each backend.

One module for each, which chooses between what `native` has in C++ and what
this folder has in the framework's own operations. What none of them can serve
is given back: the optimizer runs the rule itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from keras_adamax import backends
from keras_adamax.backends.step import Changes, Step, Updated

Tensor = Any


class Updates(Protocol):
    """What each module of this folder that a backend is named after has."""

    @property
    def CHOICES(self) -> tuple[str, ...]:
        """The kernels that the user can choose between."""
        ...

    def update_dense(self, step: Step) -> Updated:
        """Updates by dense gradients, all of them at once."""
        ...

    def update_rows(self, step: Step) -> Updated:
        """The same for sparse gradients."""
        ...

    def is_finite(self, gradients: Sequence[Any], kernel: str) -> Tensor:
        """Whether all elements are finite: what `skip_nonfinite` needs."""
        ...

    def count_nonfinite(self, gradients: Sequence[Any], kernel: str) -> Tensor:
        """How many elements of each are NaN or infinite.

        Integers, or their `exact_totals.digits`.
        """
        ...

    def count_above(
        self,
        gradients: Sequence[Tensor],
        are_samples: bool,
        norms: Sequence[Any],
        strides: Sequence[int],
        clip_multiplier: Tensor,
        clip_epsilon: Tensor,
        kernel: str,
    ) -> Tensor:
        """How many elements exceed their bounds: for `spike_threshold`.

        Args:
            gradients: Of any float dtype.
            are_samples: Whether they are what `spike_rule.sample_of` gave,
                and not whole.
            norms: Of the whole variables.
            strides: Of the samples.
            clip_multiplier: Scalar in the dtype of the norms.
            clip_epsilon: Scalar in the dtype of the norms.
            kernel: The chosen kernel.
        """
        ...

    def apply_if(
        self,
        is_applied: Tensor,
        apply: Callable[[list, list | None], None],
        gradients: list,
        variables: list | None,
        find_changes: Callable[[], Changes],
    ) -> None:
        """Calls `apply(gradients, variables)`, or changes nothing.

        Args:
            is_applied: Boolean scalar: whether it is called.
            apply: The update.
            gradients: For `apply`.
            variables: For `apply`.
            find_changes: Tells what `apply` may change.
        """
        ...


def load() -> Updates:
    """The module of the running backend, imported on the first call."""
    return cast("Updates", backends.module_of(__name__))
