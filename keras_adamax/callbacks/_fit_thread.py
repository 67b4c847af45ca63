"""The thread that `fit` runs in: in no other may a hook read the model."""

import threading


class FitThread:
    """Remembers the thread in which `fit` calls the hooks.

    Args:
        owner: Name of the callback's class, for messages.
        argument: What to call it in a list of callbacks, for messages.
    """

    def __init__(self, owner: str, argument: str):
        self._owner = owner
        self._argument = argument
        self._thread: int | None = None

    def begin(self) -> None:
        """`fit` begins in the calling thread."""
        self._thread = threading.get_ident()

    @property
    def is_current(self) -> bool:
        """Whether `fit` was begun in the calling thread."""
        return self._thread == threading.get_ident()

    def check(self) -> None:
        """Raises an error in another thread, or before `fit` began."""
        if self._thread is None:
            raise RuntimeError(
                f"{self._owner} was called outside of `fit`: "
                "`on_train_begin` must come first."
            )
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"{self._owner} was called in another thread than the one "
                "that `fit` runs in, where the model's state may be in use. "
                f"Pass the {self._argument} in a list, `fit(..., callbacks="
                f"[{self._argument}])`, "
                "and call its hooks in one thread."
            )
