"""A step that changes nothing, without a branch around it.

The fused updates then select between old and new values themselves, and the
few small variables of the optimizer are selected after them.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Tensor = Any

# Whether the update that is under way may change anything, where only its
# device knows; `None` where it may.
_is_allowed: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar(
    "is_allowed", default=None
)


def is_allowed() -> Tensor | None:
    """Boolean scalar for the fused updates; `None`: they are."""
    return _is_allowed.get()


@contextlib.contextmanager
def allow(condition: Tensor) -> Iterator[None]:
    """A context in which the fused updates heed `condition`."""
    token = _is_allowed.set(condition)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def targets(optimizer: Any, variables: Sequence[Any] | None) -> Sequence[Any]:
    """The variables of a call: without a list those it was built with."""
    return optimizer._trainable_variables if variables is None else variables


def serves(
    optimizer: Any,
    gradients: Sequence[Any],
    variables: Sequence[Any] | None,
    is_sparse: Callable[[Any], bool],
) -> bool:
    """Whether nothing but a fused update changes large variables."""
    return (
        optimizer._kernel_choice != "reference"
        # The attribute would be read from the device.
        and "weight_decay" not in optimizer._live.written
        and not optimizer.use_ema
        and not optimizer.gradient_accumulation_steps
        and not any(map(is_sparse, gradients))
        and all(
            variable.constraint is None
            and not getattr(variable, "overwrite_with_gradient", False)
            for variable in targets(optimizer, variables)
        )
    )


def small_variables(optimizer: Any) -> list[Any]:
    """Those of the optimizer that its fused updates do not write."""
    large = {id(v) for v in (*optimizer._momentums, *optimizer._norms)}
    return [v for v in optimizer.variables if id(v) not in large]
