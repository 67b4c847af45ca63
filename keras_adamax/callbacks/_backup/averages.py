"""`SwapEMAWeights`: whether averages stand in the model in place of weights."""

from collections.abc import Sequence
from typing import Any

import keras


def swapping(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks that leave the averages in the model between epochs."""
    return [
        c
        for c in callbacks
        if isinstance(c, keras.callbacks.SwapEMAWeights) and c.swap_on_epoch
    ]


def are_in_model(swap: Any) -> bool:
    """Whether this callback has put the averages into the model."""
    return swap._ema_weights_in_model


def finish_swaps(
    model: Any, params: Any, epoch: int, flags: Sequence[bool]
) -> None:
    """Does what the callbacks did between a backup and the next epoch.

    Keras does it again, with the same operations: on TensorFlow a swap
    rounds, so that copies of the weights would not be the same bits.

    Args:
        model: The model, restored from a backup of the end of an epoch.
        params: The callbacks' `params`.
        epoch: The epoch that comes next.
        flags: `are_in_model` of each callback at the moment of the backup.
    """
    for flag in flags:
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        swap.set_model(model)
        swap.set_params(params)
        swap._ema_weights_in_model = flag
        swap.on_epoch_end(epoch - 1)
        swap.on_epoch_begin(epoch)
