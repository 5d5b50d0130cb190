"""Streams that unpack to no more than was agreed, whatever their headers claim."""

from typing import TypeVar

from diffenc.errors import UserError
from diffenc.safe_io.reading import Stream

Part = TypeVar("Part", bytes, bytes | bytearray)

_CHUNK = 2**20  # bytes asked for at a time


class BoundedReader:
    """Gives the bytes of `stream`, and raises UserError once they are more than `limit`.

    Memory is taken for bytes that have come, never for as many as someone asks for: readers ask for what a
    header claims.
    """

    def __init__(self, stream: Stream, limit: int, name: str):
        """`name` is what messages call the stream."""
        self._stream = stream
        self._limit = limit
        self._name = name
        self._count = 0

    def read(self, size: int = -1, /) -> bytes | bytearray:
        """`size` bytes, or all where it is negative; fewer at the end."""
        if size > self._limit:
            raise UserError(f"{self._name}: claims {size:,} bytes, more than the {self._limit:,} it may have")
        found = bytearray()
        while len(found) != size and (part := self._some(size - len(found) if size >= 0 else _CHUNK)):
            found += part
        return bytes(found) if len(found) < _CHUNK else found  # the large ones are not copied

    def readline(self, size: int = -1, /) -> bytes:
        """Up to and with the next line feed, or `size` bytes of that."""
        most = self._limit - self._count + 1
        return self._counted(self._stream.readline(min(size, most) if size >= 0 else most))

    def drain(self) -> None:
        """Read to the end, as archives check their sums there."""
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
