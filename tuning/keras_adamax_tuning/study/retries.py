"""Trials that are tried again: their worker was lost, or gave them back."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from keras_adamax import _atomic_files
from keras_adamax_tuning.study import attempt_book, owners
from keras_adamax_tuning.study.liveness import Liveness
from keras_adamax_tuning.study.opened_study import OpenedStudy

# A worker that ends while its database is away cannot say there that its trial
# is to be tried again and that nothing was lost. It leaves this file beside the
# trial's, which are shared as the database is. The process that ends the
# attempt in the study, when the database answers again, finds it there. It
# holds the owner's token: after a database is restored from a backup, names of
# attempts recur.
_PUT_BACK = ".put_back"


class Retries:
    """Replaces attempts that were lost or put back.

    Args:
        opened: The study.
        grace_period: Seconds without a sign of life after which a worker
            counts as dead.
        max_retries: How often a trial is tried again whose worker was lost.
        folder_of: Gives the folder of an attempt by its name; `None` if there
            is none.
    """

    def __init__(
        self,
        opened: OpenedStudy,
        grace_period: int,
        max_retries: int,
        folder_of: Callable[[str], Path | None],
    ):
        self._opened = opened
        self._max_retries = max_retries
        self._folder_of = folder_of
        self._liveness = Liveness(opened, grace_period)

    def replace_lost(
        self, trials: Sequence[FrozenTrial], book: Sequence[attempt_book.Entry]
    ) -> bool:
        """Ends what is dead or double, and replaces it where it is due.

        If it returns True, the study is to be read again.
        """
        ended = self._liveness.dead(trials) + _duplicates(trials, book)
        entries = {entry.last._trial_id: entry for entry in book}
        for attempt in ended:
            if self._is_put_back(entries.get(attempt._trial_id)):
                self._record_put_back(attempt._trial_id)
                continue
            # Another worker may have done it at the same moment.
            with contextlib.suppress(UpdateFinishedTrialError):
                self._opened.cached.set_trial_state_values(
                    attempt._trial_id, TrialState.FAIL
                )
        due = attempt_book.due_retries(book, self._max_retries)
        for entry in due:
            self.add(entry)
        return bool(ended or due)

    def add(self, entry: attempt_book.Entry) -> None:
        """Adds an attempt at a trial, with what was proposed for it."""
        template: dict[str, Any] = {}
        system_attrs: dict[str, Any] = {}
        proposal = entry.proposal
        if proposal is not None:
            # Some samplers keep what they know in the trial.
            system_attrs.update(proposal.system_attrs)
            template["params"] = proposal.params
            template["distributions"] = proposal.distributions
            name = attempt_book.PROPOSAL
            template["user_attrs"] = {name: proposal.user_attrs[name]}
        name = "fixed_params"  # of a trial that a user enqueued
        if name in entry.attempts[0].system_attrs:
            system_attrs[name] = entry.attempts[0].system_attrs[name]
        system_attrs[attempt_book.RETRY_OF] = entry.last.number
        self._opened.cached.create_new_trial(
            self._opened.study_id,
            optuna.trial.create_trial(
                state=TrialState.WAITING, system_attrs=system_attrs, **template
            ),
        )

    def put_back(
        self, attempt_id: int, trial_id: str, owner: dict[str, Any]
    ) -> None:
        """Lets others try the trial of an attempt again, at no cost."""
        try:
            self._record_put_back(attempt_id)
        except BaseException:
            # The database is away, or the user does not wait for it.
            self.put_back_later(trial_id, owner)
            raise
        owners.release(owner)

    def put_back_later(self, trial_id: str, owner: dict[str, Any]) -> None:
        """As `put_back`, by word in the folder of the attempt."""
        try:
            folder = self._folder_of(trial_id)
            if folder is not None:
                # A full disk, or a folder that is lost: then it is a loss.
                with contextlib.suppress(OSError):
                    folder.mkdir(exist_ok=True)
                    word = owner["token"].encode()
                    _atomic_files.replace(folder / _PUT_BACK, word)
        finally:
            # Last: before the word is there, nobody shall count a loss.
            owners.release(owner)

    def _record_put_back(self, attempt_id: int) -> None:
        cached = self._opened.cached
        # Another worker may have given up on it already.
        with contextlib.suppress(UpdateFinishedTrialError):
            cached.set_trial_user_attr(
                attempt_id, attempt_book.RESULT, {"put_back": True}
            )
            cached.set_trial_state_values(attempt_id, TrialState.FAIL)

    def _is_put_back(self, entry: attempt_book.Entry | None) -> bool:
        """Whether the worker of its last attempt has left word."""
        if entry is None or attempt_book.OWNER not in entry.last.user_attrs:
            return False
        folder = self._folder_of(entry.trial_id(entry.last))
        token = entry.last.user_attrs[attempt_book.OWNER]["token"]
        try:
            return folder is not None and (
                (folder / _PUT_BACK).read_bytes() == token.encode()
            )
        except OSError:
            return False


def _duplicates(
    trials: Sequence[FrozenTrial], book: Sequence[attempt_book.Entry]
) -> list[FrozenTrial]:
    """Attempts that wait, but replace one that another replaces already."""
    counted = {a._trial_id for entry in book for a in entry.attempts}
    return [
        t
        for t in trials
        if t.state == TrialState.WAITING and t._trial_id not in counted
    ]
