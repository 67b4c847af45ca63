"""`ClipRateLogger`: how often gradients are clipped, and how large they are."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import saving

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import (
    _clip_counts,
    _clip_windows,
    _gradient_windows,
    _optimizers,
    _spike_windows,
)
from keras_adamax.callbacks._clip_counts import Reading, Totals
from keras_adamax.callbacks._clip_windows import ClipWindow
from keras_adamax.callbacks._first_warnings import FirstWarnings
from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.callbacks._recorder import Recorder
from keras_adamax.clip_statistics import ClipStatistics
from keras_adamax.spike_rule import Spike


@saving.register_keras_serializable("keras_adamax")
class ClipRateLogger(Recorder):
    """Logs the fraction of gradient elements that `AdamaxClipped` clips.

    Use it to see whether the clipping works as a safety belt (a rate near 0),
    all the time (a rate near 1: the bound grows too slowly, see
    `clip_multiplier`), or in which layer. In the first dozens of steps nearly
    everything is clipped: the bound starts at 0 and has to grow.

    For the gradients `g` of a variable, and the bound of each of their
    elements, over the steps since the last record:

        clip_rate = count(|g| > bound) / count(g)

    It is NaN where nothing was counted, and of a variable whose gradient has
    become NaN: training has diverged.

    The logs of an epoch get `clip_rate`, that of the epoch, over all variables
    together. `records` and the files hold the rate of every variable since
    the last record. In `fit` the logger puts itself before the other
    callbacks, so that all of them see what it adds to the logs.

    With a number of batches as `update_freq`, a recorded `loss` (and any other
    mean of Keras's) is the mean over the batches since the last record. Keras's
    own mean over the epoch is recorded at its end, as `epoch_loss`.

    With `track_gradient_norms`, the logs have `gradient_norm`, too: the norm of
    all gradients together, as the clipping was given them. Recorded are, of
    every variable and over the steps since the last record,

    - `gradient_norm`: the norm of the gradient (of several steps, the root mean
      square),
    - `clipped_share`: which fraction of the squared norm the clipping took
      away,
    - `update_norm`: the norm of what a step subtracted from the weight, without
      weight decay,
    - `nonfinite_elements`, where there are any: how many elements of the
      gradient were NaN or infinite. The first record with one warns, and names
      the variables and the call of `apply`.

    Where `learning_rate`, `beta_1`, `beta_2`, `clip_multiplier` or
    `clip_epsilon` is a schedule (or the multiplier follows a
    `TargetClipRate`), each record has its value for the next step.

    With `skip_nonfinite`, the logs have `skipped_steps` as well: how many steps
    were left out in the epoch. The first record with one warns of it.

    With a spike gate (`spike_threshold`), they have `spikes`: how many steps it
    has left out in the epoch. The first record with one warns of it. Each of
    the last 16 of them has rows of its own, with the quantity `spike_rate`: the
    fraction of all elements that exceeded their bound, and that of the up to
    five variables in which it was largest. `batch` is the number of the batch
    in its epoch, from 1 on, and `step` the updates before it. The optimizer
    counts calls of `apply`, so that the batch is right where each batch is one
    call. A `LossScaleOptimizer` makes none for a step that it withholds: a
    spike after that is given an earlier batch, until the next record or epoch.

    Args:
        update_freq: `"epoch"` for a record at the end of each epoch, or an
            integer >= 1 for one after that many batches, counted through all
            epochs of a `fit`. Defaults to `"epoch"`.
        log_dir: Folder. Event files for TensorBoard are written to
            `clip_rate` in it; needs tensorboardX. Defaults to `None`.
        filename: CSV file with the columns `run,epoch,batch,step,variable,
            quantity,value`. It is appended to, and a `WeightDeltaLogger` may
            write to the same. Defaults to `None`.
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

    An optimizer whose `clip_multiplier` is a `TargetClipRate` may be unable to
    reach the target, because a multiplier cannot be below 1. One warning says
    so when a record finds the multiplier at its smallest and a clip rate below
    half the target.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If `update_freq` is out of range. In `fit`: if the model's
            optimizer is not an `AdamaxClipped` that counts (also not inside of
            a `LossScaleOptimizer` or a `MultiOptimizer`), or the file holds
            something else than records.
        OSError: In `fit`, if a file cannot be written when it begins. Later
            there is a warning, and training goes on.
        ImportError: In `fit`, if `log_dir` is given without tensorboardX.
        RuntimeError: If a hook that reads the model is called in another
            thread than that of `fit`.

    Example:
        >>> import keras, keras_adamax, numpy as np
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(1, name="dense")],
        ...     name="model",
        ... )
        >>> model.compile("adamax_clipped", "mse")
        >>> logger = keras_adamax.ClipRateLogger()
        >>> history = model.fit(
        ...     np.ones((8, 2)), np.full((8, 1), 9.0), batch_size=1, epochs=2,
        ...     callbacks=[logger], verbose=0,
        ... )
        >>> history.history["clip_rate"]
        [1.0, 1.0]
        >>> records = logger.records
        >>> str(records["variable"][0]), float(records["value"][0])
        ('model/dense/kernel', 1.0)

        Which batch was left out, and for which layer:

        >>> model.compile(
        ...     keras_adamax.AdamaxClipped(
        ...         clip_epsilon=100.0, spike_threshold=0.2
        ...     ),
        ...     "mse",
        ... )
        >>> targets = np.ones((8, 1))
        >>> targets[5] = 1e6
        >>> history = model.fit(
        ...     np.ones((8, 2)), targets, batch_size=1, shuffle=False,
        ...     callbacks=[logger], verbose=0,
        ... )
        >>> history.history["spikes"]
        [1]
        >>> records = logger.records
        >>> for row in np.flatnonzero(records["quantity"] == "spike_rate"):
        ...     print(
        ...         records["batch"][row],
        ...         records["variable"][row] or "all",
        ...         records["value"][row],
        ...     )
        6 model/dense/kernel 1.0
        6 model/dense/bias 1.0
        6 all 1.0
    """

    summary_keys = ("clip_rate",)
    quantities = (
        "clip_rate",
        "gradient_norm",
        "clipped_share",
        "update_norm",
        "nonfinite_elements",
        "skipped_steps",
        "spikes",
        "spike_rate",
    )

    def __init__(
        self,
        update_freq: str | int = "epoch",
        log_dir: str | os.PathLike | None = None,
        filename: str | os.PathLike | None = None,
        *,
        batch_logs: bool | Sequence[str] = False,
        on_record: Callable[[int, str, float], Any] | None = None,
    ):
        super().__init__(update_freq, log_dir, filename, batch_logs, on_record)

    def _reset(self) -> None:
        super()._reset()
        self.summary_keys = type(self).summary_keys
        self._windows: list[ClipWindow] = []
        # At the begin of the epoch, and when they were read last.
        self._of_epoch: list[Totals] = []
        self._latest: list[Totals] = []
        self._warnings = FirstWarnings()

    def _ours(self) -> list[AdamaxClipped]:
        """The optimizers to read, with their state brought up to date."""
        self._bring_up_to_date()
        ours = _optimizers.ours(self._optimizers)
        self.summary_keys = (
            "clip_rate",
            *["gradient_norm"] * any(o.track_gradient_norms for o in ours),
            *["spikes"] * any(optimizer.has_spike_gate for optimizer in ours),
            *["skipped_steps"] * any(o.skip_nonfinite for o in ours),
        )
        return ours

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Begins a run, or continues one, in the first epoch."""
        super().on_epoch_begin(epoch, logs)
        for window in self._windows:
            window.spikes.begin_epoch(epoch)

    def _check_model(self) -> None:
        optimizers = self._ours()
        if not optimizers:
            leaves = _optimizers.all_leaves(self._optimizers)
            if not leaves and not all(o.built for o in self._optimizers):
                return  # a MultiOptimizer that makes its own when it is built
            received = ", ".join(type(leaf).__name__ for leaf in leaves)
            raise ValueError(
                "ClipRateLogger needs a model whose optimizer is AdamaxClipped "
                "(it may be inside of a LossScaleOptimizer or a "
                f"MultiOptimizer). Received: {received or None}. Compile the "
                'model with optimizer="adamax_clipped", or leave the logger '
                "out."
            )
        for optimizer in optimizers:
            if not optimizer.track_clip_rate:
                raise ValueError(
                    "ClipRateLogger needs an optimizer that counts what it "
                    f"clips. Received: {optimizer.name!r}, with "
                    "track_clip_rate=False. Make it with track_clip_rate=True."
                )

    def _begin_window(self) -> bool:
        self._ours()
        self._read(_clip_counts.start(self._optimizers))
        self._of_epoch = self._latest
        self._windows = [
            ClipWindow.of(its, self._epoch, self._counter.done)
            for its in self._latest
        ]
        return True

    def _read(self, reading: Reading) -> int:
        """Waits for the totals; returns the updates applied."""
        step, self._latest = _clip_counts.read(reading)
        # Those that were not built when the window began.
        for its in self._latest[len(self._windows) :]:
            self._windows.append(ClipWindow.of(its.at_begin(), self._epoch, 0))
        return step

    def _start_measuring(self, has_window: bool) -> Callable[..., Measurement]:
        del has_window  # an optimizer that was not built had counted nothing
        optimizers = self._ours()
        if not optimizers:
            self._check_model()
        return functools.partial(
            self._measure,
            optimizers,
            _clip_counts.start(self._optimizers),
            [optimizer.scheduled_values() for optimizer in optimizers],
            self._counter.done,
        )

    def _measure(
        self,
        optimizers: Sequence[AdamaxClipped],
        reading: Reading,
        scheduled: Sequence[Mapping[str, float]],
        done: int,
        is_up_to_date: bool,
    ) -> Measurement:
        del is_up_to_date  # all that is needed has been read
        step = self._read(reading)
        now, before = self._latest, [window.last for window in self._windows]
        earlier = self._find_spikes(step, done)
        clips = self._clips_since(before)
        summary = _clip_windows.summary(
            self.summary_keys, optimizers, now, before, clips
        )
        values = {"clip_rate": _clip_windows.rates(optimizers, now, clips)}
        for optimizer, its, elapsed in zip(
            optimizers, scheduled, clips, strict=True
        ):
            if elapsed is not None and optimizer.target_clip_rate is not None:
                self._warnings.of_target(
                    optimizer, its["clip_multiplier"], elapsed.rate()
                )
        if "gradient_norm" in self.summary_keys:
            values |= self._measure_gradients(optimizers, before)
        if "spikes" in self.summary_keys:
            self._warnings.of_spikes(earlier, summary["spikes"])
        if "skipped_steps" in self.summary_keys:
            self._warnings.of_skips(summary["skipped_steps"], self._epoch)
        for window, its in zip(self._windows, now, strict=True):
            window.last = its
        names = [name for its in now for name in its.clips.counted]
        return Measurement(
            step,
            tuple(_optimizers.unique_names(names)),
            values,
            summary,
            earlier=earlier,
            scheduled=_clip_counts.named(optimizers, scheduled),
        )

    def _measure_gradients(
        self, optimizers: Sequence[AdamaxClipped], before: Sequence[Totals]
    ) -> dict[str, list[float]]:
        """Quantity to one value per variable; warns of those not finite."""
        now = self._latest
        names = [list(its.clips.counted) for its in now]
        values = _gradient_windows.values(
            names,
            [
                _gradient_windows.since(its.gradients, then.gradients)
                for its, then in zip(now, before, strict=True)
            ],
        )
        found = [
            _gradient_windows.nonfinite_elements(its.nonfinite, then.nonfinite)
            for its, then in zip(now, before, strict=True)
        ]
        if any(found):
            values["nonfinite_elements"] = [
                float(its.get(path, 0))
                for its, paths in zip(found, names, strict=True)
                for path in paths
            ]
            self._warnings.of_nonfinite(
                [
                    (its.nonfinite, elements, optimizer.skip_nonfinite)
                    for its, elements, optimizer in zip(
                        now, found, optimizers, strict=True
                    )
                ],
                self._epoch,
            )
        return values

    def _epoch_summary(self) -> dict[str, float]:
        now, begin = self._latest, self._of_epoch
        self._of_epoch = now
        if self.update_freq == "epoch":
            return super()._epoch_summary()
        before = [*begin, *(its.at_begin() for its in now[len(begin) :])]
        return _clip_windows.summary(
            self.summary_keys,
            _optimizers.ours(self._optimizers),
            now,
            before,
            self._clips_since(before),
        )

    def _measure_between(self) -> Measurement:
        self._ours()
        step = self._read(_clip_counts.start(self._optimizers))
        earlier = self._find_spikes(step, self._counter.done)
        return Measurement(step, (), {}, {}, earlier=earlier)

    def _find_spikes(
        self, step: int, done: int
    ) -> list[tuple[int, int, Measurement]]:
        """A measurement for each batch that was left out since the last call.

        Args:
            step: Updates that all optimizers have applied.
            done: Batches done in the epoch.
        """
        found: dict[tuple[int, int, int], list[Spike]] = {}
        for window, now in zip(self._windows, self._latest, strict=True):
            for epoch, batch, spike in window.spikes.find(
                now.spikes, self._epoch, done
            ):
                # Several optimizers have other numbers than each of them.
                its = max(step - (now.spikes.step - spike.step), 0)
                found.setdefault((epoch, batch, its), []).append(spike)
        return [
            (
                epoch,
                batch,
                _spike_windows.measurement_of(its, found[epoch, batch, its]),
            )
            for epoch, batch, its in sorted(found)
        ]

    def _clips_since(
        self, before: Sequence[Totals]
    ) -> list[ClipStatistics | None]:
        """What each optimizer has clipped meanwhile; `None`: not known."""
        result: list[ClipStatistics | None] = []
        for now, then in zip(self._latest, before, strict=True):
            earlier = then.clips
            if not earlier.counted:  # it was not built
                zeros = dict.fromkeys(now.clips.counted, 0)
                earlier = ClipStatistics(zeros, zeros)
            try:
                result.append(now.clips.since(earlier))
            except ValueError as error:
                self._warnings.of_loss(error)
                result.append(None)
        return result

    def _end_windows(self) -> None:
        self._windows = []

    def _window_state(self) -> tuple[Any, list[np.ndarray]]:
        return [window.to_json() for window in self._windows], []

    def _restore_window(self, state: Any, arrays: list[np.ndarray]) -> None:
        del arrays
        for i, its in enumerate(state):
            self._windows[i] = ClipWindow.from_json(
                its, self._runs.renamed, self._windows[i]
            )
