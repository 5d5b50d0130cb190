"""Writing a data set as shards; an interrupted conversion resumes after the finished shards."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module as array_record  # pyright: ignore[reportAttributeAccessIssue]

from diffenc.data import digests, manifest, shard_reading
from diffenc.data.manifest import Manifest, Shard, Split
from diffenc.data.recipe import ON_DISK, BadSourceError, Recipe
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.interfaces import Batch
from diffenc.runtime.progress import Advance, ProgressBars
from diffenc.safe_io.reading import one_line

SHARD_BYTES = 2**28  # approximate size of a shard; a batch reads from every shard, so many shards are slow
DOWNLOADS = "downloads"  # official files, in the folder of an unfinished conversion
_RECIPE = "recipe.json"  # describes the conversion, in its unfinished folder
_WRITE = "group_size:1,uncompressed"  # photographs hardly compress; groups of 1 let any record be read alone
_ENCODED = 1024  # examples encoded at a time


def convert(
    recipe: Recipe, files: Mapping[str, Mapping[str, Any]], folder: Path, bars: ProgressBars
) -> Manifest:
    """Writes the shards of both splits to `folder` and, last of all, their manifest.

    Finished shards of an interrupted call with the same recipe and `files` are verified and kept.

    Args:
      files: digests of the source files, by name.

    Raises:
      BadSourceError: the source is damaged or has invalid labels.
      OSError, UserError: a failed write; finished shards are kept.
    """
    _clear_other_work(recipe, files, folder)
    splits = {}
    for split in ON_DISK:
        advance = bars.start(f"{recipe.name} {split}", recipe.counts.get(split))
        splits[split] = _final_names(folder, split, _write_split(recipe, split, folder, advance))
    made = Manifest(
        name=recipe.name,
        source=recipe.otherwise,
        image_shape=recipe.image_shape,
        num_levels=recipe.num_levels,
        num_classes=recipe.num_classes,
        classes=recipe.classes,
        splits=splits,
        files=files,
        note=recipe.note,
        diffenc_version=importlib.metadata.version("diffenc"),
        otherwise=recipe.otherwise,
    )
    made = manifest.identify_source(made)
    # The manifest first: interrupted in between, the call resumes, as recipe.json is still there.
    manifest.write(made, folder)
    (folder / _RECIPE).unlink()
    return made


def clear_work(folder: Path) -> None:
    """Removes everything in `folder` except downloads."""
    for path in folder.iterdir():
        if path.name != DOWNLOADS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def examples_per_shard(image_shape: tuple[int, int, int]) -> int:
    """Returns the number of examples in each shard of a split except the last."""
    return max(1, SHARD_BYTES // (math.prod(image_shape) + shard_reading.LABEL_BYTES))


def _clear_other_work(recipe: Recipe, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Clears `folder` unless it contains the beginning of the same conversion."""
    work = {
        "name": recipe.name,
        "files": files,
        "image_shape": recipe.image_shape,
        "classes": recipe.classes,
        "note": recipe.note,
        "otherwise": recipe.otherwise,
        "per_shard": examples_per_shard(recipe.image_shape),
    }
    work = json.loads(atomic.to_json(work))  # as it reads from disk, e.g. lists for tuples
    try:
        same = json.loads((folder / _RECIPE).read_bytes()) == work
    except (OSError, ValueError):
        same = False
    if not same:
        clear_work(folder)
        atomic.write_json(folder / _RECIPE, work)


def _write_split(recipe: Recipe, split: str, folder: Path, advance: Advance) -> Split:
    digest = digests.ImageDigest()
    size = examples_per_shard(recipe.image_shape)
    shards = list(_keep_finished(recipe, split, folder, digest.update, advance))
    # The reader skips the examples of finished shards: the digest has their pixels already.
    first = sum(shard.count for shard in shards)
    stream = _encode(_check_labels(recipe, split, first), digest.update)
    # One record ahead, so that no empty shard is begun at the end.
    while head := next(stream, None):
        path = folder / f"{split}-{len(shards):05d}.array_record"
        shards.append(_write_shard(path, itertools.chain([head], itertools.islice(stream, size - 1))))
        advance(shards[-1].count)
    return Split(digest.ordered, tuple(shards), digest.unordered)


def _keep_finished(
    recipe: Recipe, split: str, folder: Path, update: Callable[[Any], None], advance: Advance
) -> Iterator[Shard]:
    """Yields the leading shards that are intact, passes their pixels to `update`, and removes all later ones."""
    found = {int(_shard_number(path)): path for path in folder.glob(f"{split}-*.array_record")}
    for number in itertools.count():
        # Only leading shards: after a gap the position in the source would be unknown.
        if number not in found:
            break
        # An earlier call may have been interrupted after it gave some shards their final names (`_final_names`).
        path = found[number].rename(folder / f"{split}-{number:05d}.array_record")
        try:
            pixels = _read_pixels(path, recipe.image_shape)
        except Exception:  # damaged since it was written; the library raises various types
            break
        update(pixels)
        advance(len(pixels))
        yield _describe_shard(path, len(pixels))
        del found[number]
    for path in found.values():
        path.unlink(missing_ok=True)


def _shard_number(path: Path) -> str:
    return re.findall(r"-(\d{5})", path.name)[0]


def _read_pixels(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    reader = shard_reading.open_shard(path)
    encoded = shard_reading.require_whole(reader.read_all(), reader.num_records(), image_shape)
    return np.ascontiguousarray(shard_reading.decode(encoded, image_shape)["image"])


def _check_labels(recipe: Recipe, split: str, first: int) -> Iterator[Batch]:
    """Yields the batches that `recipe` reads. Raises BadSourceError if a label is not a class, or reading fails."""
    try:
        for batch in recipe.read(split, first):
            low, high = int(np.min(batch["label"])), int(np.max(batch["label"]))
            if low < 0 or high >= recipe.num_classes:
                raise UserError(
                    f"{recipe.name} {split}: labels {low} .. {high} are not in 0 .. {recipe.num_classes - 1}"
                )
            yield batch
    except UserError as error:
        # A separate type: after it `prepare` deletes the unfinished work instead of keeping it for a resume.
        raise BadSourceError(str(error)) from error


def _encode(batches: Iterable[Batch], update: Callable[[Any], None]) -> Iterator[bytes]:
    """Yields the records of all examples and passes their pixels to `update`."""
    for batch in batches:
        for first in range(0, len(batch["image"]), _ENCODED):
            images = np.ascontiguousarray(batch["image"][first : first + _ENCODED])
            update(images)
            yield from shard_reading.encode(
                {"image": images, "label": batch["label"][first : first + _ENCODED]}
            )


def _write_shard(path: Path, stream: Iterable[bytes]) -> Shard:
    """Writes a shard under a temporary name and renames it when it is complete."""
    temporary = path.with_name(f"{path.name}.tmp")
    count = 0
    with contextlib.closing(_Writer(temporary)) as writer:
        for record in stream:
            writer.write(record)
            count += 1
    # Order: sync the content, rename, sync the folder. After a crash, a file with a shard's name is complete.
    atomic.sync(temporary)
    os.replace(temporary, path)
    atomic.sync(path.parent)
    return _describe_shard(path, count)


class _Writer:
    """ArrayRecordWriter that raises OSError for failed writes instead of RuntimeError."""

    def __init__(self, path: Path):
        self._path = path
        self._inner = array_record.ArrayRecordWriter(str(path), _WRITE)

    def write(self, record: bytes) -> None:
        with self._as_os_error():
            self._inner.write(record)

    def close(self) -> None:
        with self._as_os_error():
            self._inner.close()

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise OSError(errno.EIO, one_line(error), str(self._path)) from error


def _describe_shard(path: Path, count: int) -> Shard:
    return Shard(path.name, count, path.stat().st_size, digests.digest_file(path)["sha256"])


def _final_names(folder: Path, split: str, found: Split) -> Split:
    """Renames the shards to include their total number, and returns the split with the new names."""
    # Only now, since the number of shards is unknown until the source has been read to its end.
    named = []
    for number, shard in enumerate(found.shards):
        name = f"{split}-{number:05d}-of-{len(found.shards):05d}.array_record"
        os.replace(folder / shard.name, folder / name)
        named.append(dataclasses.replace(shard, name=name))
    return dataclasses.replace(found, shards=tuple(named))
