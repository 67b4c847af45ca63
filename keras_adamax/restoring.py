"""Saving an optimizer's state, and giving a saved one to its variables."""

import dataclasses
import math
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_adamax import (
    exclusions,
    hyperparameters,
    saved_state,
    spikes,
    target_clip_rate,
)
from keras_adamax.statistics import ClipStatistics

# Attributes beside the variables that hold what a state gave to an optimizer
# that was not built.
_RESTORED = (
    "_written_learning_rate",
    "_learning_rate_is_set",
    "_lacks_state",
    "_waiting_origin",
    "_exclude_from_weight_decay",
    "_exclude_from_weight_decay_pattern",
)
# The role of what only an optimizer with a `TargetClipRate` has.
_CLIP_EXCESS = "clip_multiplier_minus_1"
# Numbers that float32 holds exactly.
_ORIGIN_NUMBERS = 2**23
# Of more resets the oldest are forgotten.
_ORIGINS_KEPT = 100


class RestorableOptimizer(keras.optimizers.Optimizer):
    """The part of `AdamaxClipped` that saves and restores its state.

    The format of a saved state is `saved_state`'s matter; what is here knows
    which variable and which attribute of the optimizer each entry belongs to.
    """

    def _scalars(self) -> dict[str, Any]:
        scalars = {
            "iterations": self._iterations,
            "learning_rate": self._learning_rate_variable,
            "hyperparameters": self._hyperparameters,
            "log_beta_1_product": self._log_beta_1_product,
            "skipped_steps": self._skipped_steps,
        }
        if self._spike_gate is not None:
            scalars["spike_gate"] = self._spike_gate
        if self._clip_excess is not None:
            scalars[_CLIP_EXCESS] = self._clip_excess
        return scalars

    def _scalar_values(self) -> dict[str, np.ndarray]:
        return {
            role: self._kernel.to_numpy(variable)
            for role, variable in self._scalars().items()
        }

    def _per_variable(self) -> dict[str, Sequence[Any]]:
        roles: dict[str, Sequence[Any]] = {
            "momentum": self._momentums,
            "norm": self._norms,
        }
        if self.use_ema:
            roles["average"] = self._model_variables_moving_average
        if self.gradient_accumulation_steps:
            roles["gradient_accumulator"] = self._accumulated_gradients
        return roles

    def save_own_variables(self, store: Any) -> None:
        """Writes the state, each entry with its role, path and shape.

        Args:
            store: What Keras gives: a mapping from names to arrays.
        """
        pending = self._pending_state
        if pending is not None and self._before_pending is None:
            # It was refused, and holds all that it was loaded with.
            roles = self._scalars() if pending.manifest else ()
            saved_state.rewrite(
                store,
                pending,
                {role: pending.scalar(role) for role in roles},
                pending.manifest or {},
            )
            return
        scalars = self._scalar_values()
        scalars["log_beta_1_product"] = self._log_beta_1_product_so_far(scalars)
        settings = self._settings(scalars)
        if pending is not None:
            saved_state.rewrite(store, pending, scalars, settings)
            return
        per_variable: dict[str, list[np.ndarray | None]] = {}
        shapes: list[Sequence[int]] = []
        if self.built:
            per_variable = {
                role: [
                    None if v is None else self._kernel.to_numpy(v)
                    for v in variables
                ]
                for role, variables in self._per_variable().items()
            }
            for role, packed in (
                ("clip_counts", self._kernel.to_numpy(self._clip_counts)),
                ("clipping_exclusion", self._are_excluded()),
            ):
                per_variable[role] = [np.asarray(x) for x in packed]
            shapes = [tuple(v.shape) for v in self._trainable_variables]
            settings["not_decayed"] = [
                i
                for i, v in enumerate(self._trainable_variables)
                if not self._use_weight_decay(v)
            ]
        saved_state.write(
            store,
            scalars=scalars,
            per_variable=per_variable,
            paths=self._paths,
            shapes=shapes,
            settings=settings,
        )

    def _settings(self, scalars: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What a saved state says beside its arrays."""
        pattern = getattr(self, "_exclude_from_weight_decay_pattern", None)
        origin = self._clip_rate_origin()
        return {
            "constructed": self._live.constructed,
            "current": {
                name: self._live.get(name, scalars["hyperparameters"])
                for name in self._live.constructed
            },
            "learning_rate_is_number": (
                self._learning_rate is self._learning_rate_variable
            ),
            "learning_rate": hyperparameters.written_or_shortest(
                self._written_learning_rate, scalars["learning_rate"]
            ),
            "use_ema": self.use_ema,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "exclude_from_clipping": list(self.exclude_from_clipping or ()),
            "not_decayed": [],
            "not_decayed_pattern": pattern and pattern.pattern,
            "clip_rate_origin": None
            if origin is None
            else [
                [path, origin.clipped[path], origin.counted[path]]
                for path in origin.counted
            ],
        }

    def _log_beta_1_product_so_far(
        self, scalars: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        # Under a number the variable is 0 until the number changes; whoever
        # loads the state goes on from what it would be.
        product = scalars["log_beta_1_product"]
        if "beta_1" in self._live.schedules or product != 0:
            return product
        updates = int(scalars["iterations"]) // (
            self.gradient_accumulation_steps or 1
        )
        beta_1 = float(
            scalars["hyperparameters"][hyperparameters.PACKED.index("beta_1")]
        )
        logarithm = math.log(beta_1) if beta_1 > 0 else -math.inf
        return np.asarray(updates * logarithm if updates else 0, product.dtype)

    def load_own_variables(self, store: Any) -> None:
        """Reads a state; one of a `keras.optimizers.Adamax`, too.

        An optimizer that is not built keeps it until it is.

        Args:
            store: What Keras gives: a mapping from names to arrays.

        Raises:
            ValueError: If the state does not fit, with what does not. Nothing
                is changed then.
        """
        saved = saved_state.read(store)
        if saved is None:
            warnings.warn(
                f"There is no saved state for the optimizer '{self.name}': "
                "it starts fresh. (The weights were saved without an "
                "optimizer.)",
                stacklevel=2,
            )
            return
        scalars = self._plan_scalars(saved)
        if self.built:
            plan = self._plan(saved, scalars.origin)
            self._pending_state = self._before_pending = None
            self._restore_scalars(scalars)
            self._restore_variables(plan)
            return
        if saved.manifest is not None and saved.manifest["paths"]:
            self._check_settings(saved.manifest)
        before = self._before()
        self._restore_scalars(scalars)
        # The state of an optimizer that was never built is all there now.
        if saved.kind == "own" and not saved.paths:
            self._pending_state = self._before_pending = None
        else:
            self._wait_for_variables(saved, before)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets all variables of the optimizer, in the order of `variables`.

        An optimizer that is not built keeps them until it is.

        Args:
            weights: An array for each of `self.variables`.

        Raises:
            ValueError: If their number or a shape does not fit. Nothing is
                changed then.
        """
        arrays = [np.asarray(w) for w in weights]
        variables = self.variables
        surplus = [] if self.built else arrays[len(variables) :]
        arrays = arrays if self.built else arrays[: len(variables)]
        plan = self._plan_positional(variables, arrays)
        before = self._before()
        for variable, array in plan:
            variable.assign(array)
        self._unmatched_patterns = ()
        self._lacks_state = False
        self._waiting_origin = None
        self._pending_state = self._before_pending = None
        if not self.built:
            self._wait_for_variables(saved_state.positional(surplus), before)

    def _before(self) -> "_Before":
        attributes = self.__dict__
        return _Before(
            scalars=self._copied_scalars(),
            loaded={},
            attributes={n: attributes[n] for n in _RESTORED if n in attributes},
            written=dict(self._live.written),
        )

    def _copied_scalars(self) -> dict[str, np.ndarray]:
        # On torch an array of the host has the variable's memory.
        return {role: np.array(v) for role, v in self._scalar_values().items()}

    def _wait_for_variables(
        self, saved: saved_state.SavedState, before: "_Before"
    ) -> None:
        """Keeps a state until the optimizer is built.

        Args:
            saved: The state, whose scalars have been restored.
            before: What there was before; of a state in place of one that
                waits already, what there was before that.
        """
        if self._before_pending is not None:
            before = self._before_pending
        before.loaded = self._copied_scalars()
        self._pending_state, self._before_pending = saved, before

    def _is_waiting(self) -> bool:
        return not self.built or self._before_pending is not None

    def _restore_pending_state(
        self, excluded: np.ndarray | None = None
    ) -> None:
        """Gives a state that was loaded earlier to the variables.

        Args:
            excluded: What `_exclusions` begins with, where the optimizer is
                being built. Defaults to `None`.
        """
        saved = self._pending_state
        if saved is None:
            return
        with self._kernel.outside_of_graph():
            try:
                plan = self._plan(saved, self._waiting_origin)
            except ValueError:
                self._refuse_pending_state()
                raise
            self._pending_state = self._before_pending = None
            if excluded is not None:
                # While TensorFlow traces a graph, it has no value yet.
                self._exclusions.assign(excluded)
            self._restore_variables(plan)

    def _refuse_pending_state(self) -> None:
        """Takes back what a state has given that does not fit.

        It stays pending, so that the next step raises the error again in place
        of starting afresh.
        """
        before = self._before_pending
        if before is None:
            return
        store: dict[str, np.ndarray] = {}
        self.save_own_variables(store)
        self._pending_state = saved_state.read(store)
        self._before_pending = None
        for role, present in self._scalar_values().items():
            # What was set since stays.
            self._scalars()[role].assign(
                np.where(
                    present == before.loaded[role],
                    before.scalars[role],
                    present,
                )
            )
        for name in _RESTORED:
            self.__dict__.pop(name, None)
        self.__dict__.update(before.attributes)
        self._live.written.update(before.written)

    def _plan_scalars(self, saved: saved_state.SavedState) -> "_Scalars":
        """What needs no built optimizer; raises if a state is damaged."""
        manifest = saved.manifest
        if manifest is None:
            return _Scalars()
        try:
            pattern = manifest["not_decayed_pattern"]
            if pattern:
                re.compile(pattern)
            learning_rate = None
            if manifest["learning_rate_is_number"]:
                learning_rate = manifest["learning_rate"]
                float(learning_rate)
            numbers = {
                name: value
                for name, value in dict(manifest["current"]).items()
                if self._live.constructed.get(name)
                == manifest["constructed"][name]
            }
            for number in numbers.values():
                float(number)
            origin = manifest["clip_rate_origin"]
            if origin is not None:
                origin = ClipStatistics(
                    {path: int(clipped) for path, clipped, _ in origin},
                    {path: int(counted) for path, _, counted in origin},
                )
        except (KeyError, TypeError, ValueError, re.error) as error:
            raise saved_state.damaged(
                f"its manifest holds what it cannot ({error!r})"
            ) from error
        arrays = {}
        roles = ["iterations", "skipped_steps", "log_beta_1_product"]
        if _CLIP_EXCESS in saved.arrays:
            roles.append(_CLIP_EXCESS)
        for role in roles:
            arrays[role] = saved.scalar(role)
            if arrays[role].shape != () or not _is_numeric(arrays[role]):
                raise saved_state.damaged(
                    f"{role} is no number, and of shape {arrays[role].shape}"
                )
        # One that was saved without a gate says nothing of it.
        gate = saved.arrays.get("spike_gate", np.zeros(len(spikes.STATE)))
        if gate.shape != (len(spikes.STATE),) or not _is_numeric(gate):
            raise saved_state.damaged(
                f"spike_gate does not hold {', '.join(spikes.STATE)}"
            )
        arrays["spike_gate"] = gate
        return _Scalars(arrays, learning_rate, numbers, pattern, origin)

    def _plan(
        self,
        saved: saved_state.SavedState,
        origin: ClipStatistics | None,
    ) -> "_Plan":
        """What the variables get from a state; raises if it does not fit.

        Args:
            saved: The state.
            origin: Of the clip rates, by the paths of the state.
        """
        if saved.kind == "adamax":
            return self._plan_adamax(saved)
        if saved.kind == "positional":
            return _Plan(
                self._plan_positional(
                    self._variables[len(self._scalars()) :],
                    list(saved.variables()),
                ),
                has_exclusions=True,
                has_origin=True,
            )
        manifest = saved.manifest
        assert manifest is not None
        if not saved.paths:
            if int(saved.scalar("iterations")) != 0:
                raise ValueError(
                    "The saved optimizer state does not fit the model: it is "
                    "of no variables, and the optimizer updates "
                    f"{len(self._paths)}: {', '.join(self._paths)}."
                )
            return _Plan(self._fresh())
        self._check_settings(manifest)
        order = saved_state.match(
            saved.paths,
            manifest["shapes"],
            self._paths,
            [tuple(v.shape) for v in self._trainable_variables],
        )
        assignments = []
        for role, variables in self._per_variable().items():
            arrays = saved.per_variable(role)
            for variable, i in zip(variables, order, strict=True):
                if (variable is None) != (arrays[i] is None):
                    raise ValueError(
                        "The saved optimizer state does not fit: "
                        f"{saved.paths[i]} was saved "
                        f"{'without' if arrays[i] is None else 'with'} a "
                        f"{role}, and Keras "
                        f"{'keeps none' if variable is None else 'needs one'}"
                        " for it here."
                    )
                if variable is not None:
                    assignments.append((variable, arrays[i]))
        counts = saved.per_variable("clip_counts")
        assignments.append(
            (self._clip_counts, np.stack([counts[i] for i in order]))
        )
        has_exclusions = manifest["exclude_from_clipping"] == list(
            self.exclude_from_clipping or ()
        )
        if has_exclusions:
            excluded = saved.per_variable("clipping_exclusion")
            assignments.append(
                (self._exclusions, np.stack([excluded[i] for i in order]))
            )
        for variable, array in assignments:
            if tuple(variable.shape) != np.shape(array):
                raise saved_state.damaged(
                    f"what is for {variable.path} of shape "
                    f"{tuple(variable.shape)} has shape {np.shape(array)}"
                )
            if not _is_numeric(array):
                raise saved_state.damaged(
                    f"what is for {variable.path} is of dtype {array.dtype}"
                )
        try:
            not_decayed = [
                self._trainable_variables[order.index(i)]
                for i in manifest["not_decayed"]
            ]
            if origin is not None:
                pairs = [
                    (path, saved.paths[i])
                    for path, i in zip(self._paths, order, strict=True)
                ]
                origin = ClipStatistics(
                    {path: origin.clipped[key] for path, key in pairs},
                    {path: origin.counted[key] for path, key in pairs},
                )
        except (KeyError, TypeError, ValueError) as error:
            raise saved_state.damaged(
                f"its manifest is of other variables ({error!r})"
            ) from error
        return _Plan(
            assignments,
            not_decayed=not_decayed,
            has_exclusions=has_exclusions,
            origin=origin,
        )

    def _check_settings(self, manifest: Mapping[str, Any]) -> None:
        for name in ("use_ema", "gradient_accumulation_steps"):
            if manifest[name] != getattr(self, name):
                raise ValueError(
                    "The saved optimizer state does not fit: it was saved with "
                    f"{name}={manifest[name]}, and this optimizer has "
                    f"{name}={getattr(self, name)}. Make it with the same."
                )

    def _plan_positional(
        self, variables: Sequence[Any], arrays: Sequence[np.ndarray]
    ) -> list[tuple[Any, np.ndarray]]:
        if len(arrays) != len(variables):
            raise ValueError(
                "The weights of the optimizer do not fit: there must be "
                f"{len(variables)} arrays, one for each of "
                f"{', '.join(v.path for v in variables)}. Received: "
                f"{len(arrays)}. {saved_state.WAY_OUT}"
            )
        plan = list(zip(variables, arrays, strict=True))
        for variable, array in plan:
            if tuple(variable.shape) != array.shape:
                raise ValueError(
                    "The weights of the optimizer do not fit: "
                    f"{variable.path} has shape {tuple(variable.shape)}. "
                    f"Received: an array of shape {array.shape}."
                )
            if not _is_numeric(array):
                raise ValueError(
                    "The weights of the optimizer do not fit: "
                    f"{variable.path} holds numbers. "
                    f"Received: an array of dtype {array.dtype}."
                )
            # The fused updates do not read what cannot be there.
            if (
                self.built
                and variable is self._exclusions
                and np.any(array > 0)
                and not self.exclude_from_clipping
            ):
                names = [self._paths[i] for i in np.flatnonzero(array > 0)]
                raise ValueError(
                    "The weights of the optimizer do not fit: in them, "
                    f"{', '.join(names)} are excluded from clipping, and this "
                    "optimizer excludes nothing. Make it with the same "
                    "`exclude_from_clipping`. Received: "
                    f"exclude_from_clipping={self.exclude_from_clipping}."
                )
        return plan

    def _plan_adamax(self, saved: saved_state.SavedState) -> "_Plan":
        roles = saved_state.interpret_adamax(
            saved.arrays,
            self._paths,
            [tuple(v.shape) for v in self._trainable_variables],
            [momentum is not None for momentum in self._momentums],
            use_ema=self.use_ema,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )
        if self.bias_correction and "beta_1" in self._live.schedules:
            raise ValueError(
                "The saved state of a keras.optimizers.Adamax does not say "
                "which values beta_1 had, and bias correction under a "
                "schedule of beta_1 needs their product. Make the optimizer "
                "with a number as beta_1, or with bias_correction=False."
            )
        if self._unmatched_patterns:
            raise exclusions.unmatched_error(
                "exclude_from_clipping", self._unmatched_patterns, self._paths
            )
        assignments = self._fresh()
        for role, variables in self._per_variable().items():
            assignments += [
                (variable, array)
                for variable, array in zip(variables, roles[role], strict=True)
                if variable is not None
            ]
        assignments.append((self._iterations, roles["iterations"]))
        for role, variable in self._scalars().items():
            if role in ("log_beta_1_product", "skipped_steps", "spike_gate"):
                assignments.append((variable, np.zeros(variable.shape)))
        return _Plan(assignments, learning_rate=roles.get("learning_rate"))

    def _fresh(self) -> list[tuple[Any, np.ndarray]]:
        """What the variables of a new optimizer hold."""
        variables = [v for vs in self._per_variable().values() for v in vs]
        return [
            (v, np.zeros(v.shape))
            for v in (*variables, self._clip_counts)
            if v is not None
        ]

    def _restore_scalars(self, scalars: "_Scalars") -> None:
        """Restores what needs no built optimizer."""
        self._learning_rate_is_set = False
        self._lacks_state = False
        self._waiting_origin = scalars.origin
        if self._clip_excess is not None:
            self._clip_excess.assign(
                scalars.arrays.get(_CLIP_EXCESS, target_clip_rate.START)
            )
        if not scalars.arrays:
            return
        for role in ("iterations", "skipped_steps"):
            self._scalars()[role].assign(scalars.arrays[role])
        if self._spike_gate is not None:
            self._spike_gate.assign(scalars.arrays["spike_gate"])
        # As in Keras, the learning rate is state, and the rest is
        # configuration: of it, a change since construction is state.
        if scalars.learning_rate is not None:
            self._written_learning_rate = scalars.learning_rate
            self._learning_rate_variable.assign(float(scalars.learning_rate))
        elif float(self._kernel.to_numpy(self._learning_rate_variable)) == 0:
            # A LossScaleOptimizer has set this by position, to what stands
            # there in the state of an optimizer with a schedule.
            self._learning_rate_variable.assign(
                float(self._written_learning_rate)
            )
        self._live.assign(
            scalars.numbers, self._kernel.to_numpy(self._hyperparameters)
        )
        product = scalars.arrays["log_beta_1_product"]
        if "beta_1" in self._live.schedules:
            self._log_beta_1_product.assign(product)
        else:
            self._keep_log_beta_1_product(product)
        if scalars.pattern and not self._excluded_from_weight_decay_by_user:
            super().exclude_from_weight_decay(var_names=[scalars.pattern])

    def _restore_variables(self, plan: "_Plan") -> None:
        for variable, array in plan.assignments:
            variable.assign(array)
        if plan.has_exclusions:
            self._unmatched_patterns = ()
        if plan.learning_rate is not None and not self._learning_rate_is_set:
            self._written_learning_rate = hyperparameters.written_or_shortest(
                self._written_learning_rate, plan.learning_rate
            )
            self._learning_rate_variable.assign(
                float(self._written_learning_rate)
            )
        if not plan.has_origin:
            self._set_clip_rate_origin(plan.origin)
        if (
            plan.not_decayed is not None
            and not self._excluded_from_weight_decay_by_user
        ):
            super().exclude_from_weight_decay(var_list=plan.not_decayed)

    def _are_excluded(self) -> np.ndarray:
        """1 for each variable that is not clipped, 0 for the others."""
        return (self._kernel.to_numpy(self._exclusions) > 0).astype("float32")

    def _clip_rate_origin(self) -> ClipStatistics | None:
        """Where `clip_rates()` counts from; `None` for the beginning."""
        if self._is_waiting():
            return self._waiting_origin
        first = float(self._kernel.to_numpy(self._exclusions)[0])
        return self._origins.get(int(first - 1 if first > 0 else -first))

    def _set_clip_rate_origin(self, origin: ClipStatistics | None) -> None:
        """Makes `clip_rates()` count from `origin`, or from the beginning.

        The state must say which origin is its own, because a state may be set
        variable by variable, without a call of the optimizer. A variable of
        its own would change the number of variables, and Keras drops older
        states then. So the numbers in `exclusions` say it, of which only the
        sign was used: `1 + number` is above 0, and `-number` is not.
        """
        if self._is_waiting():
            self._waiting_origin = origin
            return
        number = 0
        if origin is not None:
            # The same for the same origin, so that copies have equal states.
            totals = [
                (origin.clipped[path], origin.counted[path])
                for path in self._paths
            ]
            number = 1 + zlib.crc32(repr(totals).encode()) % _ORIGIN_NUMBERS
            self._origins.pop(number, None)
            self._origins[number] = origin
            while len(self._origins) > _ORIGINS_KEPT:
                del self._origins[next(iter(self._origins))]
        self._exclusions.assign(
            np.where(self._are_excluded() > 0, 1.0 + number, 0.0 - number)
        )


def _is_numeric(array: np.ndarray) -> bool:
    # bfloat16 is of kind "V".
    return array.dtype.kind in "biufV"


@dataclasses.dataclass
class _Before:
    """What an optimizer held before it got a state that waits.

    Attributes:
        scalars: Role to value.
        loaded: The same after the state was loaded.
        attributes: Those of `_RESTORED` that there were.
        written: What the user wrote, see `LiveHyperparameters`.
    """

    scalars: dict[str, np.ndarray]
    loaded: dict[str, np.ndarray]
    attributes: dict[str, Any]
    written: dict[str, Any]


@dataclasses.dataclass
class _Scalars:
    """What a state gives to an optimizer, built or not.

    Attributes:
        arrays: Role to number; empty for a `keras.optimizers.Adamax`.
        learning_rate: As it was written, if it is a number.
        numbers: Hyperparameters that were set since construction.
        pattern: Of variables that do not decay.
        origin: Of the clip rates, by the paths of the state.
    """

    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    learning_rate: int | float | None = None
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    pattern: str | None = None
    origin: ClipStatistics | None = None


@dataclasses.dataclass
class _Plan:
    """What a saved state gives to the variables, known to fit.

    Attributes:
        assignments: Pairs of a variable and its value.
        not_decayed: Variables that do not decay; `None` if the saved state
            does not say.
        has_exclusions: Whether the state says what is excluded from clipping.
        has_origin: Whether the variables say what the origin is.
        origin: Of the clip rates otherwise, by the paths of the variables.
        learning_rate: That of a `keras.optimizers.Adamax`, if it is a number.
    """

    assignments: list[tuple[Any, np.ndarray]]
    not_decayed: list[Any] | None = None
    has_exclusions: bool = False
    has_origin: bool = False
    origin: ClipStatistics | None = None
    learning_rate: np.ndarray | None = None
