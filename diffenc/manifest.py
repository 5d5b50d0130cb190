"""What a prepared folder says of itself, in its `manifest.json`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffenc import atomic
from diffenc.errors import UserError

NAME = "manifest.json"
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
    """The shards of a split in their order, and hex SHA-256 of its uint8 [N, H, W, C] pixels."""

    sha256: str
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        """The number of examples."""
        return sum(shard.count for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What lies in a prepared folder.

    Attributes:
      name: what `python -m diffenc.prepare` was called with.
      source: which images these are: a known version of a data set, or that they are none.
      image_shape: (H, W, C).
      classes: their names in the order of labels; empty where they have none.
      splits: "train" and "test".
      files: by name, the digests and sizes of what was converted.
      note: what one must know of the conversion beside this; may be empty.
      diffenc_version: what wrote it.
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

    @property
    def counted(self) -> str:
        """How many images, for people."""
        return ", ".join(f"{split.count:,} {name} images" for name, split in self.splits.items())


def write(manifest: Manifest, folder: Path) -> None:
    """Put `manifest` into `folder`, all or nothing."""
    said: dict[str, Any] = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    for name, split in manifest.splits.items():
        said["splits"][name] = {"count": split.count, **said["splits"][name]}
    atomic.write_json(folder / NAME, said)


def read(folder: Path) -> Manifest | None:
    """The manifest of `folder`; None if there is none, or only one of another format.

    Raises:
      UserError: it cannot be understood.
    """
    path = folder / NAME
    try:
        said = json.loads(path.read_bytes())
        return _parsed(said) if said.pop("format", None) == _FORMAT else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is damaged; delete {folder} and prepare it again ({error!r})") from error


def _parsed(said: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(split["sha256"], tuple(Shard(**shard) for shard in split["shards"]))
        for name, split in said.pop("splits").items()
    }
    for key in ("image_shape", "classes"):
        said[key] = tuple(said[key])
    return Manifest(splits=splits, **said)
