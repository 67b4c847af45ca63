"""Finds hyperparameters that only the replaced optimizer listens to."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_adamax_tuning.base import tensorflow_guard

# Keras counts these up from one build to the next.
_NAMES = {"name", "build_config", "inbound_nodes", "input_layers"} | {
    "output_layers"
}


class ReplacedOptimizerWarning(UserWarning):
    """A hyperparameter is searched, and has no effect on the trials."""


def warn_of_replaced(
    build_model: Callable[[Any], keras.Model], hp: Any, model: keras.Model
) -> None:
    """Warns of hyperparameters that change nothing but the user's optimizer.

    A builder written for KerasTuner often compiles with an optimizer and a
    learning rate of its own. The search goes on to vary that number, and the
    table of trials shows it, though the optimizer is replaced. Such a builder
    is called again with another value of that hyperparameter: it warns only
    if the optimizer then differs, and the model does not.

    Args:
        build_model: The user's builder.
        hp: The `keras_tuner.HyperParameters` that `model` was built with.
        model: What it returned, compiled with its own optimizer.
    """
    if not _can_be_compared(model):
        return
    candidates = _candidates(hp, model.optimizer)
    if not candidates:
        return
    optimizer, rest = _parts(model)
    useless = []
    for declared in candidates:
        other = hp.copy()
        other.values[declared.name] = _another_value(declared, hp)
        try:
            other_optimizer, other_rest = _parts(build_model(other))
        except Exception:
            # That value's own trial will say what is wrong with it.
            continue
        if other_rest == rest and other_optimizer != optimizer:
            useless.append(declared.name)
    if useless:
        names = ", ".join(map(repr, useless))
        kind = type(_inner(model.optimizer)).__name__
        warnings.warn(
            f"The search varies {names} in vain: `build_model` uses "
            f"{'it' if len(useless) == 1 else 'them'} for its own optimizer "
            f"alone ({kind}), which is replaced by the AdamaxClipped of the "
            "space. Remove the hyperparameter and the optimizer from "
            "`build_model`, and give its range to the space, for example "
            "AdamaxClippedSpace(learning_rate=(1e-4, 1e-2)).",
            ReplacedOptimizerWarning,
            stacklevel=4,
        )


def _can_be_compared(model: keras.Model) -> bool:
    """Whether the configuration is all that there is to the model."""
    kind = type(model)
    # That of a subclass may leave anything out.
    if not model.compiled or not kind.__module__.startswith("keras."):
        return False
    # What a function of the user's has in its closure shows nowhere.
    config = model._compile_config.config
    return not any(
        getattr(leaf, "__closure__", None)
        for name, part in config.items()
        if name != "optimizer"
        for leaf in keras.tree.flatten(part)
    )


def _parts(model: keras.Model) -> tuple[Any, Any]:
    """The configurations of the optimizer, and of all the rest."""
    with tensorflow_guard.not_imported():
        compiled = dict(model.get_compile_config() or {})
        config = model.get_config()
    optimizer = compiled.pop("optimizer", None)
    rest = (
        type(model),
        _nameless(config),
        _nameless(compiled),
        [tuple(weight.shape) for weight in model.weights],
    )
    return _nameless(optimizer), rest


def _nameless(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _nameless(v) for k, v in config.items() if k not in _NAMES}
    if isinstance(config, (list, tuple)):
        return [_nameless(item) for item in config]
    return config


def _candidates(hp: Any, optimizer: Any) -> list[Any]:
    """Those that the optimizer's configuration may come from.

    A build for each hyperparameter would be dear: of a builder whose
    optimizer is Keras's default none is looked at.
    """
    optimizer = _inner(optimizer)
    config = optimizer.get_config()
    defaults = inspect.signature(type(optimizer)).parameters
    # Without an optimizer, `compile` takes this one (on torch, a subclass).
    is_default = isinstance(optimizer, keras.optimizers.RMSprop) and all(
        name == "name"
        or (name in defaults and _key(defaults[name].default) == _key(value))
        for name, value in config.items()
    )
    known = set() if is_default else set(_numbers(config))
    known |= {type(optimizer).__name__.lower(), optimizer.name.lower()}
    searched = [
        one
        for one in hp.space
        if one.name in hp.values and len(set(_values(one))) > 1
    ]
    found = [one for one in searched if _key(hp.values[one.name]) in known]
    rate = config.get("learning_rate")
    default = defaults.get("learning_rate")
    is_rate_default = default is not None and _key(default.default) == _key(
        rate
    )
    if not is_rate_default and not any(
        _key(hp.values[one.name]) in set(_numbers(rate)) for one in found
    ):
        # Computed from one, such as `10 ** hp.Float(...)`.
        found += [
            one
            for one in searched
            if type(hp.values[one.name]) is float and one not in found
        ]
    return found


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _key(value: Any) -> Any:
    """Equal for a number and what is left of it in float32."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.6g}"
    return value.lower() if isinstance(value, str) else repr(value)


def _numbers(config: Any) -> Iterator[Any]:
    for leaf in keras.tree.flatten(config):
        if isinstance(leaf, (bool, int, float)):
            yield _key(leaf)


def _values(declared: Any) -> list[Any]:
    if hasattr(declared, "min_value"):
        return [declared.min_value, declared.max_value]
    return list(declared.values)


def _another_value(declared: Any, hp: Any) -> Any:
    now = hp.values[declared.name]
    return next(value for value in _values(declared) if value != now)
