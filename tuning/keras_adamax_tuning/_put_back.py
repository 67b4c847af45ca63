"""Word in a trial's folder that its attempt is to be put back.

A worker that ends while its database is away cannot say there that its trial
is to be tried again and that nothing was lost. It leaves the word beside the
trial's files, which are shared as the database is. The process that ends the
attempt in the study, when the database answers again, finds it there.
"""

import contextlib
from pathlib import Path
from typing import Any

from keras_adamax import _atomic_files

_FILE = ".put_back"


def leave_word(folder: Path, owner: dict[str, Any]) -> None:
    """Says that the attempt is to be put back.

    Args:
        folder: Folder of the attempt. It is made if its parent is there.
        owner: Who ran the attempt.
    """
    # A full disk, or a folder that is lost: then it counts as a lost attempt.
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        _atomic_files.replace(folder / _FILE, owner["token"].encode())


def has_word(folder: Path, owner: dict[str, Any]) -> bool:
    """Whether this owner has left word, not one of another attempt.

    After a database is restored from a backup, names of attempts recur.

    Args:
        folder: Folder of the attempt.
        owner: Who ran the attempt, as the study says.
    """
    try:
        return (folder / _FILE).read_bytes() == owner["token"].encode()
    except OSError:
        return False
