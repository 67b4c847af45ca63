"""Whether model and data fit, found out before the first trial."""

import re
import traceback
from typing import Any

import keras
import keras_tuner

from keras_adamax_tuning._data import Data

# What our callbacks add to the logs.
_RECORDED = {"clip_rate", "weight_delta", "weight_delta_ratio"}
# How Keras prints parts of its messages.
_BOLD = re.compile("\x1b\\[[0-9;]*m")


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

    Raises:
        TypeError: If the builder does not return a model.
        ValueError: If the builder fails, the model does not take the data, or
            it lacks the objective.
    """
    try:
        model = hypermodel.build(keras_tuner.HyperParameters())
    except Exception as error:
        raise _as_wrong_use(error) from error
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
            f"{shapes[0]}, of y {shapes[1]}. {_first_lines(error)}"
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


def _as_wrong_use(error: Exception) -> Exception:
    """An error of the user's builder in one line, with its place.

    Errors of this package say all that there is to say.
    """
    frames = traceback.extract_tb(error.__traceback__)
    packages = ("keras_adamax", "keras_adamax_tuning", "keras_tuner")
    inside = [
        frame
        for frame in frames
        if not any(f"/{name}/" in frame.filename for name in packages)
    ]
    if frames and frames[-1] not in inside:
        return error
    place = inside[-1] if inside else frames[-1]
    return ValueError(
        "`build_model` fails with the default hyperparameters: "
        f"{type(error).__name__}: {_first_lines(error)} ({place.filename}, "
        f"line {place.lineno})."
    )


def _first_lines(error: Exception, length: int = 300) -> str:
    text = " ".join(_BOLD.sub("", str(error)).split())
    # What Keras adds repeats the shapes.
    text = text.partition(" Arguments received by ")[0]
    return text if len(text) <= length else f"{text[:length]}..."
