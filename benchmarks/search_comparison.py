"""What does a search find over our space, and over those of Keras's optimizers?

The model and the images of `examples/quickstart.py`: 40 trials of 3 epochs
over the default `AdamaxClippedSpace`, over `keras.optimizers.Adamax`, and over
Adam with `global_clipnorm`, in spaces that agree where the optimizers do; the
same sampler (TPE), and the seeds 0, 1 and 2, which were fixed before the first
run. A trial's score is its validation accuracy; the test images are shown to
the best trial of each search alone. Prints a table, and writes JSON where
`--output` says.
Rerun with

    python benchmarks/search_comparison.py --backend jax
"""

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from _harness import options, results

PARSER = options.make_parser(__doc__, backend="jax")
PARSER.add_argument("--trials", type=int, default=40)
PARSER.add_argument("--epochs", type=int, default=3)
PARSER.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
ARGUMENTS = options.parse(PARSER, trials=2, epochs=1, seeds=[0])

import keras
import keras_tuner
from _models import quickstart
from sklearn.model_selection import train_test_split

from keras_adamax_tuning import (
    AdamaxClippedHyperModel,
    AdamaxClippedSpace,
    OptunaOracle,
    OptunaTuner,
)

WEIGHT_DECAYS = [0.0, 1e-5, 1e-4, 1e-3, 1e-2]


def build_with(make_optimizer: Callable[[Any], Any]) -> Any:
    """A model builder: the quickstart's model with another optimizer."""

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        model = quickstart.build_model()
        model.compile(
            make_optimizer(hp),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return model

    return build


def common_arguments(hp: keras_tuner.HyperParameters) -> dict[str, Any]:
    """What our space and Keras's optimizers have in common, the same ranges."""

    def logarithmic(name: str, low: float, high: float, start: float) -> float:
        return hp.Float(name, low, high, sampling="log", default=start)

    return {
        "learning_rate": logarithmic("learning_rate", 1e-5, 0.1, 0.001),
        "beta_1": 1 - logarithmic("one_minus_beta_1", 0.01, 0.5, 0.1),
        "beta_2": 1 - logarithmic("one_minus_beta_2", 1e-4, 0.1, 0.001),
        "epsilon": logarithmic("epsilon", 1e-10, 1e-6, 1e-8),
        "weight_decay": hp.Choice("weight_decay", WEIGHT_DECAYS) or None,
    }


def adam(hp: keras_tuner.HyperParameters) -> Any:
    """Adam, with the threshold that its users have to find."""
    return keras.optimizers.Adam(
        **common_arguments(hp),
        global_clipnorm=hp.Float(
            "global_clipnorm", 0.01, 10.0, sampling="log", default=1.0
        ),
    )


ARMS = {
    "AdamaxClipped": AdamaxClippedHyperModel(
        lambda hp: quickstart.build_model(), AdamaxClippedSpace()
    ),
    "keras.optimizers.Adamax": build_with(
        lambda hp: keras.optimizers.Adamax(**common_arguments(hp))
    ),
    "Adam, global_clipnorm": build_with(adam),
}


def search(hypermodel: Any, seed: int, data: tuple) -> dict[str, Any]:
    """One search; its scores, and the test accuracy of the best trial."""
    train_x, valid_x, test_x, train_y, valid_y, test_y = data
    with tempfile.TemporaryDirectory() as folder:
        tuner = OptunaTuner(
            hypermodel,
            oracle=OptunaOracle(
                "val_accuracy",
                max_trials=ARGUMENTS.trials,
                sampler="tpe",
                seed=seed,
                max_consecutive_failures=ARGUMENTS.trials,
            ),
            directory=folder,
            project_name="trials",
            callbacks_factory=lambda trial, hp, folder: [],
        )
        tuner.search(
            train_x,
            train_y,
            validation_data=(valid_x, valid_y),
            batch_size=quickstart.BATCH_SIZE,
            epochs=ARGUMENTS.epochs,
            verbose=0,
        )
        trials = tuner.oracle.logical_trials()
        (best,) = tuner.get_best_models(1)
        _, accuracy = best.evaluate(test_x, test_y, verbose=0)
    scores = [t.score for t in trials if t.score is not None]
    return {
        "scores": scores,
        "failed": sum(t.state == "failed" for t in trials),
        "best": max(scores),
        "test": accuracy,
    }


def spread(values: list[float]) -> str:
    """Mean, least and largest."""
    return (
        f"{statistics.mean(values):.4f} ({min(values):.4f} to "
        f"{max(values):.4f})"
    )


def print_table(searches: dict[str, list[dict[str, Any]]]) -> None:
    """Prints a row for each optimizer."""
    print(
        "| search over | best validation accuracy | its test accuracy | "
        "median trial | trials above 0.9 | failed |"
    )
    print("|---|---|---|---|---|---|")
    for name, runs in searches.items():
        good = [sum(s > 0.9 for s in run["scores"]) for run in runs]
        columns = [
            name,
            spread([run["best"] for run in runs]),
            spread([run["test"] for run in runs]),
            spread([statistics.median(run["scores"]) for run in runs]),
            f"{min(good)} to {max(good)} of {ARGUMENTS.trials}",
            str(sum(run["failed"] for run in runs)),
        ]
        print("| " + " | ".join(columns) + " |")


def main() -> None:
    """Searches, writes what has been found by then, and prints the table."""
    searches: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    found = results.begin(
        "search_comparison",
        ARGUMENTS,
        epochs=ARGUMENTS.epochs,
        seeds=ARGUMENTS.seeds,
        searches=searches,
    )
    print(
        f"quickstart model, {ARGUMENTS.backend}: {ARGUMENTS.trials} trials of "
        f"{ARGUMENTS.epochs} epochs, seeds {ARGUMENTS.seeds}; mean over seeds "
        "(least to largest)"
    )
    images, test_x, labels, test_y = quickstart.load_data()
    train_x, valid_x, train_y, valid_y = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    data = (train_x, valid_x, test_x, train_y, valid_y, test_y)
    for seed in ARGUMENTS.seeds:
        for name, hypermodel in ARMS.items():
            searches[name].append(search(hypermodel, seed, data))
            keras.utils.clear_session()
            results.end(
                found, ARGUMENTS, f"search_comparison_{ARGUMENTS.backend}"
            )
    print_table(searches)


if __name__ == "__main__":
    with keras.device("cpu"):
        main()
