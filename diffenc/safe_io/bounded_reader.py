"""Limits the number of bytes to which a stream may unpack, regardless of its headers."""

from typing import TypeVar

from diffenc.errors import UserError
from diffenc.safe_io.reading import Stream

Part = TypeVar("Part", bytes, bytes | bytearray)

_CHUNK = 2**20  # bytes asked for at a time


class BoundedReader:
    """Reads `stream`, and raises UserError once it has more than `limit` bytes.

    Memory is allocated for bytes received, never for the number requested: callers request the size in a header, which may
    be false.
    """

    def __init__(self, stream: Stream, limit: int, name: str):
        """`name` is the name of the stream in messages."""
        self._stream = stream
        self._limit = limit
        self._name = name
        self._count = 0

    def read(self, size: int = -1, /) -> bytes | bytearray:
        """Returns `size` bytes, fewer at the end of the stream; all bytes if `size` is negative."""
        if size > self._limit:
            raise UserError(f"{self._name}: claims {size:,} bytes, more than the {self._limit:,} it may have")
        found = bytearray()
        # In chunks: if a header claims gigabytes, only the bytes actually received take memory.
        while len(found) != size and (part := self._some(size - len(found) if size >= 0 else _CHUNK)):
            found += part
        return bytes(found) if len(found) < _CHUNK else found  # the large ones are not copied

    def readline(self, size: int = -1, /) -> bytes:
        """Returns the bytes up to and including the next line feed, at most `size` of them."""
        # One byte beyond the limit, so that `_counted` notices an excess.
        most = self._limit - self._count + 1
        return self._counted(self._stream.readline(min(size, most) if size >= 0 else most))

    def drain(self) -> None:
        """Reads to the end, since archives verify checksums only there."""
        while self._some(_CHUNK):
            pass

    def _some(self, size: int) -> bytes | bytearray:
        return self._counted(self._stream.read(min(size, _CHUNK)))

    def _counted(self, part: Part) -> Part:
        self._count += len(part)
        if self._count > self._limit:
            raise UserError(
                f"{self._name}: unpacks to more than the {self._limit:,} bytes it may; download it again"
            )
        return part
