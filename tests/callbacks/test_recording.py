"""When records are made, who sees them, and which run they belong to."""

import copy
import csv
import io
import math
import pickle
import re
import threading
import warnings
from contextlib import redirect_stdout

import keras
import numpy as np
import pytest

import keras_adamax
from keras_adamax import AdamaxClipped, ClipRateLogger, WeightDeltaLogger
from tests.callbacks import training
from tests.support import repeated

KEYS = {"clip_rate", "weight_delta", "weight_delta_ratio"}
LOGGERS = pytest.mark.parametrize("logger", [ClipRateLogger, WeightDeltaLogger])

IN_FRONT = {
    "History": lambda path, key: keras.callbacks.History(),
    "CSVLogger": lambda path, key: keras.callbacks.CSVLogger(path),
    "TensorBoard": lambda path, key: keras.callbacks.TensorBoard(
        path, write_graph=False
    ),
    "EarlyStopping's monitor": lambda path, key: keras.callbacks.EarlyStopping(
        key, mode="min"
    ),
    "ReduceLROnPlateau's monitor": lambda path, key: (
        keras.callbacks.ReduceLROnPlateau(key, mode="min")
    ),
    "ModelCheckpoint's monitor": lambda path, key: (
        keras.callbacks.ModelCheckpoint(
            f"{path}.weights.h5",
            key,
            mode="min",
            save_best_only=True,
            save_weights_only=True,
        )
    ),
}


def both(*arguments, **keywords):
    return [
        ClipRateLogger(*arguments, **keywords),
        WeightDeltaLogger(*arguments, **keywords),
    ]


def moments(logger, quantity=None):
    """(run, epoch, batch, step) of the records of all variables together."""
    quantity = quantity or logger.summary_keys[0]
    return [
        row[:4]
        for row in training.rows(logger.records, variable="", quantity=quantity)
    ]


class SeenLogs(keras.callbacks.Callback):
    """Keeps what the callbacks before it have made of the logs."""

    def __init__(self):
        super().__init__()
        self.epochs, self.batches = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))


class TestRecords:
    @LOGGERS
    def test_are_seven_columns_of_arrays(self, logger):
        logger = logger()
        empty = logger.records
        training.fit(training.make_model(), [logger])
        for records, length in ((empty, 0), (logger.records, None)):
            assert list(records) == [
                "run",
                "epoch",
                "batch",
                "step",
                "variable",
                "quantity",
                "value",
            ]
            kinds = [column.dtype.kind for column in records.values()]
            assert kinds == ["i"] * 4 + ["U"] * 2 + ["f"]
            lengths = {len(column) for column in records.values()}
            assert len(lengths) == 1
            assert length is None or lengths == {length}

    def test_scalars_of_the_logs_are_recorded(self):
        model = training.make_model(metrics=["mae"])
        x, y = training.make_data()
        logger = WeightDeltaLogger()
        history = training.fit(
            model,
            [logger],
            epochs=3,
            validation_data=(x[:8], y[:8]),
        )
        for key in ("loss", "mae", "val_loss", "val_mae"):
            assert (
                training.values(logger.records, variable="", quantity=key)
                == history.history[key]
            )
        assert set(history.history) == {
            "loss",
            "mae",
            "val_loss",
            "val_mae",
            *KEYS - {"clip_rate"},
        }
        # One logger does not record what another adds to the logs.
        assert set(logger.records["quantity"].tolist()) == set(history.history)


class TestWhen:
    @LOGGERS
    def test_every_n_batches_through_all_epochs(self, logger):
        logger = logger(4)
        training.fit(training.make_model(), [logger], epochs=3)
        assert moments(logger) == [
            (0, 0, 4, 4),
            (0, 1, 2, 8),
            (0, 1, 6, 12),
            (0, 2, 4, 16),
        ]
        assert moments(logger, "loss") == moments(logger)
        assert moments(logger, "epoch_loss") == [
            (0, 0, 6, 6),
            (0, 1, 6, 12),
            (0, 2, 6, 18),
        ]

    @LOGGERS
    def test_every_epoch(self, logger):
        logger = logger()
        training.fit(training.make_model(), [logger], epochs=3)
        expected = [(0, 0, 6, 6), (0, 1, 6, 12), (0, 2, 6, 18)]
        assert moments(logger) == moments(logger, "loss") == expected

    @pytest.mark.parametrize("update_freq", [1, 2, 4])
    def test_the_loss_is_that_of_the_window(self, update_freq):
        logger, seen = WeightDeltaLogger(update_freq), SeenLogs()
        training.fit(
            training.make_model(),
            [logger, seen],
            epochs=2,
            # Keras uses the same metrics for it.
            validation_data=training.make_data(),
        )
        running = [logs["loss"] for logs in seen.batches]
        of_batch = [
            (i % 6 + 1) * running[i] - (i % 6 and i % 6 * running[i - 1])
            for i in range(12)
        ]
        windows = np.reshape(of_batch, (-1, update_freq)).mean(axis=1)
        records = logger.records
        np.testing.assert_allclose(
            training.values(records, quantity="loss"), windows, rtol=1e-5
        )
        assert training.values(records, quantity="epoch_loss") == [
            logs["loss"] for logs in seen.epochs
        ]
        assert len(training.values(records, quantity="val_loss")) == 2

    @pytest.mark.skipif(
        training.BACKEND == "torch", reason="Keras does not support it on torch"
    )
    @pytest.mark.parametrize(
        ("update_freq", "batches"),
        [
            ("epoch", [6, 6]),
            (4, [4, 4, 6]),
            pytest.param(1, [4, 6, 4, 6], marks=pytest.mark.slow),
            pytest.param(5, [6, 4], marks=pytest.mark.slow),
        ],
    )
    def test_steps_per_execution(self, update_freq, batches):
        # 6 batches in executions of 4 and 2.
        model = training.make_model(steps_per_execution=4)
        loggers = both(update_freq)
        with warnings.catch_warnings():
            # Keras's iterator says so of the last execution.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            training.fit(model, loggers, epochs=2)
        for logger in loggers:
            assert [m[2] for m in moments(logger)] == batches
            assert all(m[3] == 6 * m[1] + m[2] for m in moments(logger))

    @pytest.mark.slow
    @pytest.mark.skipif(
        training.BACKEND == "torch", reason="Keras does not support it on torch"
    )
    def test_steps_per_execution_give_the_values_of_single_steps(self):
        records = []
        for count in (1, 2):
            model = training.make_model(
                optimizer=AdamaxClipped(0.01, clip_epsilon=0.05),
                steps_per_execution=count,
            )
            loggers = [*both(2), *both()]
            training.fit(model, loggers, epochs=2)
            records.append([logger.records for logger in loggers])
        for one, other in zip(*records, strict=True):
            for name, column in one.items():
                if name == "value":
                    # XLA may compile two steps to other roundings than one.
                    np.testing.assert_allclose(other[name], column, rtol=1e-4)
                else:
                    assert other[name].tolist() == column.tolist()

    def test_an_unknown_number_of_batches(self):
        model = training.make_model()
        x, y = training.make_data()

        def generate():
            for i in range(0, 24, 4):
                yield x[i : i + 4], y[i : i + 4]

        loggers = both(4)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your input ran out of data")
            model.fit(generate(), callbacks=loggers, shuffle=False, verbose=0)
        for logger in loggers:
            assert moments(logger) == [(0, 0, 4, 4)]
            # On TensorFlow, Keras counts the step that finds no data.
            step = int(model.optimizer.iterations)
            assert step == (7 if training.BACKEND == "tensorflow" else 6)
            assert moments(logger, "loss") == [(0, 0, 4, 4)]
            assert moments(logger, "epoch_loss") == [(0, 0, 6, step)]

    def test_early_stopping_in_the_middle(self):
        class Stop(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if batch == 3:
                    self.model.stop_training = True

        loggers = [*both(2), ClipRateLogger()]
        training.fit(training.make_model(), [*loggers, Stop()], epochs=5)
        for logger in loggers[:2]:
            assert moments(logger) == [(0, 0, 2, 2), (0, 0, 4, 4)]
        assert moments(loggers[2]) == [(0, 0, 4, 4)]

    @pytest.mark.parametrize("update_freq", ["epoch", 4])
    def test_early_stopping_that_stops(self, update_freq, tmp_path):
        # Nothing improves by so much: it stops after the second epoch.
        stopper = keras.callbacks.EarlyStopping(
            "weight_delta", mode="min", min_delta=1e9, patience=0
        )
        file = tmp_path / "records.csv"
        loggers = both(update_freq, filename=file)
        history = training.fit(
            training.make_model(), [*loggers, stopper], epochs=5
        )
        expected = [(0, 0, 6, 6), (0, 1, 6, 12)]
        if update_freq == 4:
            expected = [(0, 0, 4, 4), (0, 1, 2, 8), (0, 1, 6, 12)]
        assert stopper.stopped_epoch == 1
        for logger in loggers:
            assert moments(logger) == expected
            other = type(logger)(update_freq)
            other.load_records(file)
            assert sorted(training.rows(other.records)) == sorted(
                training.rows(logger.records)
            )
        assert all(len(history.history[key]) == 2 for key in KEYS)

    def test_accumulation_counts_updates(self):
        optimizer = AdamaxClipped(0.01, gradient_accumulation_steps=3)
        logger = ClipRateLogger(2)
        training.fit(training.make_model(optimizer=optimizer), [logger])
        assert moments(logger) == [(0, 0, 2, 0), (0, 0, 4, 1), (0, 0, 6, 2)]


class TestLogs:
    @pytest.mark.parametrize("update_freq", ["epoch", 4])
    @pytest.mark.parametrize("validate", [False, True])
    def test_every_callback_behind_sees_every_key_from_the_first_epoch(
        self, tmp_path, update_freq, validate
    ):
        model = training.make_model(optimizer=AdamaxClipped(0.01))
        x, y = training.make_data()
        seen = SeenLogs()
        stopper = keras.callbacks.EarlyStopping(
            "clip_rate", mode="min", patience=9
        )
        reducer = keras.callbacks.ReduceLROnPlateau(
            "weight_delta", mode="min", patience=0, min_delta=1e9, factor=0.5
        )
        checkpoint = keras.callbacks.ModelCheckpoint(
            tmp_path / "{epoch}-{weight_delta_ratio:.9f}.weights.h5",
            save_weights_only=True,
        )
        table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
        output = io.StringIO()
        with redirect_stdout(output):
            history = training.fit(
                model,
                [
                    *both(update_freq),
                    table,
                    stopper,
                    reducer,
                    checkpoint,
                    seen,
                ],
                epochs=3,
                verbose=2,
                validation_data=(x, y) if validate else None,
            ).history
        assert KEYS < set(history)
        assert all(len(history[key]) == 3 for key in KEYS)
        assert all(KEYS < set(logs) for logs in seen.epochs)
        with open(tmp_path / "log.csv", encoding="utf-8") as file:
            written = list(csv.DictReader(file))
        for key in KEYS:
            assert [float(row[key]) for row in written] == history[key]
        assert stopper.best == min(history["clip_rate"])
        # Nothing improves by so much: it reduces after the first epoch.
        assert float(model.optimizer.learning_rate) == pytest.approx(0.0025)
        ratio = history["weight_delta_ratio"][2]
        assert (tmp_path / f"3-{ratio:.9f}.weights.h5").exists()
        # A line an epoch, with the three summaries and no path.
        lines = [li for li in output.getvalue().splitlines() if "loss" in li]
        assert len(lines) == 3
        for line in lines:
            assert all(f" {key}: " in line for key in KEYS)
            assert "model/" not in line

    def test_the_progress_bar_shows_the_summaries_while_it_runs(self):
        output = io.StringIO()

        class Slow(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                import time

                time.sleep(0.07)  # the bar is drawn 20 times a second

        with redirect_stdout(output):
            training.fit(
                training.make_model(),
                [*both(2, batch_logs=True), Slow()],
                verbose=1,
            )
        bars = [p for p in output.getvalue().splitlines() if "/6" in p]
        shown = [KEYS <= set(bar.replace(":", "").split()) for bar in bars]
        # From the batch after the first record on.
        assert not shown[0] and shown[-1]
        assert any("4/6" in b and s for b, s in zip(bars, shown, strict=True))
        assert "model/" not in output.getvalue()

    def test_nan_before_the_first_record(self):
        history = training.fit(
            training.make_model(), both(10), epochs=2
        ).history
        for key in KEYS - {"clip_rate"}:
            assert [math.isnan(v) for v in history[key]] == [True, False]
        # That of the epoch needs no record.
        assert not np.isnan(history["clip_rate"]).any()

    @pytest.mark.parametrize("validate", [False, True])
    def test_tensorboard_callback(self, validate, tmp_path):
        board = keras.callbacks.TensorBoard(tmp_path, update_freq=1)
        data = training.make_data()
        training.fit(
            training.make_model(),
            [*both(2, batch_logs=True), board],
            epochs=2,
            validation_data=data if validate else None,
        )
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )

        events = EventAccumulator(str(tmp_path / "train"))
        events.Reload()
        tags = set(events.Tags()["tensors"])
        assert {f"epoch_{key}" for key in KEYS} <= tags
        for tag in tags:
            if tag.startswith("epoch_"):
                assert [e.step for e in events.Tensors(tag)] == [0, 1]
        assert {f"batch_{key}" for key in KEYS} <= tags

    @LOGGERS
    @pytest.mark.parametrize(
        "name",
        ["History", "EarlyStopping's monitor"]
        + repeated(*[n for n in IN_FRONT if n[0] not in "HE"]),
    )
    def test_a_callback_in_front_sees_them(self, name, logger, tmp_path):
        logger, seen = logger(), SeenLogs()
        keys = logger.summary_keys
        callback = IN_FRONT[name](tmp_path / "file", keys[0])
        # Keras would warn that what it monitors is missing.
        training.fit(training.make_model(), [seen, callback, logger], epochs=2)
        assert all(set(keys) < set(logs) for logs in seen.epochs)

    def test_loggers_keep_their_order(self):
        order = []

        def note(logger):
            hook = logger.on_epoch_end

            def call(epoch, logs=None):
                order.append((logger, set(logs) & KEYS))
                hook(epoch, logs)

            logger.on_epoch_end = call

        deltas, rates = WeightDeltaLogger(), ClipRateLogger()
        note(deltas)
        note(rates)
        training.fit(
            training.make_model(), [SeenLogs(), deltas, SeenLogs(), rates]
        )
        assert order == [(deltas, set()), (rates, KEYS - {"clip_rate"})]

    def test_elsewhere_in_the_list_history_and_progress_bar_see_them(self):
        output = io.StringIO()
        with redirect_stdout(output):
            history = training.fit(
                training.make_model(), [SeenLogs(), *both()], verbose=2
            )
        assert KEYS < set(history.history)
        assert all(f" {key}: " in output.getvalue() for key in KEYS)

    @pytest.mark.parametrize(
        ("batch_logs", "shown"),
        [
            (False, set()),
            (True, {"weight_delta", "weight_delta_ratio"}),
            (["weight_delta"], {"weight_delta"}),
        ],
    )
    def test_the_user_chooses_what_the_logs_of_a_batch_show(
        self, batch_logs, shown
    ):
        seen = SeenLogs()
        logger = WeightDeltaLogger(2, batch_logs=batch_logs)
        training.fit(training.make_model(), [logger, seen])
        assert [set(logs) & KEYS for logs in seen.batches] == [
            set(),
            set(),
            *[shown] * 4,
        ]
        assert set(seen.epochs[0]) & KEYS == set(logger.summary_keys)

    def test_a_line_of_the_progress_bar_fits_80_columns(self):
        output = io.StringIO()
        model = training.make_model(metrics=["mae"])
        with redirect_stdout(output):
            training.fit(model, both(1), verbose=1)
        lines = re.split(r"[\r\n\b]+", output.getvalue())
        # The last one is printed once an epoch.
        bars = [line for line in lines if "/6" in line][:-1]
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in bars]
        assert plain and all(len(line) < 80 for line in plain)

    def test_the_clip_rate_of_an_epoch_is_not_that_of_a_window(self):
        model = training.make_model()
        whole, parts = ClipRateLogger(), ClipRateLogger(4)
        seen = SeenLogs()
        history = training.fit(model, [whole, parts, seen], epochs=3).history
        # Both give the same key, and the second is the later.
        of_epochs = training.values(
            whole.records, variable="", quantity="clip_rate"
        )
        assert history["clip_rate"] == of_epochs
        windows = training.values(
            parts.records, variable="", quantity="clip_rate"
        )
        assert len(windows) == 4 and windows != of_epochs

    def test_each_value_is_given_to_a_function(self):
        given = []
        logger = ClipRateLogger(
            4,
            on_record=lambda step, name, value: given.append(
                (step, name, value)
            ),
        )
        training.fit(training.make_model(), [logger], epochs=2)
        assert given == [
            (row[3], "/".join(filter(None, row[4:6])), row[6])
            for row in training.rows(logger.records)
        ]
        assert (4, "clip_rate") in {row[:2] for row in given}
        assert any(name.endswith("/kernel/clip_rate") for _, name, _ in given)


class TestThreads:
    @LOGGERS
    @pytest.mark.parametrize("update_freq", ["epoch", 1, 4])
    def test_given_alone_it_records_as_in_a_list(self, logger, update_freq):
        # Keras runs `on_train_batch_end` in threads then, on JAX and torch.
        alone, listed = logger(update_freq), logger(update_freq)
        training.fit(training.make_model(), alone, epochs=3)
        training.fit(training.make_model(), [listed], epochs=3)
        training.assert_same_records(alone.records, listed.records)

    @LOGGERS
    def test_called_from_another_thread_it_says_what_to_do(self, logger):
        logger = logger(1)

        class Elsewhere(keras.callbacks.Callback):
            error = None

            def on_train_batch_begin(self, batch, logs=None):
                def call():
                    try:
                        logger.on_train_batch_begin(batch, logs)
                    except RuntimeError as error:
                        self.error = str(error)

                thread = threading.Thread(target=call)
                thread.start()
                thread.join()

        elsewhere = Elsewhere()
        training.fit(training.make_model(), [elsewhere, logger])
        assert "Pass the logger in a list, `fit(..., callbacks=[logger])`" in (
            elsewhere.error
        )
        assert len(moments(logger)) == 6

    def test_outside_of_fit(self):
        with pytest.raises(RuntimeError, match="on_train_begin"):
            ClipRateLogger().on_epoch_begin(0)

    def test_fit_in_a_thread_of_the_users(self):
        logger = WeightDeltaLogger(2)
        errors = []

        def train():
            try:
                training.fit(training.make_model(), [logger])
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert not errors
        assert len(moments(logger)) == 3


class TestRuns:
    def test_each_fit_is_one(self):
        model = training.make_model()
        loggers = both()
        for _ in range(3):
            training.fit(model, loggers, epochs=2)
        for logger in loggers:
            assert moments(logger) == [
                (run, epoch, 6, 12 * run + 6 * epoch + 6)
                for run in range(3)
                for epoch in range(2)
            ]

    def test_initial_epoch_continues_the_last_run(self):
        whole = both()
        training.fit(training.make_model(), whole, epochs=4)
        model = training.make_model()
        parts = both()
        training.fit(model, parts, epochs=2)
        training.fit(model, parts, epochs=4, initial_epoch=2)
        for one, other in zip(whole, parts, strict=True):
            training.assert_same_records(one.records, other.records)

    def test_initial_epoch_with_a_fresh_optimizer_is_a_run_of_its_own(self):
        logger = ClipRateLogger()
        training.fit(training.make_model(), [logger], epochs=2)
        training.fit(training.make_model(), [logger], epochs=3, initial_epoch=2)
        assert moments(logger) == [(0, 0, 6, 6), (0, 1, 6, 12), (1, 2, 6, 6)]

    def test_a_fit_that_failed_leaves_the_logger_usable(self):
        class Fail(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    raise KeyboardInterrupt

        model, loggers = training.make_model(), both()
        with pytest.raises(KeyboardInterrupt):
            training.fit(model, [*loggers, Fail()], epochs=3)
        training.fit(model, loggers, epochs=3, initial_epoch=1)
        for logger in loggers:
            assert [m[:2] for m in moments(logger)] == [(0, 0), (0, 1), (0, 2)]


class TestSerialization:
    @pytest.mark.parametrize(
        "callback",
        [
            ClipRateLogger(),
            ClipRateLogger(7, log_dir="a", filename="b.csv"),
            WeightDeltaLogger(3, filename="c.csv", warn_unchanged=False),
            keras_adamax.AtomicBackup("d", 5, delete_checkpoint=False),
        ],
    )
    def test_round_trip(self, callback):
        data = keras.saving.serialize_keras_object(callback)
        assert data["registered_name"] == (
            f"keras_adamax>{type(callback).__name__}"
        )
        other = keras.saving.deserialize_keras_object(data)
        assert type(other) is type(callback)
        assert other.get_config() == callback.get_config()

    @pytest.mark.parametrize("way", [copy.deepcopy, pickle])
    def test_copies(self, way):
        for callback in [
            *both(2, log_dir="a", filename="b"),
            keras_adamax.AtomicBackup("c"),
        ]:
            other = (
                pickle.loads(pickle.dumps(callback))
                if way is pickle
                else way(callback)
            )
            assert other.get_config() == callback.get_config()

    @LOGGERS
    def test_records_are_saved_and_loaded(self, logger, tmp_path):
        model, first = training.make_model(), logger(4)
        training.fit(model, [first], epochs=2)
        first.save_records(tmp_path / "records.csv")
        second = logger(4)
        second.load_records(tmp_path / "records.csv")
        for name, column in first.records.items():
            assert column.tolist() == second.records[name].tolist()
        training.fit(model, [second])
        assert {m[0] for m in moments(second)} == {0, 1}

    @LOGGERS
    def test_of_a_common_file_each_loads_its_own(self, logger, tmp_path):
        file = tmp_path / "records.csv"
        loggers = both(filename=file)
        training.fit(training.make_model(), loggers, epochs=2)
        (own,) = [one for one in loggers if type(one) is logger]
        other = logger()
        other.load_records(file)
        assert sorted(training.rows(other.records)) == sorted(
            training.rows(own.records)
        )

    @pytest.mark.slow
    @LOGGERS
    def test_of_another_model_are_told_of(self, logger, tmp_path):
        first = logger()
        training.fit(training.make_model("recurrent"), [first], "recurrent")
        first.save_records(tmp_path / "records.csv")
        second = logger()
        second.load_records(tmp_path / "records.csv")
        with pytest.warns(UserWarning) as caught:
            training.fit(training.make_model(), [second], epochs=2)
        (text,) = training.user_warnings(caught)
        assert "`records` holds the records of another model" in text
        assert "model/rnn/" in text and "model/first/kernel" in text
        # They are kept as they were, and nothing is continued.
        assert training.rows(second.records, run=0) == training.rows(
            first.records
        )
        assert moments(second)[1:] == [(1, 0, 6, 6), (1, 1, 6, 12)]

    def test_something_else_than_records(self, tmp_path):
        (tmp_path / "a.csv").write_text("epoch,loss\n0,1\n", "utf-8")
        with pytest.raises(ValueError, match="epoch,loss"):
            ClipRateLogger().load_records(tmp_path / "a.csv")


class TestBadInput:
    @LOGGERS
    @pytest.mark.parametrize(
        "update_freq", [0, -1, 1.5, True, None, "batch", "", [1], math.nan]
    )
    def test_update_freq(self, logger, update_freq):
        with pytest.raises(
            (TypeError, ValueError), match=r"`update_freq` must be.*\"epoch\""
        ):
            logger(update_freq)

    def test_numpy_integers_are_numbers(self):
        assert ClipRateLogger(np.int64(3)).update_freq == 3

    @LOGGERS
    @pytest.mark.parametrize("name", ["log_dir", "filename"])
    @pytest.mark.parametrize("value", ["", 3, True, ["a"]])
    def test_paths(self, logger, name, value):
        with pytest.raises(TypeError, match=f"`{name}` must be a path"):
            logger(**{name: value})

    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_warn_unchanged(self, value):
        with pytest.raises(TypeError, match="warn_unchanged"):
            WeightDeltaLogger(warn_unchanged=value)
