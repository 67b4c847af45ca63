"""Whether model and data fit, found out before the first trial."""

from typing import Any

import keras
import keras_tuner

from keras_adamax_tuning.base import user_errors
from keras_adamax_tuning.running.data import Data

# What our callbacks add to the logs.
_RECORDED = {"clip_rate", "spikes", "weight_delta", "weight_delta_ratio"}


def check_model_takes_data(
    hypermodel: Any, data: Data, objective: str | None
) -> None:
    """Runs one sample through the model of the default hyperparameters.

    Else each trial would fail alike, or the first one in vain. Left alone are
    datasets, which may not be read twice, and models with a training step of
    their own, which may take anything.

    Args:
        hypermodel: An `AdamaxClippedHyperModel`.
        data: What the search trains on.
        objective: Name that must be among the logs of `fit`; None if
            callbacks of the user's own may add to them.
    """
    try:
        model = hypermodel.build(keras_tuner.HyperParameters())
    except Exception as error:
        error.add_note(
            "`build_model` fails with the default hyperparameters, which the "
            "search tries before its first trial."
        )
        raise
    if not data.is_arrays or _has_own_step(type(model)):
        return
    shapes = []
    try:
        x, y = (
            keras.tree.map_structure(lambda leaf: leaf[:1], part)
            for part in (data.x, data.y)
        )
        shapes = [
            ", ".join(str(leaf.shape[1:]) for leaf in keras.tree.flatten(part))
            for part in (x, y)
        ]
        predicted = model(x, training=False)
        model.compute_loss(x, y, predicted)
        logs = {"loss", *model.compute_metrics(x, y, predicted), *_RECORDED}
    except Exception as error:
        raise ValueError(
            f"The model does not take the data: a row of x has the shape "
            f"{shapes[0]}, of y {shapes[1]}. {_what_went_wrong(error)}"
        ) from error
    if objective and objective.removeprefix("val_") not in logs:
        raise ValueError(
            "`objective` must be in the logs of `fit`: "
            f"{', '.join(sorted(logs - _RECORDED))}, or one of them with val_ "
            f"before it. Received: objective={objective!r}. Name another, or "
            "compile the model with that metric."
        )


def _has_own_step(kind: type) -> bool:
    return kind.train_step is not keras.Model.train_step  # type: ignore[attr-defined]


def _what_went_wrong(error: Exception) -> str:
    if user_errors.place_of(error) is not None:
        return user_errors.describe(error)
    return user_errors.first_lines(error)
