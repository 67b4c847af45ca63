"""`WeightDeltaLogger`: how far weights move, and which do not move at all."""

import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import saving

from keras_adamax import _validation
from keras_adamax.callbacks import _optimizers, _unchanged_weights
from keras_adamax.callbacks._callback_list import join
from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.callbacks._recorder import Recorder
from keras_adamax.callbacks._weight_changes import WeightChange, WeightChanges
from keras_adamax.clip_statistics import ClipStatistics


@saving.register_keras_serializable("keras_adamax")
class WeightDeltaLogger(Recorder):
    """Logs how far the trainable weights move, with any optimizer.

    Use it to see whether a model learns at all, whether the learning rate
    suits it (a healthy `weight_delta_ratio` of a step is about 1e-3), and
    which layers lag behind.

    For a variable `w`, now and at the last record, with L2 norms:

        weight_delta = |w_now - w_last|
        weight_delta_ratio = weight_delta / |w_now|

    A ratio is 0 where nothing moved, and infinite where the weights are 0 now
    and were not. Differences and norms are computed where the weights are, in
    float32 for half precision; one vector of them is brought to the host. One
    copy of the trainable weights is kept meanwhile.

    The logs of an epoch get `weight_delta` and `weight_delta_ratio` of all
    weights together; with a number of batches as `update_freq`, those of the
    last record (NaN before the first). `records` and the files hold those of
    every variable, by its path, and event files also a histogram of the
    change. In `fit` the logger puts itself before the other callbacks, so
    that all of them see what it adds to the logs.

    With a number of batches as `update_freq`, a recorded `loss` (and any other
    mean of Keras's) is the mean over the batches since the last record. Keras's
    own mean over the epoch is recorded at its end, as `epoch_loss`.

    Variables are those that are trainable when `fit` begins. A model that is
    built in its first batch (TensorFlow only) is measured from its second.

    Args:
        update_freq: `"epoch"` for a record at the end of each epoch, or an
            integer >= 1 for one after that many batches, counted through all
            epochs of a `fit`. Defaults to `"epoch"`.
        log_dir: Folder. Event files for TensorBoard are written to
            `weight_delta` in it; needs tensorboardX. Defaults to `None`.
        filename: CSV file with the columns `run,epoch,batch,step,variable,
            quantity,value`. It is appended to, and a `ClipRateLogger` may
            write to the same. Defaults to `None`.
        warn_unchanged: Whether there is a warning that names the variables
            that did not change at all between two records although the
            optimizer has made updates, and says why where that can be known.
            Each is named once a `fit`. Defaults to `True`.
        batch_logs: Whether the summaries of the last record are added to the
            logs of every batch, too, which the progress bar shows; or a list
            of some of them. A line in a terminal of 80 columns has no room for
            them. Defaults to `False`.
        on_record: Function of `step`, `name` and `value`, called for each
            value that is recorded, in the thread of `fit`, one batch later; see
            `keras_adamax.trackers`. `name` is the path of a variable and the
            quantity, with a slash between them, or the quantity alone.
            Defaults to `None`.

    Attributes:
        records: Dictionary of the same columns, as NumPy arrays.

    When `fit` is called with an `initial_epoch` and an optimizer that has made
    steps, the last run is continued: rows after the optimizer's step are
    removed from `records` and from the file, in one rename.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If `update_freq` is out of range. In `fit`: if the file
            holds something else than records.
        OSError: In `fit`, if a file cannot be written when it begins. Later
            there is a warning, and training goes on.
        ImportError: In `fit`, if `log_dir` is given without tensorboardX.
        RuntimeError: If a hook that reads the model is called in another
            thread than that of `fit`.

    Example:
        >>> import keras, keras_adamax, numpy as np
        >>> model = keras.Sequential(
        ...     [
        ...         keras.Input((2,)),
        ...         keras.layers.Dense(
        ...             1, kernel_initializer="ones", use_bias=False
        ...         ),
        ...     ]
        ... )
        >>> model.compile(keras.optimizers.SGD(0.25), "mse")
        >>> history = model.fit(
        ...     np.ones((1, 2)), np.ones((1, 1)), verbose=0,
        ...     callbacks=[keras_adamax.WeightDeltaLogger()],
        ... )  # both weights go from 1 to 0.5
        >>> round(history.history["weight_delta"][0], 6)
        0.707107
        >>> round(history.history["weight_delta_ratio"][0], 6)
        1.0
    """

    summary_keys = quantities = ("weight_delta", "weight_delta_ratio")

    def __init__(
        self,
        update_freq: str | int = "epoch",
        log_dir: str | os.PathLike | None = None,
        filename: str | os.PathLike | None = None,
        warn_unchanged: bool = True,
        *,
        batch_logs: bool | Sequence[str] = False,
        on_record: Callable[[int, str, float], Any] | None = None,
    ):
        super().__init__(update_freq, log_dir, filename, batch_logs, on_record)
        self.warn_unchanged = _validation.check_bool(
            "warn_unchanged", warn_unchanged
        )

    def _reset(self) -> None:
        super()._reset()
        self._changes: WeightChanges | None = None
        self._names: tuple[str, ...] = ()
        self._last_step: int | None = None
        self._last_updates: list[int] = []
        self._start: dict[int, ClipStatistics] = {}
        self._named_unchanged: set[str] = set()
        self._has_warned_of_nan = False

    def _begin_window(self) -> bool:
        model = self._bring_up_to_date()
        if not model.built or not _has_state(model):
            return False
        variables = _observed(model)
        self._names = tuple(
            _optimizers.unique_names([v.path for v in variables])
        )
        self._changes = WeightChanges(variables, self.log_dir is not None)
        self._start = {
            id(o): o.clip_statistics()
            for o in _optimizers.ours(self._optimizers)
        }
        self._last_step = self._read_step()
        self._last_updates = self._read_updates()
        return True

    def _start_measuring(self, has_window: bool) -> Callable[..., Measurement]:
        self._bring_up_to_date()
        if self._changes is None:
            step = self._read_step()
            summary = dict.fromkeys(self.summary_keys, math.nan)
            return lambda _: Measurement(step, (), {}, summary)
        return functools.partial(
            self._measure,
            self._changes,
            self._changes.measure(_optimizers.updates(self._optimizers)),
            self._read_updates(),
            has_window,
        )

    def _measure(
        self,
        measured: WeightChanges,
        packed: Any,
        updates: list[int],
        has_window: bool,
        is_up_to_date: bool,
    ) -> Measurement:
        step, changes = measured.read(packed)
        if not has_window:  # the window has been opened by this very record
            changes = [
                c._replace(change_norm=math.nan, counts=None) for c in changes
            ]
        else:
            self._warn_of_nan(changes)
            if (
                is_up_to_date
                and self.warn_unchanged
                and step != self._last_step
            ):
                self._warn_of_unchanged(step, changes, updates)
        self._last_step = step
        self._last_updates = updates
        deltas = [change.change_norm for change in changes]
        norms = [change.weight_norm for change in changes]
        delta, norm = _root_sum_square(deltas), _root_sum_square(norms)
        return Measurement(
            step,
            self._names,
            {
                "weight_delta": deltas,
                "weight_delta_ratio": [
                    _ratio(d, n) for d, n in zip(deltas, norms, strict=True)
                ],
            },
            {"weight_delta": delta, "weight_delta_ratio": _ratio(delta, norm)},
            {
                name: (change.largest_change, change.counts.tolist())
                for name, change in zip(self._names, changes, strict=True)
                if change.counts is not None
            },
        )

    def _warn_of_nan(self, changes: Sequence[WeightChange]) -> None:
        bad = [
            name
            for name, change in zip(self._names, changes, strict=True)
            if not math.isfinite(change.weight_norm)
        ]
        if bad and not self._has_warned_of_nan:
            self._has_warned_of_nan = True
            warnings.warn(
                f"{join(bad)} {'has' if len(bad) == 1 else 'have'} NaN or "
                "infinite weights since the last record (epoch "
                f"{self._epoch + 1}). They are recorded as they are.",
                stacklevel=2,
            )

    def _read_updates(self) -> list[int]:
        """What each optimizer has applied; of one, the step says it."""
        if len(self._optimizers) < 2 or not self.warn_unchanged:
            return []
        return _optimizers.updates_of_each(self._optimizers)

    def _warn_of_unchanged(
        self,
        step: int,
        changes: Sequence[WeightChange],
        updates_of_each: Sequence[int],
    ) -> None:
        assert self._changes is not None and self._last_step is not None
        variables = self._changes.variables
        movable = [i for i, v in enumerate(variables) if math.prod(v.shape)]
        updates = step - self._last_step
        if len(self._optimizers) < 2:
            self._name_unchanged(
                self._optimizers, movable, changes, updates, step
            )
            return
        left = movable
        for optimizer, now, before in zip(
            self._optimizers,
            updates_of_each,
            self._last_updates,
            strict=True,
        ):
            own = [i for i in left if _optimizers.owns(optimizer, variables[i])]
            if now != before:
                left = [i for i in left if i not in own]
                self._name_unchanged(
                    [optimizer], own, changes, now - before, step
                )
        # Of one that is not built, nobody knows what it will train.
        if all(o.built for o in self._optimizers):
            owned = [
                i
                for i in left
                if any(
                    _optimizers.owns(o, variables[i]) for o in self._optimizers
                )
            ]
            orphans = [i for i in left if i not in owned]
            self._name_unchanged(
                self._optimizers, orphans, changes, updates, step
            )

    def _name_unchanged(
        self,
        optimizers: Sequence[Any],
        movable: Sequence[int],
        changes: Sequence[WeightChange],
        updates: int,
        step: int,
    ) -> None:
        """Warns of those that did not change.

        Args:
            optimizers: Those that may have changed them.
            movable: Numbers of the variables that these might have changed.
            changes: The changes of all variables.
            updates: What these optimizers have applied meanwhile.
            step: The updates applied so far.
        """
        assert self._changes is not None
        variables = self._changes.variables
        unchanged = [i for i in movable if changes[i].change_norm == 0]
        new = [
            i for i in unchanged if self._names[i] not in self._named_unchanged
        ]
        if not new:
            return
        self._bring_up_to_date()
        names = [self._names[i] for i in new]
        self._named_unchanged.update(names)
        reasons = _unchanged_weights.reasons(
            optimizers,
            [variables[i] for i in new],
            all_unchanged=len(unchanged) == len(movable),
            start=self._start,
        )
        by_reason: dict[str, list[str]] = {}
        for name, reason in zip(names, reasons, strict=True):
            by_reason.setdefault(reason, []).append(name)
        what = "; ".join(
            f"{', '.join(group)} ({reason})"
            for reason, group in by_reason.items()
        )
        warnings.warn(
            f"{len(unchanged)} of {len(movable)} trainable variables did not "
            f"change at all in {updates} updates, up to step {step}: {what}.",
            stacklevel=2,
        )

    def _end_windows(self) -> None:
        self._changes = None

    def _window_state(self) -> tuple[Any, list[np.ndarray]]:
        assert self._changes is not None
        return self._last_step, self._changes.get_previous()

    def _restore_window(self, state: Any, arrays: list[np.ndarray]) -> None:
        assert self._changes is not None
        self._last_step = state
        self._changes.set_previous(arrays)

    def get_config(self) -> dict[str, Any]:
        """The arguments; records are saved by `save_records`."""
        return {**super().get_config(), "warn_unchanged": self.warn_unchanged}


def _has_state(model: Any) -> bool:
    """Whether the model's variables have been made."""
    return bool(model.variables)


def _observed(model: Any) -> list[Any]:
    """Trainable variables, also those frozen since `compile`; each once.

    TensorFlow goes on training the latter where it has traced the step.
    """
    variables = {id(v): v for v in model.trainable_variables}
    # Keras keeps for itself what was trainable in `compile`.
    compiled: Mapping[Any, bool] = (
        getattr(model, "_compiled_trainable_state", None) or {}
    )
    for layer, was_trainable in compiled.items():
        if was_trainable and not layer.trainable:
            for v in getattr(layer, "_trainable_variables", ()):
                variables.setdefault(id(v), v)
    return list(variables.values())


def _root_sum_square(norms: Sequence[float]) -> float:
    largest = max(norms, default=0.0)
    if any(math.isnan(norm) for norm in norms):
        return math.nan
    if largest == 0 or math.isinf(largest):
        return largest
    return largest * math.sqrt(sum((norm / largest) ** 2 for norm in norms))


def _ratio(delta: float, norm: float) -> float:
    if delta == 0 and not math.isnan(norm):
        return 0.0
    return delta / norm if norm else math.inf
