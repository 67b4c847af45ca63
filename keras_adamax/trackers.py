"""Functions for `on_record` that send records to experiment trackers.

A tracker's own Keras callback sees the logs of `fit`: the values of all
variables together, at the end of a batch or an epoch. A logger with one of
these functions as `on_record` sends every recorded value, also that of each
variable, with the optimizer's step that it belongs to.

    logger = keras_adamax.ClipRateLogger(
        update_freq=50, on_record=keras_adamax.trackers.to_mlflow
    )
"""

import re

import keras

_NOT_IN_MLFLOW = re.compile(r"[^\w\-. /]")


@keras.saving.register_keras_serializable("keras_adamax")
def to_mlflow(step: int, name: str, value: float) -> None:
    """Logs a value to the active MLflow run.

    Needs `mlflow` or `mlflow-skinny`. A run must be active, or MLflow begins
    one.

    Args:
        step: Updates that the optimizer has applied.
        name: Path of a variable and the quantity, or the quantity alone.
            Characters that MLflow does not take become underscores.
        value: The value.
    """
    import mlflow

    mlflow.log_metric(_NOT_IN_MLFLOW.sub("_", name), value, step=step)


@keras.saving.register_keras_serializable("keras_adamax")
def to_wandb(step: int, name: str, value: float) -> None:
    """Logs a value to the active run of Weights & Biases.

    Needs `wandb`, and `wandb.init` before. W&B's own step counts its calls;
    the optimizer's step is logged beside the value, as `updates`. To draw over
    it, call `wandb.define_metric("*", step_metric="updates")` once.

    Args:
        step: Updates that the optimizer has applied.
        name: Path of a variable and the quantity, or the quantity alone.
        value: The value.
    """
    import wandb

    wandb.log({name: value, "updates": step})
