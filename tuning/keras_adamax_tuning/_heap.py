"""Garbage collection, of which KerasTuner demands a full one before each trial.

Each looks at every object of every module that was imported: a third of a
second, twice a trial.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def what_is_there_is_no_garbage() -> Iterator[None]:
    """Spares the collector, in the block, what was there before it."""
    if gc.get_freeze_count():
        # The user's own decision.
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
