"""The options of a search: one declaration for Python and the command line.

A field of `Settings` is an argument of `run_search`. One with a help text is
also an option of `keras-adamax-tune`. Nothing here imports Keras.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from keras_adamax_tuning.base import credentials

PROGRAM = "keras-adamax-tune"
# An exit code.
WRONG_USE = 2

_EPILOG = """\
exit codes:
  0    the search is done; standard error says how many trials failed, if any
  1    all workers died, or the program failed; the same command goes on
  2    wrong use, or an error in your own code; one line on standard error
       says what and where
  3    no trial completed, or too many failed one after another
  4    the database cannot be reached or used; the same command goes on
  130  interrupted (Ctrl-C or SIGTERM); the same command goes on

The same command creates a search, goes on with it after any crash, and joins
it from another process or machine. At any time, also after a crash,

    keras-adamax-tune report OUTPUT

shows its best trials, draws its figures and names its best model.
"""
_REPORT_EPILOG = """\
It needs neither the model nor the data. It writes nothing into the database,
and does not disturb workers that run. Into FOLDER it writes the figures and,
if a killed worker could not, trials.csv, best.keras and best_optimizer.json.

exit codes:
  0    the report is there, whatever the state of the search
  1    the program failed
  2    wrong use; one line on standard error says what to do
  4    the database cannot be reached or read
  130  interrupted (Ctrl-C)
"""
_WHAT, _HOW, _WHERE = (
    "what is searched",
    "how it is searched",
    "where it runs",
)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1: {text!r}")
    return number


def _whole(text: str) -> int | list[int] | None:
    """`32`, or `16,32,64` to choose from; or `none`."""
    if text == "none":
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be an integer, or integers with commas between: {text!r}"
        ) from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1: {text!r}")
    return numbers[0] if len(numbers) == 1 else numbers


def _check_count(name: str, value: Any) -> None:
    from keras_adamax._validation import check_integer

    check_integer(name, value, minimum=1)


def _check_epochs(name: str, value: Any) -> None:
    if isinstance(value, int):  # else they are searched
        _check_count(name, value)


def _check_bool(name: str, value: Any) -> None:
    from keras_adamax._validation import check_bool

    check_bool(name, value)


def _check_storage(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(
            f"`{name}` must be the URL of a database or None. "
            f"Received: {name} of type {type(value).__name__}."
        )


def _argument(
    default: Any = dataclasses.MISSING,
    help: str | None = None,
    *,
    check: Callable[[str, Any], None] | None = None,
    secret: bool = False,
    **option: Any,
) -> Any:
    """A field of `Settings`.

    Args:
        default: Its default value; without one it is required.
        help: What the command line says of it; `None` if it is no option.
        check: Checks a value that is not None.
        secret: Whether there may be a password in it.
        **option: What else `argparse` takes; a `group`, where it is in one;
            and its `flag`, if that is not the name.
    """
    metadata = {"check": check, "help": help, "option": option}
    return dataclasses.field(
        default=default, repr=not secret, metadata=metadata
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a worker has to know; goes to other processes.

    Its defaults are those of `run_search`, which says what each means.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument is out of range.
    """

    build_model: Any = _argument(
        help="function that takes KerasTuner's HyperParameters and returns a "
        "Keras model; the current folder can be imported from",
        flag="build_model",
        metavar="MODULE:build_model",
    )
    data: Any = _argument(
        help="function that returns (x, y), ((x_train, y_train), (x_val, "
        "y_val)), a dictionary of these names or a pair of datasets; or a "
        "file with the arrays",
        metavar="MODULE:load_data|FILE.npz",
    )
    output: Any = _argument(
        help="folder of the search; all workers must reach it", type=Path
    )
    space: Any = _argument(
        None,
        "an AdamaxClippedSpace (default: AdamaxClippedSpace())",
        metavar="MODULE:name|FILE.json",
        group=_WHAT,
    )
    objective: Any = _argument(
        "val_loss",
        "metric of fit to judge by (default: %(default)s)",
        group=_WHAT,
    )
    direction: str | None = _argument(
        None,
        "which way the objective is better (default: known for Keras's own "
        "metrics)",
        choices=("min", "max"),
        group=_WHAT,
    )
    max_trials: int = _argument(
        40,
        "trials of the whole search; more go on with it (default: %(default)s)",
        check=_check_count,
        type=_count,
        metavar="N",
        group=_WHAT,
    )
    epochs: Any = _argument(
        10,
        "epochs of a trial, or several to choose from; none if the fit of "
        "your HyperModel sets them (default: %(default)s)",
        check=_check_epochs,
        type=_whole,
        metavar="N[,N...]|none",
        group=_WHAT,
    )
    batch_size: Any = _argument(
        None,
        "samples of a step, or several to choose from (default: 32)",
        type=_whole,
        metavar="N[,N...]",
        group=_WHAT,
    )
    validation_split: float = _argument(
        0.2,
        "part of (x, y) to judge by, where the data has none (default: "
        "%(default)s)",
        type=float,
        metavar="FRACTION",
        group=_WHAT,
    )
    executions_per_trial: int = _argument(
        1,
        "trainings of each trial, whose scores are averaged (default: "
        "%(default)s)",
        check=_check_count,
        type=_count,
        metavar="N",
        group=_WHAT,
    )
    callbacks_factory: Any = _argument(
        None,
        "function f(trial, hp, folder) that returns a list of callbacks "
        "(default: the loggers of keras_adamax)",
        flag="--callbacks",
        metavar="MODULE:factory",
        group=_WHAT,
    )
    tensorboard: bool = _argument(
        False,
        "write event files with HParams into OUTPUT/tensorboard (needs "
        "tensorboardX)",
        check=_check_bool,
        action="store_true",
        group=_WHAT,
    )
    sampler: Any = _argument(
        "tpe",
        "random, tpe, grid, gp or cmaes (default: %(default)s)",
        group=_HOW,
    )
    pruner: Any = _argument(
        None, "median or hyperband (default: none)", group=_HOW
    )
    seed: int | None = _argument(
        None, "repeats a search (default: none)", type=int, group=_HOW
    )
    max_retries: int = _argument(
        3,
        "how often the trial of a dead worker is tried again (default: "
        "%(default)s)",
        type=int,
        metavar="N",
        group=_HOW,
    )
    max_consecutive_failures: int | None = _argument(None)
    workers: int = _argument(
        1,
        "processes on this machine (default: %(default)s)",
        check=_check_count,
        type=_count,
        metavar="N",
        group=_WHERE,
    )
    storage: Any = _argument(
        None,
        "database, for example postgresql+psycopg://host/database (default: "
        "SQLite in the output folder); a password is better in PGPASSWORD or "
        "~/.pgpass, because others can see command lines",
        check=_check_storage,
        secret=True,
        metavar="URL",
        group=_WHERE,
    )
    study_name: Any = _argument(
        None,
        "name in the database (default: that of the search in the output "
        "folder; the folder's own name for a new search)",
        metavar="NAME",
        group=_WHERE,
    )
    heartbeat_interval: int | None = _argument(
        None,
        "how often a worker says in the database that it lives (default: 30)",
        check=_check_count,
        type=_count,
        metavar="SECONDS",
        group=_WHERE,
    )
    grace_period: int | None = _argument(None)
    # What `compilations.shared` gave to the parent.
    compilations: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = field.metadata.get("check")
            value = getattr(self, field.name)
            if check is not None and (value, field.default) != (None, None):
                check(field.name, value)

    def of_oracle(self) -> dict[str, Any]:
        """The arguments of `OptunaOracle`, where they are not its defaults."""
        grace_period = self.grace_period
        if grace_period is None and self.heartbeat_interval is not None:
            grace_period = 4 * self.heartbeat_interval
        optional = {
            "max_retries": self.max_retries,
            "max_consecutive_failures": self.max_consecutive_failures,
            "heartbeat_interval": self.heartbeat_interval,
            "grace_period": grace_period,
        }
        return {
            "objective": self.objective,
            "max_trials": self.max_trials,
            "storage": self.storage,
            "study_name": self.study_name,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
            **{k: v for k, v in optional.items() if v is not None},
        }


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the passwords in it."""

    secrets: frozenset[str] | set[str] = frozenset()

    def __init__(self, name: str, description: str, epilog: str):
        super().__init__(
            prog=name,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """As in argparse, but short, and without passwords."""
        message = credentials.hide(message, self.secrets)
        self.exit(
            WRONG_USE,
            f"{PROGRAM}: error: {message} (--help lists the options)\n",
        )


def search_parser() -> CommandParser:
    """Parses the options of a search: arguments of `run_search`."""
    parser = CommandParser(
        PROGRAM, "Searches the best AdamaxClipped for a model.", _EPILOG
    )
    _add_settings(parser, None)
    _add_backend(parser)
    for title in (_WHAT, _HOW):
        _add_settings(parser.add_argument_group(title), title)
    where = parser.add_argument_group(_WHERE)
    _add_settings(where, _WHERE)
    where.add_argument(
        "--resume",
        action="store_true",
        help="accepted for clarity: a search that exists is always gone on "
        "with",
    )
    _add_debug(parser)
    return parser


def report_parser() -> CommandParser:
    """Parses the options of a report."""
    parser = CommandParser(
        f"{PROGRAM} report",
        "Shows a search that runs, was interrupted or is done.",
        _REPORT_EPILOG,
    )
    parser.add_argument(
        "output", metavar="FOLDER", type=Path, help="folder of the search"
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="database of the search, if it was given one (default: SQLite "
        "in the folder)",
    )
    _add_backend(parser)
    _add_debug(parser)
    return parser


def _add_settings(container: Any, group: str | None) -> None:
    """Adds the settings of a group that are options, in their order."""
    for field in dataclasses.fields(Settings):
        if not field.metadata.get("help"):
            continue
        option = {"help": field.metadata["help"], **field.metadata["option"]}
        if option.pop("group", None) != group:
            continue
        flag = option.pop("flag", f"--{field.name.replace('_', '-')}")
        if flag.startswith("-"):
            option["dest"] = field.name
            if field.default is dataclasses.MISSING:
                option["required"] = True
            else:
                option["default"] = field.default
        container.add_argument(flag, **option)


def _add_backend(container: Any) -> None:
    container.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        help="what Keras computes with (default: as Keras is configured)",
    )


def _add_debug(container: Any) -> None:
    container.add_argument(
        "--debug",
        action="store_true",
        help="print the whole traceback of an error",
    )
