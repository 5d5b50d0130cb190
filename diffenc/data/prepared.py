"""The common base of data sets prepared in DATA_DIR."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import ClassVar

from absl import logging

from diffenc.data import manifest, shard_reading, sources
from diffenc.data.manifest import Manifest
from diffenc.data.official_files import OfficialFiles
from diffenc.data.versions import is_unknown, published_terms
from diffenc.errors import UserError
from diffenc.files.directories import check_folder_name, data_directory
from diffenc.interfaces import Source
from diffenc.registry import datasets


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Reads the shards in DATA_DIR/`folder`.

    Attributes:
      validation: number of images cut from train, spread evenly over it.
      folder: name of the prepared folder in DATA_DIR.
    """

    validation: int = 0
    folder: str = ""

    files: ClassVar[OfficialFiles | None] = None

    def manifest(self) -> Manifest:
        """Returns the manifest of the prepared folder.

        Raises:
          UserError: the folder is missing (the message has the command that prepares it), or has images of another shape,
            number of levels or number of classes.
        """
        found = self._found()
        held = found.image_shape, found.num_levels, found.num_classes
        want = self.image_shape, self.num_levels, self.num_classes  # pyright: ignore[reportAttributeAccessIssue]
        if held != want:
            raise UserError(
                f"{self._path()}: holds images {held[0]} in {held[1]} levels and {held[2]} classes, not {want[0]} "
                f"in {want[1]} and {want[2]}: take dataset.array_record.folder = {self.folder!r}"
            )
        return found

    def source(self, split: str) -> Source:
        """Returns `split`, in memory if it is no larger than `shard_reading.IN_MEMORY`. Raises UserError as `manifest`."""
        return sources.split_source(self._read, split, self.validation, self._name)

    def fingerprint(self, split: str) -> str:
        """Returns the hex SHA-256 of the split's pixels: from the manifest if it is a whole split on disk, else computed."""
        if split == "test" or (split == "train" and self.validation == 0):
            return self.manifest().splits[split].sha256
        return _cut_fingerprint(self, self.manifest().splits["train"].sha256, split)

    @property
    def source_name(self) -> str:
        """Description of the images, as far as they are recognised."""
        return self.manifest().source

    @property
    def terms(self) -> dict[str, str]:
        """Origin and licence of the images, as far as they are known."""
        return published_terms(self.source_name)

    def train_identity(self) -> str:
        """Returns an identifier of the train images, unique to their pixels and the validation cut, without reading them."""
        return f"{self.manifest().splits['train'].sha256} without {self.validation} for validation"

    def _found(self) -> Manifest:
        path = self._path()
        found = _manifest(path)
        if found is None:
            raise UserError(self._absent(path))
        return found

    def _read(self, split: str) -> Source:
        found = self.manifest()
        if trouble := _incomparable(found, split):
            logging.warning(f"{self._path()}: {found.source}, {found.counted}; {trouble}")
        return _opened(self._path(), found.splits[split].sha256, split, shard_reading.IN_MEMORY)

    @property
    def _name(self) -> str:
        return datasets.name_of(type(self)) or type(self).__name__

    def _path(self) -> Path:
        key = f"dataset.{self._name}.folder"
        if not self.folder:
            raise UserError(f"{key}: name the folder in {data_directory()} that was prepared")
        return data_directory() / check_folder_name(self.folder, key)

    def _absent(self, path: Path) -> str:
        """Returns the error message for a `path` without a prepared data set."""
        named = "" if self.folder == self._name else f" --as={self.folder}"
        places = f"{named} --data_dir={path.parent}"
        run = "python -m diffenc.prepare"
        if self.files is None:
            return f"{path}: holds no prepared images; run {run} folder --source=DIR_OF_IMAGES{places}"
        if self.files.is_at(path):
            return (
                f"{path}: holds official files that are not prepared yet; "
                f"run {run} {self._name} --source={path}{places}"
            )
        download = " (or --download)" if self.files.downloads else ""
        return (
            f"{path}: holds no prepared {self._name}; run {run} {self._name} --source=FILE_OR_DIR{places}"
            f"{download}; the files come from {self.files.origin}"
        )


def _incomparable(found: Manifest, split: str) -> str:
    """Returns why bits/dim of `split` are not comparable with published ones; "" if they are, or if none are published."""
    if is_unknown(found.source, split):
        return "bits/dim are not comparable with published ones"
    _, part = manifest.identify_splits(found)[split] or ("", "")
    return f"bits/dim are of the {part}, published ones of all of it" if part else ""


def _manifest(path: Path) -> Manifest | None:
    try:
        return _manifest_of(path, (path / manifest.NAME).stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=8)
def _manifest_of(path: Path, changed: int) -> Manifest | None:
    del changed  # another one is read anew
    return manifest.read(path)


# Two entries, train and test: a larger cache would keep unused splits in memory.
@functools.lru_cache(maxsize=2)
def _opened(path: Path, sha256: str, split: str, in_memory: int) -> Source:
    del sha256  # other pixels are read anew
    found = manifest.read(path)
    assert found is not None
    source = shard_reading.ShardSource(path, found.splits[split], found.image_shape)
    size = len(source) * math.prod(found.image_shape)
    return source if size > in_memory else shard_reading.load_into_memory(source)


# Cached, since it reads every image of the split.
@functools.lru_cache(maxsize=4)
def _cut_fingerprint(dataset: Prepared, sha256: str, split: str) -> str:
    # Part of the cache key, like that of `_opened`.
    del sha256
    return sources.fingerprint(dataset.source(split))
