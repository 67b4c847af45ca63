"""What a space searches, as a table for people."""

from collections.abc import Mapping
from typing import Any

from keras_adamax import spike_rule
from keras_adamax_tuning.base.tables import table
from keras_adamax_tuning.space.arguments import OF_CLIPPING
from keras_adamax_tuning.space.parameters import Parameter
from keras_adamax_tuning.space.schedule_search import ScheduleSearch


def describe(
    parameters: Mapping[str, Parameter],
    schedules: Mapping[str, ScheduleSearch],
    optimizer_arguments: Mapping[str, Any],
    name_prefix: str,
) -> str:
    """The table of a space, as `AdamaxClippedSpace.describe` returns it."""
    rows = [("argument", "values", "in the record", "starts at")]
    clips = parameters["clip_gradients"].specification
    for name, parameter in parameters.items():
        argument, values, record, start = parameter.row()
        note = ""
        if name in OF_CLIPPING:
            if clips is False:
                rows.append((argument, "", "no effect", ""))
                continue
            if parameter.is_searched and isinstance(clips, list):
                note = f" (if {name_prefix}clip_gradients)"
        if name in schedules:
            using = schedules[name].kinds_that_use_the_value
            if not using:
                values, record, note, start = "", "no effect", "", ""
            elif using != list(schedules[name].kinds):
                kind = schedules[name].record_name
                note += f" (if {kind} is {' or '.join(using)})"
        rows.append((argument, values, record + note, start))
        if name in schedules:
            rows += schedules[name].rows()
    for name, value in optimizer_arguments.items():
        rows.append((name, repr(value), "fixed", ""))
    tolerance = _spike_tolerance(parameters, schedules)
    if tolerance is not None:
        rows.append(("spike_tolerance", tolerance, "follows", ""))
    return table(rows)


def _spike_tolerance(
    parameters: Mapping[str, Parameter], schedules: Mapping[str, ScheduleSearch]
) -> str | None:
    """In words; `None` where it is not known."""
    if parameters["clip_gradients"].specification is False:
        return None
    ends: dict[str, tuple[float, float]] = {}
    for name in ("clip_multiplier", "beta_2"):
        values = parameters[name].values()
        if not schedules[name].is_constant or any(map(callable, values)):
            return None
        ends[name] = (min(values), max(values))
    highest, lowest = (
        spike_rule.tolerance(multiplier, beta_2)
        for multiplier, beta_2 in zip(*ends.values(), strict=True)
    )
    if lowest == highest:
        return f"{lowest:.3g}"
    return f"{lowest:.3g} to {highest:.3g}"
