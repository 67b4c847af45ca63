"""What is scheduled stands beside what it led to."""

import keras
import pytest

from keras_adamax import (
    AdamaxClipped,
    ClipRateLogger,
    LinearRamp,
    TargetClipRate,
    WeightDeltaLogger,
)
from tests.callbacks import training

SCHEDULED = ("learning_rate", "beta_2", "clip_multiplier")


def make_optimizer(**arguments):
    return AdamaxClipped(
        keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5),
        beta_2=LinearRamp(0.5, 1.0, 100),
        clip_multiplier=LinearRamp(3.0, 1.0, 100),
        **arguments,
    )


def values(logger, quantity):
    rows = training.rows(logger.records, quantity=quantity, variable="")
    return [(row[1], row[2], row[6]) for row in rows]


@pytest.mark.parametrize("update_freq", ["epoch", 4])
def test_values_of_the_next_step(update_freq, tmp_path):
    model = training.make_model(optimizer=make_optimizer())
    filename = tmp_path / "records.csv"
    loggers = [
        ClipRateLogger(update_freq, filename=filename),
        WeightDeltaLogger(update_freq, filename=filename),
    ]
    history = training.fit(model, loggers, epochs=2)
    moments = [(0, 6, 6), (1, 6, 12)]
    if update_freq == 4:
        moments = [(0, 4, 4), (1, 2, 8), (1, 6, 12)]
    expected = {
        "learning_rate": lambda step: 0.5 * 0.5**step,
        "beta_2": lambda step: 0.5 + 0.005 * step,
        "clip_multiplier": lambda step: 3.0 - 0.02 * step,
    }
    for name, value in expected.items():
        found = values(loggers[0], name)
        assert [row[:2] for row in found] == [m[:2] for m in moments]
        assert [row[2] for row in found] == pytest.approx(
            [value(step) for _, _, step in moments], rel=1e-5
        )
        # They are no results: the progress bar has no room for them.
        assert name not in history.history
        assert values(loggers[1], name) == []
    again = ClipRateLogger()
    again.load_records(filename)
    assert values(again, "beta_2") == values(loggers[0], "beta_2")


def test_numbers_are_not_recorded():
    model = training.make_model(optimizer=AdamaxClipped(0.1))
    logger = ClipRateLogger()
    training.fit(model, [logger])
    assert not set(SCHEDULED) & set(logger.records["quantity"])


def test_a_multiplier_that_follows_a_target():
    optimizer = AdamaxClipped(0.1, clip_multiplier=TargetClipRate(0.1))
    model = training.make_model(optimizer=optimizer)
    logger = ClipRateLogger()
    training.fit(model, [logger])
    [(*_, value)] = values(logger, "clip_multiplier")
    assert value == pytest.approx(optimizer.current_clip_multiplier())


def test_several_optimizers_have_their_own():
    optimizer = keras.optimizers.MultiOptimizer(
        lambda _: make_optimizer(name="one")
    )
    model = training.make_model(optimizer=optimizer)
    logger = ClipRateLogger()
    training.fit(model, [logger])
    number = len(optimizer.optimizers)
    assert number > 1
    for its in ["one", *(f"one#{i + 1}" for i in range(1, number))]:
        [(*_, value)] = values(logger, f"{its}/beta_2")
        assert value == pytest.approx(0.53)
