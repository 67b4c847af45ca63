"""`ClipRateLogger`: how often gradients are clipped, and how large they are."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import saving

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import (
    _clip_counts,
    _gradient_windows,
    _optimizers,
    _spike_windows,
)
from keras_adamax.callbacks._first_warnings import FirstWarnings
from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.callbacks._recorder import Recorder
from keras_adamax.callbacks._spike_windows import SpikeWindow
from keras_adamax.clip_statistics import ClipStatistics
from keras_adamax.gradient_statistics import (
    GradientStatistics,
    NonfiniteGradient,
)
from keras_adamax.spike_rule import Spike, SpikeStatistics


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
            value that is recorded, in the thread of `fit`; see
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
        self._snapshots: list[ClipStatistics] = []
        self._spikes: list[SpikeWindow] = []
        self._skipped: list[int] = []
        # At the begin of the epoch, and when they were read last.
        self._of_epoch = self._latest = _clip_counts.NOTHING
        self._gradients: list[GradientStatistics] = []
        self._nonfinite: list[dict[str, NonfiniteGradient]] = []
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
        for window in self._spikes:
            window.begin_epoch(epoch)

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
        optimizers = self._ours()
        clips = [o.clip_statistics() for o in optimizers]
        spikes = [o.spike_statistics() for o in optimizers]
        skipped = [o.skipped_steps() for o in optimizers]
        gradients = [o.gradient_statistics() for o in optimizers]
        self._nonfinite = [o.nonfinite_gradients() for o in optimizers]
        self._of_epoch = _clip_counts.NOTHING._replace(
            clips=clips,
            spikes=spikes,
            skipped=skipped,
            gradients=gradients,
        )
        # Copies: a window that is restored does not begin with the epoch.
        self._snapshots, self._skipped = list(clips), list(skipped)
        self._gradients = list(gradients)
        self._spikes = [
            SpikeWindow.of(gate, self._epoch, self._counter.done)
            for gate in spikes
        ]
        return True

    def _measure(self, has_window: bool) -> Measurement:
        del has_window  # an optimizer that was not built had counted nothing
        optimizers = self._ours()
        if not optimizers:
            self._check_model()
        before = self._snapshots
        self._latest = _clip_counts.read(self._optimizers)
        step, self._snapshots, gates, diverged, skipped, *_ = self._latest
        names: list[str] = []
        rates: list[float] = []
        earlier = self._find_spikes(step, gates)
        spikes = [
            window.count(gate)
            for window, gate in zip(self._spikes, gates, strict=True)
        ]
        all_elapsed = self._all_since(self._snapshots, before)
        for optimizer, now, elapsed, nan in zip(
            optimizers, self._snapshots, all_elapsed, diverged, strict=True
        ):
            names += now.counted
            if elapsed is None:
                rates += [math.nan] * len(now.counted)
            elif optimizer.clip_gradients:
                rates += [
                    math.nan if path in nan else rate
                    for path, rate in elapsed.rates().items()
                ]
                self._warnings.of_target(optimizer, elapsed.rate())
            else:
                rates += [0.0] * len(elapsed.counted)
        summary = {
            "clip_rate": _clip_counts.rate(optimizers, all_elapsed, diverged)
        }
        values = {"clip_rate": rates}
        if "gradient_norm" in self.summary_keys:
            values |= self._measure_gradients(summary)
        if "spikes" in self.summary_keys:
            # A total that has become smaller is of a state that was loaded.
            summary["spikes"] = math.nan if min(spikes) < 0 else sum(spikes)
            self._warnings.of_spikes(earlier, summary["spikes"])
        if "skipped_steps" in self.summary_keys:
            number = _clip_counts.grown(self._skipped, skipped)
            summary["skipped_steps"] = number
            self._warnings.of_skips(number, self._epoch)
        self._skipped = skipped
        return Measurement(
            step,
            tuple(_optimizers.unique_names(names)),
            values,
            summary,
            earlier=earlier,
            scheduled=_clip_counts.scheduled_values(optimizers),
        )

    def _measure_gradients(
        self, summary: dict[str, float]
    ) -> dict[str, list[float]]:
        """Quantity to one value per variable; adds to the summary."""
        before, not_finite = self._gradients, self._nonfinite
        self._gradients = self._latest.gradients
        self._nonfinite = self._latest.nonfinite
        elapsed = _gradient_windows.all_since(self._gradients, before)
        summary["gradient_norm"] = _gradient_windows.norm(elapsed)
        names = [list(clips.counted) for clips in self._latest.clips]
        values = _gradient_windows.values(names, elapsed)
        found = [
            _gradient_windows.nonfinite_elements(
                now, not_finite[i] if i < len(not_finite) else {}
            )
            for i, now in enumerate(self._nonfinite)
        ]
        if any(found):
            values["nonfinite_elements"] = [
                float(its.get(path, 0))
                for its, paths in zip(found, names, strict=True)
                for path in paths
            ]
            ours = _optimizers.ours(self._optimizers)
            are_skipped = [optimizer.skip_nonfinite for optimizer in ours]
            self._warnings.of_nonfinite(
                list(zip(self._nonfinite, found, are_skipped, strict=True)),
                self._epoch,
            )
        return values

    def _epoch_summary(self) -> dict[str, float]:
        begin, self._of_epoch = self._of_epoch, self._latest
        if self.update_freq == "epoch":
            return super()._epoch_summary()
        optimizers = _optimizers.ours(self._optimizers)
        elapsed = self._all_since(self._latest.clips, begin.clips)
        summary = {
            "clip_rate": _clip_counts.rate(
                optimizers, elapsed, self._latest.diverged
            )
        }
        if "gradient_norm" in self.summary_keys:
            summary["gradient_norm"] = _gradient_windows.norm(
                _gradient_windows.all_since(
                    self._latest.gradients, begin.gradients
                )
            )
        if "spikes" in self.summary_keys:
            summary["spikes"] = _clip_counts.grown(
                [gate.spike_steps for gate in begin.spikes],
                [gate.spike_steps for gate in self._latest.spikes],
            )
        if "skipped_steps" in self.summary_keys:
            summary["skipped_steps"] = _clip_counts.grown(
                begin.skipped, self._latest.skipped
            )
        return summary

    def _measure_between(self) -> Measurement:
        self._ours()
        self._latest = _clip_counts.read(self._optimizers)
        step, snapshots, gates, *_ = self._latest
        # Optimizers that were not built when the window began.
        for _ in snapshots[len(self._snapshots) :]:
            self._snapshots.append(ClipStatistics({}, {}))
            self._skipped.append(0)
            self._gradients.append(GradientStatistics({}, {}, {}, {}, {}))
            self._nonfinite.append({})
        earlier = self._find_spikes(step, gates)
        return Measurement(step, (), {}, {}, earlier=earlier)

    def _find_spikes(
        self, step: int, gates: Sequence[SpikeStatistics]
    ) -> list[tuple[int, int, Measurement]]:
        """A measurement for each batch that was left out since the last call.

        Args:
            step: Updates that all optimizers have applied.
            gates: What the gate of each has done.
        """
        for gate in gates[len(self._spikes) :]:
            # It was not built when the window began, and had done nothing.
            begin = dataclasses.replace(gate, spike_steps=0, calls=0)
            self._spikes.append(SpikeWindow.of(begin, self._epoch, 0))
        found: dict[tuple[int, int, int], list[Spike]] = {}
        for window, gate in zip(self._spikes, gates, strict=True):
            for epoch, batch, spike in window.find(
                gate, self._epoch, self._counter.done
            ):
                # Several optimizers have other numbers than each of them.
                its = max(step - (gate.step - spike.step), 0)
                found.setdefault((epoch, batch, its), []).append(spike)
        return [
            (
                epoch,
                batch,
                _spike_windows.measurement_of(its, found[epoch, batch, its]),
            )
            for epoch, batch, its in sorted(found)
        ]

    def _all_since(
        self,
        now: Sequence[ClipStatistics],
        before: Sequence[ClipStatistics],
    ) -> list[ClipStatistics | None]:
        """What each optimizer has counted meanwhile; `None`: not known."""
        # Those that were not built before had counted nothing.
        return [
            self._since(its, before[i] if i < len(before) else None)
            for i, its in enumerate(now)
        ]

    def _since(
        self, now: ClipStatistics, before: ClipStatistics | None
    ) -> ClipStatistics | None:
        if before is None or not before.counted:  # it was not built
            before = ClipStatistics(
                dict.fromkeys(now.counted, 0), dict.fromkeys(now.counted, 0)
            )
        try:
            return now.since(before)
        except ValueError as error:
            self._warnings.of_loss(error)
            return None

    def _end_windows(self) -> None:
        self._snapshots = []
        self._spikes = []

    def _window_state(self) -> tuple[Any, list[np.ndarray]]:
        return [
            [
                dict(s.clipped),
                dict(s.counted),
                w.to_json(),
                skipped,
                dataclasses.asdict(gradients),
                nonfinite,
            ]
            for s, w, skipped, gradients, nonfinite in zip(
                self._snapshots,
                self._spikes,
                self._skipped,
                self._gradients,
                self._nonfinite,
                strict=True,
            )
        ], []

    def _restore_window(self, state: Any, arrays: list[np.ndarray]) -> None:
        del arrays
        for i, (clipped, counted, *its) in enumerate(state):
            names = self._present_names(counted, self._snapshots[i].counted)
            self._snapshots[i] = ClipStatistics(
                _renamed(clipped, names), _renamed(counted, names)
            )
            # Backups of earlier versions say nothing of what comes now.
            if len(its) > 0:
                self._spikes[i] = SpikeWindow.from_json(its[0], self._spikes[i])
            if len(its) > 1:
                self._skipped[i] = its[1]
            if len(its) > 2:
                totals, not_finite = its[2:]
                self._gradients[i] = GradientStatistics(
                    **{k: _renamed(v, names) for k, v in totals.items()}
                )
                self._nonfinite[i] = {
                    path: NonfiniteGradient(*numbers)
                    for path, numbers in _renamed(not_finite, names).items()
                }

    def _present_names(
        self, saved: Mapping[str, Any], now: Mapping[str, Any]
    ) -> dict[str, str]:
        """Saved path to the present one of the same variable."""
        old = [self._runs.renamed.get(name, name) for name in now]
        if set(old) != set(saved):
            if len(old) != len(saved):
                return {}
            old = list(saved)
        return dict(zip(old, now, strict=True))


def _renamed(
    by_path: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    return {names.get(path, path): value for path, value in by_path.items()}
