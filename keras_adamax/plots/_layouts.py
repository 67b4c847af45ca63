"""Which panels each figure has."""

from keras_adamax.plots import _maps, _panels, _scales
from keras_adamax.plots._rows import Selection
from keras_adamax.plots._sheet import Panel
from keras_adamax.plots._tables import Clock, Table, tabulate
from keras_adamax.record_columns import Columns

# Heights to which heat maps grow, in inches: alone and beside others.
_TALL, _LOW = 7.5, 6.2
_OF_GRADIENTS = (
    "gradient_norm",
    "clipped_share",
    "update_norm",
    "nonfinite_elements",
)
_KNOWN = (
    "clip_rate",
    "spike_rate",
    "weight_delta",
    "weight_delta_ratio",
    *_OF_GRADIENTS,
)


class Tables:
    """The table of each quantity, made when it is first asked for."""

    def __init__(self, columns: Columns, selection: Selection) -> None:
        self.clock = Clock.of(columns)
        self.selection = selection
        self._columns = selection.filter(columns)
        self._made: dict[str, Table] = {}

    def __getitem__(self, quantity: str) -> Table:
        if quantity not in self._made:
            table = tabulate(self._columns, quantity, self.clock)
            if quantity != "spike_rate":
                is_rate = scale_of(table).is_rate
                table = self.selection.limit(table, is_rate)
            self._made[quantity] = table
        return self._made[quantity]

    def others(self) -> list[Table]:
        """Quantities of variables that this version knows nothing of."""
        names = [n for n in self._columns.quantities if n not in _KNOWN]
        tables = [self[name] for name in names]
        return [table for table in tables if table.variables]


def scale_of(table: Table) -> _scales.Scale:
    """How a quantity is shown."""
    known = {
        "clip_rate": _scales.CLIP_RATE,
        "gradient_norm": _scales.GRADIENT_NORM,
        "clipped_share": _scales.CLIPPED_SHARE,
        "update_norm": _scales.UPDATE_NORM,
        "nonfinite_elements": _scales.NONFINITE,
        "weight_delta": _scales.WEIGHT_CHANGE,
        "weight_delta_ratio": _scales.WEIGHT_CHANGE_RATIO,
    }
    return known.get(table.quantity) or _scales.scale_of(table)


def clip_rates(tables: Tables, limit: float = _TALL) -> list[Panel]:
    """The summary, and the heat map of the variables below it."""
    table, spikes = tables["clip_rate"], tables["spike_rate"]
    if not table:
        return [_panels.empty("Clip rate")]
    panels = []
    if any(part.steps.size for part in table.parts):
        panels.append(_panels.clip_rate(table, spikes))
    if table.variables:
        panels += _maps.maps(
            table, _scales.CLIP_RATE, tables.selection, limit, spikes
        )
    return panels


def gradients(tables: Tables, limit: float = _TALL) -> list[Panel]:
    """Norms of gradients and updates, and what the clipping took away."""
    panels = []
    for quantity in _OF_GRADIENTS:
        table = tables[quantity]
        if not table:
            continue
        scale = scale_of(table)
        if scale.is_rate:
            panels += _maps.maps(table, scale, tables.selection, limit)
            continue
        panels.append(_panels.changes(table, scale.title, scale.label, True))
        if quantity == "gradient_norm":
            panels += _map_of_many(table, tables, limit)
    return panels or [_panels.empty("Gradient norm")]


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
    return panels + _map_of_many(
        ratio if ratio.variables else delta, tables, limit
    )


def _map_of_many(table: Table, tables: Tables, limit: float) -> list[Panel]:
    if len(table.variables) <= _panels.MAX_LINES:
        return []
    return _maps.maps(table, scale_of(table), tables.selection, limit)


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
    if any(tables[quantity] for quantity in _OF_GRADIENTS):
        panels += gradients(tables, _LOW)
    if tables["weight_delta"] or tables["weight_delta_ratio"]:
        panels += weight_changes(tables, _LOW)
    for table in tables.others():
        scale = scale_of(table)
        label = scale.label.replace(" ", "\n", 1)
        panels.append(_panels.changes(table, scale.title, label, True))
        panels += _map_of_many(table, tables, _LOW)
    return panels or [_panels.empty("Loss, clip rate and weight change")]


def _loss(tables: Tables) -> list[Panel]:
    loss, val_loss = tables["loss"], tables["val_loss"]
    if not loss and not val_loss:
        return [_panels.empty("Loss")]
    return [_panels.losses(loss, val_loss)]


def _ratio(table: Table, names: bool) -> Panel:
    label = "weight change /\nweight norm"
    return _panels.changes(table, "Weight change ratio", label, names)
