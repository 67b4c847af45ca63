"""The limits of all benchmarks, set before what they limit was written.

A bar is missed or met; no benchmark is altered to meet it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Time of `fit` with both loggers, as a ratio to that without.
CALLBACKS = {"each epoch": 1.02, "each 10 batches": 1.10}
# Processor time of `import keras_adamax` after `import keras`, in seconds.
IMPORT = 0.05
# Time of a trial, as a ratio to that of bare Optuna.
SEARCH_OVERHEAD = 1.5
# Throughput of two workers, as a ratio to that of one: at least this.
TWO_WORKERS = 1.6
# Time of a step on rows of a large table, as a ratio to that of a small one.
SPARSE_STEP = 1.5

# Which share of the elements is clipped where the bars of `optimizer_step` are
# judged, in percent.
PERCENT = 1


@dataclass(frozen=True)
class Bar:
    """A limit of `optimizer_step` or `fit`.

    Attributes:
        backend: Where it holds.
        mode: Where it holds.
        workload: What is updated or trained.
        arm: Whose limit it is.
        limit: What must not be exceeded.
        quantity: "ratio", of the time to that of Keras's unclipped Adamax;
            "added", this ratio less that of "ours"; "first step", in seconds;
            "memory of a step" or "memory of the first step", as ratios.
        accelerator: Whether it holds there, in place of the CPU.
    """

    backend: str
    mode: str
    workload: str
    arm: str
    limit: float
    quantity: str = "ratio"
    accelerator: bool = False

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a benchmark gives the measured value by."""
        return (self.mode, self.workload, self.arm, self.quantity)


_EVERYWHERE = (
    ("tensorflow", "graph"),
    ("tensorflow", "jit"),
    ("jax", "jit"),
    ("torch", "eager"),
)
_WORKLOADS = ("one", "many")

# Of each arm the limit for one matrix, and that for many variables.
_RATIOS = (
    ("tensorflow", "graph", "ours", (0.60, 0.95)),
    ("tensorflow", "jit", "ours", (1.45, 1.25)),
    ("tensorflow", "jit", "ours_no_statistics", (1.20, 1.20)),
    ("jax", "jit", "ours", (1.40, 1.25)),
    ("jax", "jit", "ours_no_statistics", (1.20, 1.20)),
    ("torch", "eager", "ours_compiled", (0.20, 0.30)),
    ("torch", "eager", "ours_eager", (0.60, 0.60)),
)

OPTIMIZER_STEP = (
    *(
        Bar(backend, mode, workload, arm, limit)
        for backend, mode, arm, limits in _RATIOS
        for workload, limit in zip(_WORKLOADS, limits, strict=True)
    ),
    *(
        Bar(*where, workload, "ours_skip_nonfinite", 0.25, "added")
        for where in _EVERYWHERE
        for workload in _WORKLOADS
    ),
    *(
        Bar("torch", "eager", workload, "ours", 1.0, accelerator=True)
        for workload in _WORKLOADS
    ),
)

MEMORY = (
    *(
        Bar(*where, workload, "ours", 1.01, quantity, accelerator)
        for where in _EVERYWHERE
        for workload in _WORKLOADS
        for quantity in ("memory of a step", "memory of the first step")
        for accelerator in (False, True)
    ),
    *(
        Bar("torch", "eager", workload, "ours_compiled", 30.0, "first step")
        for workload in _WORKLOADS
    ),
)

_FIT_LIMITS = dict(zip(_EVERYWHERE, (1.00, 1.05, 1.05, 1.00), strict=True))

FIT = tuple(
    Bar(*where, model, arm, limit)
    for where, limit in _FIT_LIMITS.items()
    for model in ("quickstart", "cnn", "transformer")
    for arm in ("ours", "ours_callbacks")
)


def judge_one(
    value: float | None,
    limit: float,
    *,
    at_least: bool = False,
    quick: bool = False,
    **bar: Any,
) -> dict[str, Any]:
    """Compares one value with its limit.

    Args:
        value: What was measured; `None` if nothing was.
        limit: What the value must not exceed.
        at_least: Whether the value must reach the limit instead.
        quick: Whether the sizes are too small to judge by.
        **bar: What describes the bar.

    Returns:
        The bar with "limit", "value" and whether it is "met": `None` where it
        is not judged.
    """
    met = None
    if value is not None and not quick:
        met = value >= limit if at_least else value <= limit
    return {**bar, "limit": limit, "value": value, "met": met}


def judge(
    bars: Iterable[Bar],
    values: Mapping[tuple[str, str, str, str], float],
    found: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Compares what was measured with the bars that hold there.

    Args:
        bars: The limits.
        values: By (mode, workload, arm, quantity).
        found: The results, which name the "backend" and the "device", and say
            whether they were "quick": then no bar holds.

    Returns:
        What `judge_one` returns, for each bar of that backend and device.
    """
    place = (found["backend"], found["device"] != "CPU", False)
    return [
        judge_one(values.get(bar.key), **asdict(bar))
        for bar in bars
        if (bar.backend, bar.accelerator, found["quick"]) == place
    ]


def ratio_limits(
    judged: Iterable[Mapping[str, Any]], mode: str, workload: str
) -> dict[str, float]:
    """The limits of the ratios in one panel of a figure, by arm."""
    return {
        bar["arm"]: bar["limit"]
        for bar in judged
        if (bar["mode"], bar["workload"], bar["quantity"])
        == (mode, workload, "ratio")
    }


def print_judged(judged: Iterable[Mapping[str, Any]]) -> None:
    """Prints a line for each bar that was measured."""
    measured = [bar for bar in judged if bar["met"] is not None]
    if not measured:
        return
    print("\nBars:")
    for bar in measured:
        value = bar["value"]
        print(
            f"    {'met   ' if bar['met'] else 'MISSED'} {bar['mode']:5} "
            f"{bar['workload']:11} {bar['arm']:19} {bar['quantity']:24} "
            f"{value:7.3f}, limit {bar['limit']:.2f}"
        )


def any_missed(judged: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a bar that was measured is missed."""
    return any(bar["met"] is False for bar in judged)
