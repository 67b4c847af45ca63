"""Peaks of memory, and first steps, each in a process of its own."""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _harness import bars, machine, options, timing

from _step import meters, workloads
from _step.arms import BASELINE, Arm, arms, choose
from _step.steppers import Gradients, stepper

# Processes for each arm.
RUNS = 3
ARMS = (
    BASELINE,
    "keras_adam",
    "reference",
    "ours_no_statistics",
    "ours",
    "ours_skip_nonfinite",
    "ours_compiled",
    "ours_eager",
    "ours_fused",
)
# Of a phase, what the bars call it.
PHASES = {
    "step": "memory of a step",
    "first step": "memory of the first step",
}
# Where torch and its compilers keep what they have compiled.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")


def measure(arguments: argparse.Namespace, script: str) -> list[dict[str, Any]]:
    """Measures all workloads, and prints each as soon as it is measured.

    Args:
        arguments: The options of the command line.
        script: What a process of its own runs, to call `measure_here`.
    """
    cases = []
    for name in arguments.workloads or ("one", "many"):
        workload = workloads.make(name, arguments.quick)
        for mode in options.modes(arguments):
            chosen = choose(workload, arguments.arms, ARMS)
            command = [sys.executable, script, "--backend", arguments.backend]
            command += ["--workloads", name]
            command += ["--quick"] * arguments.quick
            if arguments.backend == "tensorflow":
                command += ["--mode", mode]
            rounds = timing.interleave(
                {
                    arm.name: lambda arm=arm, command=command: _start_process(
                        arm, command
                    )
                    for arm in chosen
                },
                1 if arguments.quick else RUNS,
            )
            case = _make_case(workload, mode, rounds)
            _print_case(case)
            cases.append(case)
    return cases


def _start_process(arm: Arm, command: Sequence[str]) -> dict[str, float] | None:
    """Bytes above gradients, weights and state, in a fresh process.

    It finds nothing that was compiled before, so that its first step takes
    what it takes a user once.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--measure-memory", arm.name],
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(CACHES, folder),
            text=True,
        )
    if done.returncode and arm.is_optional:
        print(f"{arm.name} is skipped: it does not run here, see above.")
        return None
    if done.returncode:
        raise RuntimeError(f"{arm.name} failed in a process of its own.")
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(arguments: argparse.Namespace) -> None:
    """Prints the peaks of memory of one arm, as JSON."""
    (name,) = arguments.workloads
    (mode,) = options.modes(arguments)
    arm = arms(arguments.backend)[arguments.measure_memory]
    gradients = Gradients(workloads.make(name, arguments.quick), sets=1)
    running = stepper(arm, bars.PERCENT, gradients, mode)
    gc.collect()
    meter = meters.meter(arguments.backend, machine.accelerator())
    meter.mark()
    began = time.perf_counter()
    running.run(1)
    seconds = time.perf_counter() - began
    first = meter.peak()
    running.run(2)
    meter.forget()
    running.run(5)
    peaks = {"first step": first, "step": meter.peak()}
    print(json.dumps({**peaks, "first step seconds": seconds}))


def _make_case(
    workload: workloads.Workload,
    mode: str,
    rounds: Sequence[Mapping[str, dict[str, float] | None]],
) -> dict[str, Any]:
    """Medians, and ratios to Keras's Adamax."""
    # Gradient, weight and two moments.
    kept = 4 * 4 * workload.elements
    results: dict[str, dict[str, Any]] = {}
    for name in rounds[0]:
        runs = [run for found in rounds if (run := found[name]) is not None]
        if not runs:
            continue
        results[name] = {
            phase: {
                "bytes_above": [run[phase] for run in runs],
                "median_bytes_above": statistics.median(
                    run[phase] for run in runs
                ),
            }
            for phase in PHASES
        }
        results[name]["first_step_seconds"] = statistics.median(
            run["first step seconds"] for run in runs
        )
    for phase in PHASES:
        base = kept + results[BASELINE][phase]["median_bytes_above"]
        for result in results.values():
            peak = result[phase]
            peak["ratio"] = (kept + peak["median_bytes_above"]) / base
    return {
        "workload": workload.name,
        "mode": mode,
        "bytes_of_gradients_weights_and_state": kept,
        "arms": results,
    }


def _print_case(case: Mapping[str, Any]) -> None:
    kept = case["bytes_of_gradients_weights_and_state"]
    print(
        f"\n{case['workload']}, {case['mode']}: peaks above the "
        f"{kept / 1e6:.0f} MB of gradients, weights and state"
    )
    print(
        f"    {'':22} {'step':>9} {'ratio':>7}   {'first step':>10} "
        f"{'ratio':>7}   takes   (ratios: with those MB)"
    )
    for name, result in case["arms"].items():
        step, first = result["step"], result["first step"]
        print(
            f"    {name:22} {step['median_bytes_above'] / 1e6:6.1f} MB "
            f"{step['ratio']:7.3f}   "
            f"{first['median_bytes_above'] / 1e6:7.1f} MB "
            f"{first['ratio']:7.3f} {result['first_step_seconds']:6.1f} s",
            flush=True,
        )


def bar_values(
    cases: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str, str, str], float]:
    """What the bars limit, by their keys."""
    values = {}
    for case in cases:
        for name, result in case["arms"].items():
            key = (case["mode"], case["workload"], name)
            values[*key, "first step"] = result["first_step_seconds"]
            for phase, quantity in PHASES.items():
                values[*key, quantity] = result[phase]["ratio"]
    return values
