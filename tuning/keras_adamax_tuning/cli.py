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
from typing import Any

from keras_adamax_tuning.base import credentials
from keras_adamax_tuning.running.settings import (
    PROGRAM,
    WRONG_USE,
    report_parser,
    search_parser,
)

_DONE, _ALL_FAILED, _INTERRUPTED = 0, 3, 130
_BROKE_OFF, _DATABASE = 1, 4


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
    secrets = credentials.secrets(given)
    is_report = given[:1] == ["report"]
    parser = report_parser() if is_report else search_parser()
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
        shown = credentials.join(given)
        how = ""
        if secrets:
            how = (
                f" this with the password in place of {credentials.MASK}, or "
                "without one and with PGPASSWORD or ~/.pgpass"
            )
        _say(f"interrupted; nothing is lost. To go on, run{how}:")
        print(f"    {PROGRAM} {shown}", file=sys.stderr)
        return _INTERRUPTED
    except (Exception, SystemExit) as error:
        return _explain(error, options, secrets)


def _explain(
    error: BaseException, options: argparse.Namespace, secrets: set[str]
) -> int:
    """Says what an error means; returns the exit code."""
    from keras_adamax_tuning import errors
    from keras_adamax_tuning.base import user_errors
    from keras_adamax_tuning.running.worker_processes import WorkersDiedError

    for kind, code in (
        (errors.StorageUrlError, WRONG_USE),
        (errors.StorageError, _DATABASE),
        (errors.ConsecutiveFailuresError, _ALL_FAILED),
        (WorkersDiedError, _BROKE_OFF),
    ):
        if isinstance(error, kind):  # it has all that there is to say
            if options.debug:
                trace = "".join(traceback.format_exception(error))
                print(credentials.hide(trace, secrets), end="", file=sys.stderr)
            _say(f"error: {_one_line(error)}")
            return code

    def hide(text: str) -> str:
        return credentials.hide(text, secrets)

    place = user_errors.place_of(error)
    kinds = (ImportError, OSError, TypeError, ValueError)
    is_wrong_use = place is None and isinstance(error, kinds)
    trace = hide("".join(traceback.format_exception(error)))
    if options.debug or (place is None and not is_wrong_use):
        print(trace, end="", file=sys.stderr)
    if is_wrong_use:
        _say(f"error: {hide(_one_line(error))}")
        return WRONG_USE
    said = hide(user_errors.describe(error))
    if place is None:
        _say(f"error: {said}. This is no error of yours; please report it.")
        return _BROKE_OFF
    if not options.debug:
        said += f". {_keep_traceback(trace, options.output)}"
    _say(f"error: in your code: {said}")
    return WRONG_USE


def _keep_traceback(trace: str, output: Path) -> str:
    """Writes a traceback into the folder of a search; says where it is."""
    from keras_adamax import _atomic_files
    from keras_adamax_tuning.study import folder_identity

    advice = "--debug shows the whole traceback"
    if not (output / folder_identity.FILE).exists():
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
    from keras_adamax_tuning import errors

    with warnings.catch_warnings():
        warnings.simplefilter("always", errors.SearchWarning)
        show = warnings.showwarning

        def show_in_one_line(message: Any, category: Any, *rest: Any) -> None:
            if issubclass(category, errors.SearchWarning):
                _say(f"warning: {message}")
            else:
                show(message, category, *rest)

        warnings.showwarning = show_in_one_line
        yield


def _report(options: argparse.Namespace) -> int:
    from keras_adamax_tuning.results import reports
    from keras_adamax_tuning.running.work import quiet_optuna

    quiet_optuna()
    print(reports.report(options.output, options.storage))
    return _DONE


def _search(options: argparse.Namespace) -> int:
    from keras_adamax_tuning.base import signals
    from keras_adamax_tuning.running import worker_processes

    # Before anything imports Keras: they do so at the same time.
    with (
        signals.handled(),
        worker_processes.started(
            options.workers, "keras_adamax_tuning.search"
        ) as processes,
    ):
        return _search_in(processes, options)


def _search_in(processes: dict[int, Any], options: argparse.Namespace) -> int:
    from keras_adamax_tuning.base import signals
    from keras_adamax_tuning.running.references import load_reference
    from keras_adamax_tuning.running.settings import Settings

    # Compiled modules do not bear an exception while they are imported: the
    # process may crash, or end with another exit code.
    with signals.deferred():
        # Here, because these import Keras.
        from keras_adamax_tuning import search
        from keras_adamax_tuning.running.work import quiet_optuna
    signals.check()
    quiet_optuna()
    if options.debug:
        import keras

        keras.config.disable_traceback_filtering()
    arguments = vars(options).copy()
    for name in ("backend", "debug", "resume"):
        del arguments[name]
    for name, what in (
        ("build_model", "The model builder"),
        ("callbacks_factory", "The callbacks factory"),
    ):
        if arguments[name] is not None:
            arguments[name] = load_reference(arguments[name], what)
    arguments["data"] = _data(options.data)
    arguments["space"] = _space(options.space)
    settings = search.complete(Settings(**arguments))
    result = search.search(settings, processes, verbose=True)
    if result.best_trial is None:
        failures = result.describe_failures()
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
    from keras_adamax_tuning.running.references import load_reference

    if given.endswith(".npz"):
        return Path(given)
    return load_reference(given, "The data")


def _space(given: str | None) -> Any:
    if given is None:
        return None
    import json

    import keras

    from keras_adamax_tuning.running.references import load_reference
    from keras_adamax_tuning.space.adamax_clipped_space import (
        AdamaxClippedSpace,
    )

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
    print(f"{PROGRAM}: {text}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
