"""Lists the regular files below a folder, and reports skipped files and folders with the reasons."""

import collections
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from diffenc.errors import UserError

HIDDEN = "hidden"
IRREGULAR = "no regular file: FIFO, socket or device"
BROKEN = "link to nothing"
CIRCULAR = "link to a folder above it"

Skip = Callable[[Path, str], None]


class Skipped:
    """Counts of skipped files and folders by reason, with one example each."""

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, Path] = {}

    def __call__(self, path: Path, reason: str) -> None:
        """Counts the skipped `path`."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, path)


def regular_files(folder: Path, skip: Skip = lambda path, reason: None) -> Iterator[Path]:
    """Yields every regular file below `folder`, in the order of names; links are followed.

    Args:
      skip: is called with the reason for each file that is left out, and for hidden folders and circular links.

    Raises:
      UserError: a folder cannot be listed.
    """
    for inner, names, files in os.walk(folder, followlinks=True, onerror=_refuse):
        # In place: os.walk descends into the folders left in this list object, in its order.
        names[:] = [name for name in sorted(names) if _is_entered(Path(inner, name), skip)]
        for path in (Path(inner, name) for name in sorted(files)):
            if reason := _reason(path):
                skip(path, reason)
            else:
                yield path


def _reason(path: Path) -> str:
    """Returns why a file is left out; "" if it is not."""
    if path.name.startswith("."):
        return HIDDEN
    if not path.exists():
        return BROKEN
    return "" if path.is_file() else IRREGULAR


def _is_entered(folder: Path, skip: Skip) -> bool:
    if folder.name.startswith("."):
        skip(folder, HIDDEN)
        return False
    # A link to an ancestor of itself: os.walk with followlinks would descend into it for ever.
    if folder.is_symlink() and folder.resolve() in (real := folder.parent.resolve(), *real.parents):
        skip(folder, CIRCULAR)
        return False
    return True


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error
