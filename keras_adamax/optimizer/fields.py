"""What the parts of `AdamaxClipped` have in common."""

from typing import Any

import keras
from keras import ops

from keras_adamax.backends import Backend
from keras_adamax.beta_1_product import Beta1Product
from keras_adamax.clip_statistics import ClipCounts
from keras_adamax.exclusions import Exclusions
from keras_adamax.gradient_statistics import GradientTotals
from keras_adamax.hyperparameters import LiveHyperparameters
from keras_adamax.learning_rate import LearningRate
from keras_adamax.spike_gate import Clock, SpikeGate
from keras_adamax.state.restoration import Restoration
from keras_adamax.updates import Updates


class Fields(keras.optimizers.Optimizer):
    """What the constructor and `build` of `AdamaxClipped` set."""

    clip_gradients: bool
    bias_correction: bool
    exclude_from_clipping: tuple[str, ...] | None
    track_clip_rate: bool
    track_gradient_norms: bool
    skip_nonfinite: bool

    _backend: Backend
    _updates: Updates
    _kernel_choice: str
    _live: LiveHyperparameters
    _rate: LearningRate
    _is_constructed: bool

    # Scalars of the state.
    _hyperparameters: keras.Variable
    _beta_1_product: Beta1Product
    _skipped_steps: keras.Variable
    _spike_gate: SpikeGate | None
    _clip_excess: keras.Variable | None

    # Of each variable that the optimizer was built with.
    _paths: tuple[str, ...]
    _momentums: list[Any]
    _norms: list[Any]
    _state_dtypes: list[Any]
    _clip_counts: ClipCounts | None
    _gradient_totals: GradientTotals | None

    _exclusions: Exclusions
    _not_decayed: Any
    _restoration: Restoration
    _weight_decay_readers: int

    def _clock(self) -> Clock:
        """How far training is, as it is on the device."""
        steps = self.gradient_accumulation_steps
        skipped = ops.convert_to_tensor(self._skipped_steps)
        return Clock(
            calls=ops.cast(self._iterations, "int32") + skipped,
            updates=ops.cast(self.iterations, "int32"),
            is_update=(
                None if steps is None else (self._iterations + 1) % steps == 0
            ),
        )
