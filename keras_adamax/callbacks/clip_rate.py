"""`ClipRateLogger`: how often gradients are clipped."""

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import saving

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import _clip_counts, _optimizers
from keras_adamax.callbacks._recorder import Measurement, Recorder
from keras_adamax.callbacks._spike_windows import SpikeWindow
from keras_adamax.spikes import Spike, SpikeStatistics
from keras_adamax.statistics import ClipStatistics
from keras_adamax.target_clip_rate import SMALLEST


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

    Put it first in the list of callbacks: what it adds to `logs` reaches the
    callbacks behind it. These see `clip_rate`, over all variables together;
    with a number of batches as `update_freq` it is that of the last record
    (NaN before the first), and the progress bar shows it from the next batch
    on. `records` and the files hold the rate of every variable. If a callback
    of Keras stands before it that lacks the key, a warning says so after the
    first epoch.

    With a spike gate (`spike_threshold`), `logs` have `spikes` as well: how
    many steps it has left out since the last record. Each of the last 16 of
    them has rows of its own, with the quantity `spike_rate`: the fraction of
    all elements that exceeded their bound, and that of the up to five
    variables in which it was largest. `batch` is the number of the batch in
    its epoch, from 1 on, and `step` the updates before it. The optimizer
    counts calls of `apply`, so that the batch is right where each batch is
    one call. A `LossScaleOptimizer` makes none for a step that it withholds:
    a spike after that is given an earlier batch, until the next record or
    epoch.

    Args:
        update_freq: `"epoch"` for a record at the end of each epoch, or an
            integer >= 1 for one after that many batches, counted through all
            epochs of a `fit`. Defaults to `"epoch"`.
        log_dir: Folder. Event files for TensorBoard are written to
            `clip_rate` in it; needs tensorboardX. Defaults to `None`.
        filename: CSV file with the columns `run,epoch,batch,step,variable,
            quantity,value`. It is appended to, and a `WeightDeltaLogger` may
            write to the same. Defaults to `None`.

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
    quantities = ("clip_rate", "spikes", "spike_rate")

    def __init__(
        self,
        update_freq: str | int = "epoch",
        log_dir: str | os.PathLike | None = None,
        filename: str | os.PathLike | None = None,
    ):
        super().__init__(update_freq, log_dir, filename)

    def _reset(self) -> None:
        super()._reset()
        self.summary_keys = type(self).summary_keys
        self._snapshots: list[ClipStatistics] = []
        self._spikes: list[SpikeWindow] = []
        self._has_warned_of_loss = False
        self._has_warned_of_target = False

    def _ours(self) -> list[AdamaxClipped]:
        """The optimizers to read, with their state brought up to date."""
        self._bring_up_to_date()
        ours = _optimizers.ours(self._optimizers)
        if any(optimizer.has_spike_gate for optimizer in ours):
            self.summary_keys = ("clip_rate", "spikes")
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
        self._snapshots = [o.clip_statistics() for o in optimizers]
        self._spikes = [
            SpikeWindow.of(
                o.spike_statistics(), self._epoch, self._counter.done
            )
            for o in optimizers
        ]
        return True

    def _measure(self, has_window: bool) -> Measurement:
        del has_window  # an optimizer that was not built had counted nothing
        optimizers = self._ours()
        if not optimizers:
            self._check_model()
        before = self._snapshots
        step, self._snapshots, gates = _clip_counts.read(self._optimizers)
        names: list[str] = []
        rates: list[float] = []
        clipped = counted = 0
        earlier = self._find_spikes(step, gates)
        spikes = [
            window.count(gate)
            for window, gate in zip(self._spikes, gates, strict=True)
        ]
        for i, (optimizer, now) in enumerate(
            zip(optimizers, self._snapshots, strict=True)
        ):
            elapsed = self._since(now, before[i] if i < len(before) else None)
            if elapsed is None:
                names += now.counted
                rates += [math.nan] * len(now.counted)
                continue
            names += elapsed.counted
            if optimizer.clip_gradients:
                rates += elapsed.rates().values()
                self._check_target(optimizer, elapsed.rate())
                clipped += sum(elapsed.clipped.values())
                counted += sum(elapsed.counted.values())
            else:
                rates += [0.0] * len(elapsed.counted)
        if counted:
            rate = clipped / counted
        else:
            off = [r for r in rates if not math.isnan(r)]
            rate = 0.0 if off else math.nan
        summary: dict[str, float] = {"clip_rate": rate}
        if "spikes" in self.summary_keys:
            # A total that has become smaller is of a state that was loaded.
            summary["spikes"] = math.nan if min(spikes) < 0 else sum(spikes)
        return Measurement(
            step,
            tuple(_optimizers.unique_names(names)),
            {"clip_rate": rates},
            summary,
            earlier=earlier,
        )

    def _check_target(self, optimizer: AdamaxClipped, rate: float) -> None:
        target = optimizer.target_clip_rate
        if target is None:
            return
        # The multiplier is read from the device only where that can tell.
        if (
            not self._has_warned_of_target
            and rate < target / 2
            and optimizer.current_clip_multiplier() - 1 < 1.5 * SMALLEST
        ):
            self._has_warned_of_target = True
            warnings.warn(
                f"The optimizer '{optimizer.name}' cannot reach its target of "
                f"{target:.6g} for the clip rate now: since the last record "
                f"it was {rate:.6g}, and the clip multiplier cannot be below "
                "1. After large gradients that lasts until the infinity norm "
                "has shrunk, by `beta_2` a step; choose a smaller `beta_2` or "
                "target where it lasts too long, and a smaller `clip_epsilon` "
                "where gradients are below it.",
                stacklevel=2,
            )

    def _measure_between(self) -> Measurement:
        self._ours()
        step, snapshots, gates = _clip_counts.read(self._optimizers)
        # Optimizers that were not built when the window began.
        for _ in snapshots[len(self._snapshots) :]:
            self._snapshots.append(ClipStatistics({}, {}))
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
            (epoch, batch, _measurement_of(its, found[epoch, batch, its]))
            for epoch, batch, its in sorted(found)
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
            if not self._has_warned_of_loss:
                self._has_warned_of_loss = True
                warnings.warn(
                    "ClipRateLogger cannot tell the clip rate since the last "
                    f"record, which is NaN: {error}",
                    stacklevel=2,
                )
            return None

    def _end_windows(self) -> None:
        self._snapshots = []
        self._spikes = []

    def _window_state(self) -> tuple[Any, list[np.ndarray]]:
        return [
            [dict(s.clipped), dict(s.counted), w.to_json()]
            for s, w in zip(self._snapshots, self._spikes, strict=True)
        ], []

    def _restore_window(self, state: Any, arrays: list[np.ndarray]) -> None:
        del arrays
        self._snapshots = [
            self._under_present_names(ClipStatistics(clipped, counted), now)
            for (clipped, counted, *_), now in zip(
                state, self._snapshots, strict=True
            )
        ]
        # Backups from before there was a spike gate say nothing of it.
        self._spikes = [
            SpikeWindow.from_json(its[0], now) if its else now
            for (_, _, *its), now in zip(state, self._spikes, strict=True)
        ]

    def _under_present_names(
        self, saved: ClipStatistics, now: ClipStatistics
    ) -> ClipStatistics:
        old = [self._renamed.get(name, name) for name in now.counted]
        if set(old) != set(saved.counted):
            if len(old) != len(saved.counted):
                return saved
            old = list(saved.counted)
        names = dict(zip(now.counted, old, strict=True))
        return ClipStatistics(
            {name: saved.clipped[its] for name, its in names.items()},
            {name: saved.counted[its] for name, its in names.items()},
        )


def _measurement_of(step: int, spikes: Sequence[Spike]) -> Measurement:
    """What is recorded of a batch.

    Args:
        step: Updates applied before it.
        spikes: One, or those of several optimizers.
    """
    rates = {n: rate for s in spikes for n, rate in s.variables.items()}
    return Measurement(
        step,
        tuple(rates),
        {"spike_rate": tuple(rates.values())},
        {"spike_rate": max(spike.rate for spike in spikes)},
    )
