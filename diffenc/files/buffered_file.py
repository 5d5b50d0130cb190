"""A file of records that is only ever added to, on a disk that may be full for a while."""

import collections
import os
from pathlib import Path

from absl import logging

from diffenc.files import atomic

MOST = 64 << 20  # bytes owed, at most; of more the oldest records are given up


class BufferedFile:
    """Records in the order they were given, each there whole or not at all.

    Those that the disk refuses are owed: kept in memory, and written before the next one that it takes. That
    is logged when it begins and when it ends.
    """

    def __init__(self, path: Path):
        """Append to `path`. Raises OSError if it cannot be made."""
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._owed: collections.deque[bytes] = collections.deque()
        self._size = 0  # of what is owed, in bytes
        self._lost = 0  # records
        self._refusal: OSError | None = None

    def add(self, record: bytes) -> None:
        """Write `record`, and whatever is owed before it, or owe it too."""
        self._owed.append(record)
        self._size += len(record)
        while self._size > MOST and len(self._owed) > 1:
            self._size -= len(self._owed.popleft())
            self._lost += 1
        self.settle()

    def settle(self) -> None:
        """Write what is owed, as far as the disk takes it."""
        try:
            while self._owed:
                self._write(self._owed[0])
                self._size -= len(self._owed.popleft())
        except OSError as error:
            if self._refusal is None:
                logging.error(
                    "%s; what belongs there is kept in memory, and the run goes on",
                    atomic.write_error(self._path, error),
                )
            self._refusal = error
            return
        if self._refusal is not None:
            logging.warning("%s can be written again; %s", self._path, self._told_lost())
            self._refusal = None

    def close(self) -> None:
        """Raises UserError if the disk refuses what is owed to the end."""
        self.settle()
        self._file.close()
        if self._refusal is not None:
            raise atomic.write_error(self._path, self._refusal) from self._refusal

    def _write(self, record: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            while record:  # a nearly full disk takes a part, then says why it takes no more
                record = record[self._file.write(record) :]
        except OSError:
            self._file.truncate(size)
            raise

    def _told_lost(self) -> str:
        return (
            f"{self._lost} records were too much for memory and are lost" if self._lost else "nothing is lost"
        )
