"""Records in experiment trackers, read back from their stores."""

import importlib.util
import json
import os
import struct
import time

import keras
import pytest

from keras_adamax import ClipRateLogger, WeightDeltaLogger, trackers
from tests.callbacks import training

LOGGERS = pytest.mark.parametrize("logger", [ClipRateLogger, WeightDeltaLogger])


def needs(*modules):
    """Skips where a tracker is not installed, but not in CI's environment."""
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    # The newcomer's environment has none of them.
    return pytest.mark.skipif(bool(missing), reason=f"{missing} not installed")


def numbers(logger):
    """Step and name to value, as a logger has recorded them."""
    return {
        (row[3], "/".join(filter(None, row[4:6]))): row[6]
        for row in training.rows(logger.records)
    }


# SQLAlchemy says so of what MLflow does.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@needs("mlflow", "pandas", "sqlalchemy")
@pytest.mark.slow
class TestMLflow:
    @pytest.fixture
    def mlflow(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.chdir(tmp_path)
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        yield mlflow
        while mlflow.active_run():
            mlflow.end_run()

    def stored(self, mlflow, run, name):
        history = mlflow.MlflowClient().get_metric_history(run, name)
        return {metric.step: metric.value for metric in history}

    @LOGGERS
    def test_every_value_has_its_step(self, mlflow, logger):
        logger = logger(4, on_record=trackers.to_mlflow)
        with mlflow.start_run() as run:
            training.fit(training.make_model(), [logger], epochs=2)
        expected = numbers(logger)
        names = {name for _, name in expected}
        found = {
            (step, name): value
            for name in names
            for step, value in self.stored(
                mlflow, run.info.run_id, name
            ).items()
        }
        assert found == pytest.approx(expected)

    def test_mlflows_own_callback_in_front(self, mlflow):
        logger = ClipRateLogger()
        with mlflow.start_run() as run:
            history = training.fit(
                training.make_model(),
                [mlflow.keras.MlflowCallback(run), logger],
                epochs=2,
            ).history
        found = self.stored(mlflow, run.info.run_id, "clip_rate")
        assert list(found.values()) == pytest.approx(history["clip_rate"])

    def test_autolog_has_what_is_in_the_logs(self, mlflow):
        mlflow.keras.autolog(log_models=False, log_datasets=False)
        loggers = [ClipRateLogger(), WeightDeltaLogger()]
        try:
            with mlflow.start_run() as run:
                history = training.fit(
                    training.make_model(), loggers, epochs=2
                ).history
        finally:
            mlflow.keras.autolog(disable=True)
        for name in ("clip_rate", "weight_delta", "weight_delta_ratio", "loss"):
            found = self.stored(mlflow, run.info.run_id, name)
            assert list(found.values()) == pytest.approx(history[name])

    def test_names_that_mlflow_does_not_take(self, mlflow):
        with mlflow.start_run() as run:
            trackers.to_mlflow(3, "a#2/kernel:0/clip_rate", 0.5)
        name = "a_2/kernel_0/clip_rate"
        assert self.stored(mlflow, run.info.run_id, name) == {3: 0.5}


def records_of(path):
    """The payloads of a file of W&B's, which is a log of LevelDB's form."""
    data = path.read_bytes()[7:]
    position, parts = 7, []
    payloads = []
    while position + 7 <= len(data) + 7:
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position - 7)
        parts.append(data[position : position + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            payloads.append(b"".join(parts))
            parts = []
    return payloads


@needs("wandb")
@pytest.mark.slow
class TestWeightsAndBiases:
    @pytest.fixture
    def wandb(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.chdir(tmp_path)
        import wandb

        self.arguments = {
            "project": "test",
            "mode": "offline",
            "dir": str(tmp_path),
        }
        yield wandb
        if wandb.run is not None:
            wandb.finish()

    def history(self, tmp_path):
        """The rows of the run, as dictionaries."""
        from wandb.proto import wandb_internal_pb2

        (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
        # Another process writes the file, on a busy machine after a while.
        for _ in range(60):
            records = []
            for payload in records_of(path):
                records.append(wandb_internal_pb2.Record())
                records[-1].ParseFromString(payload)
            kinds = [record.WhichOneof("record_type") for record in records]
            if "exit" in kinds:
                break
            time.sleep(1)
        return [
            {
                item.key or "/".join(item.nested_key): json.loads(
                    item.value_json
                )
                for item in record.history.item
            }
            for record, kind in zip(records, kinds, strict=True)
            if kind == "history"
        ]

    @LOGGERS
    def test_every_value_has_its_step(self, wandb, logger, tmp_path):
        logger = logger(4, on_record=trackers.to_wandb)
        wandb.init(**self.arguments)
        training.fit(training.make_model(), [logger], epochs=2)
        wandb.finish()
        found = {
            (row["updates"], name): value
            for row in self.history(tmp_path)
            for name, value in row.items()
            if name != "updates" and name[0] != "_"
        }
        assert found == pytest.approx(numbers(logger))

    def test_wandbs_own_callback_in_front(self, wandb, tmp_path):
        from wandb.integration.keras import WandbMetricsLogger

        wandb.init(**self.arguments)
        history = training.fit(
            training.make_model(),
            [WandbMetricsLogger(), ClipRateLogger()],
            epochs=2,
        ).history
        wandb.finish()
        found = [
            row["epoch/clip_rate"]
            for row in self.history(tmp_path)
            if "epoch/clip_rate" in row
        ]
        assert found == pytest.approx(history["clip_rate"])

    def test_it_hears_of_the_folder_of_event_files(
        self, wandb, tmp_path, caplog
    ):
        caplog.set_level("INFO", logger="wandb")
        wandb.init(**self.arguments, sync_tensorboard=True)
        logger = ClipRateLogger(log_dir=tmp_path / "events")
        training.fit(training.make_model(), [logger], epochs=2)
        wandb.finish()
        # From then on it follows what is written there.
        folder = tmp_path / "events" / "clip_rate"
        assert f"tensorboard callback: {folder}" in caplog.text
        (own,) = folder.glob("*.keras_adamax")
        assert own.stat().st_size > 500


def test_functions_are_saved_with_a_logger():
    for function in (trackers.to_mlflow, trackers.to_wandb):
        logger = ClipRateLogger(4, on_record=function)
        config = keras.saving.serialize_keras_object(logger)
        again = keras.saving.deserialize_keras_object(
            json.loads(json.dumps(config))
        )
        assert again.on_record is function


@pytest.mark.parametrize("value", [1, "to_mlflow", os])
def test_what_is_no_function(value):
    with pytest.raises(TypeError, match="`on_record` must be None or a"):
        ClipRateLogger(on_record=value)


@pytest.mark.parametrize(
    ("value", "error"),
    [("clip_rate", TypeError), (1, TypeError), (["loss"], ValueError)],
)
def test_what_no_logs_of_batches_can_show(value, error):
    with pytest.raises(error, match="`batch_logs` must be a bool or a list"):
        ClipRateLogger(batch_logs=value)
