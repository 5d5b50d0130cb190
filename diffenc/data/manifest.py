"""The `manifest.json` of a prepared folder."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffenc.data import versions
from diffenc.data.versions import Pixels
from diffenc.errors import UserError
from diffenc.files import atomic

NAME = "manifest.json"
_MOST_LEVELS = 2**28  # in one image
_MOST = 2**50  # examples or bytes in one shard
_FORMAT = 1  # a manifest of another number was written by another version of this module


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records: its name in the folder, its examples, its size in bytes, hex SHA-256 of its bytes."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of a split in their order, and digests of its images.

    Attributes:
      sha256: hex SHA-256 of the uint8 [N, H, W, C] pixels.
      images_sha256: hex SHA-256 of the images' sorted SHA-256s; empty in manifests from before it was recorded.
    """

    sha256: str
    shards: tuple[Shard, ...]
    images_sha256: str = ""

    @property
    def count(self) -> int:
        """The number of examples."""
        return sum(shard.count for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a prepared folder.

    Attributes:
      name: the data set argument of `python -m diffenc.prepare`.
      source: description of the images: known versions of a data set, or an unknown version. `read` derives it anew
        from the digests.
      image_shape: (H, W, C).
      classes: class names in the order of labels; empty if classes have no names.
      splits: "train" and "test".
      files: by name, the digests and sizes of the converted files.
      note: further remarks about the conversion; may be empty.
      diffenc_version: the version of diffenc that wrote the manifest.
      otherwise: `source` if no split is recognised; empty = it follows from `name`.
    """

    name: str
    source: str
    image_shape: tuple[int, int, int]
    num_levels: int
    num_classes: int
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    files: Mapping[str, Mapping[str, Any]]
    note: str
    diffenc_version: str
    otherwise: str = ""

    @property
    def counted(self) -> str:
        """The numbers of images of the splits, as text for messages."""
        return ", ".join(f"{split.count:,} {name} images" for name, split in self.splits.items())


def write(manifest: Manifest, folder: Path) -> None:
    """Writes `manifest` to `folder` atomically."""
    said: dict[str, Any] = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    for name, split in manifest.splits.items():
        # Only for readers of the file: `read` derives the count from the shards.
        said["splits"][name] = {"count": split.count, **said["splits"][name]}
    atomic.write_json(folder / NAME, said)


def read(folder: Path) -> Manifest | None:
    """Returns the manifest of `folder`; None if there is none, or if it has another format version.

    Raises:
      UserError: the manifest is damaged.
    """
    path = folder / NAME
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; delete {folder} and prepare it again")
    try:
        said = json.loads(path.read_bytes())
        return identify_source(_parsed(said)) if said.pop("format", None) == _FORMAT else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged; delete {folder} and prepare it again ({error!r})") from error


def identify_source(made: Manifest) -> Manifest:
    """Returns `made` with `source` derived from its digests, by the versions known to this version of diffenc."""
    otherwise = made.otherwise or versions.unknown_version(made.name) or made.source or made.name
    return dataclasses.replace(made, source=versions.describe(identify_splits(made), otherwise))


def identify_splits(made: Manifest) -> versions.Identity:
    """Returns the published images identified by the digests in `made`, split by split."""
    splits = {name: Pixels(split.sha256, split.images_sha256) for name, split in made.splits.items()}
    return versions.identify(made.name, made.image_shape, splits, made.files)


def _parsed(said: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(
            split["sha256"],
            tuple(Shard(**shard) for shard in split["shards"]),
            split.get("images_sha256", ""),
        )
        for name, split in said.pop("splits").items()
    }
    for key in ("image_shape", "classes"):
        said[key] = tuple(said[key])
    made = Manifest(splits=splits, **said)
    _check(made)
    return made


def _check(made: Manifest) -> None:
    """Raises ValueError if a value has the wrong type, or is impossible for a prepared folder."""
    _whole(_MOST_LEVELS, image_shape=made.image_shape)
    if len(made.image_shape) != 3 or math.prod(made.image_shape) > _MOST_LEVELS:
        raise ValueError(f"image_shape is not (H, W, C) of up to {_MOST_LEVELS:,} levels")
    _whole(256, num_levels=[made.num_levels])
    _whole(2**31, num_classes=[made.num_classes])
    _typed(str, name=made.name, source=made.source, note=made.note, diffenc_version=made.diffenc_version)
    _typed(str, otherwise=made.otherwise)
    for name in made.classes:
        _typed(str, classes=name)
    for digests in (made.files, *made.files.values()):
        _typed(dict, files=digests)
    if set(made.splits) != {"train", "test"}:
        raise ValueError("splits are not train and test")
    for split in made.splits.values():
        _check_split(split)


def _check_split(split: Split) -> None:
    _typed(str, sha256=split.sha256, images_sha256=split.images_sha256)
    for shard in split.shards:
        _typed(str, sha256=shard.sha256, name=shard.name)
        _whole(_MOST, count=[shard.count], bytes=[shard.bytes])
        # Names are joined to the folder's path: a separator or a leading ".." would reach files outside of it.
        if not re.fullmatch(r"\w[\w.-]*", shard.name):
            raise ValueError("a shard's name is that of no plain file")


def _whole(most: int, **values: Sequence[Any]) -> None:
    for key, numbers in values.items():
        # type, not isinstance: JSON's true is an int to isinstance. The bounds limit products and allocations.
        if not all(type(number) is int and 1 <= number <= most for number in numbers):
            raise ValueError(f"{key} is not within 1 .. {most:,}")


def _typed(kind: type, **values: Any) -> None:
    for key, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
