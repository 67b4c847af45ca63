"""Saving an optimizer's state, and giving a saved one to its variables."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_adamax import exclusions, hyperparameters, saved_state
from keras_adamax.statistics import ClipStatistics


class RestorableOptimizer(keras.optimizers.Optimizer):
    """The part of `AdamaxClipped` that saves and restores its state.

    The format of a saved state is `saved_state`'s matter; what is here knows
    which variable and which attribute of the optimizer each entry belongs to.
    """

    def _scalars(self) -> dict[str, Any]:
        return {
            "iterations": self._iterations,
            "learning_rate": self._learning_rate_variable,
            "hyperparameters": self._hyperparameters,
            "log_beta_1_product": self._log_beta_1_product,
            "skipped_steps": self._skipped_steps,
            "spike_gate": self._spike_gate,
        }

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
        scalars = self._scalar_values()
        scalars["log_beta_1_product"] = self._log_beta_1_product_so_far(scalars)
        settings = self._settings(scalars)
        if self._pending_state is not None:
            saved_state.rewrite(store, self._pending_state, scalars, settings)
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
                ("clip_counts", self._clip_counts),
                ("clipping_exclusion", self._exclusions),
            ):
                per_variable[role] = [
                    np.asarray(x) for x in self._kernel.to_numpy(packed)
                ]
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
        origin = self._clip_rate_origin
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
        if self.built:
            plan = self._plan(saved)
            self._restore_scalars(saved)
            self._restore_variables(saved, plan)
            self._pending_state = None
            return
        if saved.manifest is not None and saved.manifest["paths"]:
            self._check_settings(saved.manifest)
        self._restore_scalars(saved)
        # The state of an optimizer that was never built is all there now.
        is_complete = saved.kind == "own" and not saved.paths
        self._pending_state = None if is_complete else saved

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets all variables of the optimizer, in the order of `variables`.

        An optimizer that is not built keeps them until it is.

        Args:
            weights: An array for each of `self.variables`.

        Raises:
            ValueError: If their number or a shape does not fit.
        """
        arrays = self._with_gate([np.asarray(w) for w in weights])
        variables = self.variables
        surplus = [] if self.built else arrays[len(variables) :]
        arrays = arrays if self.built else arrays[: len(variables)]
        for variable, array in self._plan_positional(variables, arrays):
            variable.assign(array)
        packed = self._kernel.to_numpy(self._hyperparameters)
        for name in self._live.written:
            self._live.written[name] = self._live.get(name, packed)
        self._unmatched_patterns = ()
        self._lacks_state = False
        self._pending_state = (
            None if self.built else saved_state.positional(surplus)
        )

    def _with_gate(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Adds what positional states from before the spike gate lack."""
        roles = list(self._scalars())
        packed = roles.index("hyperparameters")
        lacking = len(hyperparameters.PACKED) - hyperparameters.WITHOUT_GATE
        if len(arrays) <= packed or (
            arrays[packed].shape != (hyperparameters.WITHOUT_GATE,)
        ):
            return arrays
        present = self._kernel.to_numpy(self._hyperparameters)
        arrays[packed] = np.concatenate([arrays[packed], present[-lacking:]])
        gate = np.zeros(self._spike_gate.shape)
        arrays.insert(roles.index("spike_gate"), gate)
        return arrays

    def _restore_pending_state(self) -> None:
        """Gives a state that was loaded earlier to the variables."""
        saved = self._pending_state
        if saved is None:
            return
        # If it does not fit it stays pending, so that the next step raises
        # the error again in place of starting afresh.
        with self._kernel.outside_of_graph():
            self._restore_variables(saved, self._plan(saved))
        self._pending_state = None

    def _plan(self, saved: saved_state.SavedState) -> "_Plan":
        """What the variables get from a state; raises if it does not fit."""
        if saved.kind == "adamax":
            return self._plan_adamax(saved)
        if saved.kind == "positional":
            return _Plan(
                self._plan_positional(
                    self._variables[len(self._scalars()) :],
                    list(saved.variables()),
                ),
                has_exclusions=True,
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
        return _Plan(assignments, order, has_exclusions)

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
                f"{len(arrays)}."
            )
        plan = list(zip(variables, arrays, strict=True))
        for variable, array in plan:
            if tuple(variable.shape) != array.shape:
                raise ValueError(
                    "The weights of the optimizer do not fit: "
                    f"{variable.path} has shape {tuple(variable.shape)}. "
                    f"Received: an array of shape {array.shape}."
                )
            # The fused updates do not read what cannot be there.
            if (
                self.built
                and variable is self._exclusions
                and np.any(array)
                and not self.exclude_from_clipping
            ):
                names = [self._paths[i] for i in np.flatnonzero(array)]
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
        for role in ("log_beta_1_product", "skipped_steps", "spike_gate"):
            variable = self._scalars()[role]
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

    def _restore_scalars(self, saved: saved_state.SavedState) -> None:
        """Restores what needs no built optimizer."""
        self._learning_rate_is_set = False
        self._lacks_state = False
        self._clip_rate_origin = None
        manifest = saved.manifest
        if manifest is None:
            return
        for role in ("iterations", "skipped_steps"):
            self._scalars()[role].assign(saved.scalar(role))
        # States from before there was a gate have none.
        gate = saved.arrays.get("spike_gate", np.zeros(self._spike_gate.shape))
        self._spike_gate.assign(gate)
        # As in Keras, the learning rate is state, and the rest is
        # configuration: of it, a change since construction is state.
        if manifest["learning_rate_is_number"]:
            self._written_learning_rate = manifest["learning_rate"]
        self._learning_rate_variable.assign(float(self._written_learning_rate))
        for name, value in manifest["current"].items():
            if (
                self._live.constructed.get(name)
                == manifest["constructed"][name]
            ):
                self._live.written[name] = value
        self._live.assign()
        product = saved.scalar("log_beta_1_product")
        if "beta_1" in self._live.schedules:
            self._log_beta_1_product.assign(product)
        else:
            self._keep_log_beta_1_product(product)
        pattern = manifest["not_decayed_pattern"]
        if pattern and not self._excluded_from_weight_decay_by_user:
            super().exclude_from_weight_decay(var_names=[pattern])
        origin = manifest["clip_rate_origin"]
        if origin is not None:
            self._clip_rate_origin = ClipStatistics(
                {path: clipped for path, clipped, _ in origin},
                {path: counted for path, _, counted in origin},
            )

    def _restore_variables(
        self, saved: saved_state.SavedState, plan: "_Plan"
    ) -> None:
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
        if plan.order is None:
            return
        manifest = saved.manifest
        assert manifest is not None
        if not self._excluded_from_weight_decay_by_user:
            super().exclude_from_weight_decay(
                var_list=[
                    self._trainable_variables[plan.order.index(i)]
                    for i in manifest["not_decayed"]
                ]
            )
        origin = self._clip_rate_origin
        if origin is not None:
            saved_paths = [saved.paths[i] for i in plan.order]
            pairs = list(zip(self._paths, saved_paths, strict=True))
            self._clip_rate_origin = ClipStatistics(
                {path: origin.clipped[key] for path, key in pairs},
                {path: origin.counted[key] for path, key in pairs},
            )


@dataclasses.dataclass
class _Plan:
    """What a saved state gives to the variables, known to fit.

    Attributes:
        assignments: Pairs of a variable and its value.
        order: For each variable the saved index that belongs to it; `None` if
            the saved state does not say which is which.
        has_exclusions: Whether the state says what is excluded from clipping.
        learning_rate: That of a `keras.optimizers.Adamax`, if it is a number.
    """

    assignments: list[tuple[Any, np.ndarray]]
    order: list[int] | None = None
    has_exclusions: bool = False
    learning_rate: np.ndarray | None = None
