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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Searches import this module, too, where they find model and data.
from _harness import bars, options, results, timing

# Of each arm: its workers, and what its environment says of threads.
THREAD_SETTINGS = ("OMP_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")
TWO_WORKERS = "two workers"
ARMS = {
    "one worker, all cores": (1, {}),
    "one worker, one thread": (1, dict.fromkeys(THREAD_SETTINGS, "1")),
    TWO_WORKERS: (2, {}),
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


def seconds_of_trials(database: Path, count: int) -> float:
    """From the start of the first trial to the end of the last."""
    import optuna

    storage = f"sqlite:///{database}"
    (study,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=study, storage=storage).trials
    assert len(trials) == count, "a trial was lost or repeated"
    first = min(trial.datetime_start for trial in trials)
    last = max(trial.datetime_complete for trial in trials)
    return (last - first).total_seconds()


def run_search(arm: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs one search in processes of its own; prints and returns its times."""
    workers, threads = ARMS[arm]
    environment = dict(os.environ)
    for name in THREAD_SETTINGS:
        environment.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "keras_adamax_tuning.cli",
                "search_workers:build_model",
                "--data=search_workers:load_data",
                f"--output={folder}",
                f"--workers={workers}",
                f"--max-trials={arguments.trials}",
                f"--epochs={arguments.epochs}",
                "--batch-size=16",
                "--sampler=random",
                "--seed=0",
            ],
            cwd=Path(__file__).parent,
            env=environment | threads,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        whole = time.perf_counter() - begin
        trials = seconds_of_trials(Path(folder) / "study.db", arguments.trials)
    print(
        f"{arm}: {trials:.1f} s for the trials, "
        f"{whole - trials:.1f} s for start-up and results"
    )
    return {"trials": trials, "rest": whole - trials}


def main() -> None:
    """Measures, prints and writes."""
    parser = options.make_parser(__doc__, backend="jax", rounds=3)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = options.parse(parser, trials=2, epochs=1, rounds=1)
    found = results.begin(
        "search_workers",
        arguments,
        trials=arguments.trials,
        epochs=arguments.epochs,
    )
    print(
        f"{arguments.trials} trials of {arguments.epochs} epochs, "
        f"{arguments.backend}"
    )
    rounds = timing.interleave(
        {arm: lambda arm=arm: run_search(arm, arguments) for arm in ARMS},
        arguments.rounds,
    )
    compared = timing.compare(
        [
            {arm: taken["trials"] for arm, taken in times.items()}
            for times in rounds
        ],
        TWO_WORKERS,
    )
    best = min(
        (arm for arm in ARMS if arm != TWO_WORKERS),
        key=lambda arm: compared[arm]["median_seconds"],
    )
    # How much longer one worker takes is how much more two can do.
    throughput = compared[best]["ratio"]["median"]
    print(
        f"two workers: {throughput:.2f} times the throughput of {best} "
        f"({timing.range_of_rounds(compared[best])}; bar {bars.TWO_WORKERS})"
    )
    judged = bars.judge_one(
        throughput, bars.TWO_WORKERS, at_least=True, quick=arguments.quick
    )
    found |= {
        "seconds": rounds,
        "compared": best,
        "ratios": compared[best]["ratios"],
        "bar": bars.TWO_WORKERS,
    }
    results.end(
        found, arguments, f"search_workers_{arguments.backend}", [judged]
    )


if __name__ == "__main__":
    main()
