"""Web pages as files: where one goes by default, and how it is written."""

import os
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files import atomic

MARK_BYTES = 1000  # at the start of a page, which contain its mark


def default_path(name: str, mark: bytes, other: str) -> Path:
    """Returns the path of the page `name` in the current folder.

    Args:
      mark: what a page that may be overwritten contains at its start.
      other: what any other file is, for the message: "not a report".

    Raises:
      UserError: another file has that name.
    """
    path = Path(name)
    if os.path.lexists(path) and not (path.is_file() and mark in path.read_bytes()[:MARK_BYTES]):
        raise UserError(f"{path}: exists, and is {other}: name another file, e.g. --output=runs.html")
    return path


def write(output: Path, data: bytes, default: str) -> None:
    """Writes a page to `output` atomically, and makes its folder.

    Args:
      default: the page's usual name, for messages.

    Raises:
      UserError: the page cannot be written.
    """
    if output.is_dir():
        raise UserError(f"--output={output}: is a folder; name a file in it, e.g. {output / default}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot create the folder {output.parent}: {error.strerror}"
        ) from error
    try:
        atomic.write_bytes(output, data)
    except UserError as error:
        raise UserError(f"{error}; or name another file, e.g. --output=FOLDER/{default}") from error
