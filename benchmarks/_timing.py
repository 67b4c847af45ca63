"""Times that can be compared: interleaved in one run, round by round."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleave(
    samplers: Mapping[str, Callable[[], float]], rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Calls each sampler once a round, in another order each time.

    Args:
        samplers: For each arm, what measures and returns seconds.
        rounds: How often each is called.
        seed: Of the orders.

    Returns:
        What each returned, in the order of the rounds.
    """
    order = list(samplers)
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(samplers[name]())
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": statistics.median(values),
        "lower_quartile": low,
        "upper_quartile": high,
        "min": min(values),
        "max": max(values),
    }


def compare(
    seconds: Mapping[str, Sequence[float]], baseline: str
) -> dict[str, dict[str, Any]]:
    """Ratios of each arm to the baseline.

    Args:
        seconds: For each arm a value a round.
        baseline: The arm that the others are compared with.

    Returns:
        For each arm: "seconds" of all rounds, the "ratios" round by round,
        their "ratio" (median and spread), and "ratio_of_fastest", the ratio
        of the fastest rounds: other load on a machine only ever adds.
    """
    results = {}
    for name, values in seconds.items():
        ratios = [
            own / other
            for own, other in zip(values, seconds[baseline], strict=True)
        ]
        results[name] = {
            "seconds": list(values),
            "median_seconds": statistics.median(values),
            "ratios": ratios,
            "ratio": spread(ratios),
            "ratio_of_fastest": min(values) / min(seconds[baseline]),
        }
    return results
