"""Figures of a search. matplotlib is imported when one is drawn.

Each function takes the trials of a search, as `OptunaOracle.logical_trials`
gives them, and returns a `matplotlib.figure.Figure`. None of them touches
matplotlib's global state. They need matplotlib: `pip install matplotlib`.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_adamax import _atomic_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_scores(
    trials: Sequence[Any],
    objective: str = "score",
    direction: str = "min",
) -> "Figure":
    """Draws the score of each trial, and the best so far as a line.

    Pruned trials stand at their last score; failed ones, which have none,
    in a strip of their own.

    Args:
        trials: Sequence of `LogicalTrial`.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = plot_scores(oracle.logical_trials(), "val_loss")
        >>> figure.axes[0].get_xlabel()
        'trial'
    """
    return _drawing().scores(trials, objective, direction)


def plot_hyperparameters(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any] = (),
    objective: str = "score",
    direction: str = "min",
) -> "Figure":
    """Draws the score against each hyperparameter that was searched.

    The scale is the one that was searched on: a logarithm where the space
    has one. Dark points are late trials, so that one sees where the sampler
    went.

    Args:
        trials: Sequence of `LogicalTrial`.
        hyperparameters: KerasTuner's hyperparameters,
            `oracle.hyperparameters.space`, for ranges and scales.
            Defaults to `()`: as the values suggest.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = plot_hyperparameters(
        ...     oracle.logical_trials(), oracle.hyperparameters.space
        ... )
    """
    return _drawing().hyperparameters(
        trials, hyperparameters, objective, direction
    )


def plot_parallel_coordinates(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any] = (),
    objective: str = "score",
    direction: str = "min",
) -> "Figure":
    """Draws each completed trial as a line through all hyperparameters.

    The better a trial, the darker its line; the best one is in red. A
    conditional hyperparameter that a trial did not use is passed below its
    axis.

    Args:
        trials: Sequence of `LogicalTrial`.
        hyperparameters: As for `plot_hyperparameters`. Defaults to `()`.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = plot_parallel_coordinates(oracle.logical_trials())
    """
    return _drawing().parallel_coordinates(
        trials, hyperparameters, objective, direction
    )


def plot_importance(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any] = (),
    objective: str = "score",
    direction: str = "min",
) -> "Figure":
    """Draws how much each hyperparameter mattered, by Optuna's evaluators.

    PED-ANOVA, and fANOVA where scikit-learn is installed. With fewer than
    10 completed trials the figure says that they are too few.

    Args:
        trials: Sequence of `LogicalTrial`.
        hyperparameters: As for `plot_hyperparameters`. Defaults to `()`.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = plot_importance(oracle.logical_trials())
    """
    return _drawing().importance(trials, hyperparameters, objective, direction)


def save_figures(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any],
    objective: str,
    direction: str,
    folder: Path,
    on_error: Callable[[str, Exception], None] | None = None,
) -> list[Path]:
    """Writes all four figures as PNG files; older ones are replaced.

    Args:
        trials: Sequence of `LogicalTrial`.
        hyperparameters: As for `plot_hyperparameters`.
        objective: String. Name of the score.
        direction: `"min"` or `"max"`.
        folder: Where to write; created if it is missing.
        on_error: Called with the name of a figure that cannot be drawn or
            written, and the exception; the others are drawn nevertheless.
            Defaults to `None`: the exception is raised.

    Returns:
        The paths of the files.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the folder cannot be written.

    Example:
        >>> paths = save_figures(
        ...     trials, space, "val_loss", "min", Path("figures")
        ... )
        >>> paths[0].name
        'scores.png'
    """
    space = list(hyperparameters)
    draw: dict[str, Callable[[], Figure]] = {
        "scores": lambda: plot_scores(trials, objective, direction),
        "hyperparameters": lambda: plot_hyperparameters(
            trials, space, objective, direction
        ),
        "parallel_coordinates": lambda: plot_parallel_coordinates(
            trials, space, objective, direction
        ),
        "importance": lambda: plot_importance(
            trials, space, objective, direction
        ),
    }
    paths = []
    for name, make in draw.items():
        path = folder / f"{name}.png"
        try:
            figure = make()
            folder.mkdir(parents=True, exist_ok=True)
            _atomic_files.write(
                path,
                functools.partial(figure.savefig, dpi=150, facecolor="white"),
            )
        except Exception as error:
            if on_error is None:
                raise
            on_error(name, error)
        else:
            paths.append(path)
    return paths


def _drawing() -> Any:
    try:
        from keras_adamax_tuning import _drawing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ImportError(
            "Figures need matplotlib, which is not installed. "
            "Run: pip install matplotlib"
        ) from error
    return _drawing
