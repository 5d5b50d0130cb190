"""Converts errors from damaged files to UserErrors of one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffenc.errors import UserError


@runtime_checkable
class Stream(Protocol):
    """A readable stream of bytes: a file, a member of an archive, an HTTP response."""

    def read(self, size: int = -1, /) -> bytes | bytearray: ...

    def readline(self, size: int = -1, /) -> bytes: ...


@contextlib.contextmanager
def convert_errors(name: Path | str) -> Iterator[None]:
    """Converts every error raised while the file `name` is read into a UserError of one line.

    Damaged archives fail in more ways than their modules document (zlib, struct, Unicode, memory ...).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be read; download it again ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """Returns the type and text of `error` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
