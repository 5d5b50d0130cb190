"""Sources of examples: arrays in memory, subsets, the validation cut, orders of epochs and fingerprints."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8

from diffenc.errors import UserError
from diffenc.interfaces import SPLITS, Batch, Dataset, Example, Source
from diffenc.registry import datasets

_CHUNK = 4096  # images hashed at a time


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Examples in two arrays; the views kept here are read-only because data sets share the arrays.

    Attributes:
      images: levels of the pixels.
      labels: classes from 0.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images, {len(self.labels)} labels")
        for name in ("images", "labels"):
            view = getattr(self, name).view()
            view.setflags(write=False)
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "label": np.asarray(self.labels[index])}

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        return {"image": self.images[indices], "label": self.labels[indices]}


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """The examples of `source` at `indices`, in that order, without copying images."""

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        return self.source.__getitems__(self.indices[indices])


def split_source(read: Callable[[str], Source], split: str, validation: int, name: str) -> Source:
    """Returns the examples of `split`, given that only "train" and "test" exist on disk.

    Args:
      read: returns "train" or "test".
      validation: number of images cut from train.
      name: registered name of the data set, for messages.

    Raises:
      UserError: there is no such split, or `validation` is invalid (see `cut_validation`).
    """
    if split not in SPLITS:
        raise UserError(f"dataset.{name} has no split {split!r}; splits: {', '.join(SPLITS)}")
    return read("test") if split == "test" else cut_validation(read("train"), split, validation, name)


def cut_validation(train: Source, split: str, validation: int, name: str) -> Source:
    """Returns `validation` of the examples of `train` if `split` is "validation", and the others, in order, if it is "train".

    Raises:
      UserError: `validation` is negative, leaves no example to train on, or is 0 where `split` is "validation".
    """
    key = f"dataset.{name}.validation = {validation}"
    if validation < 0:
        raise UserError(f"{key}: must not be negative")
    if validation == 0 and split == "validation":
        raise UserError(
            f"{key}: there is no validation split; give it the number of images to cut from train"
        )
    if validation >= len(train):
        raise UserError(f"{key}: must be less than the {len(train)} images of train")
    if validation == 0:
        return train
    chosen = validation_indices(len(train), validation)
    return Subset(train, chosen if split == "validation" else np.delete(np.arange(len(train)), chosen))


def validation_indices(num: int, validation: int) -> Int[np.ndarray, " v"]:
    """Returns `validation` increasing indices below `num`, one from each of `validation` equal intervals.

    Thus every class keeps its share in a data set ordered by class. The position within the interval advances by the
    golden ratio: at a fixed position, classes that repeat with the interval's length would always yield the same class.
    """
    # Integers throughout: the indices must be the same on every machine, and rounding of floats could move an edge.
    edges = np.arange(validation + 1, dtype=np.uint64) * np.uint64(num) // np.uint64(validation)
    # 0x9E3779B9 = 2^32 over the golden ratio: fractions in 32-bit fixed point, hence the shift by 32 below.
    place = np.arange(validation, dtype=np.uint64) * np.uint64(0x9E3779B9) % np.uint64(2**32)
    return (edges[:-1] + (place * np.diff(edges) >> np.uint64(32))).astype(np.int64)


def read_images(
    dataset: Dataset, split: str, num: int | None = None, seed: int = 0
) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the images of a split as levels: all, or the `num` that an evaluation with `evaluate.seed = seed` measures.

    Raises:
      UserError: the data set has no such split, or is not prepared.
    """
    source = subsample(dataset.source(split), num, seed)
    return source.__getitems__(np.arange(len(source)))["image"]


def subsample(source: Source, num: int | None, seed: int) -> Source:
    """Returns `num` examples drawn by `seed`, in source order; all of them if `num` is None or not below their number."""
    if num is None or num >= len(source):
        return source
    return Subset(source, subsample_indices(len(source), num, seed))


def subsample_indices(total: int, num: int, seed: int) -> Int[np.ndarray, " n"]:
    """Returns `num` of `total` indices drawn by `seed`, in increasing order; all of them if there are fewer."""
    # The first `num` of one permutation, so that a smaller sample is a subset of a larger one.
    return np.sort(epoch_order(total, seed, 0)[:num])


def epoch_order(num: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """Returns a permutation of `num` indices, a function of the seed and the epoch.

    Not grain's shuffle, which gives the same orders to different epochs of neighbouring seeds and, because it walks
    cycles, takes milliseconds per index for small data sets.
    """
    # argsort of raw bits, not numpy's shuffle: of a generator's methods numpy guarantees only the raw stream to stay
    # the same in later versions. A resumed run needs the same order.
    bits = np.random.PCG64(np.random.SeedSequence(seed % 2**64, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(num), kind="stable")


def fingerprint(source: Source) -> str:
    """Returns the hex SHA-256 of the uint8 [N, H, W, C] pixels in source order."""
    digest = hashlib.sha256()
    for first in range(0, len(source), _CHUNK):
        batch = source.__getitems__(np.arange(first, min(first + _CHUNK, len(source))))
        digest.update(np.ascontiguousarray(batch["image"]).data)
    return digest.hexdigest()


def skip_examples(batches: Iterable[Batch], first: int) -> Iterator[Batch]:
    """Yields the examples of `batches` after the first `first` of them."""
    for batch in batches:
        count = len(batch["image"])
        if first < count:
            yield {"image": batch["image"][first:], "label": batch["label"][first:]}
        first = max(0, first - count)


def dataset_name(dataset: Dataset) -> str:
    """Returns the registered name of a data set, or its class's name if it is not registered."""
    return datasets.name_of(type(dataset)) or type(dataset).__name__


def source_name(dataset: Dataset) -> str | None:
    """Returns the description of the images in the data set's files; None for a data set without files."""
    return getattr(dataset, "source_name", None)


def train_identity(dataset: Dataset) -> str:
    """Returns an identifier of the images that a run trains on. Prepared data sets take it from the manifest, without reading.

    Raises:
      UserError: the data are missing.
    """
    of_files = getattr(dataset, "train_identity", None)
    return of_files() if of_files else dataset.fingerprint("train")


def require_same_images(records: Iterable[Mapping[str, Any]]) -> None:
    """Raises UserError if records are of different images, or of likelihoods under different conditions.

    Args:
      records: as written by `evaluate` and similar modes, with `fingerprint`, `dataset`, `split`, `num_images`; with
        `source` if the data are read from files, and with `condition` if they are of p(x | condition).

    Raises:
      UserError: two records are not comparable; the message describes both.
    """
    records = list(records)
    for other in records[1:]:
        for what, of in (("different images", _images), ("images given different things", _condition)):
            if of(other) != of(records[0]):
                raise UserError(
                    f"these figures are of {what}, and not to be compared: {_described(records[0])}; "
                    f"and {_described(other)}"
                )


def _images(record: Mapping[str, Any]) -> tuple:
    return record["fingerprint"], record.get("num_images")


def _condition(record: Mapping[str, Any]) -> str | None:
    return record.get("condition")


def _described(record: Mapping[str, Any]) -> str:
    source = f" ({record['source']})" if record.get("source") else ""
    count = f"{record['num_images']:,} images" if "num_images" in record else "images"
    return f"{count} of {describe_images(record)}{source}, pixels {record['fingerprint'][:16]}"


def describe_images(record: Mapping[str, Any]) -> str:
    """Returns a title of the images that a record is of: data set, split, and the model's condition if it has one."""
    told = f" | {record['condition']}" if record.get("condition") else ""
    return f"{record['dataset']} {record['split']}{told}"
