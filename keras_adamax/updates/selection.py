"""A step that changes nothing, without a branch around it.

The fused updates then select between old and new values themselves, and the
few small variables of the optimizer are selected after them.
"""

import contextlib
import contextvars
from collections.abc import Iterator
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
