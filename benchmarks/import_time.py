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

from _machine import describe_machine
from _report import make_parser, write_json

LIMIT = 0.05
ROUNDS = 21
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
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return {
        "median_ms": 1000 * median,
        "lower_quartile_ms": 1000 * low,
        "upper_quartile_ms": 1000 * high,
    }


def measure(backend: str, rounds: int) -> dict[str, Any]:
    """Pairs of processes, each of which is first as often."""
    for arm in ARMS:  # writes bytecode, and warms the file cache
        seconds(arm, backend)
    times = []
    for number in range(rounds):
        arms = list(ARMS) if number % 2 else list(reversed(ARMS))
        taken = {arm: seconds(arm, backend) for arm in arms}
        times.append(taken)
    return {
        "backend": backend,
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


def main() -> None:
    """Measures and prints, and fails if the bar is missed."""
    arguments = make_parser(__doc__, ROUNDS).parse_args()
    print(describe_machine())
    results = measure(
        arguments.backend,
        arguments.rounds or (2 if arguments.quick else ROUNDS),
    )
    print(
        f"{arguments.backend}: `import keras` takes "
        f"{results['keras_cpu_seconds']:.2f} s of a processor"
    )
    for kind, words in (
        ("added", "`import keras_adamax` takes"),
        ("difference", "processes with it take longer by"),
    ):
        for clock, found in results[kind].items():
            print(
                f"{words} {found['median_ms']:.1f} ms of {clock} time "
                f"(quartiles {found['lower_quartile_ms']:.1f} to "
                f"{found['upper_quartile_ms']:.1f})"
            )
    print(f"bar: {1000 * LIMIT:.0f} ms of cpu time")
    for name, taken in list(results["modules_ms"].items())[:8]:
        print(f"  {taken:5.1f} ms  {name} (traced)")
    if arguments.output is not None:
        results = {"machine": describe_machine(), "limit_s": LIMIT, **results}
        write_json(
            results,
            arguments.output / f"import_time_{arguments.backend}.json",
        )
    # Other load on the machine makes a process wait: it has no say.
    missed = results["added"]["cpu"]["median_ms"] > 1000 * LIMIT
    if missed and arguments.check and not arguments.quick:
        sys.exit("The bar is missed.")


if __name__ == "__main__":
    main()
