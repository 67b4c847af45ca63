"""A saved state and the optimizer that gets it, whichever comes first."""

import dataclasses
import enum
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_adamax import target_clip_rate
from keras_adamax._keras_private import NotDecayed
from keras_adamax.backends import Backend
from keras_adamax.beta_1_product import Beta1Product
from keras_adamax.clip_statistics import ClipCounts, ClipStatistics
from keras_adamax.exclusions import Exclusions
from keras_adamax.hyperparameters import LiveHyperparameters
from keras_adamax.learning_rate import LearningRate
from keras_adamax.state import saved_format
from keras_adamax.state.planning import (
    CLIP_EXCESS,
    Plan,
    Scalars,
    Table,
    check_settings,
    plan_positional,
    plan_scalars,
    plan_variables,
)
from keras_adamax.state.saved_format import SavedState

# Scalar variables that a state gives as they are, where the optimizer has them.
_COUNTERS = ("iterations", "skipped_steps", "spike_gate", "last_spikes")


class Phase(enum.Enum):
    """Where an optimizer stands between a saved state and its variables."""

    FRESH = "there is no state that waits"
    EMPTY = "it was built without variables, and none has come since"
    WAITING = "a state waits for the variables"
    REFUSED = "a state did not fit them, and is kept"


class Parts(NamedTuple):
    """What of an optimizer a state is given to, beside its variables.

    Attributes:
        live: The hyperparameters.
        learning_rate: The learning rate.
        beta_1_product: The product of all `beta_1`.
        exclusions: Of the clipping.
        not_decayed: Exclusions of the weight decay.
        backend: The running one.
    """

    live: LiveHyperparameters
    learning_rate: LearningRate
    beta_1_product: Beta1Product
    exclusions: Exclusions
    not_decayed: NotDecayed
    backend: Backend


class Restoration:
    """Saves the state of an optimizer, and gives it a saved one.

    Keras loads a state before or after it builds an optimizer:

        FRESH    load, set; built         FRESH    given at once
        FRESH    load, set; not built     WAITING  scalars are given at once
        FRESH    build, no variables      EMPTY
        EMPTY    build                    FRESH    with a warning
        EMPTY    load, set                WAITING
        WAITING  load, set                WAITING  the newer one replaces it
        WAITING  build, it fits           FRESH    variables are given
        WAITING  build, it does not fit   REFUSED  scalars are taken back
        REFUSED  apply                    REFUSED  the error comes again
        REFUSED  load, set                FRESH

    Nothing is changed by a state that does not fit or is damaged.

    Args:
        table: Gives the variables of the optimizer by their names.
        parts: What else a state is given to.

    Attributes:
        phase: One of `Phase`.
        is_expected: Whether Keras is going to load a state once the optimizer
            is built.
        origin: What the clip rates of an optimizer without variables count
            from.
    """

    def __init__(self, table: Callable[[], Table], parts: Parts):
        self._table = table
        self._parts = parts
        self.phase = Phase.FRESH
        self.is_expected = False
        self.origin: ClipStatistics | None = None
        self._saved: SavedState | None = None
        self._before: _Before | None = None

    @property
    def saved(self) -> SavedState | None:
        """The state that waits for variables, or did not fit them."""
        return self._saved

    def build_without_variables(self) -> None:
        """Notes that there was nothing to build."""
        self.phase = Phase.EMPTY if self._saved is None else self.phase

    def warn_if_empty(self, name: str) -> None:
        """Warns where an optimizer begins that was built without variables."""
        if self.phase is not Phase.EMPTY:
            return
        self.phase = Phase.FRESH
        warnings.warn(
            f"The optimizer '{name}' starts fresh: it was built "
            "without variables, as Keras does when it loads a whole-model "
            "`.h5` file, and no saved state has come since (inside of a "
            "LossScaleOptimizer, Keras drops it). Save the model as "
            "`.keras` to keep it.",
            stacklevel=3,
        )

    # Saving

    def save(self, store: Any) -> None:
        """Writes the state, each entry with its role, path and shape.

        Args:
            store: What Keras gives: a mapping from names to arrays.
        """
        table = self._table()
        saved = self._saved
        if saved is not None and self.phase is Phase.REFUSED:
            # It holds all that it was loaded with.
            roles = table.scalars if saved.manifest else ()
            saved_format.rewrite(
                store,
                saved,
                {role: saved.scalar(role) for role in roles},
                saved.manifest or {},
            )
            return
        scalars = self._values_of(table)
        scalars["log_beta_1_product"] = self._parts.beta_1_product.so_far(
            scalars
        )
        settings = self._settings(table, scalars)
        if saved is not None:
            saved_format.rewrite(store, saved, scalars, settings)
            return
        to_numpy = self._parts.backend.to_numpy
        per_variable: dict[str, list[np.ndarray | None]] = {
            role: [None if v is None else to_numpy(v) for v in variables]
            for role, variables in table.per_variable.items()
        }
        if table.clip_counts is not None:
            per_variable["clip_counts"] = list(
                np.asarray(to_numpy(table.clip_counts.rows))
            )
            per_variable["clipping_exclusion"] = [
                np.asarray(x) for x in table.clip_counts.are_excluded()
            ]
            for role, variable in table.rows.items():
                per_variable[role] = list(np.asarray(to_numpy(variable)))
            settings["not_decayed"] = table.not_decayed()
        saved_format.write(
            store,
            scalars=scalars,
            per_variable=per_variable,
            paths=table.paths,
            shapes=[tuple(v.shape) for v in table.trained],
            settings=settings,
        )

    def _settings(
        self, table: Table, scalars: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """What a saved state says beside its arrays."""
        parts, live = self._parts, self._parts.live
        origin = self.present_origin(table.clip_counts)
        return {
            "constructed": live.constructed,
            "current": {
                name: live.get(name, scalars["hyperparameters"])
                for name in live.constructed
            },
            "learning_rate_is_number": parts.learning_rate.schedule is None,
            "learning_rate": parts.learning_rate.present(
                scalars["learning_rate"]
            ),
            **table.settings,
            "exclude_from_clipping": list(parts.exclusions.patterns or ()),
            "not_decayed": [],
            "not_decayed_pattern": parts.not_decayed.pattern,
            "clip_rate_origin": None
            if origin is None
            else [
                [path, origin.clipped[path], origin.counted[path]]
                for path in origin.counted
            ],
        }

    def present_origin(
        self, clip_counts: ClipCounts | None
    ) -> ClipStatistics | None:
        """Where clip rates count from; `None` for the beginning.

        Args:
            clip_counts: Of the optimizer; `None` before it is built.
        """
        if clip_counts is None or self._before is not None:
            return self.origin
        return clip_counts.origin

    # Loading

    def load(self, store: Any, name: str) -> None:
        """Reads a state; one of a `keras.optimizers.Adamax`, too.

        Args:
            store: What Keras gives: a mapping from names to arrays.
            name: Of the optimizer.

        Raises:
            ValueError: If the state does not fit, with what does not.
        """
        saved = saved_format.read(store)
        if saved is None:
            warnings.warn(
                f"There is no saved state for the optimizer '{name}': "
                "it starts fresh. (The weights were saved without an "
                "optimizer.)",
                stacklevel=3,
            )
            return
        table = self._table()
        scalars = plan_scalars(saved, self._parts.live.constructed)
        if table.clip_counts is not None:
            plan = plan_variables(saved, table, scalars.origin)
            self._begin()
            self._give_scalars(scalars, table)
            self._give_variables(plan, table.clip_counts)
            return
        if saved.manifest is not None and saved.manifest["paths"]:
            check_settings(saved.manifest, table.settings)
        before = self._snapshot(table)
        self._give_scalars(scalars, table)
        # The state of an optimizer that was never built is all there now.
        if saved.kind == "own" and not saved.paths:
            self._begin(scalars.origin)
        else:
            self._wait(saved, before, table, scalars.origin)

    def set_weights(
        self, variables: Sequence[Any], weights: Sequence[Any]
    ) -> None:
        """Sets variables in their order.

        Args:
            variables: All of the optimizer.
            weights: An array for each of them; of an optimizer that is not
                built, also for those that it will have.

        Raises:
            ValueError: If their number or a shape does not fit.
        """
        table = self._table()
        is_built = table.clip_counts is not None
        arrays = [np.asarray(w) for w in weights]
        surplus = [] if is_built else arrays[len(variables) :]
        arrays = arrays if is_built else arrays[: len(variables)]
        plan = plan_positional(variables, arrays, table)
        before = self._snapshot(table)
        for variable, array in plan:
            variable.assign(array)
        self._parts.exclusions.unmatched = ()
        self._begin()
        if not is_built:
            self._wait(saved_format.positional(surplus), before, table)

    def give_to_variables(self, excluded: np.ndarray | None = None) -> None:
        """Gives a state that was loaded earlier to the variables.

        Args:
            excluded: What the variable of exclusions begins with, where the
                optimizer is being built. Defaults to `None`.

        Raises:
            ValueError: If it does not fit. It is kept, and the next call
                raises the error again in place of starting afresh.
        """
        if self._saved is None:
            return
        with self._parts.backend.outside_of_graph():
            table = self._table()
            counts = table.clip_counts
            assert counts is not None
            try:
                plan = plan_variables(self._saved, table, self.origin)
            except ValueError:
                self._refuse(table)
                raise
            self._begin(self.origin)
            if excluded is not None:
                # While TensorFlow traces a graph, it has no value yet.
                counts.exclusions.assign(excluded)
            self._give_variables(plan, counts)

    def _begin(self, origin: ClipStatistics | None = None) -> None:
        self.phase = Phase.FRESH
        self._saved = self._before = None
        self.origin = origin

    def _wait(
        self,
        saved: SavedState,
        before: "_Before",
        table: Table,
        origin: ClipStatistics | None = None,
    ) -> None:
        """Keeps a state, whose scalars have been given, for the variables.

        What there was before it is what there was before the one that waits
        already, where one does.
        """
        before = self._before or before
        before.loaded = self._copies_of(table)
        self.phase = Phase.WAITING
        self._saved, self._before, self.origin = saved, before, origin

    def _refuse(self, table: Table) -> None:
        """Takes back what a state has given that does not fit."""
        before = self._before
        if before is None:
            return
        store: dict[str, np.ndarray] = {}
        self.save(store)
        self._saved = saved_format.read(store)
        self.phase, self._before = Phase.REFUSED, None
        for role, present in self._values_of(table).items():
            # What was set since stays.
            table.scalars[role].assign(
                np.where(
                    present == before.loaded[role],
                    before.scalars[role],
                    present,
                )
            )
        rate = self._parts.learning_rate
        rate.written, rate.is_set = before.learning_rate
        self.origin = before.origin
        self._parts.not_decayed.take_back(before.not_decayed)
        self._parts.live.written.update(before.written)

    def _give_scalars(self, scalars: Scalars, table: Table) -> None:
        """Gives what needs no built optimizer."""
        parts, arrays = self._parts, scalars.arrays
        parts.learning_rate.is_set = False
        if CLIP_EXCESS in table.scalars:
            table.scalars[CLIP_EXCESS].assign(
                arrays.get(CLIP_EXCESS, target_clip_rate.START)
            )
        if not arrays:
            return
        for role in (
            "iterations",
            "skipped_steps",
            "spike_gate",
            "last_spikes",
        ):
            if role in table.scalars:
                table.scalars[role].assign(arrays[role])
        # As in Keras, the learning rate is state, and the rest is
        # configuration: of it, a change since construction is state.
        rate = parts.learning_rate
        if scalars.learning_rate is not None:
            rate.restore(scalars.learning_rate)
        elif float(parts.backend.to_numpy(rate.variable)) == 0:
            # A LossScaleOptimizer has set this by position, to what stands
            # there in the state of an optimizer with a schedule.
            rate.restore(rate.written)
        numbers = table.scalars["hyperparameters"]
        parts.live.assign(scalars.numbers, parts.backend.to_numpy(numbers))
        parts.beta_1_product.go_on_from(
            arrays["log_beta_1_product"], self._values_of(table)
        )
        parts.not_decayed.restore(pattern=scalars.pattern)

    def _give_variables(self, plan: Plan, clip_counts: ClipCounts) -> None:
        parts = self._parts
        for variable, array in plan.assignments:
            variable.assign(array)
        if plan.has_exclusions:
            parts.exclusions.unmatched = ()
        rate = parts.learning_rate
        if plan.learning_rate is not None and not rate.is_set:
            rate.restore(rate.present(plan.learning_rate))
        if not plan.has_origin:
            clip_counts.origin = plan.origin
        parts.not_decayed.restore(variables=plan.not_decayed)

    def _values_of(self, table: Table) -> dict[str, np.ndarray]:
        return {
            role: self._parts.backend.to_numpy(variable)
            for role, variable in table.scalars.items()
        }

    def _copies_of(self, table: Table) -> dict[str, np.ndarray]:
        # On torch an array of the host has the variable's memory.
        return {role: np.array(v) for role, v in self._values_of(table).items()}

    def _snapshot(self, table: Table) -> "_Before":
        parts = self._parts
        return _Before(
            scalars=self._copies_of(table),
            loaded={},
            learning_rate=(
                parts.learning_rate.written,
                parts.learning_rate.is_set,
            ),
            origin=self.origin,
            not_decayed=parts.not_decayed.snapshot(),
            written=dict(parts.live.written),
        )


@dataclasses.dataclass
class _Before:
    """What an optimizer held before it got a state that waits.

    Attributes:
        scalars: Role to value.
        loaded: The same after the state was loaded.
        learning_rate: As it was written, and whether the user had set it.
        origin: Of the clip rates.
        not_decayed: From `NotDecayed.snapshot`.
        written: What the user wrote, see `LiveHyperparameters`.
    """

    scalars: dict[str, np.ndarray]
    loaded: dict[str, np.ndarray]
    learning_rate: tuple[int | float, bool]
    origin: ClipStatistics | None
    not_decayed: dict[str, Any]
    written: dict[str, Any]
