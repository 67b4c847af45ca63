"""On several devices the loggers record what they record on one."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.callbacks import training

WAYS = {
    "tensorflow": ["MirroredStrategy"],
    "jax": ["DataParallel", "ModelParallel"],
}.get(training.BACKEND, [])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not WAYS, reason="Keras distributes on TensorFlow and JAX"
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("distribution") / "results.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.callbacks.distribution_script",
            str(path),
        ],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            # The devices are virtual CPUs, whatever the machine has.
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("way", WAYS)
def test_records_are_those_of_one_device(way, results):
    one, many = results["one device"], results[way]
    if training.BACKEND == "jax":
        assert (one["devices"], many["devices"]) == ([1], [4])
        assert many["split"] == (way == "ModelParallel")
    assert one["lines"] == many["lines"] > 90
    for expected, actual in zip(one["records"], many["records"], strict=True):
        for name, column in expected.items():
            if name != "value":
                assert actual[name] == column
        # The order of sums over devices is not that of one.
        np.testing.assert_allclose(
            actual["value"], expected["value"], rtol=1e-4
        )
    assert one["history"].keys() == many["history"].keys()
    rates = one["history"]["clip_rate"]
    assert all(0 < rate < 1 for rate in rates)


@pytest.mark.parametrize("way", WAYS)
def test_deltas_are_those_of_the_weights(way, results):
    records = {
        name: np.array(column)
        for name, column in results[way]["records"][2].items()
    }
    # Two epochs: the change of both is at most the sum of the changes.
    deltas = training.values(records, variable="", quantity="weight_delta")
    moved = [np.ravel(change) for change in results[way]["moved"]]
    whole = math.sqrt(sum((change**2).sum() for change in moved))
    assert abs(deltas[0] - deltas[1]) < whole <= sum(deltas) * (1 + 1e-6)
