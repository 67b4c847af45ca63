"""The command `keras-adamax-tune`. `keras-adamax-tune --help` explains it.

Nothing heavy is imported before the arguments are parsed: help comes at once,
and Keras reads its backend when it is imported.
"""

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from keras_adamax_tuning import _credentials

_PROGRAM = "keras-adamax-tune"
_DONE, _WRONG_USE, _ALL_FAILED, _INTERRUPTED = 0, 2, 3, 130
_BROKE_OFF, _DATABASE = 1, 4

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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the passwords in it."""

    secrets: frozenset[str] | set[str] = frozenset()

    def error(self, message: str) -> NoReturn:
        message = _credentials.hide(message, self.secrets)
        self.exit(
            _WRONG_USE,
            f"{_PROGRAM}: error: {message} (--help lists the options)\n",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Sequence of strings. Defaults to `sys.argv[1:]`.

    Returns:
        0 when the search is done, 1 if all workers died or the program
        failed, 2 for wrong use or an error in the user's own code, 3 if all
        trials failed, 4 if the database cannot be used, 130 if it was
        interrupted.

    Example:
        >>> main(["models:build_model", "--output=runs"])
        2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    secrets = _credentials.secrets(given)
    is_report = given[:1] == ["report"]
    parser = _report_parser() if is_report else _parser()
    parser.secrets = secrets
    try:
        options = parser.parse_args(given[is_report:])
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        _choose_backend(options.backend)
        with _warnings_in_one_line():
            return _report(options) if is_report else _search(options)
    except KeyboardInterrupt:
        shown = _credentials.join(given)
        how = ""
        if secrets:
            how = (
                f" this with the password in place of {_credentials.MASK}, or "
                "without one and with PGPASSWORD or ~/.pgpass"
            )
        _say(f"interrupted; nothing is lost. To go on, run{how}:")
        print(f"    {_PROGRAM} {shown}", file=sys.stderr)
        return _INTERRUPTED
    except (Exception, SystemExit) as error:
        return _explain(error, options, secrets)


def _explain(
    error: BaseException, options: argparse.Namespace, secrets: set[str]
) -> int:
    """Says what an error means; returns the exit code."""
    from keras_adamax_tuning import _user_errors

    def hide(text: str) -> str:
        return _credentials.hide(text, secrets)

    place = _user_errors.place_of(error)
    kinds = (ImportError, OSError, TypeError, ValueError)
    is_wrong_use = place is None and isinstance(error, kinds)
    trace = hide("".join(traceback.format_exception(error)))
    if options.debug or (place is None and not is_wrong_use):
        print(trace, end="", file=sys.stderr)
    if is_wrong_use:
        _say(f"error: {hide(_one_line(error))}")
        return _WRONG_USE
    said = hide(_user_errors.describe(error))
    if place is None:
        _say(f"error: {said}. This is no error of yours; please report it.")
        return _BROKE_OFF
    if not options.debug:
        said += f". {_keep_traceback(trace, options.output)}"
    _say(f"error: in your code: {said}")
    return _WRONG_USE


def _fail(error: Exception, options: argparse.Namespace, code: int) -> int:
    """Says an error that has all that there is to say; returns the code."""
    if options.debug:
        secrets = _credentials.secrets([options.storage or ""])
        trace = "".join(traceback.format_exception(error))
        print(_credentials.hide(trace, secrets), end="", file=sys.stderr)
    _say(f"error: {_one_line(error)}")
    return code


def _keep_traceback(trace: str, output: Path) -> str:
    """Writes a traceback into the folder of a search; says where it is."""
    from keras_adamax import _atomic_files
    from keras_adamax_tuning import _identity

    advice = "--debug shows the whole traceback"
    if not (output / _identity.FILE).exists():
        return advice
    path = output / "error.txt"
    try:
        _atomic_files.replace(path, trace.encode())
    except OSError:  # the error that is reported must not give way to this
        return advice
    return f"The whole traceback is in {path}"


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows what went wrong with a search as this program's own lines."""
    from keras_adamax_tuning import _errors

    with warnings.catch_warnings():
        warnings.simplefilter("always", _errors.SearchWarning)
        show = warnings.showwarning

        def show_in_one_line(message: Any, category: Any, *rest: Any) -> None:
            if issubclass(category, _errors.SearchWarning):
                _say(f"warning: {message}")
            else:
                show(message, category, *rest)

        warnings.showwarning = show_in_one_line
        yield


def _report(options: argparse.Namespace) -> int:
    from keras_adamax_tuning import _errors, _reports
    from keras_adamax_tuning.search import quiet_optuna

    quiet_optuna()
    try:
        print(_reports.report(options.output, options.storage))
    except _errors.StorageUrlError as error:
        return _fail(error, options, _WRONG_USE)
    except _errors.StorageError as error:
        return _fail(error, options, _DATABASE)
    return _DONE


def _search(options: argparse.Namespace) -> int:
    from keras_adamax_tuning import _signals, _workers

    # Before anything imports Keras: they do so at the same time.
    with (
        _signals.handled(),
        _workers.waiting(options.workers, "keras_adamax_tuning.search"),
    ):
        return _search_with_workers(options)


def _search_with_workers(options: argparse.Namespace) -> int:
    from keras_adamax_tuning import _errors, _signals, _workers
    from keras_adamax_tuning._references import load_reference

    # Compiled modules do not bear an exception while they are imported: the
    # process may crash, or end with another exit code.
    with _signals.deferred():
        # Here, because these import Keras.
        from keras_adamax_tuning.results import describe_failures
        from keras_adamax_tuning.search import quiet_optuna, run_search
    _signals.check()
    quiet_optuna()
    if options.debug:
        import keras

        keras.config.disable_traceback_filtering()
    try:
        result = run_search(
            load_reference(options.build_model, "The model builder"),
            _data(options.data),
            objective=options.objective,
            direction=options.direction,
            space=_space(options.space),
            max_trials=options.max_trials,
            epochs=options.epochs,
            batch_size=options.batch_size,
            validation_split=options.validation_split,
            sampler=options.sampler,
            pruner=options.pruner,
            seed=options.seed,
            executions_per_trial=options.executions_per_trial,
            max_retries=options.max_retries,
            workers=options.workers,
            output=options.output,
            storage=options.storage,
            study_name=options.study_name,
            callbacks_factory=options.callbacks
            and load_reference(options.callbacks, "The callbacks factory"),
            tensorboard=options.tensorboard,
            heartbeat_interval=options.heartbeat_interval,
        )
    except _errors.StorageUrlError as error:
        return _fail(error, options, _WRONG_USE)
    except _errors.StorageError as error:
        return _fail(error, options, _DATABASE)
    except _errors.ConsecutiveFailuresError as error:
        return _fail(error, options, _ALL_FAILED)
    except _workers.WorkersDiedError as error:
        return _fail(error, options, _BROKE_OFF)
    if result.best_trial is None:
        failures = describe_failures(result.trials)
        _say(
            f"error: none of the {len(result.trials)} trials completed. "
            f"{failures + ' ' if failures else ''}"
            f"{result.output / 'trials.csv'} has the reasons, and the folder "
            "of a trial its traceback."
        )
        return _ALL_FAILED
    return _DONE


def _choose_backend(backend: str | None) -> None:
    # TensorFlow's notes about the processor are not the user's concern.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if backend is None:
        return
    os.environ["KERAS_BACKEND"] = backend
    if "keras" in sys.modules:
        import keras

        if keras.backend.backend() != backend:
            raise ValueError(
                f"Keras runs on {keras.backend.backend()} in this process "
                f"already. Received: --backend={backend}. Start a new one."
            )


def _data(given: str) -> Any:
    from keras_adamax_tuning._references import load_reference

    if given.endswith(".npz"):
        return Path(given)
    return load_reference(given, "The data")


def _space(given: str | None) -> Any:
    if given is None:
        return None
    import json

    import keras

    from keras_adamax_tuning import AdamaxClippedSpace
    from keras_adamax_tuning._references import load_reference

    if given.endswith(".json"):
        try:
            config = json.loads(Path(given).read_text(encoding="utf-8"))
            space = keras.saving.deserialize_keras_object(config)
        except OSError as error:
            raise OSError(f"--space: {given}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--space: {given} is not the JSON of a serialized "
                f"AdamaxClippedSpace ({_one_line(error)}). Write it with "
                "json.dump(keras.saving.serialize_keras_object(space), file)."
            ) from error
    else:
        space = load_reference(given, "The space")
    if not isinstance(space, AdamaxClippedSpace):
        raise TypeError(
            "--space must name an AdamaxClippedSpace, or a .json file of one. "
            f"Received: {given}, a {type(space).__name__}."
        )
    return space


def _say(text: str) -> None:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1: {text!r}")
    return number


def _parser() -> _Parser:
    parser = _Parser(
        prog=_PROGRAM,
        description="Searches the best AdamaxClipped for a model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "build_model",
        metavar="MODULE:build_model",
        help="function that takes KerasTuner's HyperParameters and returns a "
        "Keras model; the current folder can be imported from",
    )
    add(
        "--data",
        required=True,
        metavar="MODULE:load_data|FILE.npz",
        help="function that returns (x, y), ((x_train, y_train), (x_val, "
        "y_val)), a dictionary of these names or a pair of datasets; or a "
        "file with the arrays",
    )
    add(
        "--output",
        required=True,
        type=Path,
        help="folder of the search; all workers must reach it",
    )
    _add_backend(parser)
    group = parser.add_argument_group("what is searched")
    add = group.add_argument
    add(
        "--space",
        metavar="MODULE:name|FILE.json",
        help="an AdamaxClippedSpace (default: AdamaxClippedSpace())",
    )
    add(
        "--objective",
        default="val_loss",
        help="metric of fit to judge by (default: %(default)s)",
    )
    add(
        "--direction",
        choices=("min", "max"),
        help="which way the objective is better (default: known for Keras's "
        "own metrics)",
    )
    add(
        "--max-trials",
        type=_count,
        default=40,
        metavar="N",
        help="trials of the whole search; more go on with it (default: "
        "%(default)s)",
    )
    add(
        "--epochs",
        type=_whole,
        default=10,
        metavar="N[,N...]|none",
        help="epochs of a trial, or several to choose from; none if the fit "
        "of your HyperModel sets them (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=_whole,
        metavar="N[,N...]",
        help="samples of a step, or several to choose from (default: 32)",
    )
    add(
        "--validation-split",
        type=float,
        default=0.2,
        metavar="FRACTION",
        help="part of (x, y) to judge by, where the data has none (default: "
        "%(default)s)",
    )
    add(
        "--executions-per-trial",
        type=_count,
        default=1,
        metavar="N",
        help="trainings of each trial, whose scores are averaged (default: "
        "%(default)s)",
    )
    add(
        "--callbacks",
        metavar="MODULE:factory",
        help="function f(trial, hp, folder) that returns a list of callbacks "
        "(default: the loggers of keras_adamax)",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="write event files with HParams into OUTPUT/tensorboard (needs "
        "tensorboardX)",
    )
    group = parser.add_argument_group("how it is searched")
    add = group.add_argument
    add(
        "--sampler",
        default="tpe",
        help="random, tpe, grid, gp or cmaes (default: %(default)s)",
    )
    add("--pruner", help="median or hyperband (default: none)")
    add("--seed", type=int, help="repeats a search (default: none)")
    add(
        "--max-retries",
        type=int,
        default=3,
        metavar="N",
        help="how often the trial of a dead worker is tried again (default: "
        "%(default)s)",
    )
    group = parser.add_argument_group("where it runs")
    add = group.add_argument
    add(
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help="processes on this machine (default: %(default)s)",
    )
    add(
        "--storage",
        metavar="URL",
        help="database, for example postgresql+psycopg://host/database "
        "(default: SQLite in the output folder); a password is better in "
        "PGPASSWORD or ~/.pgpass, because others can see command lines",
    )
    add(
        "--study-name",
        metavar="NAME",
        help="name in the database (default: that of the search in the "
        "output folder; the folder's own name for a new search)",
    )
    add(
        "--heartbeat-interval",
        type=_count,
        metavar="SECONDS",
        help="how often a worker says in the database that it lives "
        "(default: 30)",
    )
    add(
        "--resume",
        action="store_true",
        help="accepted for clarity: a search that exists is always gone on "
        "with",
    )
    _add_debug(parser)
    return parser


def _report_parser() -> _Parser:
    parser = _Parser(
        prog=f"{_PROGRAM} report",
        description="Shows a search that runs, was interrupted or is done.",
        epilog=_REPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        help="what Keras computes with (default: as Keras is configured)",
    )


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--debug",
        action="store_true",
        help="print the whole traceback of an error",
    )


if __name__ == "__main__":
    sys.exit(main())
