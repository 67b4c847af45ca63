"""The update on a CPU by a compiled library, as calls that XLA makes.

For what XLA compiles as a whole (`jit_compile=True`). The calls are handed to
it as modules of StableHLO, whose text can say what TensorFlow has no operation
for: that a result takes the memory of an argument.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from keras_adamax import exact_totals
from keras_adamax.backends.step import Step
from keras_adamax.backends.tensorflow import resources
from keras_adamax.backends.variable_groups import groups
from keras_adamax.native import build, supported
from keras_adamax.native.tensorflow_tensors import (
    counted_by_library,
    dtype_names,
    taken_by_library,
)
from keras_adamax.update_rule import SUMS, Hyperparameters

Tensor = Any

# Of XlaCallModule: from the fifth on, modules are of a stable dialect; the
# ninth is that of TensorFlow 2.14.
_VERSION = 9
_MLIR_TYPES = {
    tf.float32: "f32",
    tf.float64: "f64",
    tf.float16: "f16",
    tf.bfloat16: "bf16",
    tf.int32: "i32",
}


def is_compiled_by_xla() -> bool:
    """Whether what is traced now goes to XLA as a whole."""
    return not tf.executing_eagerly() and bool(
        control_flow_util.GraphOrParentsInXlaContext(
            tf.compat.v1.get_default_graph()
        )
    )


def serves(kernel: str, tensors: Sequence[Any]) -> bool:
    """Whether XLA is to call the library for such tensors.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    return is_compiled_by_xla() and supported.serves(
        kernel, dtype_names(tensors), _failure
    )


@functools.cache
def _failure() -> str | None:
    """Why XLA cannot call the library; it is tried once a process."""
    # The last three where what is private in TensorFlow has changed.
    errors = (tf.errors.OpError, ImportError, AttributeError, TypeError)
    return supported.failure_of(_prepare, errors)


def _prepare() -> None:
    _register()
    _try()


def _register() -> None:
    library = build.load(
        "tensorflow_xla.cpp",
        options=(
            *build.WITHOUT_RUNTIME,
            f"-I{tf.sysconfig.get_include()}",
        ),
        links=tuple(tf.sysconfig.get_link_flags()),
    )
    register = library.keras_adamax_register_in_xla
    register.restype = bool
    if not register():
        raise build.CompilationError(
            "XLA does not take the library's handlers."
        )


def _try() -> None:
    """Lets XLA compile and make a call; fails if it cannot."""

    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def count() -> Tensor:
        return count_nonfinite([tf.ones(1)])

    with tf.init_scope():
        count()


def update(
    step: Step,
    gradients: Sequence[Tensor],
    hyperparameters: Hyperparameters,
) -> list[Tensor]:
    """Updates the variables of `step`, and their rows of `clip_counts`.

    Returns:
        The sums of each variable, where they are asked for.
    """
    packed = tf.stack(
        [
            tf.cast(scalar, step.dtype)
            # The last: a branch around this call decides what changes.
            for scalar in (*supported.scalars(hyperparameters), 1.0)
        ]
    )
    exclusions = tf.zeros((0,))
    if step.exclusions is not None:
        exclusions = tf.convert_to_tensor(step.exclusions)
    gradients = taken_by_library(gradients, step.weights, step.dtype)
    variables = [
        resources(kind) for kind in (step.weights, step.momentums, step.norms)
    ]
    sizes = [weight.shape.num_elements() for weight in variables[0]]
    clipped: list[Tensor] = []
    sums: list[Tensor] = []
    widths = [exact_totals.DIGITS, *[len(SUMS)] * step.measures]
    for start, end in groups(sizes, supported.ELEMENTS_A_CALL):
        changed = [v for kind in variables for v in kind[start:end]]
        values = [v.read_value() for v in changed]
        given = gradients[start:end]
        first = 2 + len(given)
        results = _call(
            supported.UPDATE,
            [packed, exclusions, *given, *values],
            [
                *values,
                *(tf.TensorSpec((end - start, w), tf.float32) for w in widths),
            ],
            attributes={
                "clips": f"{int(step.clip_gradients)} : i64",
                "indices": _array(step.indices[start:end]),
            },
            aliases=[(i, first + i) for i in range(len(values))],
        )
        for variable, result in zip(changed, results, strict=False):
            variable.assign(result)
        clipped.append(results[len(changed)])
        sums += results[len(changed) + 1 :]
    if step.clip_counts is not None:
        rows = tf.convert_to_tensor(step.clip_counts)
        [rows] = _call(
            supported.ADD_COUNTS,
            [rows, exclusions, *clipped],
            [rows],
            attributes={
                "indices": _array(step.indices),
                "sizes": _array(sizes),
            },
            aliases=[(0, 0)],
        )
        step.clip_counts.assign(rows)
    return [tf.concat(sums, 0)] if step.measures else []


def count_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """`digits` of how many elements of each tensor are NaN or infinite."""
    [found] = _call(
        supported.COUNT_NONFINITE,
        tensors,
        [tf.TensorSpec((len(tensors), exact_totals.DIGITS), tf.float32)],
    )
    return found


def count_above(
    gradients: Sequence[Tensor],
    norms: Sequence[Any],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32."""
    [found] = _call(
        supported.COUNT_ABOVE,
        [
            tf.stack([clip_multiplier, clip_epsilon]),
            *counted_by_library(gradients, norms),
            *(norm.read_value() for norm in resources(norms)),
        ],
        [tf.TensorSpec((len(norms),), tf.int32)],
        attributes={"strides": _array(strides)},
    )
    return found


def _array(integers: Iterable[int]) -> str:
    return f"array<i64: {', '.join(map(str, integers))}>"


def _call(
    handler: str,
    arguments: Sequence[Tensor],
    results: Sequence[Any],
    attributes: dict[str, str] | None = None,
    aliases: Iterable[tuple[int, int]] = (),
) -> list[Tensor]:
    """A call of one of the library's handlers.

    Args:
        handler: Its name.
        arguments: Tensors of known shapes.
        results: Something with the shape and the dtype of each result.
        attributes: The handler's attributes, in MLIR.
        aliases: Which result is written where which argument lies.
    """
    # TensorFlow's own converters from JAX use it, and nothing public offers it.
    from tensorflow.compiler.tf2xla.python import xla

    return xla.call_module(
        list(arguments),
        version=_VERSION,
        module=_module(handler, arguments, results, attributes or {}, aliases),
        Tout=[result.dtype for result in results],
        Sout=[result.shape for result in results],
        platforms=("CPU",),
    )


def _module(
    handler: str,
    arguments: Sequence[Any],
    results: Sequence[Any],
    attributes: dict[str, str],
    aliases: Iterable[tuple[int, int]],
) -> str:
    names = ", ".join(f"%a{i}" for i in range(len(arguments)))
    typed = ", ".join(f"%a{i}: {_type(x)}" for i, x in enumerate(arguments))
    given = ", ".join(map(_type, arguments))
    found = ", ".join(map(_type, results))
    is_tuple = len(results) > 1
    returned = ", ".join(
        f"%r#{i}" if is_tuple else "%r" for i in range(len(results))
    )
    settings = ", ".join(f"{k} = {v}" for k, v in attributes.items())
    same_memory = ", ".join(
        "#stablehlo.output_operand_alias<"
        f"output_tuple_indices = [{result if is_tuple else ''}], "
        f"operand_index = {argument}, operand_tuple_indices = []>"
        for result, argument in aliases
    )
    return f"""
module @{handler} {{
  func.func public @main({typed}) -> ({found}) {{
    %r:{len(results)} = stablehlo.custom_call @{handler}({names}) {{
      api_version = 4 : i32,
      backend_config = {{{settings}}},
      output_operand_aliases = [{same_memory}]
    }} : ({given}) -> ({found})
    func.return {returned} : {found}
  }}
}}
"""


def _type(x: Any) -> str:
    dimensions = "".join(f"{length}x" for length in x.shape)
    return f"tensor<{dimensions}{_MLIR_TYPES[x.dtype]}>"
