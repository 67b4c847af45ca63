"""Times of steps: measured, printed and drawn."""

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
from _harness import bars, figure, machine, options, timing

from _step import bandwidth, workloads
from _step.arms import BASELINE, arms, choose
from _step.steppers import Gradients, Stepper, stepper

SAMPLE_SECONDS = 0.02


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times all workloads, and prints each as soon as it is measured."""
    cases = []
    for name in arguments.workloads or workloads.NAMES:
        percents = arguments.rates
        if percents is None:
            compared = name in ("one", "many")
            percents = list(workloads.CLIP_MULTIPLIERS) if compared else [1]
        gradients = Gradients(workloads.make(name, arguments.quick))
        for mode in options.modes(arguments):
            for percent in percents:
                case = _measure_case(arguments, gradients, percent, mode)
                _print_case(case)
                cases.append(case)
                gc.collect()
    return cases


def _measure_case(
    arguments: argparse.Namespace, gradients: Gradients, percent: int, mode: str
) -> dict[str, Any]:
    """Compares the arms on one workload."""
    workload = gradients.workload
    before = _bandwidths(arguments.quick)
    chosen = {arm.name: arm for arm in choose(workload, arguments.arms)}
    steppers, first_steps, skipped = {}, {}, {}
    for name, arm in chosen.items():
        try:
            steppers[name] = stepper(arm, percent, gradients, mode)
            first_steps[name] = _seconds(steppers[name], 1)
        except RuntimeError as error:
            if not arm.is_optional:
                raise
            print(f"{name} is skipped: it does not run here: {error}")
            skipped[name] = str(error)
            steppers.pop(name, None)
    samplers, snapshots = {}, {}
    for name, running in steppers.items():
        is_ours = chosen[name].kind == "ours"
        # Rows that are updated lazily meet one set of values per rotation.
        rotations = workloads.SETS if workload.rows and is_ours else 1
        running.run(workloads.STEPS_TO_SETTLE * rotations)
        samplers[name] = _make_sampler(running, arguments.quick)
        if is_ours:
            snapshots[name] = running.clip_statistics()
    rounds = timing.interleave(samplers, arguments.rounds)
    results = timing.compare(rounds, BASELINE)
    # Shared machines change: before and after, and what was faster.
    after = _bandwidths(arguments.quick)
    fastest = max(*before.values(), *after.values())
    for name, result in results.items():
        result["first_step_seconds"] = first_steps[name]
        if not workload.rows:
            result["bandwidth_fraction"] = bandwidth.fraction(
                workload.elements, result["median_seconds"], fastest
            )
        if name in snapshots:
            since = steppers[name].clip_statistics().since(snapshots[name])
            rate = since.rate()
            # NaN where nothing is counted.
            result["clip_rate"] = None if math.isnan(rate) else rate
    return {
        "workload": workload.name,
        "words": workload.words,
        "elements": workload.elements,
        "variables": len(workload.shapes),
        "mode": mode,
        "percent_clipped": percent,
        "beta_2": workloads.BETA_2,
        "clip_multiplier": workloads.CLIP_MULTIPLIERS[percent],
        "bandwidth": {
            "bytes_per_second": fastest,
            "before": before,
            "after": after,
        },
        "arms": results,
        "skipped_arms": skipped,
    }


def _bandwidths(quick: bool) -> dict[str, float]:
    backend = keras.backend.backend()
    return bandwidth.measure(backend, machine.accelerator(), quick)


def _seconds(running: Stepper, steps: int) -> float:
    """What one of so many steps takes."""
    began = time.perf_counter()
    running.run(steps)
    return (time.perf_counter() - began) / steps


def _make_sampler(running: Stepper, quick: bool) -> Callable[[], float]:
    """A function that makes steps and returns the seconds of one."""
    sample_seconds = 1e-3 if quick else SAMPLE_SECONDS
    steps = max(1, math.ceil(sample_seconds / _seconds(running, 3)))

    def sample() -> float:
        running.run(1)
        return _seconds(running, steps)

    return sample


def _words() -> dict[str, str]:
    """What the arms are called."""
    every = arms(keras.backend.backend())
    return {name: arm.words for name, arm in every.items()}


def _short(ratio: float) -> str:
    """Two decimals, and two digits of small ones."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _print_case(case: Mapping[str, Any]) -> None:
    words = _words()
    print(
        f"\n{case['workload']}: {case['words']}, {case['elements']:,} weights "
        f"in {case['variables']}; {case['mode']}, about "
        f"{case['percent_clipped']} % clipped; memory at "
        f"{case['bandwidth']['bytes_per_second'] / 1e9:.0f} GB/s"
    )
    print(
        f"    {'':30} {'ratio':>7}  {'quartiles':>13}     {'fastest':>7} "
        f"{'ms':>9} {'bandwidth':>9} {'clipped':>8} {'first step':>10}"
    )
    for name, result in case["arms"].items():
        ratio = result["ratio"]
        share = result.get("bandwidth_fraction")
        rate = result.get("clip_rate")
        print(
            f"    {words[name]:30} {_short(ratio['median']):>7}  "
            f"{_short(ratio['lower_quartile']):>7} - "
            f"{_short(ratio['upper_quartile']):7} "
            f"{_short(result['ratio_of_fastest']):>7} "
            f"{result['median_seconds'] * 1e3:9.3f} "
            f"{'' if share is None else f'{share:.0%}':>9} "
            f"{'' if rate is None else f'{rate:.2%}':>8} "
            f"{result['first_step_seconds']:8.1f} s",
            flush=True,
        )


def bar_values(
    cases: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str, str, str], float]:
    """What the bars limit, by their keys."""
    values = {}
    for case in cases:
        if case["percent_clipped"] != bars.PERCENT:
            continue
        arms = case["arms"]
        for name, result in arms.items():
            key = (case["mode"], case["workload"], name)
            values[*key, "ratio"] = result["ratio"]["median"]
            if "ours" in arms:
                pairs = zip(
                    result["ratios"], arms["ours"]["ratios"], strict=True
                )
                values[*key, "added"] = statistics.median(
                    own - ours for own, ours in pairs
                )
    return values


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws the ratios, one panel for each workload and mode."""
    words = _words()
    panels: dict[tuple[str, str], figure.Panel] = {}
    for case in found["cases"]:
        key = (case["mode"], case["workload"])
        results = case["arms"]
        panel = panels.setdefault(
            key,
            figure.Panel(
                title=f"{case['workload']} ({case['mode']}): "
                f"{case['words']}, {case['elements'] / 1e6:.3g} M weights",
                rows={name: words[name] for name in results},
                series={},
                notes={},
                limits=bars.ratio_limits(found["bars"], *key),
            ),
        )
        panel.series[f"{case['percent_clipped']} % clipped"] = {
            name: result["ratio"] for name, result in results.items()
        }
        if case["percent_clipped"] == bars.PERCENT or not panel.notes:
            panel.notes.update({n: _note(r) for n, r in results.items()})
    notes = "time of a step, part of the memory bandwidth (at 1 % clipped)"
    title = f"A step of the optimizer, {found['backend']} on {found['device']}"
    figure.draw_ratios(list(panels.values()), title, notes, path)


def _note(result: Mapping[str, Any]) -> str:
    """Milliseconds, and the part of the bandwidth."""
    text = f"{result['median_seconds'] * 1e3:.3g} ms"
    if "bandwidth_fraction" in result:
        text += f", {result['bandwidth_fraction']:.0%}"
    return text
