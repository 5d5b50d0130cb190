"""A workdir on an object store: its small files are in a local folder, from which they are copied to the store.

Checkpoints are written to the store directly; see `diffenc.checkpoint.checkpoints`.
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

from diffenc.checkpoint.checkpoints import FOLDER
from diffenc.errors import UserError
from diffenc.files import location, locks, stores, temporaries
from diffenc.files.user_paths import expand_path
from diffenc.parallel import distributed
from diffenc.workdir import fitted_chains, loss_curves
from diffenc.workdir.config_check import CONFIG

Stamp = tuple[int, int]  # size, time of the last change in nanoseconds

MOST = 1 << 30  # bytes to copy here
NOT_READ = (f"{FOLDER}/", "export/")  # large, and not worked on here
READ_BY_ALL = (
    CONFIG,
    f"{fitted_chains.FOLDER}/",
    f"{loss_curves.FOLDER}/",
)  # in processes that do not write too

# Prefixes of local folders: being filled, in use, and kept because the store lacks some of their files.
NEW, OPEN, KEPT = "diffenc-new-", "diffenc-open-", "diffenc-kept-"

R = TypeVar("R")

_OPEN: "dict[Path, Mirror]" = {}  # by their folder


@contextlib.contextmanager
def open_workdir(workdir: stores.PathLike, writes: bool = True) -> Iterator[Path]:
    """Yields a folder on a disk to work in: `workdir` itself, or for a URL its local mirror.

    Raises:
      UserError: as `Mirror`.
    """
    if not stores.is_url(workdir):
        folder = Path(expand_path(os.fspath(workdir), "--workdir"))
        with location.watch(folder):
            yield folder
        return
    with Mirror(os.fspath(workdir), writes) as mirror:
        _OPEN[mirror.folder] = mirror
        try:
            yield mirror.folder
        finally:
            del _OPEN[mirror.folder]


def on_local_copy(function: Callable[[Any, Path], R]) -> Callable[[Any, stores.PathLike], R]:
    """Decorates `function(experiment, folder)` to take a workdir that may be a URL."""

    @functools.wraps(function)
    def on_folder(experiment: Any, workdir: stores.PathLike) -> R:
        with open_workdir(workdir, distributed.is_main()) as folder:
            return function(experiment, folder)

    return on_folder


def display_name(folder: Path) -> str:
    """Returns the user's name of the workdir opened as `folder`: its path or URL."""
    mirror = _OPEN.get(folder)
    return str(folder) if mirror is None else mirror.url


def checkpoint_location(folder: Path) -> stores.PathLike:
    """Returns the path or URL of the checkpoints of the workdir opened as `folder`."""
    mirror = _OPEN.get(folder)
    return folder / FOLDER if mirror is None else stores.join_path(mirror.url, FOLDER)


def push(folder: Path) -> bool:
    """Copies the changes in the workdir opened as `folder` to the store, if the folder is a mirror.

    Returns:
      Whether the store has everything.
    """
    return folder not in _OPEN or _OPEN[folder].push()


class Mirror:
    """Local copy of the files under `url`, except checkpoints, in a folder of this process.

    As a context manager it pushes on exit, and removes the folder if the store has everything.

    Attributes:
      url: the store's URL.
      folder: the local folder.
    """

    def __init__(self, url: str, writes: bool = True):
        """Copies the files into a new folder; removes folders of killed processes.

        Args:
          writes: whether `push` does anything; False in the processes of a run that do not write, which copy only the
            files that they read.

        Raises:
          UserError: the store cannot be read, has too many bytes, or has a name that is not valid for a file.
        """
        self.url = url
        self._store = stores.open_store(url)
        self._writes = writes
        self._copied = 0  # bytes
        _sweep()
        self.folder, self._lock = _new_folder()
        try:
            self._pull()
        except BaseException as error:
            self._remove()
            if isinstance(error, OSError):
                raise stores.read_error(url, error) from error
            raise
        # Files just copied from the store need not be copied back.
        self._pushed = self._stamps()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.push():
            self._remove()
        else:
            # Renamed, since `_sweep` of a later process would remove an unlocked folder of the old name.
            self.folder = self.folder.rename(self.folder.with_name(self.folder.name.replace(OPEN, KEPT)))
            os.close(self._lock)
            logging.error("files that %s lacks are in %s", self._store, self.folder)

    def push(self) -> bool:
        """Copies the changes since the last call to the store, except hidden files.

        To be called before each save, so that the files on which a checkpoint depends are in the store before it. A failure
        is logged, and retried at the next call.

        Returns:
          Whether the store has everything.
        """
        if not self._writes:
            return True
        # Stamps are taken before the files are read: a file that changes in between is copied again by the next push.
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._pushed.get(name) != stamp]
        with ThreadPoolExecutor(max_workers=8) as threads:
            done = list(threads.map(self._put, changed))
        self._pushed.update((name, stamps[name]) for name, ok in zip(changed, done, strict=True) if ok)
        return all(done)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # somebody tidied up the folder for temporaries
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def _pull(self) -> None:
        names = [name for name in self._store.files() if _is_file(name) and self._needs(name)]
        for name in names:
            # Names of objects are arbitrary: a file "../x" would be written outside of the folder.
            if os.path.isabs(name) or {"", "..", "."} & set(name.split("/")) or "\0" in name:
                raise UserError(
                    f"{self.url} holds {name!r}, which cannot be the name of a file in a folder: remove it"
                )
        with ThreadPoolExecutor(max_workers=8) as threads:
            list(threads.map(self._get, names))

    def _needs(self, name: str) -> bool:
        return not name.startswith(NOT_READ) and (self._writes or name.startswith(READ_BY_ALL))

    def _get(self, name: str) -> None:
        data = self._store.read(name) or b""
        # Threads add concurrently, so the sum may be too small: the limit
        # prevents copying a whole bucket, and need not be exact.
        self._copied += len(data)
        if self._copied > MOST:
            raise UserError(
                f"{self.url} holds more than {MOST / 1e9:.1f} GB beside its checkpoints, which would all be "
                "copied here: remove other files"
            )
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _put(self, name: str) -> bool:
        try:
            self._store.write(name, (self.folder / name).read_bytes())
        except OSError as error:
            logging.error(
                "could not write %s: %s; trying again later", stores.join_path(str(self._store), name), error
            )
            return False
        return True

    def _stamps(self) -> dict[str, Stamp]:
        """Returns the stamp of every file except hidden ones, which are locks and unfinished files."""
        return {
            path.relative_to(self.folder).as_posix(): (status.st_size, status.st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
            for status in [os.stat(path)]
        }


def _is_file(name: str) -> bool:
    """Whether `name` is that of a file: consoles of object stores create empty objects as folders."""
    return bool(name) and not name.endswith("/")


def _new_folder() -> tuple[Path, int]:
    """Creates an empty folder; returns it and the descriptor that locks it until this process ends."""
    # Until it is locked, under a name that no sweep matches:
    # a sweep would remove an unlocked folder as left over.
    new = Path(tempfile.mkdtemp(prefix=NEW))
    lock = os.open(new, os.O_RDONLY)
    if locks.try_lock(lock):
        new = new.rename(new.with_name(new.name.replace(NEW, OPEN)))  # only now is it one to sweep up
    return new, lock


def _sweep() -> None:
    """Removes folders of this user's killed processes: those that no process has locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{OPEN}*"):
        temporaries.remove_unlocked(folder, owner=os.getuid())
