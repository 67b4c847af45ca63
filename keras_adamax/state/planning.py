"""What a saved state gives to which variable, before anything is changed."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_adamax import spike_rule
from keras_adamax.clip_statistics import ClipCounts, ClipStatistics
from keras_adamax.exclusions import Exclusions
from keras_adamax.state import legacy_adamax
from keras_adamax.state.matching import WAY_OUT, match
from keras_adamax.state.saved_format import SavedState, damaged

# The role of what only an optimizer with a `TargetClipRate` has.
CLIP_EXCESS = "clip_multiplier_minus_1"


@dataclasses.dataclass(frozen=True)
class Table:
    """The variables of an optimizer by their names, and what else decides.

    Of an optimizer that is not built there are the scalars alone.

    Attributes:
        scalars: Role to variable.
        per_variable: Role to a variable (or `None`) for each trained one.
        positional: The variables behind the scalars, in Keras's order.
        trained: The variables that are trained.
        paths: A path for each of these.
        clip_counts: The statistics; `None` of one that is not built.
        rows: Role to a variable with a row for each trained one, which a saved
            state may lack: it then begins at 0.
        settings: Arguments of the optimizer that the state must agree with.
        exclusions: Patterns of the clipping.
        not_decayed: Gives the numbers of the variables that do not decay.
        needs_beta_1_product: Whether the update needs what `beta_1` was.
    """

    scalars: dict[str, Any]
    per_variable: dict[str, Sequence[Any]]
    positional: Sequence[Any]
    trained: Sequence[Any]
    paths: tuple[str, ...]
    clip_counts: ClipCounts | None
    rows: Mapping[str, Any]
    settings: Mapping[str, Any]
    exclusions: Exclusions
    not_decayed: Callable[[], list[int]]
    needs_beta_1_product: bool


@dataclasses.dataclass
class Scalars:
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
class Plan:
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


def plan_scalars(saved: SavedState, constructed: Mapping[str, Any]) -> Scalars:
    """What a state gives to an optimizer, built or not.

    Args:
        saved: The state.
        constructed: The hyperparameters that the optimizer was made with.

    Raises:
        ValueError: If the state is damaged.
    """
    manifest = saved.manifest
    if manifest is None:
        return Scalars()
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
            if constructed.get(name) == manifest["constructed"][name]
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
        raise damaged(
            f"its manifest holds what it cannot ({error!r})"
        ) from error
    arrays = {}
    roles = ["iterations", "skipped_steps", "log_beta_1_product"]
    if CLIP_EXCESS in saved.arrays:
        roles.append(CLIP_EXCESS)
    for role in roles:
        arrays[role] = saved.scalar(role)
        if arrays[role].shape != () or not _is_numeric(arrays[role]):
            raise damaged(
                f"{role} is no number, and of shape {arrays[role].shape}"
            )
    # One that was saved without a gate says nothing of it.
    gate = saved.arrays.get("spike_gate", np.zeros(len(spike_rule.STATE)))
    if gate.shape != (len(spike_rule.STATE),) or not _is_numeric(gate):
        raise damaged(f"spike_gate does not hold {', '.join(spike_rule.STATE)}")
    arrays["spike_gate"] = gate
    shape = (spike_rule.KEPT, spike_rule.ROW_LENGTH)
    kept = saved.arrays.get("last_spikes", np.zeros(shape))
    if kept.shape != shape or not _is_numeric(kept):
        raise damaged(f"last_spikes are no numbers of shape {shape}")
    arrays["last_spikes"] = kept
    return Scalars(arrays, learning_rate, numbers, pattern, origin)


def plan_variables(
    saved: SavedState, table: Table, origin: ClipStatistics | None
) -> Plan:
    """What the variables get from a state.

    Args:
        saved: The state.
        table: The variables.
        origin: Of the clip rates, by the paths of the state.

    Raises:
        ValueError: If the state does not fit, or is damaged.
    """
    if saved.kind == "adamax":
        return _plan_adamax(saved, table)
    if saved.kind == "positional":
        return Plan(
            plan_positional(
                table.positional,
                list(saved.variables()),
                table,
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
                f"{len(table.paths)}: {', '.join(table.paths)}."
            )
        return Plan(_fresh(table))
    check_settings(manifest, table.settings)
    order = match(
        saved.paths,
        manifest["shapes"],
        table.paths,
        [tuple(v.shape) for v in table.trained],
    )
    assignments = []
    for role, variables in table.per_variable.items():
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
    clip_counts = table.clip_counts
    assert clip_counts is not None
    assignments.append((clip_counts.rows, np.stack([counts[i] for i in order])))
    for role, variable in table.rows.items():
        arrays = saved.per_variable(role)
        value = np.zeros(variable.shape)
        if any(array is not None for array in arrays):
            value = np.stack([arrays[i] for i in order])
        assignments.append((variable, value))
    has_exclusions = manifest["exclude_from_clipping"] == list(
        table.exclusions.patterns or ()
    )
    if has_exclusions:
        excluded = saved.per_variable("clipping_exclusion")
        assignments.append(
            (clip_counts.exclusions, np.stack([excluded[i] for i in order]))
        )
    for variable, array in assignments:
        if tuple(variable.shape) != np.shape(array):
            raise damaged(
                f"what is for {variable.path} of shape "
                f"{tuple(variable.shape)} has shape {np.shape(array)}"
            )
        if not _is_numeric(array):
            raise damaged(
                f"what is for {variable.path} is of dtype {array.dtype}"
            )
    try:
        not_decayed = [
            table.trained[order.index(i)] for i in manifest["not_decayed"]
        ]
        if origin is not None:
            pairs = [
                (path, saved.paths[i])
                for path, i in zip(table.paths, order, strict=True)
            ]
            origin = ClipStatistics(
                {path: origin.clipped[key] for path, key in pairs},
                {path: origin.counted[key] for path, key in pairs},
            )
        if "last_spikes" in table.scalars and "last_spikes" in saved.arrays:
            kept = spike_rule.renumbered(saved.scalar("last_spikes"), order)
            assignments.append((table.scalars["last_spikes"], kept))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise damaged(
            f"its manifest is of other variables ({error!r})"
        ) from error
    return Plan(
        assignments,
        not_decayed=not_decayed,
        has_exclusions=has_exclusions,
        origin=origin,
    )


def _plan_adamax(saved: SavedState, table: Table) -> Plan:
    roles = legacy_adamax.interpret(
        saved.arrays,
        table.paths,
        [tuple(v.shape) for v in table.trained],
        [m is not None for m in table.per_variable["momentum"]],
        **table.settings,
    )
    if table.needs_beta_1_product:
        raise ValueError(
            "The saved state of a keras.optimizers.Adamax does not say "
            "which values beta_1 had, and bias correction under a "
            "schedule of beta_1 needs their product. Make the optimizer "
            "with a number as beta_1, or with bias_correction=False."
        )
    table.exclusions.check(table.paths)
    assignments = _fresh(table)
    for role, variables in table.per_variable.items():
        assignments += [
            (variable, array)
            for variable, array in zip(variables, roles[role], strict=True)
            if variable is not None
        ]
    assignments.append((table.scalars["iterations"], roles["iterations"]))
    for role, variable in table.scalars.items():
        if role in (
            "log_beta_1_product",
            "skipped_steps",
            "spike_gate",
            "last_spikes",
        ):
            assignments.append((variable, np.zeros(variable.shape)))
    return Plan(assignments, learning_rate=roles.get("learning_rate"))


def _fresh(table: Table) -> list[tuple[Any, np.ndarray]]:
    """What the variables of a new optimizer hold."""
    assert table.clip_counts is not None
    variables = [v for vs in table.per_variable.values() for v in vs]
    return [
        (v, np.zeros(v.shape))
        for v in (*variables, table.clip_counts.rows, *table.rows.values())
        if v is not None
    ]


def check_settings(
    manifest: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuses a state that was saved with other settings."""
    for name, value in settings.items():
        if manifest[name] != value:
            raise ValueError(
                "The saved optimizer state does not fit: it was saved with "
                f"{name}={manifest[name]}, and this optimizer has "
                f"{name}={value}. Make it with the same."
            )


def plan_positional(
    variables: Sequence[Any], arrays: Sequence[np.ndarray], table: Table
) -> list[tuple[Any, np.ndarray]]:
    """Pairs of variables and arrays, of which only the order is known.

    Args:
        variables: Those that get a value.
        arrays: One for each.
        table: All variables.

    Raises:
        ValueError: If their number, a shape or a dtype does not fit.
    """
    if len(arrays) != len(variables):
        raise ValueError(
            "The weights of the optimizer do not fit: there must be "
            f"{len(variables)} arrays, one for each of "
            f"{', '.join(v.path for v in variables)}. Received: "
            f"{len(arrays)}. {WAY_OUT}"
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
            table.clip_counts is not None
            and variable is table.clip_counts.exclusions
            and np.any(array > 0)
            and not table.exclusions.patterns
        ):
            names = [table.paths[i] for i in np.flatnonzero(array > 0)]
            raise ValueError(
                "The weights of the optimizer do not fit: in them, "
                f"{', '.join(names)} are excluded from clipping, and this "
                "optimizer excludes nothing. Make it with the same "
                "`exclude_from_clipping`. Received: "
                "exclude_from_clipping=None."
            )
    return plan


def _is_numeric(array: np.ndarray) -> bool:
    # bfloat16 is of kind "V".
    return array.dtype.kind in "biufV"
