"""Which loggers, runs and variables belong to which `fit`."""

import contextlib

import keras
import numpy as np
import pytest

from keras_adamax import (
    AdamaxClipped,
    AtomicBackup,
    ClipRateLogger,
    WeightDeltaLogger,
)
from tests.callbacks import training
from tests.support import repeated

LOGGERS = pytest.mark.parametrize("logger", [ClipRateLogger, WeightDeltaLogger])


class Composite(keras.callbacks.Callback):
    """Hands its hooks on to others."""

    def __init__(self, *others):
        super().__init__()
        self.others = others

    def set_model(self, model):
        super().set_model(model)
        for other in self.others:
            other.set_model(model)

    def on_train_begin(self, logs=None):
        for other in self.others:
            other.on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        for other in self.others:
            other.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        for other in self.others:
            other.on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        for other in self.others:
            other.on_train_end(logs)


def steps(logger, **conditions):
    """(run, step) of the records of all variables together."""
    rows = training.rows(
        logger.records,
        variable="",
        quantity=logger.summary_keys[0],
        **conditions,
    )
    return [(row[0], row[3]) for row in rows]


class TestRefused:
    @LOGGERS
    def test_the_next_fit_is_not_concerned(self, logger, tmp_path):
        model, refused = training.make_model(), logger()
        backup = AtomicBackup(tmp_path / "b")
        with pytest.raises(ValueError, match="must stand behind"):
            training.fit(model, [backup, refused])
        training.fit(model, [backup], epochs=2)
        training.fit(model, [refused, backup], epochs=2)
        assert steps(refused) == [(0, 18), (0, 24)]
        # And it is refused again wherever that is due.
        with pytest.raises(ValueError, match="must stand behind"):
            training.fit(model, [backup, refused])

    @LOGGERS
    def test_evaluate_and_predict_attach_nothing(self, logger, tmp_path):
        model, seen = training.make_model(), logger()
        x, y = training.make_data()
        model.evaluate(x, y, callbacks=[seen], verbose=0)
        model.predict(x, callbacks=[seen], verbose=0)
        training.fit(model, [AtomicBackup(tmp_path / "b")])

    @LOGGERS
    def test_one_that_another_callback_holds(self, logger, tmp_path):
        model, held = training.make_model(), logger()
        backup = AtomicBackup(tmp_path / "b")
        with pytest.raises(ValueError, match="must stand behind"):
            training.fit(model, [backup, Composite(held)])
        with pytest.raises(KeyboardInterrupt):
            training.fit(
                model, [Composite(held), backup, training.Stop(2, 3)], epochs=4
            )
        again = logger()
        training.fit(model, [Composite(again), backup], epochs=4)
        assert steps(again) == [(0, 6), (0, 12), (0, 18), (0, 24)]


class Fail(keras.callbacks.Callback):
    """Raises an error in a hook."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.fail)

    def fail(self, *arguments, **keywords):
        raise RuntimeError("Failed.")


class TestResumedWithNewLoggers:
    @LOGGERS
    @pytest.mark.parametrize("update_freq", [4, *repeated("epoch")])
    def test_while_the_old_ones_live(self, logger, update_freq, tmp_path):
        whole = logger(update_freq)
        training.fit(training.make_model(), [whole], epochs=4)
        model = training.make_model()
        backup = AtomicBackup(tmp_path / "b")
        old = [logger(update_freq), logger(5)]
        with pytest.raises(KeyboardInterrupt):
            training.fit(model, [*old, backup, training.Stop(1, 3)], epochs=4)
        older = [logger(update_freq), logger(5)]
        with pytest.raises(KeyboardInterrupt):
            training.fit(model, [*older, backup, training.Stop(3, 3)], epochs=4)
        # In another order: each has the records of its like.
        new = [logger(5), logger(update_freq)]
        training.fit(model, [*new, backup], epochs=4)
        training.assert_same_records(whole.records, new[1].records)
        assert steps(new[0]) == [(0, 5), (0, 10), (0, 15), (0, 20)]

    @pytest.mark.parametrize(
        "hook", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin"]
    )
    def test_after_another_callback_has_failed(self, hook, tmp_path):
        model, old = training.make_model(), ClipRateLogger()
        backup = AtomicBackup(tmp_path / "b")
        for callbacks in ([old, Fail(hook), backup], [old, backup, Fail(hook)]):
            with pytest.raises(RuntimeError, match="Failed"):
                training.fit(model, callbacks, epochs=2)
        training.fit(model, [backup], epochs=2)
        new = ClipRateLogger()
        training.fit(model, [new, backup], epochs=2)
        assert len(steps(new)) == 2

    @LOGGERS
    def test_after_training_was_told_to_stop(self, logger, tmp_path):
        class StopTraining(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.model.stop_training = epoch == 1

        model, old = training.make_model(), logger()
        backup = AtomicBackup(tmp_path / "b", delete_checkpoint=False)
        training.fit(model, [old, StopTraining(), backup], epochs=4)
        new = logger()
        training.fit(model, [new, backup], epochs=4)
        assert steps(new) == [(0, 6), (0, 12), (0, 18), (0, 24)]

    def test_another_configuration_gets_what_is_left(self, tmp_path):
        model = training.make_model()
        backup = AtomicBackup(tmp_path / "b")
        old = [ClipRateLogger(4), ClipRateLogger()]
        with pytest.raises(KeyboardInterrupt):
            training.fit(model, [*old, backup, training.Stop(2, 3)], epochs=3)
        new = [ClipRateLogger(), ClipRateLogger(3)]
        training.fit(model, [*new, backup], epochs=3)
        assert steps(new[0]) == [(0, 6), (0, 12), (0, 18)]
        assert steps(new[1]) == [(0, 4), (0, 8), (0, 12), (0, 15), (0, 18)]

    def test_a_logger_more(self, tmp_path):
        model = training.make_model()
        backup = AtomicBackup(tmp_path / "b")
        with pytest.raises(KeyboardInterrupt):
            training.fit(
                model, [ClipRateLogger(), backup, training.Stop(1, 3)], epochs=3
            )
        for stop in (training.Stop(2, 3), training.Stop(9, 3)):
            new = [ClipRateLogger(), ClipRateLogger(2)]
            with (
                pytest.raises(KeyboardInterrupt)
                if stop.at[0] == 2
                else contextlib.nullcontext()
            ):
                training.fit(model, [*new, backup, stop], epochs=3)
        assert steps(new[0]) == [(0, 6), (0, 12), (0, 18)]
        assert [step for _, step in steps(new[1])] == [8, 10, 12, 14, 16, 18]


@pytest.mark.slow
class TestTwoModels:
    @LOGGERS
    @pytest.mark.parametrize("is_new", [False, True])
    def test_what_the_other_has_made_stays(self, logger, is_new, tmp_path):
        file = tmp_path / "records.csv"
        one, other = training.make_model(), training.make_model()
        backup = AtomicBackup(tmp_path / "b")
        shared = logger(filename=file)
        with pytest.raises(KeyboardInterrupt):
            training.fit(one, [shared, backup, training.Stop(2, 3)], epochs=4)
        training.fit(other, [shared], epochs=3)
        if is_new:
            shared = logger(filename=file)
        training.fit(one, [shared, backup], epochs=4)
        expected = [(0, 6), (0, 12), (0, 18), (0, 24)]
        assert steps(shared, run=0) == expected
        reader = logger()
        reader.load_records(file)
        for run, count in ((0, 4), (1, 3)):
            assert steps(reader, run=run) == [
                (run, 6 * i + 6) for i in range(count)
            ]
            if not (is_new and run == 1):  # not in the memory of a new one
                assert steps(shared, run=run) == steps(reader, run=run)
        # The next run has a number of its own, whoever writes it.
        last = logger(filename=file)
        training.fit(other, [last])
        assert {run for run, _ in steps(last)} == {2}

    @LOGGERS
    def test_that_were_recorded_under_one_number(self, logger, tmp_path):
        one, other = training.make_model(), training.make_model()
        backup = AtomicBackup(tmp_path / "b")
        with pytest.raises(KeyboardInterrupt):
            training.fit(one, [logger(), backup, training.Stop(2, 3)], epochs=3)
        other.layers[0].kernel.assign(other.layers[0].kernel * 2)
        shared = logger()
        training.fit(other, [shared], epochs=2)
        before = training.values(shared.records)
        training.fit(one, [shared, backup], epochs=3)
        assert steps(shared, run=0) == [(0, 6), (0, 12), (0, 18)]
        assert steps(shared, run=1) == [(1, 6), (1, 12)]
        assert training.values(shared.records, run=1) == before

    @LOGGERS
    def test_in_turns_by_initial_epoch(self, logger, tmp_path):
        models = [training.make_model(), training.make_model()]
        shared = logger(filename=tmp_path / "records.csv")
        for epoch in range(3):
            for model in models:
                training.fit(
                    model, [shared], epochs=epoch + 1, initial_epoch=epoch
                )
        for run in (0, 1):
            assert steps(shared, run=run) == [(run, 6), (run, 12), (run, 18)]
        reader = logger()
        reader.load_records(tmp_path / "records.csv")
        assert sorted(steps(reader)) == sorted(steps(shared))

    def test_one_inside_of_the_others_hook(self, tmp_path):
        inner_model = training.make_model()
        inner = WeightDeltaLogger()

        class TrainAnother(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                training.fit(inner_model, [inner, inner_backup], epochs=2)

        inner_backup = AtomicBackup(tmp_path / "inner")
        outer, outer_backup = WeightDeltaLogger(), AtomicBackup(tmp_path / "b")
        callbacks = [outer, TrainAnother(), outer_backup]
        model = training.make_model()
        with pytest.raises(KeyboardInterrupt):
            training.fit(model, [*callbacks, training.Stop(2, 3)], epochs=3)
        new = WeightDeltaLogger()
        training.fit(model, [new, *callbacks[1:]], epochs=3)
        assert steps(new) == [(0, 6), (0, 12), (0, 18)]
        assert len(steps(inner)) == 2 * 4


def unnamed_model(optimizer=None, widths=(6, 1)):
    """As a notebook's cell makes it: Keras numbers the layers."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), *map(keras.layers.Dense, widths)]
    )
    model.compile(
        optimizer or AdamaxClipped(0.01, clip_epsilon=0.05),
        "mse",
        **training.COMPILE,
    )
    return model


@pytest.mark.slow
class TestMadeAnew:
    @LOGGERS
    @pytest.mark.parametrize("way", ["memory", "file", "new loggers"])
    def test_folds_are_runs_of_one_model(self, logger, way, tmp_path):
        file = None if way == "memory" else tmp_path / "records.csv"
        shared = logger(filename=file)
        for _ in range(3):
            if way == "new loggers":
                shared = logger(filename=file)
            training.fit(unnamed_model(), [shared], epochs=2)
        if file is not None:
            shared.load_records(file)
        assert steps(shared) == [
            (run, step) for run in range(3) for step in (6, 12)
        ]

    @LOGGERS
    def test_names_of_their_own_do_not_matter(self, logger):
        shared = logger()
        for name in ("north", "south"):
            model = keras.Sequential(
                [keras.Input((4,)), keras.layers.Dense(1, name=name)]
            )
            model.compile("adamax_clipped", "mse", **training.COMPILE)
            training.fit(model, [shared])
        assert steps(shared) == [(0, 6), (1, 6)]

    @LOGGERS
    def test_another_number_of_layers_is_another_model(self, logger):
        shared = logger()
        training.fit(unnamed_model(), [shared])
        with pytest.warns(UserWarning, match="of another model"):
            training.fit(unnamed_model(widths=(6, 6, 1)), [shared])

    @LOGGERS
    @pytest.mark.parametrize("is_new", [False, True])
    def test_resumed_in_one_process(self, logger, is_new, tmp_path):
        # Backups at 4, 8, 12; a window is open in each.
        arguments = {"update_freq": 5, "filename": tmp_path / "records.csv"}
        whole = logger(5)
        model = unnamed_model()
        training.fit(model, [whole], epochs=2)
        names = [variable.path for variable in model.trainable_variables]

        first, own = unnamed_model(), logger(**arguments)
        backup = AtomicBackup(tmp_path / "b")
        with pytest.raises(KeyboardInterrupt):
            training.fit(first, [own, backup, training.Stop(1, 3)], epochs=2)
        recorded = [variable.path for variable in first.trainable_variables]
        second = unnamed_model()
        if is_new:
            own = logger(**arguments)
        training.fit(second, [own, backup], epochs=2)
        records = own.records
        assert set(records["variable"].tolist()) == {"", *recorded}
        records["variable"] = np.asarray(
            [
                names[recorded.index(name)] if name else ""
                for name in records["variable"].tolist()
            ]
        )
        training.assert_same_records(whole.records, records)
        assert steps(own) == [(0, 5), (0, 10)]
