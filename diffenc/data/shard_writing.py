"""Writing a data set into shards, so that a call that was stopped is gone on with."""

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

SHARD_BYTES = 2**28  # of records in a shard, about; a batch reads from every shard, so many of them are slow
DOWNLOADS = "downloads"  # in a folder under way: official files
_RECIPE = "recipe.json"  # in a folder under way: what it is being made from
_WRITE = "group_size:1,uncompressed"  # photographs hardly compress, and so every record is read alone
_ENCODED = 1024  # examples encoded at a time


def convert(
    recipe: Recipe, files: Mapping[str, Mapping[str, Any]], folder: Path, bars: ProgressBars
) -> Manifest:
    """Fill `folder` with the shards of both splits, and at last their manifest.

    Finished shards that an earlier call left there are read, verified and kept, if they are of the same
    `files`.

    Args:
      files: by name, the digests of what is converted.

    Raises:
      BadSourceError: as it says.
      OSError, UserError: the disk refused; what is finished is kept.
    """
    _same_work(recipe, files, folder)
    splits = {}
    for split in ON_DISK:
        advance = bars.start(f"{recipe.name} {split}", recipe.counts.get(split))
        splits[split] = _named(folder, split, _write_split(recipe, split, folder, advance))
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
    manifest.write(made, folder)
    (folder / _RECIPE).unlink()
    return made


def clear_work(folder: Path) -> None:
    """Remove whatever lies in `folder` but downloads."""
    for path in folder.iterdir():
        if path.name != DOWNLOADS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def examples_per_shard(image_shape: tuple[int, int, int]) -> int:
    """The number of examples in every shard of a split but the last."""
    return max(1, SHARD_BYTES // (math.prod(image_shape) + shard_reading.LABEL_BYTES))


def _same_work(recipe: Recipe, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Clear `folder` unless what lies there is the beginning of the same conversion."""
    work = {
        "name": recipe.name,
        "files": files,
        "image_shape": recipe.image_shape,
        "classes": recipe.classes,
        "note": recipe.note,
        "otherwise": recipe.otherwise,
        "per_shard": examples_per_shard(recipe.image_shape),
    }
    said = json.loads(atomic.to_json(work))
    try:
        same = json.loads((folder / _RECIPE).read_bytes()) == said
    except (OSError, ValueError):
        same = False
    if not same:
        clear_work(folder)
        atomic.write_json(folder / _RECIPE, said)


def _write_split(recipe: Recipe, split: str, folder: Path, advance: Advance) -> Split:
    digest = digests.ImageDigest()
    size = examples_per_shard(recipe.image_shape)
    shards = list(_finished(recipe, split, folder, digest.update, advance))
    first = sum(shard.count for shard in shards)
    stream = _encoded(_sound(recipe, split, first), digest.update)
    while head := next(stream, None):
        path = folder / f"{split}-{len(shards):05d}.array_record"
        shards.append(_write_shard(path, itertools.chain([head], itertools.islice(stream, size - 1))))
        advance(shards[-1].count)
    return Split(digest.ordered, tuple(shards), digest.unordered)


def _finished(
    recipe: Recipe, split: str, folder: Path, update: Callable[[Any], None], advance: Advance
) -> Iterator[Shard]:
    """The good shards that lie there in a row, their pixels told to `update`; whatever follows is removed."""
    found = {int(_number(path)): path for path in folder.glob(f"{split}-*.array_record")}
    for number in itertools.count():
        if number not in found:
            break
        path = found[number].rename(folder / f"{split}-{number:05d}.array_record")
        try:
            pixels = _pixels(path, recipe.image_shape)
        except Exception:  # damaged since it was written
            break
        update(pixels)
        advance(len(pixels))
        yield _shard(path, len(pixels))
        del found[number]
    for path in found.values():
        path.unlink(missing_ok=True)


def _number(path: Path) -> str:
    return re.findall(r"-(\d{5})", path.name)[0]


def _pixels(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    reader = shard_reading.open_shard(path)
    held = shard_reading.require_whole(reader.read_all(), reader.num_records(), image_shape)
    return np.ascontiguousarray(shard_reading.decode(held, image_shape)["image"])


def _sound(recipe: Recipe, split: str, first: int) -> Iterator[Batch]:
    """What `recipe` reads, once the labels are seen to be classes. Raises BadSourceError."""
    try:
        for batch in recipe.read(split, first):
            low, high = int(np.min(batch["label"])), int(np.max(batch["label"]))
            if low < 0 or high >= recipe.num_classes:
                raise UserError(
                    f"{recipe.name} {split}: labels {low} .. {high} are not within 0 .. {recipe.num_classes - 1}"
                )
            yield batch
    except UserError as error:
        raise BadSourceError(str(error)) from error


def _encoded(batches: Iterable[Batch], update: Callable[[Any], None]) -> Iterator[bytes]:
    """The records of all examples, whose pixels `update` is told."""
    for batch in batches:
        for first in range(0, len(batch["image"]), _ENCODED):
            images = np.ascontiguousarray(batch["image"][first : first + _ENCODED])
            update(images)
            yield from shard_reading.encode(
                {"image": images, "label": batch["label"][first : first + _ENCODED]}
            )


def _write_shard(path: Path, stream: Iterable[bytes]) -> Shard:
    """The shard at `path`, which is whole or absent."""
    temporary = path.with_name(f"{path.name}.tmp")
    count = 0
    with contextlib.closing(_Writer(temporary)) as writer:
        for record in stream:
            writer.write(record)
            count += 1
    atomic.sync(temporary)
    os.replace(temporary, path)
    atomic.sync(path.parent)
    return _shard(path, count)


class _Writer:
    """The library's writer, whose refusals are the OSErrors that they tell of."""

    def __init__(self, path: Path):
        self._path = path
        self._inner = array_record.ArrayRecordWriter(str(path), _WRITE)

    def write(self, record: bytes) -> None:
        with self._telling():
            self._inner.write(record)

    def close(self) -> None:
        with self._telling():
            self._inner.close()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise OSError(errno.EIO, one_line(error), str(self._path)) from error


def _shard(path: Path, count: int) -> Shard:
    return Shard(path.name, count, path.stat().st_size, digests.digest_file(path)["sha256"])


def _named(folder: Path, split: str, found: Split) -> Split:
    """The shards under names that say how many they are."""
    named = []
    for number, shard in enumerate(found.shards):
        name = f"{split}-{number:05d}-of-{len(found.shards):05d}.array_record"
        os.replace(folder / shard.name, folder / name)
        named.append(dataclasses.replace(shard, name=name))
    return dataclasses.replace(found, shards=tuple(named))
