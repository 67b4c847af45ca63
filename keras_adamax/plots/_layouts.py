"""Which panels each figure has."""

from keras_adamax.plots import _panels
from keras_adamax.plots._records import Records
from keras_adamax.plots._sheet import Panel
from keras_adamax.plots._tables import Clock, Table, tabulate

# Heights to which heat maps grow, in inches: alone and beside others.
_TALL, _LOW = 7.5, 5.0


class Tables:
    """The table of each quantity, made when it is first asked for."""

    def __init__(self, records: Records) -> None:
        self.clock = Clock.of(records)
        self._records = records
        self._made: dict[str, Table] = {}

    def __getitem__(self, quantity: str) -> Table:
        if quantity not in self._made:
            table = tabulate(self._records, quantity, self.clock)
            self._made[quantity] = table
        return self._made[quantity]


def clip_rates(tables: Tables, limit: float = _TALL) -> list[Panel]:
    """The summary, and the heat map of the variables below it."""
    table = tables["clip_rate"]
    if not table:
        return [_panels.empty("Clip rate")]
    panels = []
    if any(part.steps.size for part in table.parts):
        panels.append(_panels.clip_rate(table, tables["spike_rate"]))
    if table.variables:
        spikes = tables["spike_rate"]
        panels.append(_panels.clip_rate_map(table, spikes, limit))
    return panels


def weight_changes(tables: Tables, limit: float = _TALL) -> list[Panel]:
    """Norms, ratios, and for many variables the heat map of the ratios."""
    delta, ratio = tables["weight_delta"], tables["weight_delta_ratio"]
    if not delta and not ratio:
        return [_panels.empty("Weight change")]
    panels = []
    if delta:
        label = "weight change,\nL2 norm"
        panels.append(_panels.changes(delta, "Weight change", label, True))
    if ratio:
        panels.append(_ratio(ratio, names=not delta))
    # Without ratios, the norms have to do.
    table, title, label = (
        (ratio, "Weight change ratio", "weight change / weight norm")
        if ratio.variables
        else (delta, "Weight change", "weight change, L2 norm")
    )
    if len(table.variables) > _panels.MAX_LINES:
        title += " of each variable"
        panels.append(_panels.change_map(table, title, label, limit))
    return panels


def training(tables: Tables) -> list[Panel]:
    """Loss, clip rate and weight change ratio; says what is missing."""
    ratio = tables["weight_delta_ratio"]
    return [
        *_loss(tables),
        *clip_rates(tables)[:1],
        _ratio(ratio, names=True)
        if ratio
        else _panels.empty("Weight change ratio"),
    ]


def report(tables: Tables) -> list[Panel]:
    """Everything that was recorded."""
    panels = []
    if tables["loss"] or tables["val_loss"]:
        panels += _loss(tables)
    if tables["clip_rate"]:
        panels += clip_rates(tables, _LOW)
    if tables["weight_delta"] or tables["weight_delta_ratio"]:
        panels += weight_changes(tables, _LOW)
    return panels or [_panels.empty("Loss, clip rate and weight change")]


def _loss(tables: Tables) -> list[Panel]:
    loss, val_loss = tables["loss"], tables["val_loss"]
    if not loss and not val_loss:
        return [_panels.empty("Loss")]
    return [_panels.losses(loss, val_loss)]


def _ratio(table: Table, names: bool) -> Panel:
    label = "weight change /\nweight norm"
    return _panels.changes(table, "Weight change ratio", label, names)
