"""Where checkpoints lie: a folder on a disk, or an address of an object store.

Both take and give small files whole, list, and remove; arrays go there by `kvstore`, tensorstore's own words
for the place. A file of an object store is there at once and whole, so nothing is ever renamed there.
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

# One for all, for a store in memory lives as long as its context.
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
    """Files by name; "/" in a name makes folders. Whatever the store refuses is an OSError.

    Attributes:
      copies: whether memory may be used anew once its content is written; a store in memory may refer to it.
    """

    copies: bool

    def kvstore(self, name: str = "") -> dict[str, Any]:
        """The folder `name` as a JSON spec of tensorstore."""
        ...

    def below(self, name: str) -> "Store":
        """The folder `name` as a store of its own."""
        ...

    def names(self) -> dict[str, set[str]]:
        """Every folder here, empty ones too where there are such, with the files right in it."""
        ...

    def files(self) -> list[str]:
        """Every file, in folders too."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, all or nothing; it outlives a loss of power."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; there need be none."""
        ...

    def sync(self, name: str) -> None:
        """Make what tensorstore wrote to the folder `name` outlive a loss of power."""
        ...


def open_store(place: PathLike) -> Store:
    """The store at a path, or at a URL such as gs://bucket/folder, file:///folder or memory://folder.

    Raises:
      UserError: the URL is of no kind that tensorstore knows, or is file:// with a host; or it can be no path.
    """
    text = expand_path(os.fspath(place), "path")
    if not is_url(text):
        return Disk(Path(text))
    parts = urlsplit(text)
    if parts.scheme != "file":
        return Objects(text)
    if parts.netloc:
        raise UserError(f"{text} names the host {parts.netloc!r}; use file:///FOLDER, or a plain path")
    return Disk(Path(parts.path))


def is_url(place: PathLike) -> bool:
    """Whether `place` is a URL rather than a path."""
    return re.match(r"[a-z0-9]+://", os.fspath(place)) is not None


def join_path(place: PathLike, name: str) -> str | Path:
    """`name` within a path or a URL."""
    return f"{os.fspath(place).rstrip('/')}/{name}" if is_url(place) else Path(place) / name


class Disk:
    """A folder on a local or a shared disk, made when it is first written to."""

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
        return sorted(key.decode() for key in self._ask(lambda kv: kv.list()))

    def read(self, name: str) -> bytes | None:
        found = self._ask(lambda kv: kv.read(name))
        return found.value if found.state == "value" else None

    def write(self, name: str, data: bytes) -> None:
        self._ask(lambda kv: kv.write(name, data))

    def remove(self, name: str) -> None:
        self._ask(lambda kv: kv.delete_range(ts.KvStore.KeyRange(f"{name}/", f"{name}0")))  # "0" follows "/"
        self._ask(lambda kv: kv.write(name, None))

    def sync(self, name: str) -> None:
        """An object store keeps what it has acknowledged."""

    def _ask(self, question: Any) -> Any:
        try:
            return question(ts.KvStore.open(self._spec, context=CONTEXT).result()).result()
        except REFUSALS as error:
            raise as_os_error(error, self.url) from error


def as_os_error(error: Exception, where: str) -> OSError:
    """What tensorstore says of a disk or a store that refuses, as an OSError with its number if it has one."""
    number = _number(error)
    if number:
        return OSError(number, os.strerror(number), where)
    return OSError(errno.EPROTO, str(error).splitlines()[0][:200], where)  # not EIO, see `is_damage`


def is_damage(error: Exception) -> bool:
    """Whether a failed reading, of Python or tensorstore, tells of bad content, not of a store that refuses.

    An I/O error of a disk counts as bad content: a bad sector gives it, and the rest of the disk can be read.
    """
    number = error.errno if isinstance(error, OSError) else _number(error)
    return number == errno.EIO if number else str(error).startswith(DAMAGE)


def read_error(place: PathLike, error: OSError) -> UserError:
    """What to tell a user whose store refused to be read."""
    reason = error.strerror or error
    return UserError(f"cannot read {place}: {reason}; check the address, and your access to it")


def _number(error: Exception) -> int | None:
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None
