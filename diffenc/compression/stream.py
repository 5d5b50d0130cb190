"""The file of coded images: a header of JSON, and the words of the stack.

    8 bytes    MAGIC
    4          bytes of the header, little-endian, at most MOST_HEADER
    32         SHA-256 of the header
    ...        the header: JSON, the fields of `Header`
    ...        `words` words of 4 bytes, little-endian, the top of the stack last

A file is untrusted input: sizes are bounded before anything is read, and an incomplete or inconsistent file is refused.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffenc.compression.initial_bits import Words
from diffenc.compression.numbers import ChainNumbers
from diffenc.config.settings import MAX_BATCH
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.safe_io.reading import Stream, one_line

MAGIC = b"diffenc\x01"
MOST_HEADER = 1 << 24  # bytes
_BEGIN = 44  # where its text begins
MOST_STEPS = 100_000
MOST_IMAGES = 1 << 24
MOST_PIXELS = 1 << 26  # of one batch
MOST_NUMBERS = 1 << 30  # that a batch takes: of its probabilities, and of its latents at all stops
_SHA_256 = re.compile("[0-9a-f]{64}")
_CHECK = re.compile("[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class Header:
    """All inputs of a decoder besides the weights.

    Attributes:
      config_hash: hash of the model's config, as in records of evaluations.
      weights: SHA-256 of the model's parameters.
      step: step of the checkpoint.
      num_images: number of images.
      image_shape: H, W, C.
      num_levels: number of levels of a pixel.
      num_classes: number of classes of the labels that are coded with the images; 0 = no labels.
      batch_size: batch size of the networks.
      bins: cells per standard deviation.
      seed: seed of the initial bits.
      initial_words: number of words of initial bits in the stack.
      words: number of words in the stack.
      payload: SHA-256 of the words.
      pixels: SHA-256 of the images.
      batch_checks: the first 8 hex digits of the SHA-256 of each batch of images.
      whitened: number of words that were whitened before each batch (`Stack.whiten`).
      environment: versions and devices that the decoder must have too, by name (see `diffenc.compression.agreement`).
      program: SHA-256 of the functions that were compiled.
      results: SHA-256 of their results on a probe.
      chain: the chain's times, log-SNRs, steps of the path's clock and variances.
    """

    config_hash: str
    weights: str
    step: int
    num_images: int
    image_shape: tuple[int, int, int]
    num_levels: int
    num_classes: int
    batch_size: int
    bins: int
    seed: int
    initial_words: int
    words: int
    payload: str
    pixels: str
    batch_checks: tuple[str, ...]
    whitened: tuple[int, ...]
    environment: Mapping[str, str]
    program: str
    results: str
    chain: ChainNumbers

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """[B, H, W, C]."""
        return (self.batch_size, *self.image_shape)

    @property
    def num_batches(self) -> int:
        """Number of batches; the last may have fewer images than the others."""
        return -(-self.num_images // self.batch_size)

    def count(self, batch: int) -> int:
        """Returns the number of images in batch number `batch`."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)


class CodedImages(NamedTuple):
    """A stream of coded images: its header and the words of the stack."""

    header: Header
    words: Words


def header_bytes(header: Header) -> bytes:
    """Returns the bytes that precede the words: magic, length, checksum and header."""
    plain = dataclasses.asdict(header)
    plain["chain"] = {name: array.tolist() for name, array in plain["chain"].items()}
    text = json.dumps(plain, allow_nan=False).encode()
    return MAGIC + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest() + text


def write_stream(path: Path, coded: CodedImages) -> None:
    """Writes a stream atomically. Raises UserError if writing fails."""
    atomic.write_bytes(path, header_bytes(coded.header) + payload_bytes(coded.words))


def payload_bytes(words: Words) -> bytes:
    """Returns the words in the byte order of the file."""
    return words.astype("<u4").tobytes()


def read_stream(path: Path) -> CodedImages:
    """Reads a stream.

    Raises:
      UserError: the file is missing, damaged, incomplete or of another version.
    """
    try:
        with path.open("rb") as file:
            return parse_stream(file, os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}: encode images with --mode=compress first, or name the file by compress.file"
        ) from error


def parse_stream(file: Stream, size: int, name: str) -> CodedImages:
    """Reads a stream of `size` bytes.

    Raises:
      UserError: as `read_stream`.
    """
    head = file.read(_BEGIN)
    length = int.from_bytes(head[8:12], "little")
    if head[:8] != MAGIC:
        raise UserError(f"{name}: is no stream of --mode=compress, or one of another version of diffenc")
    # The length is bounded by the file's size before that many bytes are read.
    if len(head) < _BEGIN or length > min(MOST_HEADER, size - _BEGIN):
        raise _damaged(name, "it ends within its header")
    text = bytes(file.read(length))
    if hashlib.sha256(text).digest() != head[12:]:
        raise _damaged(name, "its header has another checksum than it says")
    header = _parse_header(text, name)
    said = _BEGIN + length + 4 * header.words
    if size != said:
        raise _damaged(name, f"it has {size:,} bytes, and says {said:,}")
    content = bytes(file.read(4 * header.words))
    if content[-4:] == bytes(4):
        raise _damaged(name, "its last word is empty")
    if hashlib.sha256(content).hexdigest() != header.payload:
        raise _damaged(name, "its words have another checksum than it says")
    return CodedImages(header, np.frombuffer(content, "<u4").astype(np.uint32))


def _damaged(name: str, reason: str) -> UserError:
    return UserError(f"{name}: is damaged: {reason}; copy it again, or encode the images again")


def _parse_header(text: bytes, name: str) -> Header:
    try:
        said = json.loads(text)
        fields = [field.name for field in dataclasses.fields(Header)]
        if not isinstance(said, dict) or sorted(said) != sorted(fields):
            raise ValueError("other fields")
        lists = {key: tuple(said[key]) for key in ("image_shape", "batch_checks", "whitened")}
        header = Header(**{**said, **lists, "chain": _parse_chain(said["chain"])})
        check_header(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise _damaged(name, f"its header cannot be ({one_line(error)})") from error
    return header


def _parse_chain(said: Any) -> ChainNumbers:
    steps = len(said["log_w"])
    lengths = {"times": steps + 1, "log_snr": steps + 1, "clock_rise": steps, "log_w": steps}
    if sorted(said) != sorted(lengths) or not 1 <= steps <= MOST_STEPS:
        raise ValueError("no chain")
    arrays: dict[str, np.ndarray] = {}
    for key, length in lengths.items():
        if len(said[key]) != length or not all(type(value) in (int, float) for value in said[key]):
            raise ValueError(f"chain.{key} is not {length} numbers")
        arrays[key] = np.array(said[key], np.float64)
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"chain.{key} is not finite")
    return ChainNumbers(**arrays)


def check_chain(chain: ChainNumbers) -> None:
    """Raises ValueError unless times, log-SNR and clock change in every step, each in its direction."""
    rises = np.diff(chain.times), -np.diff(chain.log_snr), chain.clock_rise
    if not all((rise > 0).all() for rise in rises):
        raise ValueError("chain does not run from noise to data")


def check_header(header: Header) -> None:
    """Raises ValueError unless all fields are valid and consistent."""
    check_chain(header.chain)
    bounds = {
        "step": (0, 2**62),
        "num_images": (1, MOST_IMAGES),
        "num_levels": (2, 256),
        "num_classes": (0, 1 << 20),
        "batch_size": (1, MAX_BATCH),
        "bins": (1, 1 << 20),
        "seed": (0, 2**32 - 1),
        "initial_words": (0, 2**40),
        "words": (0, 2**40),
    }
    for key, (least, most) in bounds.items():
        value = getattr(header, key)
        # type, not isinstance: JSON's true is an int too.
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{key} is not within {least} .. {most}")
    sides = header.image_shape
    if len(sides) != 3 or not all(type(side) is int and 0 < side <= 2**16 for side in sides):
        raise ValueError("image_shape is not that of images")
    if header.initial_words > header.words:
        raise ValueError("more initial bits than bits")
    check_sizes(header.batch_shape, header.num_levels, header.chain.num_steps)
    for key in ("config_hash", "weights", "payload", "pixels", "program", "results"):
        _match(_SHA_256, key, getattr(header, key))
    if not len(header.batch_checks) == len(header.whitened) == header.num_batches:
        raise ValueError("not a check for each batch")
    if not all(type(count) is int and count >= 0 for count in header.whitened):
        raise ValueError("whitened is not numbers of words")
    for check in header.batch_checks:
        _match(_CHECK, "batch_checks", check)
    if not all(isinstance(value, str) for value in header.environment.values()):
        raise ValueError("environment is no texts")


def check_sizes(batch_shape: tuple[int, ...], num_levels: int, num_steps: int) -> None:
    """Raises ValueError if there are too many steps, or a batch takes too much memory."""
    if not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(f"{num_steps:,} steps: at most {MOST_STEPS:,}")
    pixels = math.prod(batch_shape)
    if pixels > MOST_PIXELS or pixels * max(num_levels, num_steps + 1) > MOST_NUMBERS:
        raise ValueError(
            f"a batch of {pixels:,} pixels of {num_levels} levels in {num_steps:,} steps: too many numbers to hold"
        )


def _match(pattern: re.Pattern[str], key: str, value: Any) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{key} is no checksum")
