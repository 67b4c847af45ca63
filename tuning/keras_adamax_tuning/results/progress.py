"""How far a search is: a line for each trial that ended."""

import sys
from collections.abc import Sequence
from typing import TextIO

from keras_adamax_tuning.study.trials import ENDED, Trial, best_of


def duration(seconds: float) -> str:
    """Seconds in words: `"45 s"`, `"12 min"`, `"3 h 20 min"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


class Progress:
    """Prints a line for each trial that ended since the last look.

        trial 6: 0.1234 in 12 s | 7 of 40 done | best 0.0967 (trial 3) | ...

    Trials are numbered from 0.

    Args:
        max_trials: Integer. How many trials the search has.
        direction: `"min"` or `"max"`.
        workers: Integer. How many processes work here. Defaults to `1`.
        stream: Where to print. Defaults to standard output.
    """

    def __init__(
        self,
        max_trials: int,
        direction: str,
        workers: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        self._max_trials = max_trials
        self._direction = direction
        self._workers = workers
        self._stream = stream
        self._known: set[int] | None = None
        self._status = ""

    def update(self, trials: Sequence[Trial]) -> None:
        """Prints what is new. The first call says where a search goes on."""
        ended = sorted(
            (trial for trial in trials if trial.state in ENDED),
            key=lambda trial: (
                (trial.finished_at is None, trial.finished_at)
                if trial.finished_at is not None
                else (True, trial.number)
            ),
        )
        if self._known is None:
            self._known = {trial.number for trial in ended}
            if trials:
                self._line(f"going on with a search: {self._summary(trials)}")
            else:
                self._line(f"a new search of {self._max_trials} trials")
        for trial in ended:
            if trial.number not in self._known:
                self._known.add(trial.number)
                self._line(f"{_outcome(trial)} | {self._summary(trials)}")
        self._show_status(trials)

    def say(self, text: str) -> None:
        """Prints another line."""
        self._line(text)

    def close(self) -> None:
        """Ends the line that is rewritten, on a terminal."""
        self._clear()

    def _summary(self, trials: Sequence[Trial]) -> str:
        done = sum(trial.state in ENDED for trial in trials)
        parts = [f"{done} of {self._max_trials} done"]
        best = best_of(trials, self._direction)
        if best is not None:
            parts.append(f"best {best.score:.6g} (trial {best.number})")
        left = self._seconds_left(trials, done)
        if left:
            parts.append(f"about {duration(left)} left")
        return " | ".join(parts)

    def _seconds_left(self, trials: Sequence[Trial], done: int) -> float | None:
        times = [
            trial.seconds
            for trial in trials
            if trial.state in ENDED and trial.seconds is not None
        ]
        if not times:
            return None
        running = sum(trial.state == "running" for trial in trials)
        at_once = max(self._workers, running)
        remaining = max(0, self._max_trials - done)
        return (
            sum(times)
            / len(times)
            * remaining
            / min(at_once, max(remaining, 1))
        )

    def _out(self) -> TextIO:
        return sys.stdout if self._stream is None else self._stream

    def _line(self, text: str) -> None:
        self._clear()
        print(text, file=self._out(), flush=True)

    def _clear(self) -> None:
        if self._status:
            print(
                f"\r{' ' * len(self._status)}\r",
                end="",
                file=self._out(),
                flush=True,
            )
            self._status = ""

    def _show_status(self, trials: Sequence[Trial]) -> None:
        """On a terminal, a line that is written over by the next one."""
        if not self._out().isatty():
            return
        running = [
            str(trial.number) for trial in trials if trial.state == "running"
        ]
        status = f"{self._summary(trials)} | running: {', '.join(running)}"
        if not running:
            status = self._summary(trials)
        status = status[:78]
        if status != self._status:
            self._clear()
            print(status, end="", file=self._out(), flush=True)
            self._status = status


def _outcome(trial: Trial) -> str:
    seconds = "" if trial.seconds is None else f" in {duration(trial.seconds)}"
    if trial.score is not None and trial.state == "completed":
        return f"trial {trial.number}: {trial.score:.6g}{seconds}"
    reason = " ".join((trial.reason or "").split())
    said = f" ({reason[:120]})" if reason else ""
    return f"trial {trial.number}: {trial.state}{seconds}{said}"
