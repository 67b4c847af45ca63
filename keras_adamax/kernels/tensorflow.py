"""TensorFlow: `tf.IndexedSlices`, distribution strategies, graph branches."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.saved_model import save_context

from keras_adamax import spikes
from keras_adamax.kernels import (
    Changes,
    Step,
    _tensorflow_compiled,
    _tensorflow_in_xla,
    _xla_form,
)
from keras_adamax.kernels._neighbours import groups
from keras_adamax.kernels._tensorflow_tensors import resource, resources
from keras_adamax.update_rule import Hyperparameters, sum_repeated_rows

Tensor = Any

CHOICES = ("auto", "compiled", "fused", "reference")
# Elements.
_MEASURED_TOGETHER = 2**18
# Forms of an update: an operation of a library, calls of a library that XLA
# makes, kernels that XLA makes.
_OPERATION, _CALLS, _FUSED = "operation", "calls", "fused"


class RowGradient(tf.IndexedSlices):
    """`tf.IndexedSlices` that Keras can divide by a loss scale."""

    def __truediv__(self, divisor: Tensor) -> "RowGradient":
        return RowGradient(
            self.values / tf.cast(divisor, self.values.dtype),
            self.indices,
            self.dense_shape,
        )


def update_dense(step: Step) -> Sequence[int]:
    """Updates the variables of `step`, on a CPU by a compiled library.

    In one operation, or by calls that XLA makes where it compiles the step.
    Elsewhere by one function that XLA compiles, also within a graph that it
    does not. The functions hold the variables, so that their memory is written
    to.
    """
    form = _form(step.kernel, step.weights)
    if form == _FUSED and not _has_xla():
        return range(len(step.gradients))
    gradients = [tf.convert_to_tensor(g) for g in step.gradients]
    for gradient, weight in zip(gradients, step.weights, strict=True):
        gradient.set_shape(weight.shape)
    # Schedules may be what XLA cannot compile.
    scalars = (
        step.hyperparameters(step.learning_rate, step.dtype)
        if step.has_schedules
        else tf.convert_to_tensor(step.learning_rate)
    )
    functions = step.kept.setdefault("functions", {})
    key = (form, step.indices, step.dtype, *(g.dtype for g in gradients))
    if key not in functions:
        # TensorFlow warns who traces often, as many small optimizers would.
        trace = {
            _OPERATION: functools.partial(_assign, _tensorflow_compiled.update),
            _CALLS: functools.partial(_assign, _tensorflow_in_xla.update),
            _FUSED: _compile,
        }[form]
        functions[key] = trace(step).get_concrete_function(
            *tf.nest.map_structure(_specification, (gradients, scalars))
        )
    functions[key](gradients, scalars)
    return ()


def _specification(tensor: Tensor | None) -> Any:
    return (
        tensor if tensor is None else tf.TensorSpec(tensor.shape, tensor.dtype)
    )


@functools.cache
def _has_xla() -> bool:
    """Whether this TensorFlow was built with XLA for this machine."""

    @tf.function(jit_compile=True, autograph=False)
    def add_one(x: Tensor) -> Tensor:
        return x + 1.0

    with tf.init_scope():
        try:
            add_one(tf.zeros(()))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True


def _is_on_cpu() -> bool:
    return not tf.config.list_logical_devices("GPU")


def _may_use_library() -> bool:
    # A SavedModel runs in processes, and on machines, that do not have the
    # library. TensorFlow traces functions again when it saves them.
    return _is_on_cpu() and not save_context.in_save_context()


def _form(kernel: str, tensors: Sequence[Any]) -> str:
    """How such tensors are updated in what is traced now."""
    if _may_use_library():
        if _tensorflow_compiled.serves(kernel, tensors):
            return _OPERATION
        if _tensorflow_in_xla.serves(kernel, tensors):
            return _CALLS
    return _FUSED


def _assign(
    update_all: Callable[[Step, list[Tensor], Hyperparameters], None],
    step: Step,
) -> Any:
    @functools.partial(tf.function, autograph=False)
    def update(gradients: list[Tensor], scalars: Any) -> None:
        h = (
            scalars
            if step.has_schedules
            else step.hyperparameters(scalars, step.dtype)
        )
        update_all(step, gradients, h)

    return update


def _compile(step: Step) -> Any:
    indices, dtype = step.indices, step.dtype
    weights, momentums, norms = map(
        resources, (step.weights, step.momentums, step.norms)
    )
    exclusions, clip_counts = step.exclusions, step.clip_counts
    clips = step.clip_gradients
    has_schedules, hyperparameters = step.has_schedules, step.hyperparameters

    # Traced once for each shape, and not for each variable.
    @functools.partial(tf.function, autograph=False)
    def update_one(
        g: Tensor, w: Tensor, m: Tensor, u: Tensor, h: Any, bounds: Any
    ) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        values = _xla_form.update(g, w, m, u, h, bounds)
        if clip_counts is None:
            return values, []
        return values, _xla_form.clipped_parts(g, values[2], _is_on_cpu())

    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def update(gradients: list[Tensor], scalars: Any) -> None:
        h = scalars if has_schedules else hyperparameters(scalars, dtype)
        excluded = None
        if exclusions is not None:
            excluded = tf.convert_to_tensor(exclusions)
        bounds: list[Any] = [None] * len(indices)
        if clips:
            bounds = list(_xla_form.bounds(h, excluded, indices, dtype))
        clipped = []
        sizes = [weight.shape.num_elements() for weight in weights]
        for start, end in _xla_form.groups(sizes, on_cpu=_is_on_cpu()):
            for i in range(start, end):
                w, m, u = weights[i], momentums[i], norms[i]
                values, parts = update_one(
                    gradients[i],
                    w.read_value(),
                    m.read_value(),
                    u.read_value(),
                    h,
                    bounds[i],
                )
                for variable, value in zip((w, m, u), values, strict=True):
                    variable.assign(value)
                clipped.append(parts)
            h = _xla_form.after(values, parts, h)
        if clip_counts is not None:
            clip_counts.assign(
                _xla_form.next_counts(
                    tf.convert_to_tensor(clip_counts),
                    _xla_form.totals(clipped, max(sizes)),
                    [weight.shape for weight in weights],
                    indices,
                    excluded,
                )
            )

    return update


def no_gradient() -> contextlib.AbstractContextManager:
    """A tape does not follow assignments: there is nothing to turn off."""
    return contextlib.nullcontext()


def outside_of_graph() -> contextlib.AbstractContextManager:
    """Where an assignment is made now, and not a part of a graph."""
    return tf.init_scope()


def shared_compilations(given: Any = None) -> contextlib.AbstractContextManager:
    """TensorFlow keeps nothing that it compiled."""
    del given
    return contextlib.nullcontext()


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The variable's value on the host."""
    return keras.ops.convert_to_numpy(variable)


def is_sparse(gradient: Any) -> bool:
    """Whether `gradient` holds some rows only."""
    return isinstance(gradient, tf.IndexedSlices)


def rows(gradient: tf.IndexedSlices) -> tuple[Tensor, Tensor]:
    """Indices, shape `(n,)`, and values, shape `(n, ...)`."""
    return gradient.indices, gradient.values


def summed_rows(gradient: tf.IndexedSlices) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, summed values, and which rows to count, shape `(n,)`."""
    values, is_first = sum_repeated_rows(gradient.indices, gradient.values)
    return gradient.indices, values, is_first


def with_values(gradient: tf.IndexedSlices, values: Tensor) -> RowGradient:
    """The same rows with other values."""
    return RowGradient(values, gradient.indices, gradient.dense_shape)


def to_dense(gradient: tf.IndexedSlices, shape: Sequence[int]) -> Tensor:
    """The gradient as a dense tensor of `shape`."""
    return tf.math.unsorted_segment_sum(
        gradient.values, gradient.indices, shape[0]
    )


def take_rows(variable: Any, indices: Tensor) -> Tensor:
    """Some rows of a variable, read without reading the others."""
    return tf.gather(resource(variable), indices)


def assign_rows(variable: Any, indices: Tensor, values: Tensor) -> None:
    """Writes some rows of a variable in place.

    Indices may repeat when their values are the same.
    """
    variable = resource(variable)
    values = tf.cast(values, variable.dtype)
    variable.scatter_update(tf.IndexedSlices(values, indices))


def update_rows(step: Step) -> Sequence[int]:
    """Updates the variables of `step`, in one operation each."""
    values = [gradient.values for gradient in step.gradients]
    if _may_use_library() and _tensorflow_compiled.serves_rows(step, values):
        _tensorflow_compiled.update_rows(step)
        return ()
    return range(len(step.gradients))


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: under a strategy."""
    return tf.distribute.has_strategy()


def is_finite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """Whether all elements are finite, after the sum over replicas."""
    if _is_one_of_many_replicas():
        gradients = [
            summed_rows(g)[1] if is_sparse(g) else g
            for g in sum_over_replicas(gradients)
        ]
    values = [g.values if is_sparse(g) else g for g in gradients]
    are_known = all(value.shape.is_fully_defined() for value in values)
    form = _form(kernel, values)
    if form == _OPERATION:
        return _tensorflow_compiled.are_finite(values)
    if form == _CALLS and are_known:
        return _tensorflow_in_xla.are_finite(values)
    if _has_xla() and are_known:
        return _finiteness(*map(_specification, values))(values)
    return tf.reduce_all(
        [tf.reduce_all(tf.math.is_finite(value)) for value in values]
    )


@functools.cache
def _finiteness(*specifications: tf.TensorSpec) -> Callable[..., Tensor]:
    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def are_finite(tensors: list[Tensor]) -> Tensor:
        return _xla_form.are_finite(tensors, _is_on_cpu())

    with tf.init_scope():
        return are_finite.get_concrete_function(list(specifications))


def can_sample(variable: Any) -> bool:
    """Whether some elements of a variable can be had without all of it."""
    del variable
    return True


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """The sums that Keras is going to take.

    Of sparse gradients they are the rows of all replicas, which the update
    sums by index.
    """
    if not gradients or not _is_one_of_many_replicas():
        return list(gradients)
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, list(gradients)
    )


def constant(values: tuple[float, ...], dtype: str, other: Tensor) -> Tensor:
    """A vector of numbers, where `other` is."""
    del other
    return tf.constant(values, dtype)


def count_above(
    gradients: Sequence[Tensor],
    are_samples: bool,
    norms: Sequence[Any],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    kernel: str,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32.

    Args:
        gradients: Of any float dtype.
        are_samples: Whether they are what `spikes.sample_of` gave, and not
            whole.
        norms: Of the whole variables.
        strides: Of the samples.
        clip_multiplier: Scalar in the dtype of the norms.
        clip_epsilon: Scalar in the dtype of the norms.
        kernel: The chosen kernel.
    """
    for gradient, norm, stride in zip(gradients, norms, strides, strict=True):
        if are_samples and stride > 1:
            gradient.set_shape((spikes.sample_size(norm.shape, stride),))
        else:
            gradient.set_shape(norm.shape)
    if not is_replicated():
        form = _form(kernel, [*norms, *gradients])
        count = {
            _OPERATION: _tensorflow_compiled.count_above,
            _CALLS: _tensorflow_in_xla.count_above,
        }.get(form)
        if count is not None:
            return count(
                gradients, norms, strides, clip_multiplier, clip_epsilon
            )
    if not are_samples:
        gradients = spikes.samples(gradients, norms, strides)
    values = [tf.convert_to_tensor(norm) for norm in norms]
    arguments = (list(gradients), values, clip_multiplier, clip_epsilon)
    if _has_xla():
        specifications = tf.nest.map_structure(_specification, arguments)
        return _counting(
            tuple(strides), *map(tuple, specifications[:2]), specifications[2:]
        )(*arguments)
    return tf.stack(
        [
            tf.reduce_sum(
                tf.cast(
                    spikes.are_above(g, u, clip_multiplier, clip_epsilon),
                    tf.int32,
                )
            )
            for g, u in zip(
                gradients, spikes.samples(values, norms, strides), strict=True
            )
        ]
    )


@functools.cache
def _counting(
    strides: tuple[int, ...],
    gradients: tuple[tf.TensorSpec, ...],
    norms: tuple[tf.TensorSpec, ...],
    scalars: tuple[tf.TensorSpec, ...],
) -> Callable[..., Tensor]:
    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def count_above(
        gradients: list[Tensor],
        norms: list[Tensor],
        clip_multiplier: Tensor,
        clip_epsilon: Tensor,
    ) -> Tensor:
        return _xla_form.count_above(
            gradients,
            True,
            norms,
            strides,
            clip_multiplier,
            clip_epsilon,
            _is_on_cpu(),
        )

    with tf.init_scope():
        return count_above.get_concrete_function(
            list(gradients), list(norms), *scalars
        )


def value_if(
    condition: Tensor, function: Callable[[], Tensor], other: Tensor
) -> Tensor:
    """`function()` where the condition holds, else `other`.

    Args:
        condition: Boolean scalar.
        function: Makes a tensor like `other`.
        other: The tensor otherwise.
    """
    return tf.cond(condition, function, lambda: other)


def apply_if(
    is_applied: Tensor,
    apply: Callable[[list, list], None],
    gradients: list,
    variables: list,
    find_changes: Callable[[], Changes],
) -> None:
    """Calls `apply(gradients, variables)`, or changes nothing.

    Args:
        is_applied: Boolean scalar: whether it is called.
        apply: The update.
        gradients: For `apply`.
        variables: For `apply`.
        find_changes: Not asked.
    """
    del find_changes

    def skip() -> None:
        pass

    if not _needs_merge_call():
        tf.cond(is_applied, lambda: apply(gradients, variables), skip)
        return

    def in_cross_replica_context(
        distribution: tf.distribute.Strategy,
        is_applied: Any,
        gradients: list,
        variables: list,
    ) -> None:
        # A branch that merges replicas must itself be taken outside of them;
        # Keras's LossScaleOptimizer does the same.
        is_applied = distribution.experimental_local_results(is_applied)[0]
        tf.cond(
            is_applied,
            lambda: distribution.extended.call_for_each_replica(
                apply, args=(gradients, variables)
            ),
            skip,
        )

    tf.distribute.get_replica_context().merge_call(
        in_cross_replica_context, args=(is_applied, gradients, variables)
    )


def _is_one_of_many_replicas() -> bool:
    return (
        tf.distribute.has_strategy()
        and tf.distribute.get_replica_context() is not None
        and tf.distribute.get_strategy().num_replicas_in_sync > 1
    )


def _needs_merge_call() -> bool:
    return (
        tf.distribute.has_strategy()
        and tf.distribute.get_replica_context() is not None
        and not tf.__internal__.distribute.strategy_supports_no_merge_call()
    )


def measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    previous: Sequence[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`pack([function(p, c), ...], step)`, over pairs of values, as a graph."""
    return _measuring_graph(function, pack)(list(previous), list(current), step)


@functools.cache
def _measuring_graph(
    function: Callable[..., Tensor], pack: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    @functools.partial(tf.function, autograph=False)
    def measure_one(previous: Tensor, current: Tensor) -> Tensor:
        # Traced once for each shape, and not for each variable.
        return function(previous, current, in_blocks=True)

    @functools.partial(tf.function, autograph=False)
    def graph(
        previous: list[Tensor], current: list[Tensor], step: Tensor
    ) -> Tensor:
        # A graph computes whatever it can at once, and would hold the
        # differences of all variables: so group after group.
        parts: list[Tensor] = []
        sizes = [value.shape.num_elements() for value in current]
        for start, end in groups(sizes, _MEASURED_TOGETHER):
            with tf.control_dependencies(parts[-1:]):
                parts += [
                    measure_one(previous[i], current[i])
                    for i in range(start, end)
                ]
        return pack(parts, step)

    return graph


def overwrite(kept: list[Tensor], values: Sequence[Tensor]) -> None:
    """Makes `kept` a copy of `values`.

    It shares the variables' memory until a step writes to them: TensorFlow
    copies then.
    """
    kept[:] = [tf.identity(value) for value in values]


def after(event: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values, made known only when `event` has been computed."""
    del event  # what is asked for twice is computed twice
    return values


def count_integers(values: Tensor, length: int) -> Tensor:
    """How often each of `0, ..., length - 1` occurs."""
    return tf.math.bincount(values, minlength=length, maxlength=length)


def place_like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, for TensorFlow places it."""
    del other
    return value
