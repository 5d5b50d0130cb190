"""Shards of records, read by index.

A record is the label as a little-endian int32, then the pixels as uint8 [H, W, C]. Shards are ArrayRecord
files of one record a chunk, so that any example is read alone; each chunk carries a hash, which every read
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
    """One record an example."""
    images = np.ascontiguousarray(batch["image"]).reshape(len(batch["image"]), -1)
    # Little-endian whatever the machine: shards may be copied to another one.
    labels = np.asarray(batch["label"]).astype("<i4").reshape(-1, 1).view(np.uint8)
    return [row.tobytes() for row in np.concatenate([labels, images], axis=1)]


def decode(records: Sequence[bytes], image_shape: tuple[int, int, int]) -> Batch:
    """The examples in `records`, which `require_whole` has let pass."""
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, LABEL_BYTES + math.prod(image_shape))
    labels = np.ascontiguousarray(rows[:, :LABEL_BYTES]).view("<i4").reshape(-1)
    return {"image": rows[:, LABEL_BYTES:].reshape(-1, *image_shape), "label": labels.astype(np.int32)}


def require_whole(records: list[bytes], count: int, image_shape: tuple[int, int, int]) -> list[bytes]:
    """`records`, if they are `count` and of the right length: what is cut off a file is read as nothing.

    Raises:
      ValueError: they are not.
    """
    length = LABEL_BYTES + math.prod(image_shape)
    if len(records) != count or any(len(record) != length for record in records):
        raise ValueError("a record is cut short")
    return records


def open_shard(path: Path, count: int | None = None) -> Any:
    """A reader of the shard at `path`, which threads may share.

    Raises:
      ValueError: it is no shard, or not one of `count` records.
    """
    reader = array_record.ArrayRecordReader(str(path), _READ)
    if not reader.ok():
        reader.close()  # raises the reason
    if count is not None and reader.num_records() != count:
        raise ValueError(f"{reader.num_records()} good records, not {count}")
    return reader


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """A split in its shards. Threads may share it; pickled, it is the fields below and opens its files anew.

    Attributes:
      folder: where the shards lie.
      image_shape: (H, W, C).

    Raises:
      UserError: a shard is missing, or is not as its manifest says; also while it is being read.
    """

    folder: Path
    split: Split
    image_shape: tuple[int, int, int]

    def __post_init__(self):
        for number in range(len(self.split.shards)):
            self._reader(number)

    def __getstate__(self) -> dict[str, Any]:
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
        # The inverse permutation: examples in the order in which they were asked for.
        places = np.argsort(order)
        return {"image": found["image"][places], "label": found["label"][places]}

    @functools.cached_property
    def _starts(self) -> Int[np.ndarray, " shards"]:
        """The index of each shard's first example."""
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
    """All examples in memory, their pixels checked against the manifest.

    Raises:
      UserError: a shard is not as its manifest says.
    """
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for first in range(0, len(source), _RECORDS_PER_READ):
        last = min(first + _RECORDS_PER_READ, len(source))
        part = source.__getitems__(np.arange(first, last))
        images[first:last], labels[first:last] = part["image"], part["label"]
    if hashlib.sha256(images.data).hexdigest() != source.split.sha256:
        names = ", ".join(shard.name for shard in source.split.shards)
        # Raised within the context for the sake of its message.
        with convert_damage(source.folder / names):
            raise ValueError("the pixels are not those of the manifest")
    return ArraySource(images, labels)


@contextlib.contextmanager
def convert_damage(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while the shard at `path` is read into a UserError that says what to do."""
    try:
        yield
    except Exception as error:  # the library raises what its C++ happens to
        raise UserError(
            f"{path}: is damaged or missing ({one_line(error)}); "
            f"delete {path.parent} and prepare it again with python -m diffenc.prepare"
        ) from error
