"""What a model holds besides its weights, and whether a backup fits it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_adamax import _keras_private
from keras_adamax.callbacks import _optimizers


def held_optimizers(model: Any) -> dict[str, Any]:
    """The optimizers that Keras saves with a model, not unwrapped.

    They are attributes of the model or of its layers, or stand there in lists,
    tuples and dictionaries.

    Returns:
        Name, such as `d_optimizer` or `optimizers/0`, to optimizer.
    """
    found: dict[str, Any] = {}
    for name, optimizer in _walk("", model, set()):
        found[name] = optimizer
    inner = {
        id(leaf)
        for optimizer in found.values()
        for leaf in _optimizers.leaves(optimizer)
        if leaf is not optimizer
    }
    return {name: o for name, o in found.items() if id(o) not in inner}


def _walk(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, keras.optimizers.Optimizer):
        yield name, value
        return
    if isinstance(value, keras.Layer):
        # The user's own names first: an error may have to say them.
        # On torch, layers that are attributes stand in `_modules`.
        attributes = vars(value) | vars(value).get("_modules", {})
        children = sorted(attributes.items(), key=lambda c: c[0][0] == "_")
    elif isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list | tuple):
        children = list(enumerate(value))
    else:
        return
    for key, child in children:
        yield from _walk(f"{name}/{key}" if name else str(key), child, seen)


def unsaved_variables(model: Any) -> list[Any]:
    """State that `save_weights` leaves out.

    These are the seeds of random layers, and weights that an optimizer of the
    model trains although the model does not hold them.
    """
    optimizers = held_optimizers(model).values()
    saved = {id(v) for v in [*model.weights, *model.metrics_variables]}
    saved |= {id(v) for o in optimizers for v in o.variables}
    trained = [
        v
        for o in optimizers
        if o.built
        for v in _keras_private.trained_variables(o)
    ]
    found = {
        id(v): v
        for v in [*model.variables, *_foreign(model, trained)]
        if id(v) not in saved
    }
    return list(found.values())


def _foreign(model: Any, trained: Sequence[Any]) -> list[Any]:
    own = {id(v) for v in model.variables}
    # A custom loop may give an optimizer the backend's own variables.
    own |= {id(v.value) for v in model.variables if _is_wrapper(v.value)}
    return [v for v in trained if id(v) not in own]


def _is_wrapper(value: Any) -> bool:
    return hasattr(value, "assign")


def describe(model: Any) -> dict[str, Any]:
    """What `prepare` must find, or build, before a backup is restored: JSON."""
    return {
        "weights": [_describe_weight(v) for v in model.weights],
        "unsaved": [list(v.shape) for v in unsaved_variables(model)],
        "optimizers": {
            name: {
                "classes": _classes(optimizer),
                "updates": _updates(optimizer),
                "variables": len(optimizer.variables),
                "trains": _trained(optimizer, model)
                if optimizer.built
                else None,
            }
            for name, optimizer in held_optimizers(model).items()
        },
    }


def _describe_weight(variable: Any) -> list[Any]:
    # A model that is built a second time, or was loaded from a file, has
    # other numbers in its paths, and another beginning.
    ending = "/".join(variable.path.split("/")[-2:])
    return [
        re.sub(r"_\d+(?=[/_]|$)", "", ending),
        list(variable.shape),
        keras.backend.standardize_dtype(variable.dtype),
    ]


def _classes(optimizer: Any) -> list[str]:
    return [type(leaf).__name__ for leaf in _optimizers.leaves(optimizer)]


def _updates(optimizer: Any) -> int:
    return int(ops.convert_to_numpy(optimizer.iterations))


def _trained(optimizer: Any, model: Any) -> list[int | None]:
    """Where the optimizer's variables stand among the model's weights."""
    places: dict[int, int] = {}
    for place, weight in enumerate(model.weights):
        index = _keras_private.place_of(optimizer, weight)
        if index is not None:
            places[index] = place
    count = len(_keras_private.trained_variables(optimizer))
    return [places.get(i) for i in range(count)]


def prepare(model: Any, description: Mapping[str, Any], where: str) -> None:
    """Builds the optimizers as they were, and checks that all is as it was.

    Nothing is assigned before all has been checked.

    Args:
        model: The model.
        description: What `describe` gave.
        where: The backup, for errors.

    Raises:
        ValueError: If something is not as it was.
    """
    _check_same(
        f"the weights of the model {model.name!r}",
        where,
        description["weights"],
        [_describe_weight(v) for v in model.weights],
    )
    optimizers = held_optimizers(model)
    for name, saved in description["optimizers"].items():
        optimizer = optimizers.get(name)
        if optimizer is None:
            raise ValueError(
                f"AtomicBackup: the backup in {where} has the state of the "
                f"optimizer `{name}`. Received: the model {model.name!r} with "
                f"the optimizers {list(optimizers)}. Compile it as it was."
            )
        _check_same(
            f"the optimizer `{name}`",
            where,
            saved["classes"],
            _classes(optimizer),
        )
        if saved["trains"] is None:  # it has never been used
            continue
        if not optimizer.built:
            _build(model, name, optimizer, saved["trains"])
        _check_same(
            f"the number of variables of the optimizer `{name}`",
            where,
            [saved["variables"]],
            [len(optimizer.variables)],
        )
    _check_same(
        "the shapes of seeds and other state that no layer saves",
        where,
        description["unsaved"],
        [list(v.shape) for v in unsaved_variables(model)],
    )


def _build(
    model: Any, name: str, optimizer: Any, trains: Sequence[int | None]
) -> None:
    weights = model.weights
    variables = [weights[place] for place in trains if place is not None]
    if len(variables) < len(trains):
        raise ValueError(
            f"AtomicBackup cannot build the optimizer `{name}` "
            f"({type(optimizer).__name__}) to restore its state: "
            f"{len(trains) - len(variables)} of the {len(trains)} variables "
            f"that it trains are not weights of the model {model.name!r}. "
            f"Build it before `fit`: `model.{name}.build(variables)`, with the "
            "variables that it trains, in their order. Of a GAN, say, "
            "`model.d_optimizer.build(model.discriminator."
            "trainable_variables)`."
        )
    optimizer.build(variables)


def restore(
    model: Any, weights: Path, state: Mapping[str, Any], arrays: Mapping
) -> None:
    """Assigns what a backup has of a model that `prepare` has seen.

    Args:
        model: The model.
        weights: The file of its weights.
        state: What the backup says.
        arrays: Its arrays: `unsaved_variables`, by their numbers.

    Raises:
        ValueError: If the optimizer is not the one of the backup.
    """
    model.load_weights(weights)
    description = state.get("model")
    if description is not None:
        check_updates(model, description, str(weights.parent))
    step = int(
        ops.convert_to_numpy(_optimizers.updates(_optimizers.of_model(model)))
    )
    if step != state["step"]:
        raise ValueError(
            "the state of the optimizer does not fit the backup, which "
            f"was made after {state['step']} updates. Received: an "
            f"optimizer that has {step} after it was restored. If the "
            "model has several, build each before `fit`: "
            "`model.d_optimizer.build(variables)`."
        )
    for i, variable in enumerate(unsaved_variables(model)):
        variable.assign(arrays[f"variable-{i}"])


def check_updates(
    model: Any, description: Mapping[str, Any], where: str
) -> None:
    """Checks after restoring that no optimizer was left out.

    Args:
        model: The model.
        description: What `describe` gave.
        where: The backup, for errors.

    Raises:
        ValueError: If one was.
    """
    optimizers = held_optimizers(model)
    for name, saved in description["optimizers"].items():
        _check_same(
            f"the number of updates of the optimizer `{name}`",
            where,
            [saved["updates"]],
            [_updates(optimizers[name])],
        )


def _check_same(
    what: str, where: str, saved: Sequence[Any], received: Sequence[Any]
) -> None:
    if list(saved) == list(received):
        return
    pairs = zip(saved, received, strict=False)
    first = next(
        (i for i, (one, other) in enumerate(pairs) if one != other),
        min(len(saved), len(received)),
    )
    raise ValueError(
        f"AtomicBackup: the backup in {where} does not fit {what}. The backup "
        f"has {len(saved)} entries, number {first + 1} is "
        f"{_entry(saved, first)}. Received: {len(received)} entries, number "
        f"{first + 1} is {_entry(received, first)}. Build and compile the "
        "model as it was; or, if the backup is of another model, give another "
        "`backup_dir` or remove that one."
    )


def _entry(entries: Sequence[Any], number: int) -> str:
    return repr(entries[number]) if number < len(entries) else "absent"
