"""The file of a large model is read and drawn in little time and memory."""

import json
import os
import subprocess
import sys

import pytest

from keras_adamax import plots
from tests.plots.synthetic import bert_paths, make_rows, write_csv

# What the process takes beyond the import of matplotlib and NumPy alone.
MEGABYTES = 500
# On two idle cores it takes less than 3 s. The rest is for busy ones.
SECONDS = 9
SCRIPT = """
import json, re, sys, time

def megabytes():
    # Not `getrusage`, whose peak is at first that of the parent.
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1]) / 1024

import matplotlib.backends.backend_agg
import matplotlib.figure
import numpy
alone = megabytes()
from keras_adamax import plots
imported = megabytes()
start = time.process_time()
plots.save_report(sys.argv[1], sys.argv[2])
seconds = time.process_time() - start
print(json.dumps([megabytes() - alone, megabytes() - imported, seconds]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux's /proc"
)
def test_report_of_a_large_model(tmp_path):
    # 201 variables, 1,500 records, three quantities of each: 900,000 rows.
    rows = make_rows(bert_paths(), epochs=3, batches=5000)
    source = write_csv(tmp_path / "run.csv", rows)
    assert len(rows) > 900_000 and source.stat().st_size > 80e6
    compact = tmp_path / "run.npz"
    plots.write_records(source, compact)
    assert compact.stat().st_size < source.stat().st_size / 8
    for path in (source, compact):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, path, tmp_path / "report.png"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        above_alone, above_imports, seconds = json.loads(done.stdout)
        print(f"{path.suffix}: {above_alone:.0f} MB above matplotlib and")
        print(f"NumPy, {above_imports:.0f} above all imports, {seconds:.1f} s")
        # Keras and its backend take most of the first, and how much differs.
        assert above_imports < MEGABYTES / 2
        assert seconds < SECONDS
