"""WORKDIR/run_id: the random identity of a run, drawn at its first start and stored in each of its checkpoints."""

import re
import secrets
from pathlib import Path

import jax

from diffenc.checkpoint.restore import convert_store_errors
from diffenc.errors import UserError
from diffenc.files import atomic, stores
from diffenc.parallel.collectives import broadcast_int_list
from diffenc.parallel.distributed import main_process_only

FILE = "run_id"
LONGEST = 80  # bytes that are read


def is_valid(text: object) -> bool:
    """Whether `text` is an identity: 32 hexadecimal digits."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{32}", text) is not None


def read(workdir: stores.PathLike) -> str | None:
    """Returns the identity in `workdir`, a path or a URL; None if there is none.

    The first process reads it for all; all processes must call this.

    Raises:
      UserError: the file has other content, or the store cannot be read.
    """
    content = b""
    if jax.process_index() == 0:
        with convert_store_errors(workdir):
            # Bounded: the whole content is broadcast to all processes.
            content = (stores.open_store(workdir).read(FILE) or b"")[:LONGEST]
    text = bytes(broadcast_int_list(content)).decode(errors="replace").strip()
    if text and not is_valid(text):
        raise UserError(
            f"{stores.join_path(workdir, FILE)} is damaged: delete it, and the identity of the newest checkpoint is taken"
        )
    return text or None


def ensure(workdir: Path, of_checkpoint: object) -> str:
    """Returns the identity in `workdir`; if there is none, writes one first.

    Args:
      of_checkpoint: the identity in the checkpoint from which the run resumes, which is written; None, or not a valid
        identity = write a new one.

    Raises:
      UserError: as `read`, or the file cannot be written.
    """
    if (found := read(workdir)) is None:
        identity = of_checkpoint if is_valid(of_checkpoint) else secrets.token_hex(16)
        main_process_only(atomic.write_text)(workdir / FILE, f"{identity}\n")
        # Read back, which broadcasts it: all processes get the identity that the first one wrote.
        found = read(workdir)
    return found or ""
