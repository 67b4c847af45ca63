"""What does a step of `AdamaxClipped` cost, and how near is it to the limit?

Steps of our optimizer and of its peers, each with weights and state of its
own, on the same heavy-tailed gradients (`_workloads.py` says how they are made
and how 0, 1 or 50 % of their elements come to be clipped), timed in turn,
round by round, in random order. Prints, for each workload, the ratios of the
times to `keras.optimizers.Adamax` without clipping (median and quartiles of
the rounds), and which part of the memory bandwidth of this machine a step
reaches (`_bandwidth.py` says how both are counted). At the end come the bars
(`_bars.py`), which are judged where 1 % is clipped. Rerun with

    KERAS_BACKEND=tensorflow python benchmarks/optimizer_step.py --output DIR
    KERAS_BACKEND=jax python benchmarks/optimizer_step.py --output DIR
    KERAS_BACKEND=torch python benchmarks/optimizer_step.py --output DIR

and with `--memory` for the peaks of memory, and the first step of a process
without anything in the caches of compilers, in place of the times. On
TensorFlow both modes are measured, the plain graph that Keras uses on a CPU,
and `jit_compile`.

A sample is as many steps as last 20 ms, after one that is not counted. On
TensorFlow and JAX the gradients are arguments of the compiled step, which adds
the same to all arms (inside of `fit` they never leave the graph).
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

import _bars
import _report
import _workloads

ROUNDS = 15
SAMPLE_SECONDS = 0.02
# Each in a process of its own.
MEMORY_RUNS = 3
MEMORY_ARMS = (
    "keras_adamax",
    "keras_adam",
    "reference",
    "ours_no_statistics",
    "ours",
    "ours_skip_nonfinite",
    "ours_compiled",
    "ours_eager",
    "ours_fused",
)
# A machine may lack what these need.
OPTIONAL_KERNELS = ("compiled", "eager")
# Where torch and its compilers keep what they have compiled.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = _report.make_parser(__doc__, ROUNDS)
    parser.add_argument(
        "--mode",
        choices=("graph", "jit"),
        help="of TensorFlow (default: both)",
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=_workloads.NAMES,
        help="default: all; of memory: one and many",
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=int,
        choices=tuple(_workloads.CLIP_MULTIPLIERS),
        help="percent clipped (default: all on one and many, else 1)",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure peaks of memory in place of times",
    )
    # Used by this script itself, for processes that measure memory.
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    return parser.parse_args()


# Keras reads its backend when it is imported, so the options come first.
ARGUMENTS = parse_arguments()
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import _arms  # noqa: E402
import _bandwidth  # noqa: E402
import _memory  # noqa: E402
import _steps  # noqa: E402
import _timing  # noqa: E402
from _machine import describe_machine  # noqa: E402

BASELINE = _arms.BASELINE


def chosen_arms(workload, defaults=None):
    """The arms to compare on a workload, the baseline always with them."""
    arms = _arms.arms(ARGUMENTS.backend)
    names = ARGUMENTS.arms or defaults or list(arms)
    unknown = set(ARGUMENTS.arms or ()) - set(arms)
    if unknown:
        raise SystemExit(
            f"`--arms` must be of {', '.join(arms)} here. Received: "
            f"{', '.join(sorted(unknown))}."
        )
    return [
        arm
        for arm in arms.values()
        if (arm.name in names or arm.name == BASELINE)
        and (arm.takes_rows or not workload.rows)
    ]


def modes():
    """The modes to measure, one after another."""
    if ARGUMENTS.mode and ARGUMENTS.backend == "tensorflow":
        return (ARGUMENTS.mode,)
    return _steps.MODES[ARGUMENTS.backend]


def start(arm, percent, gradients, mode):
    """A stepper after its first step, and the seconds of that."""
    stepper = _steps.stepper(arm, percent, gradients, mode)
    began = time.perf_counter()
    stepper.run(1)
    return stepper, time.perf_counter() - began


def make_sampler(stepper, steps):
    """A function that makes steps and returns the seconds of one."""

    def sample():
        stepper.run(1)
        began = time.perf_counter()
        stepper.run(steps)
        return (time.perf_counter() - began) / steps

    return sample


def measure_case(gradients, percent, mode):
    """Compares the arms on one workload."""
    bandwidths = [measure_bandwidth()]
    workload = gradients.workload
    steppers, first_steps, skipped, samplers, snapshots = {}, {}, {}, {}, {}
    arms = {arm.name: arm for arm in chosen_arms(workload)}
    for name, arm in arms.items():
        try:
            steppers[name], first_steps[name] = start(
                arm, percent, gradients, mode
            )
        except RuntimeError as error:
            if arm.kernel not in OPTIONAL_KERNELS:
                raise
            print(f"{name} is skipped: it does not run here: {error}")
            skipped[name] = str(error)
    sample_seconds = 1e-3 if ARGUMENTS.quick else SAMPLE_SECONDS
    for name, stepper in steppers.items():
        # Rows that are updated lazily meet one set of values a rotation.
        is_lazy = workload.rows and arms[name].kind == "ours"
        stepper.run(
            _workloads.STEPS_TO_SETTLE * (_workloads.SETS if is_lazy else 1)
        )
        began = time.perf_counter()
        stepper.run(3)
        seconds = (time.perf_counter() - began) / 3
        steps = max(1, math.ceil(sample_seconds / seconds))
        samplers[name] = make_sampler(stepper, steps)
        if arms[name].kind == "ours":
            snapshots[name] = stepper.clip_statistics()
    rounds = ARGUMENTS.rounds or (2 if ARGUMENTS.quick else ROUNDS)
    seconds = _timing.interleave(samplers, rounds)
    results = _timing.compare(seconds, BASELINE)
    # Shared machines change: before and after, and what was faster.
    bandwidths.append(measure_bandwidth())
    bandwidth = max(max(patterns.values()) for patterns in bandwidths)
    for name, result in results.items():
        result["first_step_seconds"] = first_steps[name]
        if not workload.rows:
            result["bandwidth_fraction"] = _bandwidth.fraction(
                workload.elements, result["median_seconds"], bandwidth
            )
        if name in snapshots:
            result["clip_rate"] = clip_rate(steppers[name], snapshots[name])
    return {
        "workload": workload.name,
        "words": workload.words,
        "elements": workload.elements,
        "variables": len(workload.shapes),
        "mode": mode,
        "percent_clipped": percent,
        "beta_2": _workloads.BETA_2,
        "clip_multiplier": _workloads.CLIP_MULTIPLIERS[percent],
        "bandwidth": {
            "bytes_per_second": bandwidth,
            "before": bandwidths[0],
            "after": bandwidths[1],
        },
        "arms": results,
        "skipped_arms": skipped,
    }


def measure_bandwidth():
    """Bytes a second of each pattern."""
    return _bandwidth.measure(
        ARGUMENTS.backend, _steps.accelerator(), quick=ARGUMENTS.quick
    )


def clip_rate(stepper, snapshot):
    """The fraction clipped since then; `None` where it is not counted."""
    rate = stepper.clip_statistics().since(snapshot).rate()
    return None if math.isnan(rate) else rate


def short(ratio):
    """Two decimals, and two digits of small ones."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def print_case(case):
    """Prints the table of a case."""
    words = _arms.arms(ARGUMENTS.backend)
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
            f"    {words[name].words:30} {short(ratio['median']):>7}  "
            f"{short(ratio['lower_quartile']):>7} - "
            f"{short(ratio['upper_quartile']):7} "
            f"{short(result['ratio_of_fastest']):>7} "
            f"{result['median_seconds'] * 1e3:9.3f} "
            f"{'' if share is None else f'{share:.0%}':>9} "
            f"{'' if rate is None else f'{rate:.2%}':>8} "
            f"{result['first_step_seconds']:8.1f} s",
            flush=True,
        )


def bar_values(cases):
    """What the bars limit, by their keys."""
    values = {}
    for case in cases:
        if case["percent_clipped"] != _bars.PERCENT:
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


def draw(cases, title, path):
    """Draws the ratios, a panel for each workload and mode."""
    words = {
        arm.name: arm.words for arm in _arms.arms(ARGUMENTS.backend).values()
    }
    panels = {}
    for case in cases:
        key = (case["workload"], case["mode"])
        rows = list(case["arms"])
        panel = panels.setdefault(
            key,
            {
                "title": f"{case['workload']} ({case['mode']}): "
                f"{case['words']}, {case['elements'] / 1e6:.3g} M weights",
                "rows": [words[name] for name in rows],
                "series": {},
                "notes": {},
                "limits": {},
            },
        )
        panel["series"][f"{case['percent_clipped']} % clipped"] = {
            row: case["arms"][name]["ratio"] for row, name in enumerate(rows)
        }
        if case["percent_clipped"] == _bars.PERCENT or not panel["notes"]:
            for row, name in enumerate(rows):
                panel["notes"][row] = note(case["arms"][name])
        for bar in _bars.OPTIMIZER_STEP:
            if (
                (bar.backend, bar.quantity) == (ARGUMENTS.backend, "ratio")
                and (bar.workload, bar.mode) == key
                and bar.accelerator == bool(_steps.accelerator())
                and bar.arm in rows
            ):
                panel["limits"][rows.index(bar.arm)] = bar.limit
    notes = "time of a step, part of the memory bandwidth (at 1 % clipped)"
    _report.draw_ratios(list(panels.values()), title, notes, path)


def note(result):
    """Milliseconds, and the part of the bandwidth."""
    text = f"{result['median_seconds'] * 1e3:.3g} ms"
    if "bandwidth_fraction" in result:
        text += f", {result['bandwidth_fraction']:.0%}"
    return text


def measure_times(header):
    """Times all workloads; returns results and what the bars limit."""
    cases = []
    for name in ARGUMENTS.workloads or _workloads.NAMES:
        percents = ARGUMENTS.rates
        if percents is None:
            compared = name in ("one", "many")
            percents = list(_workloads.CLIP_MULTIPLIERS) if compared else [1]
        gradients = _steps.Gradients(_workloads.make(name, ARGUMENTS.quick))
        for mode in modes():
            for percent in percents:
                case = measure_case(gradients, percent, mode)
                print_case(case)
                cases.append(case)
                gc.collect()
    return {**header, "cases": cases}, bar_values(cases)


def measure_memory_here():
    """Prints the peaks of memory of one arm, as JSON."""
    (name,) = ARGUMENTS.workloads
    workload = _workloads.make(name, ARGUMENTS.quick)
    arm = _arms.arms(ARGUMENTS.backend)[ARGUMENTS.measure_memory]
    (mode,) = modes()
    gradients = _steps.Gradients(workload, sets=1)
    stepper = _steps.stepper(arm, _bars.PERCENT, gradients, mode)
    gc.collect()
    meter = _memory.meter(ARGUMENTS.backend, _steps.accelerator())
    meter.mark()
    began = time.perf_counter()
    stepper.run(1)
    seconds = time.perf_counter() - began
    first = meter.peak()
    stepper.run(2)
    meter.forget()
    stepper.run(5)
    peaks = {"first step": first, "step": meter.peak()}
    print(json.dumps({**peaks, "first step seconds": seconds}))


def start_memory_process(arm, workload, mode):
    """Bytes above gradients, weights and state, in a fresh process.

    It finds nothing that was compiled before, so that its first step takes
    what it takes a user once.
    """
    command = [sys.executable, __file__, "--backend", ARGUMENTS.backend]
    command += ["--workloads", workload.name, "--measure-memory", arm.name]
    if ARGUMENTS.backend == "tensorflow":
        command += ["--mode", mode]
    if ARGUMENTS.quick:
        command.append("--quick")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(CACHES, folder),
            text=True,
        )
    if done.returncode and arm.kernel in OPTIONAL_KERNELS:
        print(f"{arm.name} is skipped: it does not run here, see above.")
        return None
    if done.returncode:
        raise RuntimeError(f"{arm.name} failed in a process of its own.")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(header):
    """Peaks of memory, in fresh processes; results and what the bars limit."""
    cases, values = [], {}
    runs = 1 if ARGUMENTS.quick else MEMORY_RUNS
    for name in ARGUMENTS.workloads or ("one", "many"):
        workload = _workloads.make(name, ARGUMENTS.quick)
        for mode in modes():
            arms = chosen_arms(workload, MEMORY_ARMS)
            peaks = {arm.name: [] for arm in arms}
            for _ in range(runs):
                for arm in arms:
                    peak = start_memory_process(arm, workload, mode)
                    if peak is not None:
                        peaks[arm.name].append(peak)
            measured = {arm: runs for arm, runs in peaks.items() if runs}
            case = memory_case(workload, mode, measured)
            print_memory_case(case)
            cases.append(case)
            for arm, result in case["arms"].items():
                for phase in ("step", "first step"):
                    key = (mode, name, arm, f"memory of {article(phase)}")
                    values[key] = result[phase]["ratio"]
                key = (mode, name, arm, "first step")
                values[key] = result["first_step_seconds"]
    return {**header, "cases": cases}, values


def article(phase):
    """The phase in a phrase."""
    return "a step" if phase == "step" else f"the {phase}"


def memory_case(workload, mode, peaks):
    """Medians, and ratios to Keras's Adamax."""
    # Gradient, weight and two moments.
    kept = 4 * 4 * workload.elements
    arms = {
        name: {
            phase: {
                "bytes_above": [run[phase] for run in runs],
                "median_bytes_above": statistics.median(
                    run[phase] for run in runs
                ),
            }
            for phase in ("step", "first step")
        }
        for name, runs in peaks.items()
    }
    for name, result in arms.items():
        for phase, peak in result.items():
            base = arms[BASELINE][phase]["median_bytes_above"]
            peak["ratio"] = (kept + peak["median_bytes_above"]) / (kept + base)
        result["first_step_seconds"] = statistics.median(
            run["first step seconds"] for run in peaks[name]
        )
    return {
        "workload": workload.name,
        "mode": mode,
        "bytes_of_gradients_weights_and_state": kept,
        "arms": arms,
    }


def print_memory_case(case):
    """Prints the table of a case."""
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


def main():
    """Measures, prints and writes."""
    if ARGUMENTS.measure_memory:
        measure_memory_here()
        return
    accelerator = _steps.accelerator()
    header = {
        "benchmark": "optimizer_step",
        "measured": "memory" if ARGUMENTS.memory else "time",
        "command": sys.argv[1:],
        "backend": ARGUMENTS.backend,
        "machine": describe_machine(),
        "device": accelerator or "CPU",
        "quick": ARGUMENTS.quick,
    }
    print(header["machine"])
    print(f"{ARGUMENTS.backend} on {header['device']}")
    measure = measure_memory if ARGUMENTS.memory else measure_times
    results, values = measure(header)
    bars = _bars.MEMORY if ARGUMENTS.memory else _bars.OPTIMIZER_STEP
    results["bars"] = _bars.judge(
        () if ARGUMENTS.quick else bars,
        values,
        ARGUMENTS.backend,
        accelerator is not None,
    )
    _bars.print_judged(results["bars"])
    if ARGUMENTS.output:
        name = f"optimizer_step_{ARGUMENTS.backend}"
        if ARGUMENTS.memory:
            name += "_memory"
        _report.write_json(results, ARGUMENTS.output / f"{name}.json")
        if not ARGUMENTS.memory:
            title = f"A step of the optimizer, {ARGUMENTS.backend} on "
            title += header["device"]
            draw(results["cases"], title, ARGUMENTS.output / f"{name}.png")
    if ARGUMENTS.check and _bars.any_missed(results["bars"]):
        sys.exit("A bar is missed.")


if __name__ == "__main__":
    main()
