"""Times that can be compared: interleaved in one run, paired round by round."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Measured = TypeVar("Measured")


def interleave(
    samplers: Mapping[str, Callable[[], Measured]], rounds: int, seed: int = 0
) -> list[dict[str, Measured]]:
    """Calls each sampler once per round, in changing order.

    The order of a round is random, and that of the next is its reverse: of
    two arms each comes first equally often.

    Args:
        samplers: For each arm, what measures.
        rounds: How often each is called.
        seed: Of the orders.

    Returns:
        For each round, what each arm returned.
    """
    order = list(samplers)
    shuffle = random.Random(seed).shuffle
    measured = []
    for number in range(rounds):
        if number % 2:
            order.reverse()
        else:
            shuffle(order)
        found = {name: samplers[name]() for name in order}
        measured.append({name: found[name] for name in samplers})
    return measured


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
    rounds: Sequence[Mapping[str, float]], baseline: str
) -> dict[str, dict[str, Any]]:
    """Ratios of each arm to the baseline.

    Args:
        rounds: For each round, the seconds of each arm.
        baseline: The arm that the others are compared with.

    Returns:
        For each arm: "seconds" of all rounds, the "ratios" round by round,
        their "ratio" (median and spread), and "ratio_of_fastest", the ratio
        of the fastest rounds: other load on a machine only ever adds.
    """
    fastest = min(seconds[baseline] for seconds in rounds)
    results = {}
    for name in rounds[0]:
        values = [seconds[name] for seconds in rounds]
        ratios = [seconds[name] / seconds[baseline] for seconds in rounds]
        results[name] = {
            "seconds": values,
            "median_seconds": statistics.median(values),
            "ratios": ratios,
            "ratio": spread(ratios),
            "ratio_of_fastest": min(values) / fastest,
        }
    return results


def range_of_rounds(result: Mapping[str, Any]) -> str:
    """The least and the largest ratio of an arm, for a printed line."""
    ratio = result["ratio"]
    return f"rounds {ratio['min']:.2f} to {ratio['max']:.2f}"
