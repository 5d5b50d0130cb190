"""MNIST, from its official four IDX files."""

import dataclasses
import functools
import gzip
import io
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from diffenc import data
from diffenc.errors import UserError
from diffenc.interfaces import Source
from diffenc.paths import Download, OfficialFiles, Stream, data_directory, reading
from diffenc.registry import datasets

_UNSIGNED_BYTES = (
    0x0800  # an IDX magic number: two zero bytes, the type of the data, the number of dimensions
)
_MAX_EXAMPLES = 1_000_000  # a header that claims more is refused before memory is taken for it
_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
_OFFICIAL = {"train": 60_000, "test": 10_000}


@datasets.register("mnist")
@dataclasses.dataclass(frozen=True)
class Mnist:
    """70,000 handwritten digits, 28x28x1 in 256 levels (LeCun et al. 1998).

    Read from the four official IDX files, gzipped or not, in DATA_DIR/mnist.

    Attributes:
      validation: number of images cut from train, spread over it.
    """

    validation: int = 0

    image_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)
    num_levels: ClassVar[int] = 256
    num_classes: ClassVar[int] = 10
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="mnist",
        parts={name: ((f"{name}.gz",), (name,)) for name in _FILES},
        downloads=tuple(
            Download(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", md5)
            for name, md5 in _FILES.items()
        ),
        origin="https://ossci-datasets.s3.amazonaws.com/mnist",
    )

    def source(self, split: str) -> Source:
        read = functools.partial(_cached, data_directory() / "mnist")
        return data.split_source(read, split, self.validation, "mnist")

    def fingerprint(self, split: str) -> str:
        return data.fingerprint(self.source(split))

    @classmethod
    def read(cls, folder: Path, split: str) -> data.ArraySource:
        """Train or test from the files in `folder`.

        Raises:
          UserError: a file is absent, damaged, or not what its name says.
        """
        prefix = "train" if split == "train" else "t10k"
        (image_file,) = cls.files.present(folder, f"{prefix}-images-idx3-ubyte")
        (label_file,) = cls.files.present(folder, f"{prefix}-labels-idx1-ubyte")
        images = _idx(image_file, cls.image_shape[:2])
        labels = _idx(label_file, ())
        if len(images) != len(labels):
            raise UserError(
                f"{label_file}: {len(labels)} labels for {len(images)} images in {image_file.name}"
            )
        if labels.max() >= cls.num_classes:
            raise UserError(f"{label_file}: label {labels.max()} is not below {cls.num_classes}")
        data.warn_unless_official("MNIST", split, len(images), _OFFICIAL[split])
        return data.ArraySource(images[..., None], labels.astype(np.int32))


@functools.lru_cache(maxsize=2)
def _cached(folder: Path, split: str) -> data.ArraySource:
    return Mnist.read(folder, split)


def _idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n ..."]:
    """The array in an IDX file of unsigned bytes, each entry of `shape`."""
    with reading(path), _open(path) as stream:
        count = _header(stream, path, shape)
        length = count * int(np.prod(shape))
        content = stream.read(length + 1)
    if len(content) != length:
        less = "fewer" if len(content) < length else "more"
        raise UserError(f"{path}: holds {less} than the {length} bytes its header states; get it again")
    return np.frombuffer(content, np.uint8).reshape(count, *shape)


def _header(stream: Stream, path: Path, shape: tuple[int, ...]) -> int:
    """The number of entries, once the rest of the header has been checked."""
    header = stream.read(8 + 4 * len(shape))
    if len(header) < 8 + 4 * len(shape):
        raise UserError(f"{path}: ends within its header; get it again")
    magic, count, *dims = struct.unpack(f">{2 + len(shape)}I", header)
    expected = _UNSIGNED_BYTES + 1 + len(shape)
    if magic != expected:
        raise UserError(
            f"{path}: starts with {magic:#010x}, not with {expected:#010x}: not the IDX file it is named"
        )
    if tuple(dims) != shape or not 0 < count <= _MAX_EXAMPLES:
        raise UserError(
            f"{path}: dimensions {(count, *dims)}, not {('N', *shape)} with 0 < N <= {_MAX_EXAMPLES}"
        )
    return count


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
