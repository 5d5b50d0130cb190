"""Shards of records, read by index.

A record is the label as a little-endian int32, then the pixels as uint8 [H, W, C]. Shards are ArrayRecord
files with one record per chunk, so that any example can be read alone; each chunk has a hash, which every read
checks.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module as array_record  # pyright: ignore[reportAttributeAccessIssue]
from jaxtyping import Int

from diffenc.data.manifest import Split
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.interfaces import Batch, Example
from diffenc.safe_io.reading import one_line

IN_MEMORY = 2**31  # bytes of pixels; a larger split is read from its shards as it is used
LABEL_BYTES = 4
_RECORDS_PER_READ = 4096
_READ = "readahead_buffer_size:0,max_parallelism:0"  # the fastest for random access


def encode(batch: Batch) -> list[bytes]:
    """Returns one record per example."""
    images = np.ascontiguousarray(batch["image"]).reshape(len(batch["image"]), -1)
    # Little-endian whatever the machine: shards may be copied to another one.
    labels = np.asarray(batch["label"]).astype("<i4").reshape(-1, 1).view(np.uint8)
    return [row.tobytes() for row in np.concatenate([labels, images], axis=1)]


def decode(records: Sequence[bytes], image_shape: tuple[int, int, int]) -> Batch:
    """Returns the examples in `records`, which must have passed `require_whole`."""
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, LABEL_BYTES + math.prod(image_shape))
    labels = np.ascontiguousarray(rows[:, :LABEL_BYTES]).view("<i4").reshape(-1)
    return {"image": rows[:, LABEL_BYTES:].reshape(-1, *image_shape), "label": labels.astype(np.int32)}


def require_whole(records: list[bytes], count: int, image_shape: tuple[int, int, int]) -> list[bytes]:
    """Returns `records` after checking their number and lengths: records missing from a truncated file raise no error.

    Raises:
      ValueError: there are not `count` records, or one has the wrong length.
    """
    length = LABEL_BYTES + math.prod(image_shape)
    if len(records) != count or any(len(record) != length for record in records):
        raise ValueError("a record is cut short")
    return records


def open_shard(path: Path, count: int | None = None) -> Any:
    """Returns a reader of the shard at `path`; threads may share it.

    Raises:
      ValueError: the file is not a shard, or has not `count` records.
    """
    reader = array_record.ArrayRecordReader(str(path), _READ)
    if not reader.ok():
        reader.close()  # raises the reason
    if count is not None and reader.num_records() != count:
        raise ValueError(f"{reader.num_records()} good records, not {count}")
    return reader


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """A split read from its shards by index. Threads may share it; pickling keeps the fields below, and files are reopened.

    Attributes:
      folder: the folder of the shards.
      image_shape: (H, W, C).

    Raises:
      UserError: a shard is missing or differs from the manifest; also raised by later reads.
    """

    folder: Path
    split: Split
    image_shape: tuple[int, int, int]

    def __post_init__(self):
        # Opens all shards at once, so that a missing or truncated one is found before training starts.
        for number in range(len(self.split.shards)):
            self._reader(number)

    def __getstate__(self) -> dict[str, Any]:
        # The fields alone: the cached readers and their lock cannot be pickled.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return self.split.count

    def __getitem__(self, index: int) -> Example:
        batch = self.__getitems__(np.array([index]))
        return {"image": batch["image"][0], "label": batch["label"][0]}

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"{indices.min()} .. {indices.max()} of {len(self)} examples")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(shards, kind="stable")  # shard by shard
        numbers, counts = np.unique(shards, return_counts=True)
        positions = np.split((indices - self._starts[shards])[order], np.cumsum(counts)[:-1])
        parts = map(self._read, numbers.tolist(), positions)
        found = decode(list(itertools.chain.from_iterable(parts)), self.image_shape)
        # The inverse permutation restores the order of `indices`.
        places = np.argsort(order)
        return {"image": found["image"][places], "label": found["label"][places]}

    @functools.cached_property
    def _starts(self) -> Int[np.ndarray, " shards"]:
        """The index of the first example of each shard."""
        return np.cumsum([0, *(shard.count for shard in self.split.shards)])[:-1]

    @functools.cached_property
    def _opened(self) -> tuple[dict[int, Any], threading.Lock]:
        return {}, threading.Lock()

    def _reader(self, number: int) -> Any:
        readers, lock = self._opened
        with lock:
            if number not in readers:
                shard = self.split.shards[number]
                path = self.folder / shard.name
                with convert_damage(path):
                    # A truncated ArrayRecord may open without an error and miss records.
                    if path.stat().st_size != shard.bytes:
                        raise ValueError(f"{path.stat().st_size:,} bytes, not {shard.bytes:,}")
                    readers[number] = open_shard(path, shard.count)
            return readers[number]

    def _read(self, number: int, positions: Int[np.ndarray, " b"]) -> list[bytes]:
        reader = self._reader(number)
        with convert_damage(self.folder / self.split.shards[number].name):
            return require_whole(reader.read(positions.tolist()), len(positions), self.image_shape)


def load_into_memory(source: ShardSource) -> ArraySource:
    """Loads all examples, and checks their pixels against the manifest.

    Raises:
      UserError: the pixels differ from those of the manifest.
    """
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    # In parts: the records of the whole split would take its memory a second time.
    for first in range(0, len(source), _RECORDS_PER_READ):
        last = min(first + _RECORDS_PER_READ, len(source))
        part = source.__getitems__(np.arange(first, last))
        images[first:last], labels[first:last] = part["image"], part["label"]
    if hashlib.sha256(images.data).hexdigest() != source.split.sha256:
        names = ", ".join(shard.name for shard in source.split.shards)
        # Raised within `convert_damage`, which makes it a UserError with the usual message.
        with convert_damage(source.folder / names):
            raise ValueError("the pixels are not those of the manifest")
    return ArraySource(images, labels)


@contextlib.contextmanager
def convert_damage(path: Path) -> Iterator[None]:
    """Converts any error raised while the shard at `path` is read into a UserError with the remedy."""
    try:
        yield
    except Exception as error:  # the library raises what its C++ happens to
        raise UserError(
            f"{path}: is damaged or missing ({one_line(error)}); "
            f"delete {path.parent} and prepare it again with python -m diffenc.prepare"
        ) from error
