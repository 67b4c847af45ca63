"""`AdamaxClippedSpace`: which hyperparameters a search may change, and how."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import keras

from keras_adamax import AdamaxClipped, TargetClipRate, _validation
from keras_adamax_tuning.space import parameters, schedule_kinds, space_table
from keras_adamax_tuning.space.arguments import (
    ADDED_LATER,
    ARGUMENTS,
    OF_CLIPPING,
    check_optimizer_arguments,
)
from keras_adamax_tuning.space.parameters import Parameter
from keras_adamax_tuning.space.ranges import Range
from keras_adamax_tuning.space.schedule_search import ScheduleSearch

__all__ = ["AdamaxClippedSpace", "Range"]


@keras.saving.register_keras_serializable("keras_adamax_tuning")
class AdamaxClippedSpace:
    """The hyperparameters of `AdamaxClipped` that a search may change.

    Use it in a function that builds a model for KerasTuner
    (`space.build_optimizer(hp)`), or give it to `AdamaxClippedHyperModel`.

    Each argument says what is searched:

    - a value (number, boolean, `None` where the optimizer takes it, or a
      `keras.optimizers.schedules.LearningRateSchedule`) is fixed;
    - a tuple `(low, high)` is a range, searched on the argument's own scale;
    - a list is a choice of its values;
    - a `Range` is a range on a scale of your choice.

    The record has a hyperparameter for each that is searched, of the same
    name. A log scale that is not of the value itself shows in the name:
    `one_minus_beta_2` is searched, on a log scale from 0.0001 to 0.1, for
    `beta_2=(0.9, 0.9999)`, so that every sampler of KerasTuner and Optuna
    works on that scale. `clip_multiplier`, `clip_epsilon`, `spike_threshold`
    and `max_skipped_spikes` are active only while `clip_gradients` is.

    Each of `learning_rate`, `beta_2` and `clip_multiplier` can follow a
    schedule, of a fixed kind or of one that is searched too. The parts of a
    kind are active only while that kind is chosen. The kinds and their parts,
    each of which is specified like an argument:

    | argument | kind | parts |
    |---|---|---|
    | `learning_rate_schedule` | `"constant"` | |
    | | `"warmup"`: up from 0 | `warmup_steps` |
    | | `"cosine"`: `CosineDecay` | `decay_steps`, `alpha`, `warmup_steps` |
    | | `"exponential"`: `ExponentialDecay` | `decay_steps`, `decay_rate`, \
`warmup_steps` |
    | | `"polynomial"`: `PolynomialDecay` | `decay_steps`, `end_factor`, \
`power`, `warmup_steps` |
    | `beta_2_schedule` | `"constant"` | |
    | | `"exponential"`: `1 - beta_2` halves | `start_factor`, `half_life` |
    | `clip_multiplier_schedule` | `"constant"` | |
    | | `"linear"`: `LinearRamp` | `start`, `num_steps` |
    | | `"target_rate"`: `TargetClipRate` | `target` |

    The learning rate is then the largest one (a decay begins after the
    warm-up), `end_factor` the last one over it; `beta_2` and
    `clip_multiplier` are the last values. (With `"target_rate"`
    `clip_multiplier` has no effect, and is not active.) `1 - beta_2` begins at
    `start_factor` times its last value: the original's authors ran
    `1 - max(0.0005, 0.01 * 0.5^(step / 2000))`, which is `beta_2=0.9995` with
    a factor of 20 and a half-life of 2000 steps.

    Args:
        learning_rate: Step size; a range is searched on a log scale. Defaults
            to `(1e-5, 0.1)`.
        beta_1: Decay rate of the first moment; log scale of `1 - beta_1`.
            Defaults to `(0.5, 0.99)`.
        beta_2: Decay rate of the infinity norm; log scale of `1 - beta_2`.
            Defaults to `(0.9, 0.9999)`.
        epsilon: Added to the infinity norm; log scale. Defaults to
            `(1e-10, 1e-6)`.
        clip_gradients: Whether gradients are clipped. Defaults to
            `[True, False]`.
        clip_multiplier: Growth of the bound; log scale of
            `clip_multiplier - 1`. Defaults to `(1.01, 10.0)`.
        clip_epsilon: Added to the bound; log scale. Defaults to
            `(1e-6, 0.01)`.
        bias_correction: Whether the bias is corrected. Defaults to
            `[False, True]`.
        weight_decay: Decay of the weights; log scale. Defaults to
            `[None, 1e-5, 1e-4, 1e-3, 1e-2]`.
        spike_threshold: The spike gate, off or on: `None` or a threshold; a
            range is searched on a log scale. Defaults to `[None, 0.2]`.
        max_skipped_spikes: How many spikes in a row the gate leaves out.
            Defaults to `5`.
        learning_rate_schedule: A kind, a list of kinds to choose from, or a
            dictionary from such kinds to dictionaries of their parts, for
            example `{"constant": {}, "cosine": {"alpha": (0.0, 0.2)}}`. What
            is not in it has a standard specification. Defaults to
            `"constant"`.
        beta_2_schedule: The same for `beta_2`. Defaults to `"constant"`.
        clip_multiplier_schedule: The same for `clip_multiplier`. Defaults to
            `"constant"`.
        num_steps: Integer, the number of updates in a training run. It gives
            the lengths in steps (`decay_steps`, `warmup_steps`, `half_life`,
            `num_steps`) that the schedules leave open. Defaults to `None`.
        optimizer_arguments: Dictionary of further arguments of
            `AdamaxClipped`, fixed in the search, for example
            `{"global_clipnorm": 1.0}`. Defaults to `None`.
        name_prefix: What the name of every hyperparameter begins with; lets
            two spaces live in one search. Defaults to `""`.

    Raises:
        TypeError: If an argument, or a part of it, is of a wrong type.
        ValueError: If an argument is unknown or out of range, a range is
            empty, a schedule lacks its length, or the target of a
            `TargetClipRate` reaches `spike_threshold`.

    Example:
        >>> import keras_tuner
        >>> from keras_adamax_tuning import AdamaxClippedSpace
        >>> space = AdamaxClippedSpace(
        ...     learning_rate=(1e-4, 1e-2),
        ...     beta_1=0.9,
        ...     epsilon=1e-8,
        ...     clip_gradients=True,
        ...     clip_epsilon=1e-4,
        ...     bias_correction=False,
        ...     weight_decay=[None, 1e-4],
        ...     spike_threshold=0.2,
        ... )
        >>> hp = keras_tuner.HyperParameters()
        >>> hp.values["one_minus_beta_2"] = 0.01
        >>> optimizer = space.build_optimizer(hp)
        >>> optimizer.beta_2
        0.99
        >>> for name, value in hp.values.items():
        ...     print(name, value)
        one_minus_beta_2 0.01
        learning_rate 0.001
        clip_multiplier_minus_1 0.2
        weight_decay None
    """

    # The lists among the defaults are read, never changed.
    def __init__(
        self,
        learning_rate: Any = (1e-5, 0.1),
        beta_1: Any = (0.5, 0.99),
        beta_2: Any = (0.9, 0.9999),
        epsilon: Any = (1e-10, 1e-6),
        clip_gradients: Any = [True, False],  # noqa: B006
        clip_multiplier: Any = (1.01, 10.0),
        clip_epsilon: Any = (1e-6, 0.01),
        bias_correction: Any = [False, True],  # noqa: B006
        weight_decay: Any = [None, 1e-5, 1e-4, 1e-3, 1e-2],  # noqa: B006
        spike_threshold: Any = [None, 0.2],  # noqa: B006
        max_skipped_spikes: Any = 5,
        learning_rate_schedule: Any = schedule_kinds.CONSTANT,
        beta_2_schedule: Any = schedule_kinds.CONSTANT,
        clip_multiplier_schedule: Any = schedule_kinds.CONSTANT,
        num_steps: int | None = None,
        optimizer_arguments: Mapping[str, Any] | None = None,
        name_prefix: str = "",
        **kwargs: Any,
    ):
        given = dict(locals())
        if kwargs:
            raise ValueError(
                "AdamaxClippedSpace does not have the argument(s) "
                f"{', '.join(map(repr, kwargs))}. Received: {kwargs}. What "
                "the optimizer has besides goes into `optimizer_arguments`."
            )
        if not isinstance(name_prefix, str):
            raise TypeError(
                "`name_prefix` must be a string. Received: "
                f"name_prefix={name_prefix!r} "
                f"(of type {type(name_prefix).__name__})."
            )
        self._name_prefix = name_prefix
        self._num_steps = num_steps
        self._parameters = {
            name: Parameter.parse(argument, given[name], name_prefix)
            for name, argument in ARGUMENTS.items()
        }
        self._schedules = {
            name: ScheduleSearch.parse(
                name, given[f"{name}_schedule"], num_steps, name_prefix
            )
            for name in schedule_kinds.KINDS
        }
        self._check_schedules()
        self._check_targets()
        self._optimizer_arguments = check_optimizer_arguments(
            optimizer_arguments
        )

    def build_optimizer(self, hp: Any) -> AdamaxClipped:
        """Declares the space in `hp` and makes the optimizer of its values.

        Args:
            hp: The `keras_tuner.HyperParameters` of a trial.

        Returns:
            An `AdamaxClipped` that is not built.

        Raises:
            ValueError: If `hp` has another hyperparameter of a name of ours.
        """
        return AdamaxClipped(**self.declare(hp))

    def declare(self, hp: Any) -> dict[str, Any]:
        """Declares the space in `hp`; the arguments of `AdamaxClipped`.

        Use it to know or to change the arguments before the optimizer is made.

        Args:
            hp: The `keras_tuner.HyperParameters` of a trial.

        Returns:
            A dictionary of the arguments that `hp` has the values of, and of
            the fixed ones. Those that have no effect in this trial are not in
            it.

        Raises:
            ValueError: If `hp` has another hyperparameter of a name of ours.
        """
        # A tuner builds the model again for each scope that was not active, to
        # find what is declared there; all of ours is declared at once.
        num_scopes = len(hp.inactive_scopes)
        arguments = self._declare_arguments(hp)
        del hp.inactive_scopes[num_scopes:]
        return {**arguments, **copy.deepcopy(self._optimizer_arguments)}

    def narrow(self, best: Any, factor: float) -> "AdamaxClippedSpace":
        """A smaller space around the best values, for a finer search.

        Every range keeps the part `factor` of its width, on its own scale,
        around the best value, and moved where that would lead out of it.
        Choices (booleans and kinds of schedules among them) are fixed at the
        best one; what was not active in the best trial stays as it is where
        it has no effect now, and goes where its kind was not chosen.

        Args:
            best: `keras_tuner.HyperParameters`, or a dictionary of their
                values by name. Names that are not of this space are left
                aside.
            factor: Number in (0, 1).

        Returns:
            A new `AdamaxClippedSpace`.

        Raises:
            TypeError: If `best` is neither, or `factor` is no number.
            ValueError: If `factor` is out of range, or `best` lacks a value of
                this space or has one that is outside of it.

        Example:
            >>> from keras_adamax_tuning import AdamaxClippedSpace
            >>> space = AdamaxClippedSpace(
            ...     learning_rate=(1e-4, 1e-2), beta_1=0.9, beta_2=0.999,
            ...     epsilon=1e-8, clip_gradients=False, bias_correction=False,
            ...     weight_decay=None, spike_threshold=None,
            ... )
            >>> finer = space.narrow({"learning_rate": 1e-3}, 0.5)
            >>> finer.get_config()["learning_rate"]["config"]["high"]
            0.00316227766...
        """
        factor = _validation.check_number(
            "factor", factor, exclusive_minimum=0, exclusive_maximum=1
        )
        recorded = _values_of(best)
        clips = self._parameters["clip_gradients"].narrow(recorded, factor)
        arguments: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            is_active = clips or name not in OF_CLIPPING
            if name in self._schedules:
                uses_value = self._schedules[name].uses_value(recorded)
                is_active = is_active and uses_value
            arguments[name] = (
                parameter.narrow(recorded, factor)
                if is_active
                else parameter.specification
            )
        for name, schedule in self._schedules.items():
            is_active = clips or name not in OF_CLIPPING
            arguments[f"{name}_schedule"] = (
                schedule.narrow(recorded, factor)
                if is_active
                else schedule.as_argument()
            )
        return AdamaxClippedSpace(
            **arguments,
            num_steps=self._num_steps,
            optimizer_arguments=self._optimizer_arguments,
            name_prefix=self._name_prefix,
        )

    def describe(self) -> str:
        """A table: each argument, its values, and their record.

        Below the arguments stands the `spike_tolerance` that these values
        have, where no schedule changes it: the share of spiky steps that the
        optimizer absorbs without the spike gate.

        Returns:
            A string of several lines.
        """
        return space_table.describe(
            self._parameters,
            self._schedules,
            self._optimizer_arguments,
            self._name_prefix,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments, ready for JSON."""
        config = {
            name: parameters.serialize(parameter.specification)
            for name, parameter in self._parameters.items()
            if not self._is_added_default(name)
        }
        for name, schedule in self._schedules.items():
            config[f"{name}_schedule"] = schedule.as_argument(
                parameters.serialize
            )
        config["num_steps"] = self._num_steps
        config["optimizer_arguments"] = copy.deepcopy(self._optimizer_arguments)
        config["name_prefix"] = self._name_prefix
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "AdamaxClippedSpace":
        """Makes the space that `get_config` described."""
        # A copy: Keras's deserialization may change the dictionary it gets.
        arguments = copy.deepcopy(dict(config))
        # There was no gate before there was this argument.
        arguments.setdefault("spike_threshold", None)
        for name in ARGUMENTS:
            if name in arguments:
                arguments[name] = parameters.deserialize(arguments[name])
        for name in schedule_kinds.KINDS:
            key = f"{name}_schedule"
            if isinstance(arguments.get(key), Mapping):
                arguments[key] = {
                    kind: {
                        part: parameters.deserialize(specification)
                        for part, specification in parts.items()
                    }
                    for kind, parts in arguments[key].items()
                }
        return cls(**arguments)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdamaxClippedSpace):
            return NotImplemented
        return self.get_config() == other.get_config()

    def __repr__(self) -> str:
        arguments = {
            name: parameter.specification
            for name, parameter in self._parameters.items()
        }
        for name, schedule in self._schedules.items():
            if not schedule.is_constant:
                arguments[f"{name}_schedule"] = schedule.as_argument()
        if self._optimizer_arguments:
            arguments["optimizer_arguments"] = self._optimizer_arguments
        if self._name_prefix:
            arguments["name_prefix"] = self._name_prefix
        words = ", ".join(f"{name}={v!r}" for name, v in arguments.items())
        return f"AdamaxClippedSpace({words})"

    def _is_added_default(self, name: str) -> bool:
        return (
            name in ADDED_LATER
            and self._parameters[name].specification == ARGUMENTS[name].default
        )

    def _declare_arguments(self, hp: Any) -> dict[str, Any]:
        clips = self._parameters["clip_gradients"]
        arguments: dict[str, Any] = {}
        for name in self._parameters:
            if name not in OF_CLIPPING:
                arguments[name] = self._declare_argument(hp, name)
            elif not clips.is_searched:
                if arguments["clip_gradients"]:
                    arguments[name] = self._declare_argument(hp, name)
            else:
                with hp.conditional_scope(clips.record_name, [True]):
                    value = self._declare_argument(hp, name)
                if arguments["clip_gradients"]:
                    arguments[name] = value
        return arguments

    def _declare_argument(self, hp: Any, name: str) -> Any:
        declare_value = functools.partial(self._parameters[name].declare, hp)
        if name not in self._schedules or self._schedules[name].is_constant:
            return declare_value()
        return self._schedules[name].declare(hp, declare_value)

    def _check_schedules(self) -> None:
        """Checks that what a schedule is made of is a number."""
        for name, schedule in self._schedules.items():
            parameter = self._parameters[name]
            if not schedule.is_constant and any(
                map(callable, parameter.values())
            ):
                raise ValueError(
                    f"`{name}` must be numbers where `{name}_schedule` makes "
                    "schedules of them. Received: "
                    f"{name}={parameter.specification!r}. "
                    f'Give {name}_schedule="constant" to use your own.'
                )

    def _check_targets(self) -> None:
        """A gate must never take what a target wants for a spike."""
        if self._parameters["clip_gradients"].specification is False:
            return
        values = self._parameters["spike_threshold"].values()
        thresholds = [value for value in values if value is not None]
        targets = self._schedules["clip_multiplier"].targets() + [
            value.target
            for value in self._parameters["clip_multiplier"].values()
            if isinstance(value, TargetClipRate)
        ]
        if thresholds and targets and max(targets) >= min(thresholds):
            raise ValueError(
                "Every target of a `TargetClipRate` must be below every "
                "`spike_threshold`, which would leave out ordinary steps. "
                f"Received: targets up to {max(targets)!r}, thresholds from "
                f"{min(thresholds)!r}. Choose smaller targets, larger "
                "thresholds, or spike_threshold=None."
            )


def _values_of(best: Any) -> Mapping[str, Any]:
    """The values of the best trial, by name."""
    is_plain = isinstance(best, Mapping)
    values = best if is_plain else getattr(best, "values", None)
    if not isinstance(values, Mapping):
        raise TypeError(
            "`best` must be HyperParameters or a dictionary of their values. "
            f"Received: best={best!r} (of type {type(best).__name__})."
        )
    return values
