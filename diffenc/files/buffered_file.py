"""An append-only file of records, which keeps them in memory while they cannot be written."""

import collections
import os
from pathlib import Path

from absl import logging

from diffenc.files import atomic

MAX_BUFFERED = 64 << 20  # bytes; beyond them the oldest records are dropped


class BufferedFile:
    """Appends records in order, each completely or not at all.

    Records that cannot be written (e.g. disk full) are buffered in memory and retried before the next record. The begin and
    the end of buffering are logged.
    """

    def __init__(self, path: Path):
        """Opens `path` for appending. Raises OSError if that fails."""
        self._path = path
        # Unbuffered: when `add` returns, the operating system has
        # the record, so that a killed process loses none.
        self._file = path.open("ab", buffering=0)
        self._buffer: collections.deque[bytes] = collections.deque()
        self._size = 0  # of the buffer, in bytes
        self._lost = 0  # records
        self._error: OSError | None = None

    def add(self, record: bytes) -> None:
        """Writes the buffered records and then `record`; buffers those that cannot be written."""
        self._buffer.append(record)
        self._size += len(record)
        while self._size > MAX_BUFFERED and len(self._buffer) > 1:
            self._size -= len(self._buffer.popleft())
            self._lost += 1
        self.settle()

    def settle(self) -> None:
        """Writes the buffered records, up to the first that cannot be written."""
        try:
            while self._buffer:
                self._write(self._buffer[0])
                self._size -= len(self._buffer.popleft())
        except OSError as error:
            if self._error is None:
                logging.error(
                    "%s; its records are kept in memory, and the run continues",
                    atomic.write_error(self._path, error),
                )
            self._error = error
            return
        if self._error is not None:
            logging.warning("%s can be written again; %s", self._path, self._format_lost())
            self._error = None

    def close(self) -> None:
        """Closes the file. Raises UserError if buffered records still cannot be written."""
        self.settle()
        self._file.close()
        if self._error is not None:
            raise atomic.write_error(self._path, self._error) from self._error

    def _write(self, record: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            while record:  # a nearly full disk takes a part, then raises
                record = record[self._file.write(record) :]
        except OSError:
            # Undoes a partial write: the file never ends in half a
            # record, to which the next one would be appended.
            self._file.truncate(size)
            raise

    def _format_lost(self) -> str:
        return f"{self._lost} records exceeded the buffer and are lost" if self._lost else "nothing is lost"
