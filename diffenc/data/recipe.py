"""Recipes: how `prepare` converts a data set, from which files."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffenc.data.official_files import OfficialFiles
from diffenc.data.versions import Version
from diffenc.errors import UserError
from diffenc.interfaces import Batch

ON_DISK = ("train", "test")  # what lies on disk; validation is cut from train


class BadSourceError(UserError):
    """The source files are damaged or malformed, so that the conversion cannot be resumed."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A data set to be converted.

    Attributes:
      name: the data set argument of `prepare`.
      files: the files to convert, by name; names of folders end in "/".
      image_shape: (H, W, C).
      read: (split, first) -> the split's examples in their order, in batches of any size, without the first
        `first` of them; raises UserError if the files are damaged or invalid.
      otherwise: description of the images if no split is of a known version; empty = it follows from `name`.
      classes: class names in the order of labels; empty if classes have no names.
      counts: the number of examples by split, if known before they are read.
      note: further remarks about the conversion; may be empty.
      members: of folders in `files`, the files that are converted and digested; others are ignored.
      summary: text printed at the end, such as a table of files read, altered and skipped; may be empty.
    """

    name: str
    files: Mapping[str, Path]
    image_shape: tuple[int, int, int]
    num_classes: int
    read: Callable[[str, int], Iterator[Batch]]
    otherwise: str = ""
    classes: tuple[str, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""
    num_levels: int = 256
    members: Mapping[str, Sequence[Path]] = dataclasses.field(default_factory=dict)
    summary: str = ""


@runtime_checkable
class Preparable(Protocol):
    """The interface, in addition to `Dataset`, of a data set class that is prepared from official files."""

    @property
    def files(self) -> OfficialFiles: ...

    @property
    def versions(self) -> tuple[Version, ...]: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_levels(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def read(self, found: Mapping[str, Path], split: str, first: int) -> Iterator[Batch]:
        """As `Recipe.read`, from the files in `found`, keyed by their names in `files`."""
        ...


def make_recipe(dataset: Preparable, source: Path) -> Recipe:
    """Returns the recipe for the official files of `dataset` at `source`. Raises UserError if files are missing."""
    found = dataset.files.locate(source)
    return Recipe(
        name=dataset.files.name,
        files=found,
        image_shape=dataset.image_shape,
        num_levels=dataset.num_levels,
        num_classes=dataset.num_classes,
        read=lambda split, first: dataset.read(found, split, first),
    )
