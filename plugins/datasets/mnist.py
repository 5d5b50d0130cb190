"""MNIST, and other data sets published as the same four IDX files."""

import dataclasses
import gzip
import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from diffenc.data import sources
from diffenc.data.official_files import Download, OfficialFiles
from diffenc.data.prepared import Prepared
from diffenc.data.versions import Part, Pixels, Version
from diffenc.errors import UserError
from diffenc.interfaces import Batch
from diffenc.registry import datasets
from diffenc.safe_io.bounded_reader import BoundedReader
from diffenc.safe_io.reading import Stream, convert_errors

_UNSIGNED_BYTES = (
    0x0800  # an IDX magic number: two zero bytes, the type of the data, the number of dimensions
)
_MAX_EXAMPLES = 1_000_000  # a header that claims more is refused
_CHUNK = 4096  # images read at a time
_FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", 28_881),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", 1_648_877),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", 4_542),
}


@datasets.register("mnist")
@dataclasses.dataclass(frozen=True)
class Mnist(Prepared):
    """70,000 handwritten digits, 28x28x1 in 256 levels (LeCun et al. 1998).

    Prepared from the four official IDX files, gzipped or not; the files of Fashion-MNIST have the same names.

    Attributes:
      validation: number of images cut from train, spread over it.
      folder: the folder of the prepared data in DATA_DIR.
    """

    folder: str = "mnist"

    image_shape = (28, 28, 1)
    num_levels = 256
    num_classes = 10
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="mnist",
        parts={name: ((f"{name}.gz",), (name,)) for name in _FILES},
        downloads=tuple(
            Download(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", md5, size)
            for name, (md5, size) in _FILES.items()
        ),
        origin="https://ossci-datasets.s3.amazonaws.com/mnist",
    )
    versions: ClassVar[tuple[Version, ...]] = (
        Version(
            "MNIST (LeCun et al. 1998)",
            (
                Part(
                    "train",
                    pixels=Pixels(
                        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
                        "03a8a048601ebb4610dcd79cd759c718bed893982a4c153c4f33a41885101c0b",
                    ),
                ),
                Part(
                    "test",
                    pixels=Pixels(
                        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
                        "e2842441ab1468bab7eeaa886875a3a7662245f3768610c4b4ca84d7ac309c70",
                    ),
                ),
            ),
            origin="Y. LeCun, C. Cortes and C. Burges, digits from forms in NIST's Special Databases 1 and 3; "
            "http://yann.lecun.com/exdb/mnist",
            licence="none is stated where it is published; some copies state CC BY-SA 3.0 (copyright Y. LeCun and "
            "C. Cortes), others MIT",
        ),
        Version(
            "Fashion-MNIST (Xiao et al. 2017)",
            (
                Part(
                    "train",
                    pixels=Pixels("2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"),
                ),
                Part(
                    "test", pixels=Pixels("c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a")
                ),
            ),
            origin="Zalando Research, articles of its shop; https://github.com/zalandoresearch/fashion-mnist",
            licence="MIT",
        ),
    )

    @classmethod
    def read(cls, found: Mapping[str, Path], split: str, first: int) -> Iterator[Batch]:
        """Returns an iterator over the examples of `split` from index `first` on, given the official files by name.

        Raises:
          UserError: a file is damaged, or is not the official file of its name.
        """
        prefix = "train" if split == "train" else "t10k"
        images, labels = (
            next(path for name, path in found.items() if name.startswith(f"{prefix}-{kind}"))
            for kind in ("images", "labels")
        )
        return sources.skip_examples(_paired(images, labels, cls.image_shape, cls.num_classes), first)


def _paired(
    image_file: Path, label_file: Path, shape: tuple[int, int, int], num_classes: int
) -> Iterator[Batch]:
    classes = np.concatenate(list(_idx(label_file, ())))
    if classes.max() >= num_classes:
        raise UserError(f"{label_file}: label {classes.max()} is not below {num_classes}")
    done = 0
    for images in _idx(image_file, shape[:2], len(classes), label_file):
        labels = classes[done : done + len(images)].astype(np.int32)
        yield {"image": images.reshape(-1, *shape), "label": labels}
        done += len(images)


def _idx(
    path: Path, shape: tuple[int, ...], labels: int | None = None, label_file: Path | None = None
) -> Iterator[UInt8[np.ndarray, "n ..."]]:
    """Yields the entries of an IDX file of unsigned bytes in chunks [n, *shape]; their number must be `labels`, if given."""
    size = int(np.prod(shape))
    with convert_errors(path), _open(path) as packed:
        # 64 bytes leave room for the header, 16 bytes at most here: a gzip bomb ends at the bound.
        stream = BoundedReader(packed, _MAX_EXAMPLES * size + 64, str(path))
        count = _header(stream, path, shape)
        if labels is not None and count != labels:
            raise UserError(f"{label_file}: {labels} labels for {count} images in {path.name}")
        for first in range(0, count, _CHUNK):
            want = min(_CHUNK, count - first) * size
            content = stream.read(want)
            if len(content) < want:
                raise _wrong_length(path, "fewer", count * size)
            yield np.frombuffer(content, np.uint8).reshape(-1, *shape)
        if stream.read(1):  # reading to the end also has gzip check its sum
            raise _wrong_length(path, "more", count * size)


def _wrong_length(path: Path, which: str, length: int) -> UserError:
    return UserError(f"{path}: holds {which} than the {length} bytes its header states; download it again")


def _header(stream: Stream, path: Path, shape: tuple[int, ...]) -> int:
    """Returns the number of entries, after checking the rest of the header."""
    header = stream.read(8 + 4 * len(shape))
    if len(header) < 8 + 4 * len(shape):
        raise UserError(f"{path}: ends within its header; download it again")
    # IDX is big-endian. Only the count is taken from the header, within a limit; the shape is the data set's own.
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
