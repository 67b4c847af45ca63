"""Runs steps of an optimizer as a training loop on each backend would.

- TensorFlow: `optimizer.apply` in a `tf.function`, "graph" without and "jit"
  with `jit_compile`, on gradients that are its arguments.
- JAX ("jit"): `jax.jit` of `optimizer.stateless_apply`, which is given its
  state and the weights to overwrite (donated).
- torch ("eager"): `optimizer.apply` without recording.

A run of steps ends when all of them are done; in between none waits.
"""

import functools
from typing import Any

import keras
import numpy as np
from _harness.machine import accelerator, is_on_cuda

from _step.arms import Arm
from _step.workloads import (
    SETS,
    Workload,
    dense_gradients,
    sparse_gradients,
    weights,
)
from keras_adamax.clip_statistics import ClipStatistics


class Gradients:
    """The gradients of a workload as tensors, shared by all arms."""

    def __init__(self, workload: Workload, sets: int = SETS):
        self.workload = workload
        self._sets = sets

    def of(self, arm: Arm) -> list[list[Any]]:
        """Sets of gradients, each a list; rows where `arm` takes them."""
        takes_rows = (
            arm.kind == "ours" or keras.backend.backend() == "tensorflow"
        )
        return (
            self._sparse if self.workload.rows and takes_rows else self._dense
        )

    @functools.cached_property
    def _dense(self) -> list[list[Any]]:
        if self.workload.rows:
            # The sums of what the others get as rows.
            arrays = self._rows_made_dense()
        else:
            arrays = dense_gradients(self.workload, self._sets)
        tensors = []
        while arrays:  # never all of them twice in memory
            tensors.append(
                [keras.ops.convert_to_tensor(x) for x in arrays.pop(0)]
            )
        return tensors

    def _rows_made_dense(self) -> list[list[np.ndarray]]:
        indices, values = sparse_gradients(self.workload, self._sets)
        made = []
        for rows, value in zip(indices, values, strict=False):
            dense = np.zeros(self.workload.shapes[0], "float32")
            np.add.at(dense, rows, value)
            made.append([dense])
        return made

    @functools.cached_property
    def _sparse(self) -> list[list[Any]]:
        indices, values = sparse_gradients(self.workload, self._sets)
        make = _SPARSE[keras.backend.backend()]
        indices = [keras.ops.convert_to_tensor(x) for x in indices]
        values = [keras.ops.convert_to_tensor(x) for x in values]
        return [
            [
                make(
                    values[i % len(values)],
                    indices[i % len(indices)],
                    self.workload.shapes[0],
                )
            ]
            for i in range(len(indices) * len(values))
        ]


def _indexed_slices(values: Any, indices: Any, shape: tuple[int, ...]) -> Any:
    import tensorflow as tf

    return tf.IndexedSlices(values, indices, tf.constant(shape))


def _bcoo(values: Any, indices: Any, shape: tuple[int, ...]) -> Any:
    from jax.experimental import sparse

    return sparse.BCOO((values, indices[:, None]), shape=shape)


def _sparse_coo(values: Any, indices: Any, shape: tuple[int, ...]) -> Any:
    import torch

    return torch.sparse_coo_tensor(
        indices[None].long(), values, shape, check_invariants=False
    )


_SPARSE = {
    "tensorflow": _indexed_slices,
    "jax": _bcoo,
    "torch": _sparse_coo,
}


class Stepper:
    """An optimizer with weights and state of its own.

    Args:
        arm: Which optimizer.
        percent: Of the elements that ours would clip.
        gradients: Of the workload.
        mode: One of the backend's modes.
    """

    def __init__(self, arm: Arm, percent: int, gradients: Gradients, mode: str):
        self.mode = mode
        self._sets = gradients.of(arm)
        self._next = 0
        self._traces = 0
        self.variables = [
            keras.Variable(value, name=f"weight_{i}")
            for i, value in enumerate(weights(gradients.workload))
        ]
        self.optimizer = arm.make(percent)
        self.prepare()

    def prepare(self) -> None:
        """Creates the state."""
        self.optimizer.build(self.variables)

    def run(self, steps: int) -> None:
        """Makes steps and waits for the last."""
        for _ in range(steps):
            self.step(self._sets[self._next % len(self._sets)])
            self._next += 1
        self.wait()
        if self._traces > 1:
            raise RuntimeError(
                f"A step was traced {self._traces} times, which is in the "
                f"times of {type(self.optimizer).__name__}."
            )

    def step(self, gradients: list[Any]) -> None:
        """Starts one step."""
        raise NotImplementedError

    def wait(self) -> None:
        """Returns when all steps are done."""

    def clip_statistics(self) -> ClipStatistics:
        """The totals of an optimizer of ours."""
        return self.optimizer.clip_statistics()


class _TensorFlow(Stepper):
    def prepare(self) -> None:
        import tensorflow as tf

        super().prepare()
        # It warns of retracing where several functions have one name.
        tf.get_logger().setLevel("ERROR")

        @tf.function(jit_compile=self.mode == "jit")
        def apply(gradients):
            self._traces += 1
            self.optimizer.apply(gradients, self.variables)

        self._apply = apply
        self._sync = (
            tf.test.experimental.sync_devices if accelerator() else lambda: None
        )

    def step(self, gradients: list[Any]) -> None:
        self._apply(gradients)

    def wait(self) -> None:
        self._sync()


class _Jax(Stepper):
    def prepare(self) -> None:
        import jax

        super().prepare()

        # JAX pairs what is donated with what is returned by shape, in order:
        # in another order it would copy all of the state.
        def apply(weights, state, gradients):
            self._traces += 1
            return self.optimizer.stateless_apply(state, gradients, weights)

        self._apply = jax.jit(apply, donate_argnums=(0, 1))
        # The variables are left with deleted buffers, so that nothing is
        # there twice.
        self._state = [v.value for v in self.optimizer.variables]
        self._weights = [v.value for v in self.variables]

    def step(self, gradients: list[Any]) -> None:
        self._weights, self._state = self._apply(
            self._weights, self._state, gradients
        )

    def wait(self) -> None:
        import jax

        jax.block_until_ready((self._weights, self._state))

    def clip_statistics(self) -> ClipStatistics:
        # Until the next step deletes what it is given.
        for variable, value in zip(
            self.optimizer.variables, self._state, strict=True
        ):
            variable.assign(value)
        return super().clip_statistics()


class _Optax(_Jax):
    def prepare(self) -> None:
        import jax
        import optax

        def apply(weights, state, gradients):
            self._traces += 1
            updates, state = self.optimizer.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state

        self._apply = jax.jit(apply, donate_argnums=(0, 1))
        self._weights = [v.value for v in self.variables]
        self._state = self.optimizer.init(self._weights)


class _Torch(Stepper):
    def step(self, gradients: list[Any]) -> None:
        import torch

        with torch.no_grad():
            self.optimizer.apply(gradients, self.variables)

    def wait(self) -> None:
        import torch

        if is_on_cuda():
            torch.cuda.synchronize()


class _TorchOptim(_Torch):
    def prepare(self) -> None:
        self._weights = [v.value for v in self.variables]
        self.optimizer = self.optimizer(self._weights)

    def step(self, gradients: list[Any]) -> None:
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()


_OF_BACKEND = {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}


def stepper(arm: Arm, percent: int, gradients: Gradients, mode: str) -> Stepper:
    """A stepper of the running backend.

    Args:
        arm: Which optimizer.
        percent: Of the elements that ours would clip.
        gradients: Of the workload.
        mode: One of the backend's modes.
    """
    kind = {"torch": _TorchOptim, "optax": _Optax}.get(arm.kind)
    if kind is None:
        kind = _OF_BACKEND[keras.backend.backend()]
    return kind(arm, percent, gradients, mode)
