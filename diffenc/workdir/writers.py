"""Metric writers of a run: the log, metrics.jsonl and TensorBoard, with the interface of clu's MetricWriter."""

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c

from diffenc.files import atomic
from diffenc.files.buffered_file import BufferedFile
from diffenc.workdir.clu_writers import FaultTolerantWriter, NullWriter, Scalars, metric_writers

METRICS = "metrics.jsonl"
SHOWN_BESIDE_HPARAMS = ("test_bpd", "validation_bpd", "bpd")


class TensorboardWriter(NullWriter):
    """TensorBoard event files: scalars, images, texts, histograms and the hparams tab.

    Events are written at once, not through tensorboardX's own queue: its `flush` does not wait for the queue, and
    when a full disk ends its thread, the next `put` hangs for ever. If the disk is full, events are buffered, see
    `diffenc.files.buffered_file`.
    """

    def __init__(self, logdir: atomic.PathLike, purge_step: int | None = None):
        """Starts a new event file in `logdir`.

        Args:
          purge_step: TensorBoard hides events of this step and later ones in older files.

        Raises:
          UserError: the file cannot be created.
        """
        logdir = Path(logdir)
        # Nanoseconds: tensorboardX names files by the second, and truncates a file of the same name.
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010d}.{socket.gethostname()}.{now}.{os.getpid()}"
        self._file = _opened(logdir / name, logdir)
        self._add(0, file_version="brain.Event:2")
        if purge_step is not None:
            # On a START event, TensorBoard drops earlier events from this step on.
            self._add(purge_step, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._add(step, summary=summary.scalar(name, _number(value)))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images [H, W, C], or [N, H, W, C] as NAME/0, NAME/1, ...; uint8, or floats in [0, 1]."""
        for name, value in images.items():
            value = np.asarray(value)
            named = {name: value} if value.ndim == 3 else {f"{name}/{i}": v for i, v in enumerate(value)}
            for tag, image in named.items():
                three = image if image.shape[-1] == 3 else image.repeat(3, axis=-1)
                self._add(step, summary=summary.image(tag, three, dataformats="HWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._add(step, summary=summary.text(name, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes a histogram of each array that is not empty."""
        for name, value in arrays.items():
            if np.size(value):
                bins = (num_buckets or {}).get(name, 30)
                self._add(step, summary=summary.histogram(name, np.asarray(value), bins=bins))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes a flat mapping of names to values; values other than numbers, booleans and strings are written as their repr."""
        values = {k: v if isinstance(v, bool | int | float | str) else repr(v) for k, v in hparams.items()}
        for part in summary.hparams(values, dict.fromkeys(SHOWN_BESIDE_HPARAMS, 0.0)):
            self._add(0, summary=part)

    def flush(self) -> None:
        self._file.settle()

    def close(self) -> None:
        """Closes the file. Raises UserError if buffered records still cannot be written."""
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=int(step), **content)
        self._file.add(_framed(event.SerializeToString()))


class JsonlWriter(NullWriter):
    """Writes one JSON object per line: `step`, then the scalars. NaN and infinities, which JSON lacks, become null.

    When `write_scalars` returns, the operating system has the line, so that a killed process loses none. If the disk is
    full, lines are buffered, see `diffenc.files.buffered_file`.
    """

    def __init__(self, path: atomic.PathLike):
        """Opens `path` for appending. Raises UserError if it cannot be opened."""
        self._file = _opened(Path(path), path)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        row = {"step": int(step), **{name: _number(value) for name, value in scalars.items()}}
        self._file.add(atomic.to_json(row).encode() + b"\n")

    def flush(self) -> None:
        self._file.settle()

    def close(self) -> None:
        """Closes the file. Raises UserError if buffered records still cannot be written."""
        self._file.close()


class LogWriter(NullWriter):
    """Logs one readable line per row: `step 400  bpd 2.310  loss 0.012  12.3 steps/s`."""

    def __init__(self, log: Callable[..., None] = logging.info):
        """`log` takes a %-format and its arguments, like `logging.info`."""
        self._log = log

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        parts = [f"{name} {_brief(_number(v))}" for name, v in scalars.items() if name != "steps_per_second"]
        if "steps_per_second" in scalars:
            parts.append(f"{_number(scalars['steps_per_second']):.3g} steps/s")
        self._log("%s", "  ".join([f"step {int(step)}", *parts]))


def create_writer(
    workdir: atomic.PathLike,
    *,
    resume_step: int | None,
    others: Sequence[metric_writers.MetricWriter] = (),
    log: Callable[..., None] = logging.info,
) -> metric_writers.MultiWriter:
    """Returns the writers of a training run: log, metrics.jsonl and TensorBoard events in `workdir`.

    Args:
      resume_step: the restored step. Rows that an earlier process wrote after it are dropped, since they are about to be
        written again. None = training starts anew, and all earlier rows are dropped.
      others: additional writers; one that fails is dropped.
      log: see `LogWriter`.

    Raises:
      UserError: a file cannot be written.
    """
    # -1: every step is after it, so that all earlier rows are dropped.
    last = -1 if resume_step is None else resume_step
    metrics = Path(workdir) / METRICS
    drop_rows_after(metrics, last)
    writers = [LogWriter(log), JsonlWriter(metrics), TensorboardWriter(workdir, purge_step=last + 1)]
    return metric_writers.MultiWriter([*writers, *map(FaultTolerantWriter, others)])


def null_writer() -> metric_writers.MultiWriter:
    """Returns a writer that discards everything, for the processes of a run that do not write."""
    return metric_writers.MultiWriter([])


def drop_rows_after(path: atomic.PathLike, step: int) -> None:
    """Drops the rows after `step` from a JSON-lines file, and an incomplete last line; keeps the rest byte for byte.

    A complete line that is not a row (as from a failing disk) is dropped too, with a warning. A missing file is allowed.

    Raises:
      UserError: the file cannot be written, and is unchanged.
    """
    path = Path(path)
    if not path.exists():
        return
    old = path.read_bytes()
    # Up to the last line feed: the rest is a line cut short when a process was killed.
    whole = old[: old.rfind(b"\n") + 1].splitlines(keepends=True)
    new = b"".join(line for line in whole if (at := _step_of(path, line)) is not None and at <= step)
    if new != old:
        atomic.write_bytes(path, new)


def last_values(path: Path) -> dict[str, float]:
    """Returns the last value of each scalar in a JSON-lines file of metrics, by name; {} without a file."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_bytes().splitlines() if _step_of(path, line) is not None]
    values = {name: value for row in rows for name, value in row.items() if value is not None}
    return {name: value for name, value in values.items() if name != "step"}


def truncate_to(path: Path, size: int) -> None:
    """Truncates a file to its `size` at a checkpoint: buffered records may have been written since."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def _opened(path: Path, named: atomic.PathLike) -> BufferedFile:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return BufferedFile(path)
    except OSError as error:
        raise atomic.write_error(named, error) from error


def _framed(event: bytes) -> bytes:
    """Returns a record of an event file: its length, the event, and checksums of both."""
    size = struct.pack("<Q", len(event))
    # The framing of TFRecord files: uint64 length and masked crc32c, little-endian.
    return b"".join([size, _checksum(size), event, _checksum(event)])


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


def _step_of(path: Path, line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError, OverflowError):
        logging.warning("%s: dropped a line that is no row: %r", path, line[:80])
        return None


def _number(value: Any) -> float:
    return float(np.asarray(value))


def _brief(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"
