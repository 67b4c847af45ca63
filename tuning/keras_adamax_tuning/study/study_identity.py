"""What the study of a search is compared by: objective and space."""

from typing import Any

import keras_tuner

from keras_adamax_tuning.errors import SearchMismatchError
from keras_adamax_tuning.study import distributions

# Attribute of a study.
_IDENTITY = "keras_adamax:identity"


def describe(
    objective: Any, hyperparameters: keras_tuner.HyperParameters
) -> dict[str, Any]:
    """What is recorded of a search, in JSON's types."""
    parts = getattr(objective, "objectives", [objective])
    return {
        "objective": sorted([part.name, part.direction] for part in parts),
        "space": distributions.describe(hyperparameters.space),
    }


def compare(study: Any, identity: dict[str, Any], begins: bool) -> None:
    """Compares a search with the record of a study.

    Where `begins`, one that has no record gets it first.

    Raises:
        SearchMismatchError: If they have another objective or space.
    """
    if begins and _IDENTITY not in study.user_attrs:
        study.set_user_attr(_IDENTITY, identity)
    # If two processes begin at once, the later one's is compared.
    recorded = study.user_attrs.get(_IDENTITY)
    if recorded is None:
        return
    study_name = study.study_name
    advice = (
        "Continue it with what it began with, or choose another output "
        "folder or `study_name`."
    )
    if recorded["objective"] != identity["objective"]:
        raise SearchMismatchError(
            f"The study {study_name!r} has another objective: "
            f"{_name_objective(recorded['objective'])}, not "
            f"{_name_objective(identity['objective'])}. {advice}"
        )
    if recorded["space"] != identity["space"]:
        raise SearchMismatchError(
            f"The study {study_name!r} has another space: "
            f"{_first_difference(recorded['space'], identity['space'])}. "
            f"{advice}"
        )


def _name_objective(parts: list[list[str]]) -> str:
    return " and ".join(f"{name} ({direction})" for name, direction in parts)


def _first_difference(
    recorded: list[dict[str, Any]], now: list[dict[str, Any]]
) -> str:
    def key(hp: dict[str, Any]) -> str:
        return f"{hp['name']} {hp['conditions']}"

    by_key = {key(hp): hp for hp in recorded}
    for hp in now:
        before = by_key.pop(key(hp), None)
        if before is None:
            return f"it has no hyperparameter {hp['name']!r}"
        if before != hp:
            changed = {
                field: value
                for field, value in before.items()
                if hp.get(field) != value
            }
            current = {field: hp.get(field) for field in changed}
            return f"{hp['name']!r} has {changed}, not {current}"
    if by_key:
        name = next(iter(by_key.values()))["name"]
        return f"it has a hyperparameter {name!r} that is missing now"
    return "its hyperparameters are declared in another order"
