"""Callbacks that show what training does."""

from keras_adamax.callbacks.atomic_backup import AtomicBackup
from keras_adamax.callbacks.clip_rate import ClipRateLogger
from keras_adamax.callbacks.training_loop import TrainingLoop
from keras_adamax.callbacks.weight_delta import WeightDeltaLogger

__all__ = [
    "AtomicBackup",
    "ClipRateLogger",
    "TrainingLoop",
    "WeightDeltaLogger",
]
