"""How much faster are two workers than one, on the same trials?

The same search of 24 trials, proposed at random from one seed, by one process
and by two on this machine. Each arm has the threads that the guide documents:
one process all cores, two processes one half each (`run_search` divides them).
Start-up (imports, opening the database, the first look at the model) and the
writing of results are apart: timed is from the start of the first trial to
the end of the last, as the database recorded them. Rerun with

    python benchmarks/search_workers.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parent.parent
LIMIT = 1.6


def load_data():
    """Returns scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype("float32") / 8.0 - 1.0, digits.target


def build_model(hp):
    """Returns the recurrent network of the quickstart, made smaller."""
    import keras

    del hp
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.GRU(32, return_sequences=True),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy")
    return model


def run(workers, output, arguments):
    """Runs one search in processes of its own; returns its two times."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS"):
        environment.pop(name, None)
    begin = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "keras_adamax_tuning.cli",
            "search_workers:build_model",
            "--data=search_workers:load_data",
            f"--output={output}",
            f"--workers={workers}",
            f"--max-trials={arguments.trials}",
            f"--epochs={arguments.epochs}",
            "--batch-size=16",
            "--sampler=random",
            "--seed=0",
        ],
        cwd=Path(__file__).parent,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    whole = time.perf_counter() - begin
    import optuna

    (study,) = optuna.get_all_study_names(f"sqlite:///{output / 'study.db'}")
    trials = optuna.load_study(
        study_name=study, storage=f"sqlite:///{output / 'study.db'}"
    ).trials
    assert len(trials) == arguments.trials, "a trial was lost or repeated"
    first = min(trial.datetime_start for trial in trials)
    last = max(trial.datetime_complete for trial in trials)
    return (last - first).total_seconds(), whole


def main():
    """Measures, prints, and fails if the limit is not reached."""
    from _machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(describe_machine())
    print(
        f"{arguments.trials} trials of {arguments.epochs} epochs, "
        f"{os.environ['KERAS_BACKEND']}"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            seconds = {}
            for workers in (1, 2):
                output = Path(folder) / f"{number}-{workers}"
                seconds[workers], whole = run(workers, output, arguments)
                print(
                    f"{workers} worker(s): {seconds[workers]:.1f} s for the "
                    f"trials, {whole - seconds[workers]:.1f} s for start-up "
                    "and results"
                )
            ratio = seconds[1] / seconds[2]
            ratios.append(ratio)
            print(f"two workers: {ratio:.2f} times the throughput of one")
    median = statistics.median(ratios)
    print(f"median: {median:.2f}, bar {LIMIT}")
    if median < LIMIT:
        sys.exit(f"The ratio is below {LIMIT}.")


if __name__ == "__main__":
    main()
