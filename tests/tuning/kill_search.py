"""Kills the workers of a search at random moments, and counts what is lost.

    KERAS_BACKEND=jax python tests/tuning/kill_search.py --kills 40 --workers 2

Every worker is a fork of one process that has imported everything, so that a
new one starts at once; it is ended with SIGKILL after a random time. With
`--stall` it is stopped instead, and goes on after about the time after which
others take it for dead. When the search is complete its record is compared
with what is on the disk: a trial is lost or counted twice, or has another
score than its weights, and the script exits with 1. With one worker the record
is also compared with that of a search that nobody disturbed.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

# Forks of this process do the work; it itself computes nothing.
warnings.filterwarnings("ignore", message="os.fork.. was called")
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import optuna  # noqa: E402

from keras_adamax import AdamaxClipped  # noqa: E402
from keras_adamax_tuning import OptunaOracle, OptunaTuner  # noqa: E402
from keras_adamax_tuning.study import owners  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.ERROR)

# After so many seconds without a sign of life a worker counts as dead.
GRACE_PERIOD = 5


def build_model(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = AdamaxClipped(
        hp.Float("learning_rate", 1e-4, 1e-1, sampling="log"),
        clip_epsilon=hp.Float("clip_epsilon", 1e-4, 1.0, sampling="log"),
    )
    if hp.Boolean("decay"):
        hp.Float(
            "weight_decay", 0.0, 0.1, parent_name="decay", parent_values=[True]
        )
    # Three batches are sooner trained than compiled.
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def load_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)).astype("float32")
    return x, x @ np.array([[1.0], [-2.0], [0.5]], "float32")


def make_tuner(arguments, folder: Path, study_name: str) -> OptunaTuner:
    oracle = OptunaOracle(
        "val_loss",
        max_trials=arguments.trials,
        storage=arguments.storage,
        study_name=study_name,
        sampler=arguments.sampler,
        seed=0,
        # Many more than anyone would allow: here nothing else goes wrong.
        max_retries=1000,
        heartbeat_interval=1,
        grace_period=GRACE_PERIOD,
    )
    return OptunaTuner(
        build_model, oracle=oracle, directory=folder, project_name="trials"
    )


def work(arguments, folder: Path, study_name: str) -> None:
    x, y = load_data()
    if arguments.stall:
        # A process of this machine is waited for; only one of another machine
        # is taken for dead while it lives.
        machine = str(os.getpid())
        owners._machine = lambda: machine
    tuner = make_tuner(arguments, folder, study_name)
    # A kill is aimed at a worker that has begun with a trial.
    tuner.on_trial_begin = lambda trial: (
        folder / f"ready_{os.getpid()}"
    ).touch()
    tuner.search(
        x, y, validation_data=(x, y), epochs=2, batch_size=16, verbose=0
    )


def read_record(arguments, folder: Path, study_name: str) -> dict:
    """What the study says, and what the weights are worth."""
    x, y = load_data()
    tuner = make_tuner(arguments, folder, study_name)
    tuner.oracle.begin_search()
    record = []
    for trial in tuner.oracle.logical_trials():
        reloaded = None
        if trial.score is not None:
            model = tuner.load_model(tuner.oracle.get_trial(trial.trial_id))
            reloaded = float(model.evaluate(x, y, batch_size=16, verbose=0))
        record.append(
            {
                "number": trial.number,
                "state": trial.state,
                "score": trial.score,
                "reloaded": reloaded,
                "hyperparameters": trial.hyperparameters,
                "attempts": trial.attempts,
                "traceback": trial.traceback,
                "reason": trial.reason,
            }
        )
    finished = [
        t
        for t in tuner.oracle.study.get_trials(deepcopy=False)
        if t.state == optuna.trial.TrialState.COMPLETE
    ]
    return {"trials": record, "completed_attempts": len(finished)}


def fork(function: Callable[[], None], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def exit_code(pid: int) -> int | None:
    """Of a worker that has ended by itself or by our signal, else `None`."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def run_and_kill(arguments, folder: Path, rng: random.Random) -> int:
    """Keeps workers running until they are done; returns the kills.

    A worker that was stalled goes on, and is no victim again until then.
    """

    def start() -> int:
        return fork(
            lambda: work(arguments, folder, "killed"), folder / "worker.log"
        )

    workers = [start() for _ in range(arguments.workers)]
    kills = 0
    victim, moment, goal = None, 0.0, 0
    stalled: dict[int, float] = {}
    while workers:
        time.sleep(0.01)
        for pid, until in list(stalled.items()):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGCONT)
                del stalled[pid]
        for pid in list(workers):
            code = exit_code(pid)
            if code is None:
                continue
            workers.remove(pid)
            if code == -signal.SIGKILL:
                workers.append(start())
            elif code != 0:
                raise SystemExit(
                    f"A worker ended with {code}:\n"
                    + (folder / "worker.log").read_text()[-4000:]
                )
        if kills == arguments.kills or not workers:
            continue
        # A new worker trains its first trial for long, and would be killed in
        # that one each time: some have to come to the next ones.
        begun = {path.name[:10] for path in folder.glob("trials/trial_*")}
        candidates = [pid for pid in workers if pid not in stalled]
        if victim not in workers and len(begun) >= goal and candidates:
            candidate = rng.choice(candidates)
            # Now and then one that only just starts.
            if (folder / f"ready_{candidate}").exists() or rng.random() < 1e-4:
                victim = candidate
                moment = time.monotonic() + rng.uniform(0, arguments.longest)
        elif victim in workers and time.monotonic() > moment:
            if arguments.stall:
                os.kill(victim, signal.SIGSTOP)
                pause = rng.uniform(0.5, 2) * GRACE_PERIOD
                stalled[victim] = time.monotonic() + pause
            else:
                os.kill(victim, signal.SIGKILL)
            kills += 1
            left = (arguments.trials - len(begun)) // (
                arguments.kills - kills + 1
            )
            victim, goal = None, len(begun) + rng.randint(0, min(2, left))
    return kills


def in_a_fork(function: Callable[[], dict], folder: Path) -> dict:
    result = folder / "result.json"

    def run() -> None:
        result.write_text(json.dumps(function()))

    log = folder / "check.log"
    _, status = os.waitpid(fork(run, log), 0)
    if status:
        raise SystemExit(log.read_text()[-4000:])
    return json.loads(result.read_text())


def faults_of(arguments, record: dict, undisturbed: dict | None) -> list[str]:
    faults = []
    trials = record["trials"]
    numbers = [t["number"] for t in trials]
    if numbers != list(range(arguments.trials)):
        faults.append(f"trials lost or surplus: {numbers}")
    if record["completed_attempts"] != arguments.trials:
        faults.append(
            f"{record['completed_attempts']} attempts have published a result"
        )
    for t in trials:
        if t["state"] != "completed" or t["traceback"]:
            faults.append(f"trial {t['number']}: {t}")
        elif t["score"] != t["reloaded"]:
            faults.append(
                f"trial {t['number']}: recorded {t['score']}, its weights "
                f"give {t['reloaded']}"
            )
    if undisturbed is not None:
        for killed, calm in zip(trials, undisturbed["trials"], strict=False):
            for key in ("hyperparameters", "score"):
                if killed[key] != calm[key]:
                    faults.append(
                        f"trial {killed['number']}: {key} {killed[key]}, "
                        f"undisturbed {calm[key]}"
                    )
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument(
        "--stall", action="store_true", help="stop workers for a while instead"
    )
    parser.add_argument("--storage", help="a database URL; else SQLite")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--longest", type=float, default=2.0, help="seconds a victim has left"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder, calm_folder = root / "killed", root / "calm"
        folder.mkdir()
        calm_folder.mkdir()
        kills = run_and_kill(arguments, folder, random.Random(arguments.seed))
        record = in_a_fork(
            lambda: read_record(arguments, folder, "killed"), folder
        )
        undisturbed = None
        if arguments.workers == 1:

            def run_undisturbed() -> dict:
                work(arguments, calm_folder, "calm")
                return read_record(arguments, calm_folder, "calm")

            undisturbed = in_a_fork(run_undisturbed, calm_folder)
    faults = faults_of(arguments, record, undisturbed)
    attempts = [t["attempts"] for t in record["trials"]]
    print(
        f"{kills} {'stalls' if arguments.stall else 'kills'}, "
        f"{arguments.workers} worker(s), {arguments.trials} trials in "
        f"{time.monotonic() - began:.0f} s; attempts {attempts}; "
        f"{len(faults)} faults"
    )
    for fault in faults:
        print(fault)
    if kills < arguments.kills:
        print(f"only {kills} of {arguments.kills}: give more --trials")
    return 1 if faults or kills < arguments.kills else 0


if __name__ == "__main__":
    sys.exit(main())
