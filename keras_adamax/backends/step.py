"""What the optimizer gives to an update, and what it tells of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras_adamax.update_rule import Hyperparameters

Tensor = Any


@dataclass(frozen=True)
class Step:
    """One update of variables by dense gradients, or one by sparse ones.

    Attributes:
        kernel: The chosen kernel, one of the backend's `CHOICES`.
        indices: Which of the optimizer's variables they are.
        gradients: A gradient each, of any float dtype; all are dense, or all
            are sparse.
        weights: The variables.
        momentums: First moment of each.
        norms: Infinity norm of each.
        dtype: Dtype of `momentums` and `norms`.
        learning_rate: Scalar, a tensor or a variable.
        hyperparameters: Function of the learning rate and a dtype that gives
            the scalars of the step. A function, because TensorFlow takes twice
            as long for an eager step if it computes them outside of a graph.
        has_schedules: Whether that function calls code of users.
        clip_gradients: Whether gradients are clipped at all.
        exclusions: Variable of all the optimizer's variables, > 0 where one is
            not clipped; `None` where all are alike.
        clip_counts: Variable with a row of statistics for each of the
            optimizer's variables; `None` where nothing is counted.
        measures: Whether `update_rule.SUMS` are asked for.
        kept: What a backend keeps from step to step; the optimizer's own.
    """

    kernel: str
    indices: tuple[int, ...]
    gradients: list[Tensor]
    weights: list[Any]
    momentums: list[Any]
    norms: list[Any]
    dtype: str
    learning_rate: Tensor
    hyperparameters: Callable[[Tensor, str], Hyperparameters]
    has_schedules: bool
    clip_gradients: bool
    exclusions: Any | None
    clip_counts: Any | None
    measures: bool
    kept: dict[str, Any]


class Sums(NamedTuple):
    """The `update_rule.SUMS` of some variables.

    Attributes:
        indices: Which of the optimizer's variables they are.
        values: float32, a row for each of them.
    """

    indices: Sequence[int]
    values: Tensor


class Updated(NamedTuple):
    """What a fused update has done of a step.

    Attributes:
        left: Positions in the step that it could not serve.
        sums: Of the variables that it served, where they were asked for.
    """

    left: Sequence[int]
    sums: Sequence[Sums] = ()


class Changes(NamedTuple):
    """What a call of `apply` may change.

    Attributes:
        kernel: The chosen kernel.
        weights: The variables of the call.
        all: All that it may change.
        small: Those that the fused updates do not write, where these alone
            write the others; `None` where something else does.
    """

    kernel: str
    weights: list[Any]
    all: list[Any]
    small: list[Any] | None
