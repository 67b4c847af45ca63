"""The limits that were set before the kernels were written.

A bar is missed or met; no benchmark is altered to meet it. Where nothing else
is said, a value is a ratio to Keras's unclipped Adamax of the same run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Which share of the elements is clipped where the bars are judged, in percent.
PERCENT = 1


@dataclass(frozen=True)
class Bar:
    """A limit.

    Attributes:
        backend: Where it holds.
        mode: Where it holds.
        workload: What is updated or trained.
        arm: Whose limit it is.
        limit: What must not be exceeded.
        quantity: What of it: "ratio"; "added", the ratio less that of "ours";
            "first step", in seconds; "memory of a step" or "memory of the
            first step", as ratios.
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

OPTIMIZER_STEP = (
    Bar("tensorflow", "graph", "one", "ours", 0.60),
    Bar("tensorflow", "graph", "many", "ours", 0.95),
    Bar("tensorflow", "jit", "one", "ours", 1.45),
    Bar("tensorflow", "jit", "many", "ours", 1.25),
    Bar("jax", "jit", "one", "ours", 1.40),
    Bar("jax", "jit", "many", "ours", 1.25),
    Bar("torch", "eager", "one", "ours_compiled", 0.20),
    Bar("torch", "eager", "many", "ours_compiled", 0.30),
    Bar("torch", "eager", "one", "ours_eager", 0.60),
    Bar("torch", "eager", "many", "ours_eager", 0.60),
    *(
        Bar(backend, "jit", workload, "ours_no_statistics", 1.20)
        for backend in ("tensorflow", "jax")
        for workload in _WORKLOADS
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


def judge(
    bars: Iterable[Bar],
    values: Mapping[tuple[str, str, str, str], float],
    backend: str,
    on_accelerator: bool,
) -> list[dict[str, Any]]:
    """Compares what was measured with the bars that hold there.

    Args:
        bars: The limits.
        values: By (mode, workload, arm, quantity).
        backend: On which they were measured.
        on_accelerator: Whether on something else than the CPU.

    Returns:
        Each bar of that backend and device, with the "value" and whether it is
        "met"; both `None` where it was not measured.
    """
    judged = []
    for bar in bars:
        if bar.backend == backend and bar.accelerator == on_accelerator:
            value = values.get(bar.key)
            met = None if value is None else value <= bar.limit
            judged.append({**asdict(bar), "value": value, "met": met})
    return judged


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
