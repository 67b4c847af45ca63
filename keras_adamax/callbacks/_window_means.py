"""The mean of a loss or metric over a window, not over the epoch so far.

Keras's logs hold running means of an epoch: one bad batch raises all that
follow, and each epoch begins with a false drop. The mean over the batches
`a + 1, ..., b` of an epoch follows from the running means `R`:

    (b * R_b - a * R_a) / (b - a)
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

# Of a callback's `params`: all logs are running means, whatever metrics the
# model has.
ALL_LOGS_ARE_MEANS = "all_logs_are_running_means"
# Keras's running means are float32.
_RESOLUTION = float(np.finfo("float32").eps)
# A mean that is less certain than this fraction of itself is not told.
_TOLERANCE = 0.05


class WindowMeans:
    """Means over windows that may reach over the end of an epoch.

    Each batch counts alike; Keras weights a smaller last batch less.
    """

    def __init__(self) -> None:
        self._names: frozenset[str] | None = None
        self._all_are_means = False
        # Of the window's batches in earlier epochs.
        self._sums: dict[str, float] = {}
        self._batches = 0
        # Where the window begins in this epoch.
        self._start: dict[str, float] = {}
        self._start_batch = 0

    def learn_names(self, model: Any, params: Mapping[str, Any] | None) -> None:
        """Finds out which logs are running means, once.

        Args:
            model: A model that has been trained, its state up to date.
            params: What callbacks are told of the training.
        """
        if self._names is not None:
            return
        self._all_are_means = bool((params or {}).get(ALL_LOGS_ARE_MEANS))
        self._names = (
            frozenset() if self._all_are_means else running_means(model)
        )

    def begin_epoch(self) -> None:
        """Keras forgets its running means."""
        self._start, self._start_batch = {}, 0

    def end_window(
        self, done: int, logs: Mapping[str, float]
    ) -> dict[str, float]:
        """The logs with means over the window; another window begins.

        Args:
            done: Batches done in the epoch.
            logs: Keras's logs after these.
        """
        means = self._window(done, logs)
        number = self._batches + done - self._start_batch
        if not number:
            return dict(logs)
        result = dict(logs)
        for name, total in means.items():
            mean = total / number
            doubt = _RESOLUTION * (
                abs(logs[name]) * done
                + abs(self._start.get(name, 0.0)) * self._start_batch
            )
            # A NaN is told as it is.
            if doubt > _TOLERANCE * number * abs(mean):
                mean = float("nan") if logs[name] else mean
            result[name] = mean
        self._sums, self._batches = {}, 0
        self._start = {name: logs[name] for name in means}
        self._start_batch = done
        return result

    def end_epoch(
        self, done: int, logs: Mapping[str, float]
    ) -> dict[str, float]:
        """The logs with names that say what is a mean over the epoch.

        Args:
            done: Batches done in the epoch.
            logs: Keras's logs after these.
        """
        self._sums = self._window(done, logs)
        self._batches += done - self._start_batch
        self.begin_epoch()
        return {
            f"epoch_{name}" if name in self._sums else name: value
            for name, value in logs.items()
        }

    def _window(self, done: int, logs: Mapping[str, float]) -> dict[str, float]:
        """The sum over the window's batches, of what is a running mean."""
        names = self._names or ()
        return {
            name: self._sums.get(name, 0.0)
            + logs[name] * done
            - self._start.get(name, 0.0) * self._start_batch
            for name in logs
            if name in names or self._all_are_means
            if (not self._batches or name in self._sums)
            and (not self._start_batch or name in self._start)
        }

    def to_json(self) -> list[Any]:
        """What `restore` needs, when an epoch has ended."""
        return [self._sums, self._batches]

    def restore(self, state: list[Any]) -> None:
        """Goes on with a window; the epoch begins."""
        self._sums, self._batches = dict(state[0]), state[1]
        self.begin_epoch()


def running_means(model: Any) -> frozenset[str]:
    """The names in Keras's logs that are means over the batches of an epoch.

    Of a metric that is no mean (an AUC, say), and of what a `train_step`
    returns by itself, nothing is known of a window.

    Args:
        model: A model that has been trained, its state up to date.
    """
    found: dict[str, bool] = {}
    for metric in model.metrics:
        for part in getattr(metric, "metrics", None) or [metric]:
            is_mean = (
                isinstance(part, keras.metrics.Mean)
                and type(part).result is keras.metrics.Mean.result
                # A `train_step` may not use Keras's tracker of the loss.
                and float(ops.convert_to_numpy(part.count)) > 0
            )
            found[part.name] = is_mean and found.get(part.name, True)
    return frozenset(name for name, is_mean in found.items() if is_mean)
