"""The error that users can fix, and texts that are safe to print."""

import difflib
import re
from collections.abc import Iterable

MAX_MESSAGE = 2_000  # characters of a message; a value or a file's name can be a megabyte

# C0 and C1 controls except tab and line feed, which terminals execute; line and paragraph separators; bidirectional
# controls, which reorder the text shown; lone surrogates, which cannot be encoded.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """An error that the user can fix; its message is one line with the fault, its place, and how to fix it.

    The command line prints it without a traceback and exits with status 1. The message is `printable`.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str, most: int = MAX_MESSAGE) -> str:
    """Returns `text` for a terminal or a log: control characters escaped, the middle cut out beyond about `most` characters."""
    text = str(text)
    if len(text) > most:  # the mistake is at the beginning, and how to fix it at the end
        text = f"{text[: 2 * most // 3]} … {text[-(most // 3) :]}"
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def nearest(word: str, names: Iterable[str]) -> str:
    """Returns the name most like `word`, for a message; "none" if there are no names."""
    near = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.0)
    return near[0] if near else "none"
