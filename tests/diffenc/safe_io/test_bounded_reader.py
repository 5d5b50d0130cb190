import io

import pytest

from diffenc.errors import UserError
from diffenc.safe_io.bounded_reader import BoundedReader

CONTENT = bytes(range(256)) * 20_000  # several times what is asked for at once


def limited(limit: int = len(CONTENT)) -> BoundedReader:
    return BoundedReader(io.BytesIO(CONTENT), limit, "batch")


def test_it_gives_what_the_stream_gives():
    assert limited().read() == CONTENT
    stream = limited()
    sizes = (0, 1, 5, 2_000_000, 1, 3_000_000)
    assert b"".join(stream.read(size) for size in sizes) == CONTENT[: sum(sizes)]
    assert stream.read(5_000_000) == CONTENT[sum(sizes) :]
    assert stream.read(1) == b""


def test_lines():
    stream = BoundedReader(io.BytesIO(b"ab\ncd"), 5, "batch")
    assert [stream.readline(), stream.readline(1), stream.readline(), stream.readline()] == [
        b"ab\n",
        b"c",
        b"d",
        b"",
    ]


@pytest.mark.parametrize(
    "take",
    [lambda s: s.read(), lambda s: s.drain(), lambda s: [s.read(1000) for _ in range(5121)]],
)
def test_one_byte_too_many_is_refused(take):
    take(limited())
    with pytest.raises(UserError, match=r"^batch: unpacks to more than the 5,119,999 bytes it may"):
        take(limited(len(CONTENT) - 1))


def test_a_line_without_end_is_refused():
    with pytest.raises(UserError, match="more than the 100 bytes"):
        BoundedReader(io.BytesIO(b"a" * 1000), 100, "batch").readline()


def test_a_claim_beyond_the_limit_is_refused_before_a_byte_is_read():
    stream = io.BytesIO(CONTENT)
    with pytest.raises(UserError, match=r"^batch: claims 101 bytes, more than the 100 it may have"):
        BoundedReader(stream, 100, "batch").read(101)
    assert stream.tell() == 0
