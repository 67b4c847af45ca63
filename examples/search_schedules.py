"""Search schedules: which kind, and the parameters of that kind alone.

A learning rate can be constant or decay in one of several ways, and each way
has parameters of its own. They are conditional: a trial with a cosine decay
has no decay rate, and the sampler does not learn from one. The same holds for
the schedules of beta_2 and of the clip multiplier. The task is a small
recurrent network that adds up the marked numbers of a sequence; its gradients
are spiky at first, so that the schedules matter. At the end a fresh process
loads the best model and evaluates it.

    python examples/search_schedules.py --backend jax --trials 20
"""

import argparse
import collections
import os
import subprocess
import sys
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Search schedules for AdamaxClipped."
    )
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default="tensorflow",
        help="what Keras computes with (default: %(default)s)",
    )
    parser.add_argument(
        "--trials", type=int, default=12, help="default: %(default)s"
    )
    parser.add_argument(
        "--epochs", type=int, default=4, help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("search_schedules_output"),
        help="folder of the search (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate", type=Path, metavar="MODEL", help=argparse.SUPPRESS
    )
    return parser.parse_args()


# Keras reads its backend when it is imported, so the options come first.
ARGUMENTS = parse_arguments()
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras  # noqa: E402
import numpy as np  # noqa: E402

# Registers the optimizer with Keras; needed to load the best model, too.
import keras_adamax  # noqa: E402, F401
from keras_adamax_tuning import AdamaxClippedSpace, run_search  # noqa: E402

SAMPLES, LENGTH, BATCH_SIZE = 800, 10, 32
TRAINED_SAMPLES = 640
STEPS = ARGUMENTS.epochs * TRAINED_SAMPLES // BATCH_SIZE

SPACE = AdamaxClippedSpace(
    learning_rate=(1e-3, 1e-1),
    learning_rate_schedule=["constant", "cosine", "exponential"],
    beta_2_schedule=["constant", "exponential"],
    clip_multiplier_schedule=["constant", "linear"],
    # The lengths of the schedules follow from the length of a training.
    num_steps=STEPS,
    clip_gradients=True,
    beta_1=0.9,
    epsilon=1e-8,
    bias_correction=False,
    weight_decay=None,
    spike_threshold=None,
)


def load_data() -> dict[str, np.ndarray]:
    """Returns sequences of numbers with marks, and the marked ones' sums."""
    rng = np.random.default_rng(0)
    numbers = rng.uniform(-1, 1, (SAMPLES, LENGTH))
    marks = rng.integers(0, 2, (SAMPLES, LENGTH))
    sums = (numbers * marks).sum(axis=1, keepdims=True)
    sequences = np.stack([numbers, marks], axis=2).astype("float32")
    return {
        "x_train": sequences[:TRAINED_SAMPLES],
        "y_train": sums[:TRAINED_SAMPLES],
        "x_val": sequences[TRAINED_SAMPLES:],
        "y_val": sums[TRAINED_SAMPLES:],
    }


def build_model(hp) -> keras.Model:
    """Returns a compiled model; the search sets its optimizer."""
    del hp  # only the optimizer is searched
    model = keras.Sequential(
        [
            keras.Input((LENGTH, 2)),
            keras.layers.GRU(16),
            keras.layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    return model


def evaluate(saved: Path) -> None:
    """Prints the loss of a saved model on the validation data."""
    model = keras.saving.load_model(saved)
    data = load_data()
    loss = model.evaluate(data["x_val"], data["y_val"], verbose=0)
    print(f"loss {loss:.6f}")


def main() -> int:
    """Runs the script and returns its exit code."""
    if ARGUMENTS.evaluate:  # this is the fresh process
        evaluate(ARGUMENTS.evaluate)
        return 0
    print(SPACE.describe())
    result = run_search(
        build_model,
        load_data,
        space=SPACE,
        max_trials=ARGUMENTS.trials,
        epochs=ARGUMENTS.epochs,
        batch_size=BATCH_SIZE,
        seed=0,
        output=ARGUMENTS.output,
    )
    best = result.best_trial
    if best is None:
        return 3
    kinds = collections.Counter(
        trial.hyperparameters["learning_rate_schedule"]
        for trial in result.trials
    )
    print("\nTrials of each kind:", dict(kinds))
    print("The best learning rate:")
    print("   ", result.load_best_optimizer().get_config()["learning_rate"])

    print("A fresh process loads the best model: ", end="", flush=True)
    done = subprocess.run(
        [
            *(sys.executable, __file__, "--backend", ARGUMENTS.backend),
            *("--evaluate", str(ARGUMENTS.output / "best.keras")),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout, end="")
    loss = float(done.stdout.split()[1])
    if abs(loss - best.score) > 1e-4 * max(1.0, abs(best.score)):
        print("This is NOT the recorded score.")
        return 1
    print("This is the recorded score.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
