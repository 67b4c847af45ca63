"""Objects named on the command line: `package.module:name`."""

import importlib
import os
import sys
from typing import Any

from keras_adamax_tuning.base import user_errors


def load_reference(reference: str, what: str) -> Any:
    """Imports a module and returns what it holds under a name.

    The current folder can be imported from, as with `python -m`.

    Example:
        >>> load_reference("math:pi", "a number")
        3.141592653589793
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(
            f"{what} must be given as MODULE:NAME, for example "
            f"'my_models:build_model'. Received: {reference!r}."
        )
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    user_errors.note_own(module_name)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        raise ImportError(
            f"{what} {reference!r} cannot be imported: "
            f"{user_errors.describe(error)}. Modules are looked for in "
            f"{folder}, in PYTHONPATH and among the installed packages."
        ) from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(
                f"{what} {reference!r} does not exist: module "
                f"{module_name!r} ({getattr(found, '__file__', None)}) has no "
                f"{part!r}."
            ) from None
    return found
