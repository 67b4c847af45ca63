"""What does `import keras_adamax` add to `import keras`?

Processes of their own run `import keras`, and `import keras` followed by
`import keras_adamax`, in turn; all bytecode is cached. Prints medians, with
quartiles, in processor time and in elapsed time: of the second import alone,
which the bar is for, and, to see that it hides nothing, of the differences
between neighbouring processes, which vary by more than it takes. Rerun with

    python benchmarks/import_time.py --backend jax --check
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _harness import bars, options, results, timing

ROOT = Path(__file__).parent.parent
ARMS = {"keras": "pass", "ours": "import keras_adamax"}
SCRIPT = """
import time
def clocks():
    return time.process_time(), time.perf_counter()
times = [clocks()]
import keras
times.append(clocks())
{imports}
times.append(clocks())
print("clocks", *(value for pair in times for value in pair))
"""
CLOCKS = ("cpu", "elapsed")


def python(arguments: Sequence[str], backend: str) -> tuple[str, str]:
    """What a Python prints, as output and as errors."""
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    # A command may be told not to cache bytecode; this is about those that do.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout, done.stderr


def seconds(arm: str, backend: str) -> dict[str, list[float]]:
    """Of each clock what `import keras` took, and what came after it."""
    output, _ = python(["-c", SCRIPT.format(imports=ARMS[arm])], backend)
    # A backend may print as well.
    line = next(x for x in output.splitlines() if x.startswith("clocks "))
    values = list(map(float, line.split()[1:]))
    taken = {}
    for i, clock in enumerate(CLOCKS):
        start, middle, end = values[i :: len(CLOCKS)]
        taken[clock] = [middle - start, end - middle]
    return taken


def milliseconds_of_modules(backend: str) -> dict[str, float]:
    """What each of our modules takes itself, as Python traces it."""
    code = "import keras, keras_adamax"
    _, errors = python(["-X", "importtime", "-c", code], backend)
    found = {}
    for line in errors.splitlines():
        name = line.rpartition("|")[2].strip()
        if name.split(".")[0] == "keras_adamax":
            found[name] = int(line.split(":")[1].split("|")[0]) / 1000
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def summary(taken: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of seconds, as milliseconds."""
    spread = timing.spread(taken)
    return {
        f"{name}_ms": 1000 * spread[name]
        for name in ("median", "lower_quartile", "upper_quartile")
    }


def measure(backend: str, rounds: int) -> dict[str, Any]:
    """Pairs of processes, each of which is first equally often."""
    samplers = {arm: lambda arm=arm: seconds(arm, backend) for arm in ARMS}
    for sample in samplers.values():  # writes bytecode, warms the file cache
        sample()
    times = timing.interleave(samplers, rounds)
    return {
        "rounds": rounds,
        "keras_cpu_seconds": statistics.median(
            t["keras"]["cpu"][0] for t in times
        ),
        "added": {
            clock: summary([t["ours"][clock][1] for t in times])
            for clock in CLOCKS
        },
        "difference": {
            clock: summary(
                [sum(t["ours"][clock]) - sum(t["keras"][clock]) for t in times]
            )
            for clock in CLOCKS
        },
        "times": times,
        "modules_ms": milliseconds_of_modules(backend),
    }


def print_times(backend: str, measured: dict[str, Any]) -> None:
    """Prints both clocks, the bar and the slowest modules."""
    print(
        f"{backend}: `import keras` takes "
        f"{measured['keras_cpu_seconds']:.2f} s of a processor"
    )
    for kind, words in (
        ("added", "`import keras_adamax` takes"),
        ("difference", "processes with it take longer by"),
    ):
        for clock, found in measured[kind].items():
            print(
                f"{words} {found['median_ms']:.1f} ms of {clock} time "
                f"(quartiles {found['lower_quartile_ms']:.1f} to "
                f"{found['upper_quartile_ms']:.1f})"
            )
    print(f"bar: {1000 * bars.IMPORT:.0f} ms of cpu time")
    for name, taken in list(measured["modules_ms"].items())[:8]:
        print(f"  {taken:5.1f} ms  {name} (traced)")


def main() -> None:
    """Measures, prints and writes."""
    parser = options.make_parser(__doc__, rounds=21)
    arguments = options.parse(parser, rounds=2)
    found = results.begin("import_time", arguments, limit_s=bars.IMPORT)
    measured = measure(arguments.backend, arguments.rounds)
    print_times(arguments.backend, measured)
    # Other load on the machine makes a process wait: elapsed time has no say.
    judged = bars.judge_one(
        measured["added"]["cpu"]["median_ms"] / 1000,
        bars.IMPORT,
        quick=arguments.quick,
    )
    name = f"import_time_{arguments.backend}"
    results.end(found | measured, arguments, name, [judged])


if __name__ == "__main__":
    main()
