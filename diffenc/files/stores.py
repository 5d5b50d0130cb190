"""Storage of checkpoints: a folder on a disk, or a prefix of an object store.

Both read, write, list and remove small files; arrays are written by tensorstore, to the spec that `kvstore` returns.
In an object store a file becomes visible only when it is complete, so that no renaming is needed.
"""

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import tensorstore as ts

from diffenc.errors import UserError
from diffenc.files import atomic, location
from diffenc.files.user_paths import expand_path

PathLike = atomic.PathLike

# Shared by all stores: the content of a store in memory belongs to its context.
CONTEXT = ts.Context({"memory_key_value_store": {}})

REFUSALS = (ValueError, NotImplementedError, MemoryError)  # the types that tensorstore gives its errors
DAMAGE = (
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "OUT_OF_RANGE",
)  # how they begin where content is bad
ABSENT = (FileNotFoundError, NotADirectoryError)


@runtime_checkable
class Store(Protocol):
    """Files by name; "/" in a name makes folders. Every failure of the store is an OSError.

    Attributes:
      copies: whether the memory of written arrays may be reused; a store in memory may refer to it instead of copying.
    """

    copies: bool

    def kvstore(self, name: str = "") -> dict[str, Any]:
        """Returns the folder `name` as a JSON spec of tensorstore."""
        ...

    def below(self, name: str) -> "Store":
        """Returns the folder `name` as a store."""
        ...

    def names(self) -> dict[str, set[str]]:
        """Returns every folder with the names directly in it; empty folders too, if the store has them."""
        ...

    def files(self) -> list[str]:
        """Returns the names of all files, including those in folders."""
        ...

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it does not exist."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Writes a file atomically and durably."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""
        ...

    def sync(self, name: str) -> None:
        """Flushes the files that tensorstore wrote to the folder `name` to the disk."""
        ...


def open_store(location: PathLike) -> Store:
    """Returns the store at a path, or at a URL such as gs://bucket/folder, file:///folder or memory://folder.

    Raises:
      UserError: tensorstore does not know the scheme, the URL is file:// with a host, or the path is not valid.
    """
    text = expand_path(os.fspath(location), "path")
    if not is_url(text):
        return Disk(Path(text))
    parts = urlsplit(text)
    if parts.scheme != "file":
        return Objects(text)
    if parts.netloc:
        raise UserError(f"{text} names the host {parts.netloc!r}; use file:///FOLDER, or a plain path")
    return Disk(Path(parts.path))


def is_url(location: PathLike) -> bool:
    """Whether `location` is a URL rather than a path."""
    return re.match(r"[a-z0-9]+://", os.fspath(location)) is not None


def join_path(folder: PathLike, name: str) -> str | Path:
    """Returns `name` within a path or a URL."""
    return f"{os.fspath(folder).rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


class Disk:
    """A folder on a local or a shared disk, created by the first write."""

    copies = True

    def __init__(self, folder: Path):
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def kvstore(self, name: str = "") -> dict[str, Any]:
        return {"driver": "file", "path": f"{os.path.abspath(self.folder / name)}/"}

    def below(self, name: str) -> Store:
        return Disk(self.folder / name)

    def names(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        with contextlib.suppress(*ABSENT):
            for path in self.folder.iterdir():
                with contextlib.suppress(*ABSENT):  # a file; or another process removed it just now
                    found[path.name] = set(os.listdir(path))
        return found

    def files(self) -> list[str]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (*ABSENT, IsADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        self._make(path.parent)
        atomic.replace_bytes(path, data)

    def remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def sync(self, name: str) -> None:
        self._make(self.folder / name)
        atomic.sync_all(self.folder / name)
        for folder in [*Path(name).parents, Path("..")]:  # tensorstore may have made them all
            atomic.sync(self.folder / folder)

    def _make(self, folder: Path) -> None:
        location.check(folder)
        # The name of a new folder is an entry of its parent, so the parent has to be synced.
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            atomic.sync(path.parent)


class Objects:
    """A prefix of an object store, by its URL."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.copies = not url.startswith("memory:")
        try:
            self._spec = ts.KvStore.Spec(f"{self.url}/").to_json()
        except ValueError as error:
            reason = str(error).rsplit(": ", 1)[-1]
            raise UserError(f"{url} is no address of a store ({reason}); use gs://BUCKET/FOLDER") from error

    def __str__(self) -> str:
        return self.url

    def kvstore(self, name: str = "") -> dict[str, Any]:
        return {**self._spec, "path": f"{self._spec['path']}{name}/" if name else self._spec["path"]}

    def below(self, name: str) -> Store:
        return Objects(f"{self.url}/{name}")

    def names(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for folder, _, file in (name.partition("/") for name in self.files()):
            if file:
                found.setdefault(folder, set()).add(file.split("/")[0])
        return found

    def files(self) -> list[str]:
        return sorted(key.decode() for key in self._call(lambda kv: kv.list()))

    def read(self, name: str) -> bytes | None:
        found = self._call(lambda kv: kv.read(name))
        return found.value if found.state == "value" else None

    def write(self, name: str, data: bytes) -> None:
        self._call(lambda kv: kv.write(name, data))

    def remove(self, name: str) -> None:
        self._call(lambda kv: kv.delete_range(ts.KvStore.KeyRange(f"{name}/", f"{name}0")))  # "0" follows "/"
        # Writing None deletes the object with exactly this name; the range above covers the names below it.
        self._call(lambda kv: kv.write(name, None))

    def sync(self, name: str) -> None:
        """Does nothing: acknowledged writes to an object store are durable."""

    def _call(self, operation: Any) -> Any:
        try:
            return operation(ts.KvStore.open(self._spec, context=CONTEXT).result()).result()
        except REFUSALS as error:
            raise as_os_error(error, self.url) from error


def as_os_error(error: Exception, where: str) -> OSError:
    """Converts an error of tensorstore to an OSError, with its errno if it has one."""
    number = _number(error)
    if number:
        return OSError(number, os.strerror(number), where)
    return OSError(errno.EPROTO, str(error).splitlines()[0][:200], where)  # not EIO, see `is_damage`


def is_damage(error: Exception) -> bool:
    """Whether a failed read, of Python or tensorstore, is due to damaged content rather than to the store.

    An I/O error of a disk counts as damage: a bad sector causes it, and the rest of the disk can be read.
    """
    number = error.errno if isinstance(error, OSError) else _number(error)
    # tensorstore raises few Python types; the text begins with the status code.
    return number == errno.EIO if number else str(error).startswith(DAMAGE)


def read_error(location: PathLike, error: OSError) -> UserError:
    """Returns the UserError for a store that cannot be read."""
    reason = error.strerror or error
    return UserError(f"cannot read {location}: {reason}; check the address, and your access to it")


def _number(error: Exception) -> int | None:
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None
