"""Passwords of databases, hidden in what is printed or recorded.

A password can stand in a URL (`scheme://user:password@host`), in its query
(`?password=...`), or in a text that quotes one of these. Where it is not
certain what belongs to the password, more is hidden rather than less.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

MASK = "***"

# An argument with user:password@ in it. A password ends at the last @, and a
# mistyped URL may lack its scheme, or a part of it.
_ARGUMENT = re.compile(
    r"(?P<before>^(?:[\w-]+=)?+(?:[A-Za-z][\w+.-]*:?//+)?+"
    r"(?:[A-Za-z][\w+.-]*:/)?[^:@]*:)(?P<secret>.*)(?=@)",
    re.DOTALL,
)
# A URL within a text.
_TEXT = re.compile(r"(?P<before>://[^\s:@]*:)(?P<secret>\S*)(?=@)")
# In the query of a URL, and in the `key=value` form of libpq.
# Only at the beginning of a word: a long one takes for ever from each letter.
_NAMED = re.compile(
    r"(?P<before>(?<!\w)\w*passw(?:or)?d=)(?P<secret>[^&\s]+)", re.IGNORECASE
)


def hide_in_argument(argument: str) -> str:
    """An argument of a command, with `***` in place of a password."""
    return _mask(_NAMED, _mask(_ARGUMENT, argument))


def join(arguments: Sequence[str]) -> str:
    """A command for a shell, with `***` in place of passwords."""
    return shlex.join(hide_in_argument(argument) for argument in arguments)


def secrets(arguments: Iterable[str]) -> set[str]:
    """The passwords in arguments of a command, as given and decoded."""
    found = {
        match["secret"]
        for argument in arguments
        for pattern in (_ARGUMENT, _NAMED)
        for match in pattern.finditer(argument)
    }
    return found | {unquote(secret) for secret in found}


def hide(text: str, known: Iterable[str] = ()) -> str:
    """A text with `***` in place of passwords.

    Args:
        text: Any text, such as an error message.
        known: Passwords to hide wherever they stand alone. Defaults to none.

    Returns:
        The text without them, and without those in URLs that it quotes.
    """
    for secret in sorted(filter(None, known), key=len, reverse=True):
        # A short one may be a part of any word.
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return _mask(_NAMED, _mask(_TEXT, text))


def _mask(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(rf"\g<before>{MASK}", text)
