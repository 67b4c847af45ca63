"""The optimizers that train a model, through whatever surrounds them."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_adamax import _keras_private
from keras_adamax.adamax_clipped import AdamaxClipped


def of_model(model: Any) -> list[Any]:
    """The optimizers that a model holds, not unwrapped.

    The one that it was compiled with comes first; a model with a `train_step`
    of its own may have others as attributes (also in lists and dictionaries),
    or train models in it with theirs.
    """
    found: dict[int, Any] = {}
    for candidate in _candidates(model):
        if isinstance(candidate, keras.optimizers.Optimizer):
            found.setdefault(id(candidate), candidate)
    inner = {
        id(leaf)
        for optimizer in found.values()
        for leaf in leaves(optimizer)
        if leaf is not optimizer
    }
    return [o for key, o in found.items() if key not in inner]


def _candidates(model: Any) -> Iterator[Any]:
    yield getattr(model, "optimizer", None)
    for value in vars(model).values():
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value
    if type(model).train_step is keras.Model.train_step:
        return
    trained = {id(variable) for variable in model.trainable_variables}
    for layer in model.layers:
        # A frozen teacher's optimizer, say, rests.
        if isinstance(layer, keras.Model) and trained.intersection(
            map(id, layer.trainable_variables)
        ):
            yield from of_model(layer)


def leaves(optimizer: Any) -> Iterator[Any]:
    """The optimizers inside of wrappers, or the optimizer itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        yield from leaves(optimizer.inner_optimizer)
    elif isinstance(optimizer, keras.optimizers.MultiOptimizer):
        for inner in optimizer.optimizers:
            yield from leaves(inner)
    else:
        yield optimizer


def all_leaves(optimizers: Sequence[Any]) -> list[Any]:
    """The optimizers that are in these, unwrapped."""
    return [leaf for optimizer in optimizers for leaf in leaves(optimizer)]


def ours(optimizers: Sequence[Any]) -> list[AdamaxClipped]:
    """Those in these that are `AdamaxClipped`."""
    found = all_leaves(optimizers)
    return [leaf for leaf in found if isinstance(leaf, AdamaxClipped)]


def state_of(optimizer: AdamaxClipped, ending: str) -> list[Any]:
    """The variables of an optimizer's state whose names end so."""
    return [v for v in optimizer.variables if v.name.endswith(ending)]


def updates(optimizers: Sequence[Any]) -> Any:
    """The number of updates applied so far, as an integer tensor.

    Those of several optimizers are added: whichever of them goes on, the
    number grows, also where one has been trained before.
    """
    iterations = [value_of(o.iterations) for o in optimizers]
    if not iterations:
        return ops.zeros((), "int32")
    if len(iterations) == 1:
        return iterations[0]
    return ops.sum(ops.stack([ops.cast(i, "int32") for i in iterations]))


def updates_of_each(optimizers: Sequence[Any]) -> list[int]:
    """The number of updates that each of the optimizers has applied so far."""
    return [int(ops.convert_to_numpy(o.iterations)) for o in optimizers]


def place_in(optimizer: Any, variable: Any) -> int | None:
    """The number of a variable among those that an optimizer was built with.

    Args:
        optimizer: One that is no wrapper.
        variable: The variable.
    """
    return _keras_private.place_of(optimizer, variable)


def owns(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer, or one inside of it, was built with a variable."""
    return any(
        place_in(leaf, variable) is not None for leaf in leaves(optimizer)
    )


def value_of(variable: Any) -> Any:
    """The value where it is, without a copy.

    On TensorFlow, `ops.convert_to_tensor` gives the variable back, and a graph
    that is handed a variable of Keras brings it to the host to look at it.
    """
    return ops.cast(variable, variable.dtype)


def unique_names(paths: list[str]) -> list[str]:
    """The paths; one that repeats gets a number, as in the optimizer."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names
