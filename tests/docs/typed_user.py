# pyright: strict
"""A user's script: what a strict type checker says of our public names.

It is not run, but checked by pyright: as part of this folder, and in `.ci/run`
against the wheel, outside the checkout.
"""

from pathlib import Path
from typing import Any

import keras_adamax
from keras_adamax import plots
from keras_adamax_tuning import (
    AdamaxClippedHyperModel,
    AdamaxClippedSpace,
    OptunaOracle,
    OptunaTuner,
    Range,
    SearchResult,
    run_search,
)

optimizer = keras_adamax.AdamaxClipped(
    learning_rate=0.002,
    beta_2=keras_adamax.LinearRamp(0.99, 0.999, num_steps=100),
    clip_multiplier=keras_adamax.TargetClipRate(0.01),
    exclude_from_clipping=["bias$"],
)
optimizer.epsilon = 1e-7
optimizer.clip_multiplier = 2.0
optimizer.learning_rate = 1e-3
optimizer.clip_epsilon = 1e-3
start: keras_adamax.ClipStatistics = optimizer.clip_statistics()
rate: float = optimizer.clip_rate(since=start)
rates: dict[str, float] = optimizer.clip_rates()
optimizer.reset_clip_rates()
steps: int = optimizer.skipped_steps() + optimizer.spike_steps()
tolerance: float = optimizer.spike_tolerance
multiplier: float = optimizer.current_clip_multiplier()
for spike in optimizer.spikes(since=1):
    numbers: tuple[int, int, int, float] = (
        spike.number,
        spike.call,
        spike.step,
        spike.rate,
    )
    worst: list[str] = list(spike.variables)
statistics: keras_adamax.SpikeStatistics = optimizer.spike_statistics()
config: dict[str, object] = optimizer.get_config()
copy: keras_adamax.AdamaxClipped = keras_adamax.AdamaxClipped.from_config(
    config
)

schedule = keras_adamax.JoinedSchedule([1.0, 2.0], boundaries=[10])
loggers = [
    keras_adamax.ClipRateLogger(update_freq=10, filename=Path("run.csv")),
    keras_adamax.WeightDeltaLogger(log_dir="events", warn_unchanged=False),
]
backup = keras_adamax.AtomicBackup("backup", save_freq=100)
values = loggers[0].records["value"].tolist()

plots.save_report("run.csv", "run.png")
for draw in (
    plots.plot_clip_rates,
    plots.plot_training,
    plots.plot_weight_changes,
):
    figure = draw(loggers[0].records)
    figure.set_dpi(60)
table = plots.read_records("run.csv")


def build_model(hp: Any) -> Any:
    """What a search builds."""
    return hp


space = AdamaxClippedSpace(
    learning_rate=(1e-4, 1e-2),
    beta_2=[0.99, 0.999],
    clip_epsilon=Range(1e-6, 1e-2, "log"),
)
print(space.describe())
hypermodel = AdamaxClippedHyperModel(build_model, space)
tuner = OptunaTuner(hypermodel, oracle=OptunaOracle("val_loss", max_trials=9))
result: SearchResult = run_search(
    build_model, "data.npz", space=space, output="runs/search1"
)
result = SearchResult.load("runs/search1")
print(result.describe(), len(result.trials))
if result.best_trial is not None:
    narrow: AdamaxClippedSpace = space.narrow(
        result.best_trial.hyperparameters, factor=0.3
    )
best: keras_adamax.AdamaxClipped = result.load_best_optimizer()


def print_record(step: int, name: str, value: float) -> None:
    """What a logger gives every value to."""
    print(step, name, value)


loop = keras_adamax.TrainingLoop(
    build_model(None), [keras_adamax.ClipRateLogger(on_record=print_record)]
)
