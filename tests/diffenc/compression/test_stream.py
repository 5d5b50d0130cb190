"""The file of coded images: what is damaged, cut off or made up is refused, with one line."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest

from diffenc.compression.numbers import ChainNumbers
from diffenc.compression.stream import (
    CodedImages,
    Header,
    check_sizes,
    header_bytes,
    parse_stream,
    payload_bytes,
    read_stream,
    write_stream,
)
from diffenc.errors import UserError

WORDS = np.random.default_rng(0).integers(0, 2**32, 60, dtype=np.uint32)
SHA = hashlib.sha256(b"").hexdigest()
HEADER = Header(
    config_hash=SHA,
    weights=SHA,
    step=7,
    num_images=5,
    image_shape=(4, 4, 1),
    num_levels=17,
    num_classes=0,
    batch_size=2,
    bins=16,
    seed=3,
    initial_words=40,
    words=len(WORDS),
    payload=hashlib.sha256(WORDS.astype("<u4").tobytes()).hexdigest(),
    pixels=SHA,
    batch_checks=("0" * 8, "1" * 8, "a" * 8),
    whitened=(0, 20, 24),
    environment={"jax": "1", "devices": "1 x cpu"},
    program=SHA,
    results=SHA,
    chain=ChainNumbers(
        np.array([0.0, 0.3, 1.0]), np.array([13.3, 1 / 3, -5.0]), np.array([13.0, 5.0]), np.array([0.1, -0.2])
    ),
)
STREAM = header_bytes(HEADER) + payload_bytes(WORDS)
BEGIN = 44  # of the header's text
END = len(STREAM) - 4 * len(WORDS)


def parse(data: bytes) -> CodedImages:
    return parse_stream(io.BytesIO(data), len(data), "it")


def flipped(place: int) -> bytes:
    """The stream with one bit the other way."""
    return STREAM[:place] + bytes([STREAM[place] ^ 4]) + STREAM[place + 1 :]


def with_header(**changes) -> bytes:
    """The stream with another header, whose checksum is right."""
    text = STREAM[BEGIN:END]
    said = {**json.loads(text), **changes}
    text = json.dumps({key: value for key, value in said.items() if value is not ...}).encode()
    digest = hashlib.sha256(text).digest()
    return STREAM[:8] + len(text).to_bytes(4, "little") + digest + text + STREAM[END:]


def chain(**changes):
    return {**json.loads(STREAM[BEGIN:END])["chain"], **changes}


def test_a_stream_comes_back_as_it_was(tmp_path):
    write_stream(tmp_path / "a", CodedImages(HEADER, WORDS))
    header, words = read_stream(tmp_path / "a")
    np.testing.assert_array_equal(words, WORDS)
    plain = [dataclasses.asdict(one) for one in (HEADER, header)]
    for one in plain:
        one["chain"] = {key: value.tolist() for key, value in one["chain"].items()}
    assert plain[0] == plain[1]
    assert (header.num_batches, [header.count(k) for k in range(3)]) == (3, [2, 2, 1])


DAMAGED = {
    "empty": b"",
    "one byte": STREAM[:1],
    "the magic number alone": STREAM[:8],
    "cut in the header's length": STREAM[:10],
    "cut in the header's checksum": STREAM[:30],
    "cut before the header": STREAM[:BEGIN],
    "cut in the header": STREAM[: BEGIN + 100],
    "cut before the words": STREAM[:END],
    "cut in the words": STREAM[: END + 101],
    "cut at a word": STREAM[:-4],
    "cut by a byte": STREAM[:-1],
    "a byte more": STREAM + b"\0",
    "twice": STREAM + STREAM,
    "another magic number": flipped(0),
    "another layout": flipped(7),
    "another length of the header": flipped(8),
    "a header of gigabytes": STREAM[:8] + b"\xff\xff\xff\xff" + STREAM[12:],
    "another checksum of the header": flipped(20),
    "another header": flipped(BEGIN + 150),
    "another first word": flipped(END),
    "another word": flipped(END + 121),
    "another last word": flipped(len(STREAM) - 1),
    "words swapped": STREAM[:END] + STREAM[-4:] + STREAM[END:-4],
    "all zeros": bytes(len(STREAM)),
    "a last word that is empty": STREAM[:-4] + bytes(4),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_stream_is_refused(data):
    assert data != STREAM
    with pytest.raises(UserError, match=r"^it: is (damaged: .*; copy it again|no stream of --mode=compress)"):
        parse(data)


MADE_UP = {
    "no seed": with_header(seed=...),
    "one field more": with_header(more=1),
    "a float": with_header(num_images=5.0),
    "a truth value": with_header(step=True),
    "no images": with_header(num_images=0, batch_checks=[]),
    "a negative word": with_header(words=-1),
    "more words": with_header(words=2**39),
    "more initial words than words": with_header(initial_words=2**40),
    "probabilities beyond memory": with_header(batch_size=2**12, image_shape=[64, 64, 1]),
    "a batch beyond memory": with_header(batch_size=2**24, image_shape=[2**16, 2**16, 1]),
    "an image of four sides": with_header(image_shape=[4, 4, 1, 1]),
    "levels that do not fit": with_header(num_levels=257),
    "a checksum that is none": with_header(pixels="x" * 64),
    "checks of fewer batches": with_header(batch_checks=["0" * 8]),
    "fewer words than none whitened": with_header(whitened=[0, 0, -1]),
    "an environment of numbers": with_header(environment={"jax": 1}),
    "an environment that is a list": with_header(environment=[1]),
    "a chain of other steps": with_header(chain=chain(log_w=[0.1])),
    "a chain without steps": with_header(chain={"times": [0], "log_snr": [0], "clock_rise": [], "log_w": []}),
    "a chain of texts": with_header(chain=chain(log_w=["a", "b"])),
    "an infinite chain": with_header(chain=chain(log_w=[float("inf"), 0.0])),
    "a chain that rises": with_header(chain=chain(log_snr=[-5.0, 0.0, 3.0])),
    "a clock that stands": with_header(chain=chain(clock_rise=[0.0, 5.0])),
    "a number of a thousand digits": with_header(chain=chain(log_w=[10**1000, 1])),
    "a list": STREAM[:8] + (2).to_bytes(4, "little") + hashlib.sha256(b"[]").digest() + b"[]" + STREAM[END:],
}


@pytest.mark.parametrize("data", MADE_UP.values(), ids=MADE_UP)
def test_a_header_that_cannot_be_is_refused(data):
    with pytest.raises(UserError, match=r"^it: is damaged: "):
        parse(data)


def test_what_is_made_up_differs_from_the_real_one_alone_in_what_is_refused():
    assert parse(with_header()).header.num_images == 5


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"No such file or directory: encode images with --mode=compress"):
        read_stream(tmp_path / "a")


def test_what_takes_too_much_memory_is_refused_before_it_is_coded():
    check_sizes((100, 32, 32, 3), 256, 1000)
    for shape, num_levels, num_steps in (
        ((4, 512, 512, 3), 256, 1000),
        ((2**14, 64, 64, 1), 256, 10),
        ((1, 4, 4, 1), 2, 100_001),
    ):
        with pytest.raises(ValueError, match="steps"):
            check_sizes(shape, num_levels, num_steps)
