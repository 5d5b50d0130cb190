"""The official files that a dataset is made from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from diffenc.errors import UserError

Names = tuple[str, ...]  # relative to a folder, with "/" between components; a folder's ends in "/"


@dataclasses.dataclass(frozen=True)
class Download:
    """One official file that can be downloaded.

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
      parts: for each part, its layouts; a layout is a tuple of file names, and one complete layout suffices.
      downloads: the files that `prepare --download` fetches; empty if they cannot be downloaded.
      origin: where the files are published, as text for messages.
    """

    name: str
    parts: Mapping[str, tuple[Names, ...]]
    downloads: tuple[Download, ...]
    origin: str

    def locate(self, source: Path) -> dict[str, Path]:
        """Returns all parts found at `source`, as name -> file or folder.

        `source` is the folder of the files, or one of the files (or of the folders that contain them) with the others
        next to it.

        Raises:
          UserError: `source` does not exist, or a part is missing.
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
            # If the folder has several layouts, the one with the file that the user named comes first.
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
    """Raises UserError if `source` is a FIFO, socket or device: files are read twice, for digests and for conversion."""
    if not (source.is_file() or source.is_dir()):
        raise UserError(
            f"--source={source}: is a FIFO, socket or device, which can be read only once; save it as a file"
        )


def first_whole(folder: Path, layouts: tuple[Names, ...] | list[Names]) -> Names | None:
    """Returns the first layout that is complete in `folder`, or None."""
    return next((names for names in layouts if all(_is_there(folder, name) for name in names)), None)


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file()


def missing(folder: Path, layouts: tuple[Names, ...] | list[Names]) -> str:
    """Returns a message about the files missing in `folder`, for the begun layout that lacks the fewest."""
    lacking = [[name for name in names if not _is_there(folder, name)] for names in layouts]
    begun = [absent for absent, names in zip(lacking, layouts, strict=True) if len(absent) < len(names)]
    if begun:
        return f"{folder} lacks {_brief(min(begun, key=len))}"
    return f"{folder} holds no {' or '.join(_brief(names) for names in layouts)}"


def _mentions(names: Names, name: str) -> bool:
    return any(known.split("/")[0] == name for known in names)


def _brief(names: Names | list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
