"""Finding the backup to go on from."""

import warnings
from pathlib import Path
from typing import Any

from keras_adamax.callbacks import _processes
from keras_adamax.callbacks._backup.generations import Damaged, Generations


def check_writable(generations: Generations) -> None:
    """Makes sure that backups can be written, before anything is trained.

    Args:
        generations: The backups.

    Raises:
        OSError: If they cannot.
    """
    try:
        generations.check_writable()
    except OSError as error:
        raise type(error)(
            error.errno,
            "AtomicBackup cannot write its backups there: "
            f"{error.strerror}. Free or change the place, or give another "
            "`backup_dir`",
            str(generations.folder),
        ) from error


def read(generations: Generations, epochs: int) -> tuple[Path, Any] | None:
    """The newest backup that is intact: its folder and what it says.

    Args:
        generations: The backups. Those that nothing can go on from are
            discarded.
        epochs: How many the present `fit` has.

    Raises:
        ValueError: If the `fit` that made them cannot have more epochs.
        OSError: If one cannot be read.
        RuntimeError: If all are damaged.
    """
    damaged, ended = [], []
    for path in generations.paths():
        try:
            state = generations.read(path)
        except Damaged as error:
            damaged.append((path, error))
            continue
        except OSError as error:
            raise type(error)(
                error.errno,
                f"AtomicBackup cannot read a backup: {error.strerror}. It "
                "may be intact and is kept. Make it readable, or remove "
                "it to go on from the one before",
                error.filename or str(path),
            ) from error
        if state.get("has_only_averages") and state["epoch"] < epochs:
            ended.append(path)
            continue
        for bad, error in damaged:
            warnings.warn(
                f"AtomicBackup: the newest backup, {bad}, is damaged "
                f"({error}). The one before is used, of epoch "
                f"{state['epoch']}.",
                stacklevel=3,
            )
        for bad in [*ended, *(bad for bad, _ in damaged)]:
            generations.discard(bad)
        return path, state
    if ended:
        raise ValueError(
            f"AtomicBackup: the backup {ended[0]} is of the end of a "
            "`fit` with SwapEMAWeights in front of AtomicBackup: it has "
            "the averages and not the weights that training goes on "
            f"with. Received: {epochs} epochs, more than "
            "that had. Remove the folder to begin anew, and put "
            "AtomicBackup in front of SwapEMAWeights to add epochs later."
        )
    if damaged:
        raise RuntimeError(
            f"AtomicBackup: all backups in {generations.folder} are damaged: "
            + "; ".join(f"{p.name} ({error})" for p, error in damaged)
            + ". Remove the folder to begin anew."
        )
    return None


def check_shared(folder: Path, found: tuple[Path, Any] | None) -> None:
    """Raises an error where processes would go on from other backups.

    Args:
        folder: Where this process looks for them.
        found: What `read` gave it.
    """
    totals = _processes.gather(-1 if found is None else found[1]["total"])
    if len(set(totals)) > 1:
        where = ", ".join(
            "none" if t < 0 else f"after {t} batches" for t in totals
        )
        raise ValueError(
            "AtomicBackup: `backup_dir` must be a folder that all "
            "processes of this training share. Received: "
            f"{folder}, where they find other backups, in the order "
            f"of the processes: {where}."
        )
