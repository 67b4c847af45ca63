"""How much faster are two workers than one, on the same trials?

The same search of 24 trials, proposed at random from one seed, by one process
and by two on this machine. Two processes have one half of the cores each
(`run_search` divides them). One process is measured with all cores and with
one thread, which small models on PyTorch are faster with; the better of both
is what two are compared with. Start-up (imports, opening the database, the
first look at the model) and the writing of results are apart: timed is from
the start of the first trial to the end of the last, as the database recorded
them. Rerun with

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

LIMIT = 1.6
# Of each arm: its workers, and what its environment says of threads.
THREAD_SETTINGS = ("OMP_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")
ARMS = {
    "one worker, all cores": (1, {}),
    "one worker, one thread": (1, dict.fromkeys(THREAD_SETTINGS, "1")),
    "two workers": (2, {}),
}


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


def run(workers, threads, output, arguments):
    """Runs one search in processes of its own; returns its two times."""
    environment = dict(os.environ)
    for name in THREAD_SETTINGS:
        environment.pop(name, None)
    environment |= threads
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
    import _report
    from _machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    _report.add_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.epochs, arguments.rounds = 2, 1, 1
    backend = os.environ["KERAS_BACKEND"]
    print(describe_machine())
    print(f"{arguments.trials} trials of {arguments.epochs} epochs, {backend}")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            order = list(ARMS) if number % 2 else list(reversed(ARMS))
            times = {}
            for arm in order:
                output = Path(folder) / f"{number}-{arm.replace(' ', '_')}"
                trials, whole = run(*ARMS[arm], output, arguments)
                times[arm] = {"trials": trials, "rest": whole - trials}
                print(
                    f"{arm}: {trials:.1f} s for the trials, "
                    f"{whole - trials:.1f} s for start-up and results"
                )
            rounds.append(times)
    seconds = {
        arm: statistics.median(times[arm]["trials"] for times in rounds)
        for arm in ARMS
    }
    best = min((a for a in ARMS if ARMS[a][0] == 1), key=seconds.__getitem__)
    ratios = [
        times[best]["trials"] / times["two workers"]["trials"]
        for times in rounds
    ]
    median = statistics.median(ratios)
    print(
        f"two workers: {median:.2f} times the throughput of {best} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f}; bar {LIMIT})"
    )
    if arguments.output:
        results = {
            "benchmark": "search_workers",
            "backend": backend,
            "machine": describe_machine(),
            "quick": arguments.quick,
            "trials": arguments.trials,
            "epochs": arguments.epochs,
            "seconds": rounds,
            "compared": best,
            "ratios": ratios,
            "bar": LIMIT,
        }
        _report.write_json(
            results, arguments.output / f"search_workers_{backend}.json"
        )
    if arguments.check and not arguments.quick and median < LIMIT:
        sys.exit(f"The ratio is below {LIMIT}.")


if __name__ == "__main__":
    main()
