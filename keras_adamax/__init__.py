"""Adamax with per-weight gradient clipping for Keras 3.

Importing this package registers its classes with Keras:
`model.compile(optimizer="adamax_clipped")` works from then on, and so does
loading a model that was saved with it.
"""

import keras

from keras_adamax import trackers
from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import (
    AtomicBackup,
    ClipRateLogger,
    TrainingLoop,
    WeightDeltaLogger,
)
from keras_adamax.clip_statistics import ClipStatistics
from keras_adamax.gradient_statistics import (
    GradientStatistics,
    NonfiniteGradient,
)
from keras_adamax.schedules import JoinedSchedule, LinearRamp
from keras_adamax.spike_rule import Spike, SpikeStatistics
from keras_adamax.target_clip_rate import TargetClipRate

__version__ = "0.1.0"

__all__ = [
    "AdamaxClipped",
    "AtomicBackup",
    "ClipRateLogger",
    "ClipStatistics",
    "GradientStatistics",
    "JoinedSchedule",
    "LinearRamp",
    "NonfiniteGradient",
    "Spike",
    "SpikeStatistics",
    "TargetClipRate",
    "TrainingLoop",
    "WeightDeltaLogger",
    "trackers",
]

# `register_keras_serializable` makes saving work; a plain name in `compile`
# is looked up here, with its case.
keras.saving.get_custom_objects().update(
    dict.fromkeys(
        ("adamax_clipped", "AdamaxClipped", "adamaxclipped", "ADAMAX_CLIPPED"),
        AdamaxClipped,
    )
)
