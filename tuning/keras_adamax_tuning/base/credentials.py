"""Passwords of databases, hidden in what is printed or recorded.

A password can stand in a URL (`scheme://user:password@host`), in its query
(`?password=...`, `?odbc_connect=...`), or in a text that quotes one of these.
Where it is not certain what belongs to the password, more is hidden rather
than less.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from urllib.parse import unquote, unquote_plus

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
# In the query of a URL, and in the `key=value` form of libpq and ODBC.
# Only at the beginning of a word: a long one takes for ever from each letter.
_KEY = r"(?<!\w)\w*(?:passw(?:or)?d|pwd)"
_NAMED = re.compile(rf"(?P<before>{_KEY}=)(?P<secret>[^&\s]+)", re.IGNORECASE)
# ODBC's form, encoded in a URL (`?odbc_connect=...`): a value ends at a
# semicolon, or at the brace that closes it.
_ENCODED = re.compile(
    rf"(?P<before>{_KEY}%3D(?P<brace>%7B)?)"
    r"(?P<secret>(?(brace)(?:%7D%7D|(?!%7D)[^&\s])+|(?:(?!%3B)[^&\s])+))",
    re.IGNORECASE,
)


def hide_in_argument(argument: str) -> str:
    """An argument of a command, with `***` in place of a password."""
    return _mask(argument, _ARGUMENT, _NAMED, _ENCODED)


def join(arguments: Sequence[str]) -> str:
    """A command for a shell, with `***` in place of passwords."""
    return shlex.join(hide_in_argument(argument) for argument in arguments)


def secrets(arguments: Iterable[str]) -> set[str]:
    """The passwords in arguments of a command, as given and decoded."""
    found = {
        match["secret"]
        for argument in arguments
        for pattern in (_ARGUMENT, _NAMED, _ENCODED)
        for match in pattern.finditer(argument)
    }
    # In a query, + is a space.
    return found | {
        decode(secret) for decode in (unquote, unquote_plus) for secret in found
    }


def hide(text: str, known: Iterable[str] = ()) -> str:
    """A text with `***` in place of passwords.

    Hidden are those in URLs that it quotes, and the `known` ones wherever they
    stand alone.
    """
    for secret in sorted(filter(None, known), key=len, reverse=True):
        # A short one may be a part of any word.
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return _mask(text, _TEXT, _NAMED, _ENCODED)


def _mask(text: str, *patterns: re.Pattern[str]) -> str:
    """The text without what any pattern takes for a secret."""
    spans = sorted(
        match.span("secret")
        for pattern in patterns
        for match in pattern.finditer(text)
    )
    kept, end = [], 0
    for first, last in spans:
        # Two patterns may each see a part of one password.
        if first >= end:
            kept += [text[end:first], MASK]
        end = max(end, last)
    return "".join([*kept, text[end:]])
