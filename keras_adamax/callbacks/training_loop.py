"""`TrainingLoop`: callbacks in a training loop of your own."""

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_adamax import _validation
from keras_adamax.callbacks._window_means import ALL_LOGS_ARE_MEANS


class TrainingLoop(contextlib.AbstractContextManager):
    """Calls callbacks as `fit` does, from a training loop of your own.

    Use it to record clip rates and weight changes, or with any other callback
    of Keras, where you compute and apply gradients yourself. Call `step` after
    each update.

    The loop gives callbacks the mean of a value over the epoch so far, as `fit`
    does.

    On JAX, callbacks read the model's and the optimizer's variables. Where your
    loop keeps their values elsewhere (`stateless_apply`), write them back with
    `variable.assign(value)` before `step`, at least for the steps that are
    recorded.

    Args:
        model: The model that is trained. A logger of clip rates needs one whose
            `optimizer` is an `AdamaxClipped`: compile it, or set the attribute.
        callbacks: List of callbacks.

    Raises:
        ValueError: When it is entered, if a callback refuses the model.

    Example:
        >>> import keras, keras_adamax, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adamax_clipped", "mse")
        >>> logger = keras_adamax.ClipRateLogger()
        >>> with keras_adamax.TrainingLoop(model, [logger]) as loop:
        ...     for epoch in loop.epochs(2):
        ...         for _ in range(3):
        ...             loss = model.train_on_batch(
        ...                 np.ones((4, 2)), np.full((4, 1), 9.0)
        ...             )
        ...             loop.step(loss=loss)
        >>> records = logger.records
        >>> [int(e) for e in records["epoch"][records["quantity"] == "loss"]]
        [0, 1]
    """

    def __init__(
        self,
        model: keras.Model,
        callbacks: Sequence[keras.callbacks.Callback],
    ):
        self._list = keras.callbacks.CallbackList(
            list(callbacks), model=model, **{ALL_LOGS_ARE_MEANS: True}
        )
        self._is_in_epoch = False
        self._batch = 0
        self._sums: dict[str, float] = {}

    def __enter__(self) -> "TrainingLoop":
        self._list.on_train_begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends training, also where the loop has failed."""
        self._list.on_train_end()

    def epochs(self, number: int, first: int = 0) -> Iterator[int]:
        """Begins and ends the epochs of a `for` loop.

        Args:
            number: How many, an integer >= 0.
            first: Number of the first one, an integer >= 0. Defaults to `0`.

        Yields:
            The number of each epoch.

        Raises:
            TypeError: If an argument is no integer.
            ValueError: If one is negative.
        """
        number = _validation.check_integer("number", number, minimum=0)
        first = _validation.check_integer("first", first, minimum=0)
        for epoch in range(first, first + number):
            self._batch, self._sums = 0, {}
            self._list.on_epoch_begin(epoch)
            self._list.on_train_batch_begin(0)
            self._is_in_epoch = True
            yield epoch
            self._is_in_epoch = False
            self._list.on_epoch_end(epoch, self._means())

    def step(self, **logs: Any) -> None:
        """Tells the callbacks of an update that has been made.

        Args:
            **logs: Numbers or scalar tensors, such as `loss=loss`; the same
                names in all steps of an epoch.

        Raises:
            RuntimeError: Outside of the `for` loop over `epochs`.
            ValueError: If the names are others than before.
        """
        if not self._is_in_epoch:
            raise RuntimeError(
                "`step` must be called in a loop over the epochs: "
                "`for epoch in loop.epochs(3):`."
            )
        if self._batch and logs.keys() != self._sums.keys():
            raise ValueError(
                "`step` must be given the same names in all steps of an "
                f"epoch, {', '.join(self._sums) or 'none'}. Received: "
                f"{', '.join(logs) or 'none'}."
            )
        for name, value in logs.items():
            number = float(np.asarray(ops.convert_to_numpy(value)))
            self._sums[name] = self._sums.get(name, 0.0) + number
        self._batch += 1
        self._list.on_train_batch_end(self._batch - 1, self._means())
        # A record of the batches so far is due before the next one.
        self._list.on_train_batch_begin(self._batch)

    def _means(self) -> dict[str, float]:
        return {name: s / self._batch for name, s in self._sums.items()}
