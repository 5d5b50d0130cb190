"""A workdir on an object store: its small files are worked on in a local folder, and copied there.

Checkpoints go to the store themselves; see `diffenc.checkpoint`.
"""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from diffenc import distributed, stores
from diffenc.checkpoint import FOLDER
from diffenc.errors import UserError

Stamp = tuple[int, int]  # size, time of the last change in nanoseconds

R = TypeVar("R")

_OPEN: "dict[Path, Mirror]" = {}  # by their folder


@contextlib.contextmanager
def opened(workdir: stores.PathLike, writes: bool = True) -> Iterator[Path]:
    """A folder on a disk to work in: `workdir` itself, or while entered the mirror of its address.

    Raises:
      UserError: as `Mirror`.
    """
    if not stores.is_url(workdir):
        yield Path(workdir)
        return
    with Mirror(os.fspath(workdir), writes) as mirror:
        _OPEN[mirror.folder] = mirror
        try:
            yield mirror.folder
        finally:
            del _OPEN[mirror.folder]


def mirrored(function: Callable[[Any, Path], R]) -> Callable[[Any, stores.PathLike], R]:
    """`function(experiment, workdir)` for a workdir that may be an address; the function is given a folder."""

    @functools.wraps(function)
    def on_folder(experiment: Any, workdir: stores.PathLike) -> R:
        with opened(workdir, distributed.is_main()) as folder:
            return function(experiment, folder)

    return on_folder


def name_of(folder: Path) -> str:
    """What a user calls the workdir opened as `folder`."""
    mirror = _OPEN.get(folder)
    return str(folder) if mirror is None else mirror.url


def checkpoints_of(folder: Path) -> stores.PathLike:
    """Where the checkpoints of the workdir opened as `folder` are."""
    mirror = _OPEN.get(folder)
    return folder / FOLDER if mirror is None else stores.join(mirror.url, FOLDER)


def push(folder: Path) -> bool:
    """Copy what has changed in the workdir opened as `folder` to the store it mirrors, if it does.

    Returns:
      Whether everything is there.
    """
    return folder not in _OPEN or _OPEN[folder].push()


class Mirror:
    """The files under `url`, but for checkpoints, in a local folder of this process's own.

    As a context manager it pushes on leaving, and removes the folder if all is in the store.

    Attributes:
      url: the store's address.
      folder: the local folder.
    """

    def __init__(self, url: str, writes: bool = True):
        """Copy all that is there into a new folder.

        Args:
          writes: whether `push` does anything; False in the processes of a run that do not write.

        Raises:
          UserError: the store refused.
        """
        self.url = url
        self._store = stores.at(url)
        self._writes = writes
        self.folder = Path(tempfile.mkdtemp(prefix="diffenc-"))
        try:
            self._pull()
        except OSError as error:
            shutil.rmtree(self.folder)
            reason = error.strerror or error
            raise UserError(
                f"cannot read {url}: {reason}; check the address, and your access to it"
            ) from error
        self._pushed = self._stamps()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.push():
            shutil.rmtree(self.folder)
        else:
            logging.error("what %s lacks is in %s", self._store, self.folder)

    def push(self) -> bool:
        """Copy what has changed since the last time to the store, but for hidden files.

        To be called before each save: what a checkpoint counts on is then there when it is. A store that
        refuses is logged, and asked again the next time.

        Returns:
          Whether everything is there.
        """
        if not self._writes:
            return True
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._pushed.get(name) != stamp]
        with ThreadPoolExecutor(max_workers=8) as threads:
            done = list(threads.map(self._put, changed))
        self._pushed.update((name, stamps[name]) for name, ok in zip(changed, done, strict=True) if ok)
        return all(done)

    def _pull(self) -> None:
        names = [name for name in self._store.files() if not name.startswith(f"{FOLDER}/")]
        with ThreadPoolExecutor(max_workers=8) as threads:
            list(threads.map(self._get, names))

    def _get(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._store.read(name) or b"")

    def _put(self, name: str) -> bool:
        try:
            self._store.write(name, (self.folder / name).read_bytes())
        except OSError as error:
            logging.error(
                "could not write %s: %s; trying again later", stores.join(str(self._store), name), error
            )
            return False
        return True

    def _stamps(self) -> dict[str, Stamp]:
        """Of every file; hidden ones are locks, and files half-written."""
        return {
            path.relative_to(self.folder).as_posix(): (status.st_size, status.st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
            for status in [os.stat(path)]
        }
