"""What a person wants to know of a search, whatever its state."""

import collections
import warnings
from pathlib import Path

from keras_adamax_tuning.errors import SearchWarning
from keras_adamax_tuning.results import search_record
from keras_adamax_tuning.results.result_files import ResultFiles, in_words
from keras_adamax_tuning.results.search_result import SearchResult


def report(output: Path, storage: str | None = None) -> str:
    """Draws the figures of a search, and describes it.

    Files that the workers keep up to date are made to agree with the record,
    in case the last of them was killed.

    Returns:
        A text of several lines.
    """
    output = output.resolve()
    record = search_record.read(output, storage)
    problems = ResultFiles(
        output, record.direction, record.trials, record.make_optimizer
    ).write()
    result = SearchResult.of(record)
    if result.trials:
        result.save_figures(
            on_error=lambda name, error: problems.update(
                {f"figures/{name}.png": error}
            )
        )
    for text in in_words(problems):
        warnings.warn(text, SearchWarning, stacklevel=2)
    failures = result.describe_failures()
    lines = [_state(result), *([failures] if failures else [])]
    return "\n".join([*lines, result.describe(), *_places(result)])


def _state(result: SearchResult) -> str:
    counts = collections.Counter(trial.state for trial in result.trials)
    ended = counts.total() - counts["running"]
    of = "" if result.max_trials is None else f" of {result.max_trials}"
    parts = [f"{ended}{of} trials have ended"]
    parts += [
        f"{counts[state]} {state}"
        for state in ("completed", "pruned", "failed")
        if counts[state]
    ]
    if counts["running"]:
        parts.append(f"{counts['running']} running or to be tried again")
    return f"{result.output.name}: {', '.join(parts)}"


def _places(result: SearchResult) -> list[str]:
    if not result.trials:
        return []
    lines = [f"Figures are in {result.output / 'figures'}"]
    if result.best_trial is not None:
        number = result.best_trial.number
        path = result.best_model_path
        lines.append(
            f"The best model, of trial {number}, is {path}"
            if path is not None
            else f"The model of trial {number} is not saved as a whole; start "
            "the search again to save it"
        )
    return lines
