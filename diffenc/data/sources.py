"""Sources of examples."""

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
    """Examples in two arrays, which become read-only here because data sets share them.

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
    """The examples of `source` at `indices`, in that order; copies no image."""

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        return self.source.__getitems__(self.indices[indices])


def split_source(read: Callable[[str], Source], split: str, validation: int, name: str) -> Source:
    """The examples of `split`, where only `read("train")` and `read("test")` exist on disk.

    Args:
      validation: number of images cut from train.
      name: registered name of the data set, for messages.

    Raises:
      UserError: no such split, or `validation` does not fit.
    """
    if split not in SPLITS:
        raise UserError(f"dataset.{name} has no split {split!r}; splits: {', '.join(SPLITS)}")
    return read("test") if split == "test" else cut_validation(read("train"), split, validation, name)


def cut_validation(train: Source, split: str, validation: int, name: str) -> Source:
    """`split` "validation": `validation` of train's examples; "train": the others, in their order.

    Raises:
      UserError: `validation` is negative, leaves no example to train on, or is 0 where split is "validation".
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
    """`validation` increasing indices below `num`, one from each of as many equal stretches.

    So every class keeps its share in a set ordered by class. Where in its stretch an index lies moves by
    the golden ratio, or a stretch as long as a cycle of classes would always hit the same class.
    """
    # Integers throughout: floats would place some edges differently on another machine.
    edges = np.arange(validation + 1, dtype=np.uint64) * np.uint64(num) // np.uint64(validation)
    # 0x9E3779B9 = 2^32 over the golden ratio: fractions in 32-bit fixed point, hence the shift by 32 below.
    place = np.arange(validation, dtype=np.uint64) * np.uint64(0x9E3779B9) % np.uint64(2**32)
    return (edges[:-1] + (place * np.diff(edges) >> np.uint64(32))).astype(np.int64)


def subsample(source: Source, num: int | None, seed: int) -> Source:
    """`num` of the examples, drawn by `seed`, in source order; all of them if None or if there are no more."""
    if num is None or num >= len(source):
        return source
    # The first of one permutation, so that a smaller number is a subset of a larger one.
    return Subset(source, np.sort(epoch_order(len(source), seed, 0)[:num]))


def epoch_order(num: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """A permutation of `num` places.

    Not grain's shuffle: it gives neighbouring seeds each other's epochs and, walking cycles, takes
    milliseconds an index in small sets. Sorting raw bits: numpy promises those alone never to change.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed % 2**64, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(num), kind="stable")


def fingerprint(source: Source) -> str:
    """Hex SHA-256 of the uint8 [N, H, W, C] pixels in source order."""
    digest = hashlib.sha256()
    for first in range(0, len(source), _CHUNK):
        batch = source.__getitems__(np.arange(first, min(first + _CHUNK, len(source))))
        digest.update(np.ascontiguousarray(batch["image"]).data)
    return digest.hexdigest()


def skip_examples(batches: Iterable[Batch], first: int) -> Iterator[Batch]:
    """The examples of `batches` without the first `first` of them."""
    for batch in batches:
        count = len(batch["image"])
        if first < count:
            yield {"image": batch["image"][first:], "label": batch["label"][first:]}
        first = max(0, first - count)


def dataset_name(dataset: Dataset) -> str:
    """As registered, else its class's own."""
    return datasets.name_of(type(dataset)) or type(dataset).__name__


def source_name(dataset: Dataset) -> str | None:
    """Which images these are, as the data set's files say; None where it lies in no files."""
    return getattr(dataset, "source_name", None)


def train_identity(dataset: Dataset) -> str:
    """Tells what a run trains on from any other images. Cheap to ask, also of data larger than memory.

    Raises:
      UserError: the data are not there.
    """
    of_files = getattr(dataset, "train_identity", None)
    return of_files() if of_files else dataset.fingerprint("train")


def require_same_images(records: Iterable[Mapping[str, Any]]) -> None:
    """Refuse to put figures of different images, or of images given different things, side by side.

    Args:
      records: what `evaluate` and its like write: with `fingerprint`, `dataset`, `split`, `num_images`, of data
        that lie in files `source`, and, of p(x | condition), `condition`.

    Raises:
      UserError: names what both are of.
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
    """What figures are of, for titles: data set, split, and what the model was told of each image."""
    told = f" | {record['condition']}" if record.get("condition") else ""
    return f"{record['dataset']} {record['split']}{told}"
