"""Which form and which settings should the spike gate have?

Trains the digits and the quadratic of `training.py`, as `_training/protocol.py`
says, with every gate of `_training/gate_forms.py`, and compares each with the
best method of a case in the results of `training.py`. `--confirm` repeats some
of them, and the strongest peers, with 15 other seeds: the best of many methods
over five seeds is the luckiest one, too. Can be stopped and continued. Rerun
with

    python benchmarks/gate_forms.py --output benchmarks/results
    python benchmarks/gate_forms.py --confirm --output benchmarks/results
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "jax"

from _harness.machine import describe_machine
from _training import gate_report, runs
from _training.gate_forms import DELIVERED, FORMS
from _training.methods import METHODS
from _training.options import make_parser
from _training.problems import PROBLEMS
from _training.protocol import QUICK, Plan

CONFIRMED = (DELIVERED, "threshold 0.3", "beta_2 0.99", "paper's beta_2")
PEERS = ("ZClip", "AutoClip", "AdaGC", "Adam, global_clipnorm 1")
OTHER_SEEDS = tuple(range(100, 115))


def parse() -> argparse.Namespace:
    """The options."""
    parser = make_parser(__doc__, ["digits", "quadratic"])
    parser.add_argument(
        "--confirm",
        action="store_true",
        help="run some of the forms, and peers, with other seeds",
    )
    return parser.parse_args()


def main() -> None:
    """Trains, and reports."""
    options = parse()
    print(describe_machine())
    kind, methods = "forms", FORMS
    plan = QUICK if options.quick else Plan()
    if options.confirm:
        kind = "confirmed"
        methods = {name: FORMS[name] for name in CONFIRMED}
        methods |= {name: METHODS[name] for name in PEERS}
        if not options.quick:
            plan = plan._replace(seeds=OTHER_SEEDS)
    if not options.report:
        for name in options.problems:
            runs.complete(
                options.output / f"gate_{kind}_{name}.json",
                PROBLEMS[name](),
                methods,
                plan,
                options.quick,
            )
    path = options.output / "gate_forms.md"
    path.write_text(gate_report.write(options.output), "utf-8")
    print(f"Wrote {path}")


if __name__ == "__main__":
    main()
