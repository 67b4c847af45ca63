"""TensorBoard's HParams show the trials of a search."""

import json
import urllib.request

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped
from keras_adamax_tuning import OptunaOracle, OptunaTuner
from tests.tensorboard_server import Server


def build_model(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    hp.Choice("kind", ["a", "b"])
    rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    model.compile(AdamaxClipped(rate), "mse")
    return model


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    tuner = OptunaTuner(
        build_model,
        oracle=OptunaOracle("val_loss", max_trials=3, seed=0),
        directory=folder,
        project_name="trials",
        tensorboard_dir=folder / "tensorboard",
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    tuner.search(x, y, validation_data=(x, y), epochs=2, verbose=0)
    return tuner, folder / "tensorboard"


def session_groups(server):
    """The rows of HParams, as the page asks for them."""
    request = urllib.request.Request(
        server.url + "plugin/hparams/session_groups",
        json.dumps(
            {
                "experimentName": "",
                "allowedStatuses": [
                    "STATUS_SUCCESS",
                    "STATUS_RUNNING",
                    "STATUS_UNKNOWN",
                    "STATUS_FAILURE",
                ],
                "colParams": [
                    {"metric": {"tag": "epoch/val_loss", "group": ""}}
                ],
                "startIndex": 0,
                "sliceSize": 100,
            }
        ).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as answer:
        return json.load(answer)["sessionGroups"]


@pytest.mark.slow
def test_hparams(searched, tmp_path):
    tuner, folder = searched
    trials = tuner.oracle.logical_trials()
    server = Server(folder, tmp_path / "log.txt")
    try:
        groups = server.wait(
            lambda: len(found := session_groups(server)) == 3 and found
        )
        shown = {
            group["sessions"][0]["name"]: (
                group["hparams"],
                group["metricValues"][0]["value"],
                group["sessions"][0]["status"],
            )
            for group in groups
        }
        for trial in trials:
            values, loss, status = shown[f"trial_{trial.trial_id}"]
            assert values["kind"] == trial.hyperparameters["kind"]
            assert values["learning_rate"] == pytest.approx(
                trial.hyperparameters["learning_rate"]
            )
            assert status == "STATUS_SUCCESS"
            # Of the last epoch, which was the best one here.
            assert loss == pytest.approx(trial.score, rel=1e-6)
            series = server.scalars(f"trial_{trial.trial_id}", "epoch/val_loss")
            assert list(series) == [0, 1] and series[1] == pytest.approx(loss)
            # What our loggers add to the logs is there as well.
            assert server.scalars(f"trial_{trial.trial_id}", "epoch/clip_rate")
    finally:
        server.stop()
