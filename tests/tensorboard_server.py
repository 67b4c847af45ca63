"""A TensorBoard server that tests ask what it has read."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request


class Server:
    """A TensorBoard on the loopback interface."""

    def __init__(self, folder, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/data/"
        # Without TensorBoard's `main`, which asks for setuptools.
        command = "from tensorboard.main import run_main; run_main()"
        self.log = open(log, "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                command,
                "--logdir",
                str(folder),
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--reload_interval",
                "1",
                "--samples_per_plugin",
                "scalars=1000,histograms=1000",
            ],
            stdout=self.log,
            stderr=self.log,
            # TensorBoard imports TensorFlow, which imports Keras. After it,
            # the CUDA builds of torch end the process (in Triton).
            env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        )

    def get(self, path, **arguments):
        query = urllib.parse.urlencode(arguments)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}{path}?{query}", timeout=20) as answer:
            return json.load(answer)

    def wait(self, condition, seconds=400):
        """The first true value of a condition that asks the server."""
        end = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, "the server has stopped"
            try:
                value = condition()
                if value:
                    return value
            except (urllib.error.URLError, OSError):
                pass
            assert time.monotonic() < end, "the server does not have it"
            time.sleep(0.2)

    def scalars(self, run, tag):
        """Step to value of a series."""
        series = self.get("plugin/scalars/scalars", run=run, tag=tag)
        return {int(step): float(value) for _, step, value in series}

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
