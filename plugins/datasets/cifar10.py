"""CIFAR-10, from its official Python archive."""

import dataclasses
import functools
import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from diffenc import data, safe_pickle
from diffenc.errors import UserError
from diffenc.interfaces import Source
from diffenc.paths import Download, OfficialFiles, data_directory, reading
from diffenc.registry import datasets
from diffenc_plugins.datasets.rows import collect

_ARCHIVE = "cifar-10-python.tar.gz"
_FOLDER = "cifar-10-batches-py"
_BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_OFFICIAL = {"train": 50_000, "test": 10_000}
_MAX_BATCH_BYTES = 2**28  # official batches have 31 MB; a header that claims more than this is refused


@datasets.register("cifar10")
@dataclasses.dataclass(frozen=True)
class Cifar10:
    """60,000 photographs in ten classes, 32x32x3 in 256 levels (Krizhevsky 2009).

    Read from cifar-10-python.tar.gz, or its unpacked folder, in DATA_DIR/cifar10.

    Attributes:
      validation: number of images cut from train, spread over it.
    """

    validation: int = 0

    image_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    num_levels: ClassVar[int] = 256
    num_classes: ClassVar[int] = 10
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="cifar10",
        parts={
            "batches": (
                (_ARCHIVE,),
                tuple(f"{_FOLDER}/{name}" for names in _BATCHES.values() for name in names),
            )
        },
        downloads=(
            Download(f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}", "c58f30108f718f92721af3b95e74349a"),
        ),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    )

    def source(self, split: str) -> Source:
        read = functools.partial(_cached, data_directory() / "cifar10")
        return data.split_source(read, split, self.validation, "cifar10")

    def fingerprint(self, split: str) -> str:
        return data.fingerprint(self.source(split))

    @classmethod
    def read(cls, folder: Path, split: str) -> data.ArraySource:
        """Train or test from the files in `folder`.

        Raises:
          UserError: a file is absent, damaged, or not what its name says.
        """
        files = cls.files.present(folder, "batches")
        if len(files) == 1:
            batches = _from_archive(files[0], _BATCHES[split])
        else:
            batches = _from_folder([path for path in files if path.name in _BATCHES[split]])
        source = collect(batches, first_label=0, num_classes=cls.num_classes)
        data.warn_unless_official("CIFAR-10", split, len(source), _OFFICIAL[split])
        return source


@functools.lru_cache(maxsize=2)
def _cached(folder: Path, split: str) -> data.ArraySource:
    return Cifar10.read(folder, split)


def _from_folder(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        with open(path, "rb") as stream:
            yield str(path), safe_pickle.load(stream, str(path))


def _from_archive(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The batches in the order of `names`, whatever their order in the archive."""
    found = {}
    with reading(path), gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name = member.name.removeprefix("./").removeprefix(f"{_FOLDER}/")
            if name in names and member.isreg():
                found[name] = _load(archive, member, f"{path}:{name}")
        while stream.read(2**20):  # gzip checks its sum at the end, which tar leaves unread
            pass
    for name in names:
        if name not in found:
            raise UserError(f"{path}: has no member {_FOLDER}/{name}; get it again")
        yield f"{path}:{name}", found[name]


def _load(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> dict[str, Any]:
    if member.size > _MAX_BATCH_BYTES:
        raise UserError(
            f"{name}: claims {member.size:,} bytes, more than a batch can have ({_MAX_BATCH_BYTES:,})"
        )
    stream = archive.extractfile(member)  # in memory: nothing of an archive is ever written to disk
    assert stream is not None
    with stream:
        return safe_pickle.load(stream, name)
