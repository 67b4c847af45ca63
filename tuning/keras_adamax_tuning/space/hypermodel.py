"""`AdamaxClippedHyperModel`: any model, optimized by what a search proposes."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_tuner
from keras.optimizers import LossScaleOptimizer
from keras_tuner.errors import FatalTypeError, FatalValueError

from keras_adamax_tuning.space import replaced_optimizer
from keras_adamax_tuning.space.adamax_clipped_space import AdamaxClippedSpace
from keras_adamax_tuning.space.arguments import Argument
from keras_adamax_tuning.space.parameters import Parameter

# What the user may search in `fit`, with its place among the positional
# arguments of `keras.Model.fit`.
_FIT_ARGUMENTS = {
    "batch_size": (
        Argument(
            "batch_size",
            kind="integer",
            default=32,
            limits={"minimum": 1},
            scale="log",
            takes_none=True,
        ),
        2,
    ),
    "epochs": (
        Argument(
            "epochs", kind="integer", limits={"minimum": 1}, takes_none=True
        ),
        3,
    ),
}

# How Python says that `fit(epochs=3, **kwargs)` has `epochs` in `kwargs`, too.
_GIVEN_TWICE = re.compile("got multiple values for .*argument '(?P<name>\\w+)'")


class AdamaxClippedHyperModel(keras_tuner.HyperModel):
    """A model builder whose models get an `AdamaxClipped` out of a space.

    Use it as the hypermodel of any tuner of KerasTuner. Loss, metrics and all
    other settings of a compiled model stay as they are; its optimizer is
    replaced. A `keras.optimizers.LossScaleOptimizer` around it (Keras puts one
    there for the policy `"mixed_float16"`) stays around ours.

    The optimizer is built at once, so that the weights of a trial are loaded
    with their moments and step count, when Hyperband goes on with them and
    when the best model is loaded. (Keras drops the saved state of an optimizer
    that is not built.)

    Args:
        build_model: Function that takes `hp`, a `keras_tuner.HyperParameters`,
            and returns a built `keras.Model`, compiled or not. It may declare
            hyperparameters of its own. Or a `keras_tuner.HyperModel`, whose
            own `fit` then trains the models.
        space: The `AdamaxClippedSpace` of the optimizer. Defaults to `None`,
            which is `AdamaxClippedSpace()`.
        batch_size: What `fit` gets: an integer, or what is searched, as in
            `AdamaxClippedSpace`: a tuple `(low, high)` (on a log scale), a
            list, or a `Range`. For arrays only: a dataset has batches already.
            Defaults to `None`: what the tuner's `search` is given.
        epochs: The same for the number of epochs; a range is searched on a
            linear scale. Not with Hyperband, which sets it. Defaults to
            `None`.
        compile_arguments: Dictionary of arguments of `keras.Model.compile`,
            without the optimizer, for models that are not compiled, for
            example `{"loss": "mse", "metrics": ["mae"]}`. Defaults to `None`.
        name: Name of the hypermodel. Defaults to `None`.
        tunable: Whether hyperparameters are searched, see
            `keras_tuner.HyperModel`. Defaults to `True`.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If `batch_size` or `epochs` is out of range, or
            `compile_arguments` has an optimizer.

    Example:
        >>> import keras, keras_tuner
        >>> from keras_adamax_tuning import AdamaxClippedHyperModel
        >>> def build_model(hp):
        ...     units = hp.Int("units", 4, 16)
        ...     model = keras.Sequential(
        ...         [keras.Input((3,)), keras.layers.Dense(units)]
        ...     )
        ...     model.compile(loss="mse")
        ...     return model
        >>> hypermodel = AdamaxClippedHyperModel(
        ...     build_model, batch_size=[16, 32]
        ... )
        >>> hp = keras_tuner.HyperParameters()
        >>> model = hypermodel.build(hp)
        >>> type(model.optimizer).__name__, model.loss
        ('AdamaxClipped', 'mse')
        >>> hp.values["batch_size"], hp.values["units"]
        (32, 4)
    """

    def __init__(
        self,
        build_model: Callable[[Any], keras.Model] | keras_tuner.HyperModel,
        space: AdamaxClippedSpace | None = None,
        batch_size: Any = None,
        epochs: Any = None,
        compile_arguments: Mapping[str, Any] | None = None,
        name: str | None = None,
        tunable: bool = True,
    ):
        self._hypermodel = _as_hypermodel(build_model)
        if space is None:
            space = AdamaxClippedSpace()
        if not isinstance(space, AdamaxClippedSpace):
            raise TypeError(
                "`space` must be an AdamaxClippedSpace or None. Received: "
                f"space={space!r} (of type {type(space).__name__})."
            )
        self.build_model = self._hypermodel.build
        self.space = space
        given = {"batch_size": batch_size, "epochs": epochs}
        self._fit_parameters = {
            name: Parameter.parse(argument, given[name])
            for name, (argument, _) in _FIT_ARGUMENTS.items()
        }
        self._compile_arguments = _check_compile_arguments(compile_arguments)
        # Whether the next build looks for what is searched in vain.
        self.warns_of_replaced = True
        super().__init__(name=name, tunable=tunable)

    @property
    def has_own_fit(self) -> bool:
        """Whether the user's hypermodel has a method `fit` of its own."""
        return type(self._hypermodel).fit is not keras_tuner.HyperModel.fit

    def declare_hyperparameters(self, hp: Any) -> None:
        """Declares what the user's hypermodel declares without building.

        Args:
            hp: The `keras_tuner.HyperParameters` of the search.
        """
        self._hypermodel.declare_hyperparameters(hp)

    def build(self, hp: Any) -> keras.Model:
        """Builds the model of a trial, with its optimizer.

        Args:
            hp: The `keras_tuner.HyperParameters` of the trial.

        Returns:
            A compiled model, whose optimizer is built.

        Raises:
            keras_tuner.errors.FatalTypeError: If `build_model` does not return
                a `keras.Model`. It is a `TypeError` that ends a search.
            keras_tuner.errors.FatalValueError: If the model is not built, or
                it is not compiled and there are no `compile_arguments`. It is
                a `ValueError` that ends a search.
            ValueError: If `build_model` and the space declare one
                hyperparameter in different ways.
        """
        model = self.build_model(hp)
        _check_model(model)
        if self.warns_of_replaced:
            self.warns_of_replaced = False
            replaced_optimizer.warn_of_replaced(self.build_model, hp, model)
        optimizer = self.space.build_optimizer(hp)
        self._fit_arguments(hp)
        if model.compiled:
            if self._compile_arguments is not None:
                raise FatalValueError(
                    "`compile_arguments` must be None for models that are "
                    "compiled. Received: compile_arguments="
                    f"{self._compile_arguments!r}, and `build_model` returned "
                    f"the compiled model {model.name!r}."
                )
            replace_optimizer(model, optimizer)
        else:
            if self._compile_arguments is None:
                raise FatalValueError(
                    "The model must be compiled, or there must be "
                    "`compile_arguments`. Received: from `build_model` the "
                    f"model {model.name!r}, which is not compiled, and "
                    "compile_arguments=None. Give for example "
                    'compile_arguments={"loss": "mse"}.'
                )
            model.compile(
                optimizer=optimizer,
                **keras.tree.map_structure(
                    _fresh_metric, self._compile_arguments
                ),
            )
        model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any):
        """Trains the model of a trial.

        Args:
            hp: The `keras_tuner.HyperParameters` of the trial.
            model: What `build` returned.
            *args: Positional arguments of `keras.Model.fit`.
            **kwargs: Keyword arguments of `keras.Model.fit`. The user's own
                `fit` must hand on `callbacks`.

        Returns:
            What `keras.Model.fit`, or the user's own `fit`, returns.

        Raises:
            keras_tuner.errors.FatalValueError: If `batch_size` or `epochs` is
                in the hypermodel and among the arguments, or if the user's own
                `fit` sets an argument that is among them, too.
        """
        arguments = self._fit_arguments(hp)
        for name in arguments:
            if name in kwargs or len(args) > _FIT_ARGUMENTS[name][1]:
                raise FatalValueError(
                    f"`{name}` must be given once. Received: {name} in the "
                    "hypermodel and in the call of `search`. Leave it out of "
                    "one of them. (Hyperband gives `epochs` itself.)"
                )
        arguments |= kwargs
        if not self.has_own_fit:
            return model.fit(*args, **arguments)
        try:
            return self._hypermodel.fit(hp, model, *args, **arguments)
        except TypeError as error:
            twice = _GIVEN_TWICE.search(str(error))
            if twice is None or twice["name"] not in arguments:
                raise
            name = twice["name"]
            raise FatalValueError(
                f"`{name}` must be given once. Received: "
                f"{name}={arguments[name]!r} from the search, and {name} in "
                f"{type(self._hypermodel).__qualname__}.fit. Give {name}=None "
                f"to `run_search` (--{name.replace('_', '-')} none) or leave "
                f"it out of `search`, or take {name} out of that `fit`."
            ) from error

    def _fit_arguments(self, hp: Any) -> dict[str, int]:
        arguments = {
            name: parameter.declare(hp)
            for name, parameter in self._fit_parameters.items()
        }
        return {k: v for k, v in arguments.items() if v is not None}


def _as_hypermodel(given: Any) -> keras_tuner.HyperModel:
    """The user's hypermodel, or one around a function."""
    if isinstance(given, keras_tuner.HyperModel):
        return given
    if isinstance(given, type) and issubclass(given, keras_tuner.HyperModel):
        raise TypeError(
            "`build_model` must be a function of `hp` or a HyperModel. "
            f"Received: the class {given.__qualname__}. Give an instance of "
            f"it: {given.__qualname__}()."
        )
    if not callable(given):
        raise TypeError(
            "`build_model` must be a function of `hp` that returns a "
            f"keras.Model, or a HyperModel. Received: build_model={given!r} "
            f"(of type {type(given).__name__})."
        )
    owner: Any = getattr(given, "__self__", None)
    if (
        isinstance(owner, keras_tuner.HyperModel)
        and type(owner).fit is not keras_tuner.HyperModel.fit
    ):
        name = type(owner).__qualname__
        raise TypeError(
            "`build_model` must be the hypermodel itself where it has a `fit` "
            f"of its own. Received: the method `build` of a {name}, whose "
            f"`fit` would never be called. Give {name}()."
        )
    return _Builder(given)


class _Builder(keras_tuner.HyperModel):
    """A function as a hypermodel."""

    def __init__(self, build_model: Callable[[Any], keras.Model]):
        super().__init__()
        self.build = build_model


def replace_optimizer(model: keras.Model, optimizer: Any) -> None:
    """Gives a compiled model another optimizer, and changes nothing else.

    A second call of `compile` would have to know all arguments of the first,
    and those of a subclass's `compile` can be anything.

    Args:
        model: A compiled model.
        optimizer: Its new optimizer.
    """
    old = model.optimizer
    # What Keras saves with the model, in an attribute that is not public;
    # tests/tuning/space/test_hypermodel.py notices when it moves.
    saved = model._compile_config.config
    wrapped = optimizer
    if isinstance(old, LossScaleOptimizer):
        wrapped = LossScaleOptimizer(
            optimizer,
            initial_scale=old.initial_scale,
            dynamic_growth_steps=old.dynamic_growth_steps,
            name=old.name,
        )
    # Keras wraps by itself for "mixed_float16", and saves what it was given.
    is_wrapped_by_user = saved["optimizer"] is old
    saved["optimizer"] = wrapped if is_wrapped_by_user else optimizer
    model.optimizer = wrapped


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise FatalTypeError(
            "`build_model` must return a keras.Model. "
            f"Received: {model!r} (of type {type(model).__name__})."
            + (" Is its `return` missing?" if model is None else "")
        )
    if not model.built:
        raise FatalValueError(
            "`build_model` must return a model that is built, so that its "
            "optimizer can be built and a trial's weights keep its state. "
            f"Received: the model {model.name!r}, which is not. Begin it with "
            "keras.Input(shape), or call it on a batch of zeros at the end of "
            "`build_model`."
        )
    if not model.trainable_variables:
        # A subclassed model without a `build` of its own counts as built
        # after `model.build(shape)`, though its layers are not.
        raise FatalValueError(
            "`build_model` must return a model with trainable variables. "
            f"Received: the model {model.name!r}, which has none. If its "
            "layers are not built yet, call it on a batch of zeros."
        )


def _check_compile_arguments(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(
            "`compile_arguments` must be a dictionary or None. Received: "
            f"compile_arguments={given!r} (of type {type(given).__name__})."
        )
    if "optimizer" in given:
        raise ValueError(
            "`compile_arguments` must not have an optimizer: it comes from "
            f"the space. Received: compile_arguments={dict(given)!r}."
        )
    return dict(given)


def _fresh_metric(value: Any) -> Any:
    """A metric without the counts of another trial; else the value itself."""
    if isinstance(value, keras.metrics.Metric):
        return type(value).from_config(value.get_config())
    return value
