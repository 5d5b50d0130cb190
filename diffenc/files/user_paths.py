"""Paths on the command line and in configs."""

import argparse
import os
import re
from pathlib import Path

from diffenc.errors import UserError


def expand_path(text: str, option: str) -> str:
    """Expands a leading `~` to the home folder; URLs such as gs://… are returned unchanged.

    Args:
      option: the option with the path, for messages, such as "--workdir".

    Raises:
      UserError: the path is not valid: empty, or with characters that file names cannot have.
    """
    if not text:
        raise UserError(f"{option} is empty: name a file or a folder")
    if "\0" in text:
        raise UserError(f"{option}={text!r}: a path cannot hold the character NUL")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UserError(f"{option}={text!r}: a path cannot hold such characters here") from None
    return text if re.match(r"[a-z0-9]+://", text) else os.path.expanduser(text)


def path_argument(text: str) -> Path:
    """Returns a path with `~` expanded; for the `type` of an argparse argument, whose error message names the option."""
    try:
        return Path(expand_path(text, "path"))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
