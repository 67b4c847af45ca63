"""Counting batches although Keras may report their ends from threads."""

import threading
from typing import Any


class BatchCounter:
    """Batches done in the current epoch, and in the whole `fit`.

    `ended` may be called from any thread, everything else from `fit`'s.

    Args:
        steps: Batches in an epoch, where Keras knows it.
        stride: `steps_per_execution`.
        total: Batches done before.
    """

    def __init__(self, steps: int | None, stride: int, total: int = 0):
        self._steps = steps
        self._stride = stride
        self._before_epoch = total
        self.total = total
        # The total when something was due last.
        self.last_due = total
        # A thread's batches come in order; those of two threads may not.
        self._last_ended: dict[int, int] = {}

    def begin_epoch(self) -> None:
        """A new epoch begins."""
        self._last_ended.clear()
        self._before_epoch = self.total

    def ended(self, batch: int) -> int:
        """A batch has ended; returns how many are done in the epoch by it."""
        self._last_ended[threading.get_ident()] = batch
        return self._limit(batch + 1)

    @property
    def done(self) -> int:
        """Batches done in the epoch, as of the last `advance`."""
        return self.total - self._before_epoch

    @property
    def has_ended_here(self) -> bool:
        """Whether a batch of this epoch has ended in the calling thread."""
        return threading.get_ident() in self._last_ended

    def advance(self, done: int | None = None) -> int:
        """Moves the total to `done` batches of the epoch.

        Args:
            done: Defaults to what has been reported as ended.

        Returns:
            The batches done in the epoch.
        """
        if done is None:
            done = self._limit(max(self._last_ended.values(), default=-1) + 1)
        self.total = self._before_epoch + done
        return done

    def is_due(self, every: int) -> bool:
        """Whether a multiple of `every` batches has been passed since."""
        return self.total // every > self.last_due // every

    def note_due(self) -> None:
        """What was due is done."""
        self.last_due = self.total

    def may_cross(self, done: int, every: int) -> bool:
        """Whether a multiple of `every` could lie in the last execution."""
        total = self._before_epoch + done
        return total // every > (total - self._stride) // every

    def _limit(self, done: int) -> int:
        # With `steps_per_execution` Keras counts on past the end of the data.
        return done if self._steps is None else min(done, self._steps)


def make_counter(params: Any, model: Any, total: int = 0) -> BatchCounter:
    """A counter for the `fit` that has these parameters."""
    return BatchCounter(
        steps=(params or {}).get("steps"),
        stride=getattr(model, "steps_per_execution", None) or 1,
        total=total,
    )
