"""TensorFlow: C++ in the graph or in XLA, else what XLA makes; branches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.saved_model import save_context

from keras_adamax import spike_rule
from keras_adamax.backends.step import Changes, Step, Sums, Updated
from keras_adamax.backends.tensorflow import (
    is_one_of_many_replicas,
    is_replicated,
    is_sparse,
    resources,
    sum_over_replicas,
    summed_rows,
)
from keras_adamax.native import tensorflow_operation, tensorflow_xla
from keras_adamax.update_rule import Hyperparameters
from keras_adamax.updates import xla

Tensor = Any

CHOICES = ("auto", "compiled", "fused", "reference")
# Forms of an update: an operation of a library, calls of a library that XLA
# makes, kernels that XLA makes.
_OPERATION, _CALLS, _FUSED = "operation", "calls", "fused"


def update_dense(step: Step) -> Updated:
    """Updates the variables of `step`, on a CPU by a compiled library.

    In one operation, or by calls that XLA makes where it compiles the step.
    Elsewhere by one function that XLA compiles, also within a graph that it
    does not. The functions hold the variables, so that their memory is written
    to.
    """
    form = _form(step.kernel, step.weights)
    if form == _FUSED and not _has_xla():
        return Updated(range(len(step.gradients)))
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
            _OPERATION: functools.partial(_assign, tensorflow_operation.update),
            _CALLS: functools.partial(_assign, tensorflow_xla.update),
            _FUSED: _compile,
        }[form]
        functions[key] = trace(step).get_concrete_function(
            *tf.nest.map_structure(_specification, (gradients, scalars))
        )
    sums = functions[key](gradients, scalars)
    return Updated((), [Sums(step.indices, values) for values in sums])


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
        if tensorflow_operation.serves(kernel, tensors):
            return _OPERATION
        if tensorflow_xla.serves(kernel, tensors):
            return _CALLS
    return _FUSED


def _assign(
    update_all: Callable[[Step, list[Tensor], Hyperparameters], list[Tensor]],
    step: Step,
) -> Any:
    @functools.partial(tf.function, autograph=False)
    def update(gradients: list[Tensor], scalars: Any) -> list[Tensor]:
        h = (
            scalars
            if step.has_schedules
            else step.hyperparameters(scalars, step.dtype)
        )
        return update_all(step, gradients, h)

    return update


def _compile(step: Step) -> Any:
    indices, dtype = step.indices, step.dtype
    weights, momentums, norms = map(
        resources, (step.weights, step.momentums, step.norms)
    )
    exclusions, clip_counts = step.exclusions, step.clip_counts
    clips, measures = step.clip_gradients, step.measures
    has_schedules, hyperparameters = step.has_schedules, step.hyperparameters

    # Traced once for each shape, and not for each variable.
    @functools.partial(tf.function, autograph=False)
    def update_one(
        g: Tensor, w: Tensor, m: Tensor, u: Tensor, h: Any, bounds: Any
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, list[Tensor]]:
        values, sums = xla.update(g, w, m, u, h, bounds, measures)
        if clip_counts is None:
            return values, sums, []
        return values, sums, xla.clipped_parts(g, values[2], _is_on_cpu())

    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def update(gradients: list[Tensor], scalars: Any) -> list[Tensor]:
        h = scalars if has_schedules else hyperparameters(scalars, dtype)
        excluded = None
        if exclusions is not None:
            excluded = tf.convert_to_tensor(exclusions)
        bounds: list[Any] = [None] * len(indices)
        if clips:
            bounds = list(xla.bounds(h, excluded, indices, dtype))
        clipped, sums = [], []
        sizes = [weight.shape.num_elements() for weight in weights]
        for start, end in xla.groups(sizes, on_cpu=_is_on_cpu()):
            for i in range(start, end):
                w, m, u = weights[i], momentums[i], norms[i]
                values, its, parts = update_one(
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
                sums.append(its)
            h = xla.after(values, parts, h)
        if clip_counts is not None:
            clip_counts.assign(
                xla.next_counts(
                    tf.convert_to_tensor(clip_counts),
                    xla.totals(clipped, max(sizes)),
                    [weight.shape for weight in weights],
                    indices,
                    excluded,
                )
            )
        return [tf.concat(sums, 0)] if measures else []

    return update


def update_rows(step: Step) -> Updated:
    """Updates the variables of `step`, in one operation each."""
    values = [gradient.values for gradient in step.gradients]
    if _may_use_library() and tensorflow_operation.serves_rows(step, values):
        sums = tensorflow_operation.update_rows(step)
        of_each = [(index,) for index in step.indices] if step.measures else []
        return Updated((), list(map(Sums, of_each, sums)))
    return Updated(range(len(step.gradients)))


def is_finite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """Whether all elements are finite, after the sum over replicas."""
    values = _values_over_replicas(gradients)
    if _form(kernel, values) == _FUSED and _can_be_compiled(values):
        specifications = tuple(map(_specification, values))
        return _looking(xla.are_finite, specifications)(values)
    return tf.reduce_all(_count_nonfinite(values, kernel) == 0)


def count_nonfinite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """How many elements are NaN or infinite, after the sum over replicas."""
    return _count_nonfinite(_values_over_replicas(gradients), kernel)


def _values_over_replicas(gradients: Sequence[Any]) -> list[Tensor]:
    if is_one_of_many_replicas():
        return [
            summed_rows(g)[1] if is_sparse(g) else g
            for g in sum_over_replicas(gradients)
        ]
    return [g.values if is_sparse(g) else g for g in gradients]


def _can_be_compiled(values: Sequence[Tensor]) -> bool:
    return _has_xla() and all(v.shape.is_fully_defined() for v in values)


def _count_nonfinite(values: Sequence[Tensor], kernel: str) -> Tensor:
    form = _form(kernel, values)
    if form == _OPERATION:
        return tensorflow_operation.count_nonfinite(values)
    if _can_be_compiled(values):
        if form == _CALLS:
            return tensorflow_xla.count_nonfinite(values)
        specifications = tuple(map(_specification, values))
        return _looking(xla.count_nonfinite, specifications)(values)
    return tf.stack(
        [
            tf.reduce_sum(tf.cast(~tf.math.is_finite(value), tf.int64))
            for value in values
        ]
    )


@functools.cache
def _looking(
    function: Callable[[list[Tensor], bool], Tensor],
    specifications: tuple[tf.TensorSpec, ...],
) -> Callable[..., Tensor]:
    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def look(tensors: list[Tensor]) -> Tensor:
        return function(tensors, _is_on_cpu())

    with tf.init_scope():
        return look.get_concrete_function(list(specifications))


def count_above(
    gradients: Sequence[Tensor],
    are_samples: bool,
    norms: Sequence[Any],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    kernel: str,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32."""
    for gradient, norm, stride in zip(gradients, norms, strides, strict=True):
        if are_samples and stride > 1:
            gradient.set_shape((spike_rule.sample_size(norm.shape, stride),))
        else:
            gradient.set_shape(norm.shape)
    if not is_replicated():
        form = _form(kernel, [*norms, *gradients])
        count = {
            _OPERATION: tensorflow_operation.count_above,
            _CALLS: tensorflow_xla.count_above,
        }.get(form)
        if count is not None:
            return count(
                gradients, norms, strides, clip_multiplier, clip_epsilon
            )
    if not are_samples:
        gradients = spike_rule.samples(gradients, norms, strides)
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
                    spike_rule.are_above(g, u, clip_multiplier, clip_epsilon),
                    tf.int32,
                )
            )
            for g, u in zip(
                gradients,
                spike_rule.samples(values, norms, strides),
                strict=True,
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
        return xla.count_above(
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


def apply_if(
    is_applied: Tensor,
    apply: Callable[[list, list | None], None],
    gradients: list,
    variables: list | None,
    find_changes: Callable[[], Changes],
) -> None:
    """Calls `apply(gradients, variables)`, or changes nothing."""
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
        variables: list | None,
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


def _needs_merge_call() -> bool:
    return (
        tf.distribute.has_strategy()
        and tf.distribute.get_replica_context() is not None
        and not tf.__internal__.distribute.strategy_supports_no_merge_call()
    )
