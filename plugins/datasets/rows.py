"""Batches of rows, the format of CIFAR-10 and of downsampled ImageNet: 32x32 images stored channel by channel."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from diffenc.errors import UserError
from diffenc.interfaces import Batch

_CHANNELS, _SIDE = 3, 32
ROW = _CHANNELS * _SIDE * _SIDE


def examples(
    batches: Iterable[tuple[str, Mapping[str, Any]]], first_label: int, num_classes: int
) -> Iterator[Batch]:
    """Yields the batches as images [N, 32, 32, 3], with labels counted from 0.

    Args:
      batches: pairs of a name for messages and a mapping of `data`, uint8 [N, 3072], and `labels`, N integers.
      first_label: the smallest label in the batches.
      num_classes: number of labels from `first_label` on.

    Raises:
      UserError: a batch has another form; the message names it.
    """
    for name, batch in batches:
        rows = _rows(name, batch)
        labels = _labels(name, batch, len(rows), first_label, num_classes)
        # Rows hold all red, then all green, then all blue values: NCHW to NHWC.
        yield {"image": rows.reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1), "label": labels}


def _rows(name: str, batch: Mapping[str, Any]) -> UInt8[np.ndarray, "n row"]:
    rows = batch.get("data")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != ROW:
        held = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise UserError(f"{name}: its data are {held}, not uint8 (N, {ROW})")
    if len(rows) == 0:
        raise UserError(f"{name}: holds no image")
    return rows


def _labels(
    name: str, batch: Mapping[str, Any], count: int, first_label: int, num_classes: int
) -> Int[np.ndarray, " n"]:
    given = batch.get("labels")
    # type, not isinstance: a bool is an int, and an unpickled list may hold every type that the loader allows.
    listed = isinstance(given, list) and all(type(label) is int for label in given)
    labels = np.asarray(given) if listed or isinstance(given, np.ndarray) else np.empty(0, object)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(f"{name}: its labels are not {count} integers, one an image")
    if labels.min() < first_label or labels.max() >= first_label + num_classes:
        last = first_label + num_classes - 1
        raise UserError(
            f"{name}: labels {labels.min()} .. {labels.max()} are not within {first_label} .. {last}"
        )
    return (labels.astype(np.int64) - first_label).astype(np.int32)
