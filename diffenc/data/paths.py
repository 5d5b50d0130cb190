"""Where data lies on disk, and which official files make up a data set."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffenc.errors import UserError

ENVIRONMENT_VARIABLE = "DIFFENC_DATA"

Names = tuple[str, ...]  # relative to a folder, with "/" between components; a folder's ends in "/"


@runtime_checkable
class Stream(Protocol):
    """Bytes to be read: a file, a member of an archive, an answer from the net."""

    def read(self, size: int = -1, /) -> bytes | bytearray: ...

    def readline(self, size: int = -1, /) -> bytes: ...


def data_directory() -> Path:
    """The folder that holds one folder per data set: $DIFFENC_DATA, else the per-user cache."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return cache_directory("data")


def plain_name(name: str, key: str) -> str:
    """`name`, which may be that of a folder in the data directory. Raises UserError, naming `key`, if not."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise UserError(f"{key} = {name!r}: must be the name of a folder, without / and no . in front")
    return name


def cache_directory(name: str) -> Path:
    """The folder for things of one kind in the per-user cache: $XDG_CACHE_HOME, else ~/.cache.

    Raises:
      UserError: there is neither that nor a home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not cache.is_absolute():  # the XDG specification has relative paths ignored
        cache = _home() / ".cache"
    return cache / "diffenc" / name


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # as of a container's user whom no list of users has
        raise UserError(
            "this user has no home folder: set $XDG_CACHE_HOME to a folder for caches and data sets; --data_dir and "
            "$DIFFENC_DATA name one for data sets alone"
        ) from None


@dataclasses.dataclass(frozen=True)
class Download:
    """One official file on the net.

    Attributes:
      url: its address; the last component is the file's name.
      md5: hex digest of its bytes.
      bytes: its size.
    """

    url: str
    md5: str
    bytes: int

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class OfficialFiles:
    """The files a data set is read from.

    Attributes:
      name: the data set's registered name.
      parts: for each part, its layouts; a layout is a tuple of file names, and one whole layout suffices.
      downloads: what `prepare --download` fetches; empty if that cannot be done.
      origin: where the files come from, for people.
    """

    name: str
    parts: Mapping[str, tuple[Names, ...]]
    downloads: tuple[Download, ...]
    origin: str

    def locate(self, source: Path) -> dict[str, Path]:
        """All parts in what a user points at, as name -> file or folder.

        `source` is a folder that holds the files, or one of them (or of the folders they come in), the
        others beside it.

        Raises:
          UserError: `source` does not exist, or a part is not there.
        """
        if not source.exists():
            raise UserError(f"--source={source}: no such file or folder")
        require_rereadable(source)
        beside = any(_mentions(names, source.name) for part in self.parts.values() for names in part)
        if source.is_file() and not beside:
            raise UserError(f"--source={source}: not a file of {self.name}, which are {self._examples()}")
        folder = source.parent if beside else source
        found = {}
        for part in self.parts.values():
            layouts = sorted(part, key=lambda names: not _mentions(names, source.name))
            names = first_whole(folder, layouts)
            if names is None:
                raise UserError(
                    f"--source={source}: {missing(folder, layouts)}; needed are {self._examples()}"
                )
            found |= {name: folder / name for name in names}
        return found

    def is_at(self, folder: Path) -> bool:
        """Whether all parts are in `folder`."""
        return all(first_whole(folder, part) for part in self.parts.values())

    def _examples(self) -> str:
        return ", ".join(_brief(layouts[0]) for layouts in self.parts.values())


def require_rereadable(source: Path) -> None:
    """Raises UserError if `source` is a FIFO, socket or device: what is prepared is read more than once."""
    if not (source.is_file() or source.is_dir()):
        raise UserError(
            f"--source={source}: is a FIFO, socket or device, which can be read only once; save it as a file"
        )


def first_whole(folder: Path, layouts: tuple[Names, ...] | list[Names]) -> Names | None:
    """The first layout all of whose files are in `folder`, or None."""
    return next((names for names in layouts if all(_is_there(folder, name) for name in names)), None)


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file()


def missing(folder: Path, layouts: tuple[Names, ...] | list[Names]) -> str:
    """What `folder` lacks, said of the layout of which it holds the most files."""
    lacking = [[name for name in names if not _is_there(folder, name)] for names in layouts]
    begun = [absent for absent, names in zip(lacking, layouts, strict=True) if len(absent) < len(names)]
    if begun:
        return f"{folder} lacks {_brief(min(begun, key=len))}"
    return f"{folder} holds no {' or '.join(_brief(names) for names in layouts)}"


@contextlib.contextmanager
def reading(name: Path | str) -> Iterator[None]:
    """Turn whatever goes wrong while the file `name` is read into a UserError of one line.

    Damaged archives fail in more ways than their modules document (zlib, struct, Unicode, memory ...).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be read, get it again ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """The type and text of `error` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _mentions(names: Names, name: str) -> bool:
    return any(known.split("/")[0] == name for known in names)


def _brief(names: Names | list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
