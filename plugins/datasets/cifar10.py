"""CIFAR-10, from its official Python or binary archive."""

import dataclasses
import gzip
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffenc.data import sources
from diffenc.data.official_files import Download, OfficialFiles
from diffenc.data.prepared import Prepared
from diffenc.data.versions import Part, Pixels, Version
from diffenc.errors import UserError
from diffenc.interfaces import Batch
from diffenc.registry import datasets
from diffenc.safe_io import safe_pickle
from diffenc.safe_io.bounded_reader import BoundedReader
from diffenc.safe_io.reading import Stream, convert_errors
from diffenc_plugins.datasets.rows import ROW, examples

_BATCH_BYTES = 2**26  # official batches have 31 MB; what claims or unpacks to more is refused
_ARCHIVE_BYTES = 2**28  # official archives unpack to 186 MB
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}

Read = Callable[[Stream, str], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """One of the two published formats.

    Attributes:
      archive: file name of the archive.
      folder: the folder of the batches within the archive.
      batches: names of the batches by split.
      read: (stream of a batch, its name) -> `data` and `labels`.
    """

    archive: str
    folder: str
    batches: Mapping[str, tuple[str, ...]]
    read: Read

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all batches, with their folder."""
        return tuple(f"{self.folder}/{name}" for names in self.batches.values() for name in names)


def _read_pickle(stream: Stream, name: str) -> Mapping[str, Any]:
    return safe_pickle.load(stream, name, _BATCH_BYTES)


def _read_binary(stream: Stream, name: str) -> Mapping[str, Any]:
    """Reads records of one label byte and 3,072 pixel bytes."""
    # Bounded here too: batches that were unpacked into a folder do not pass `_check_size`.
    content = BoundedReader(stream, _BATCH_BYTES, name).read()
    if len(content) % (1 + ROW):
        raise UserError(f"{name}: {len(content):,} bytes are no whole number of images; download it again")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + ROW)
    return {"data": rows[:, 1:], "labels": rows[:, 0]}


_LAYOUTS = (
    _Layout(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
        _read_pickle,
    ),
    _Layout(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
        _read_binary,
    ),
)


def _official(split: str) -> tuple[Mapping[str, str], ...]:
    """Returns the sets of files that identify `split`, with MD5s: per layout the archive, and the batches."""
    sets = [names for layout in _LAYOUTS for names in ((layout.archive,), layout.batches[split])]
    return tuple({name: _MD5[name] for name in names} for names in sets)


@datasets.register("cifar10")
@dataclasses.dataclass(frozen=True)
class Cifar10(Prepared):
    """60,000 photographs in ten classes, 32x32x3 in 256 levels (Krizhevsky 2009).

    Prepared from cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or the folder unpacked from either.

    Attributes:
      validation: number of images cut from train, spread over it.
      folder: the folder of the prepared data in DATA_DIR.
    """

    folder: str = "cifar10"

    image_shape = (32, 32, 3)
    num_levels = 256
    num_classes = 10
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="cifar10",
        parts={
            "batches": (*((layout.archive,) for layout in _LAYOUTS), *(layout.members for layout in _LAYOUTS))
        },
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                _MD5["cifar-10-python.tar.gz"],
                170_498_071,
            ),
        ),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    versions: ClassVar[tuple[Version, ...]] = (
        Version(
            "CIFAR-10 (Krizhevsky 2009)",
            (
                Part(
                    "train",
                    pixels=Pixels(
                        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
                        "6bebf6967ad9d2d12d9cf95f54164bd95a0954d3177f1285fa8dd3673671ca76",
                    ),
                    files=_official("train"),
                ),
                Part("test", files=_official("test")),
                Part(
                    "test",
                    "first 1,000 of test",
                    pixels=Pixels(
                        "da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f",
                        "d0a7399b46aa16eede5d5c628d2031c066c18897212dd5c983d4e5a1ac80ddda",
                    ),
                ),
            ),
            origin="A. Krizhevsky, V. Nair and G. Hinton, labelled photographs of the 80 Million Tiny Images, which were "
            "collected from the web and withdrawn in 2020; https://www.cs.toronto.edu/~kriz/cifar.html",
            licence="none is stated; its page asks to cite Krizhevsky 2009, Learning Multiple Layers of Features from "
            "Tiny Images; the photographs belong to their owners",
        ),
    )

    @classmethod
    def read(cls, found: Mapping[str, Path], split: str, first: int) -> Iterator[Batch]:
        """Returns an iterator over the examples of `split` from index `first` on, given the official files by name.

        Raises:
          UserError: a file is damaged, or is not the official file of its name.
        """
        layout = next(layout for layout in _LAYOUTS if {layout.archive, *layout.members} & set(found))
        if layout.archive in found:
            batches = _from_archive(found[layout.archive], layout, split)
        else:
            batches = _from_folder(found, layout, split)
        return sources.skip_examples(examples(batches, first_label=0, num_classes=cls.num_classes), first)


def _from_folder(
    found: Mapping[str, Path], layout: _Layout, split: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for batch in layout.batches[split]:
        path = found[f"{layout.folder}/{batch}"]
        with convert_errors(path), open(path, "rb") as stream:
            yield str(path), layout.read(stream, str(path))


def _from_archive(path: Path, layout: _Layout, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the batches in the order of their names, independent of the archive's order.

    Batches are read in memory: nothing is ever extracted to disk.
    """
    names = layout.batches[split]
    # A gzip stream is read front to back, and the archive's order
    # is not that of the batches: collect them all first.
    found = {}
    with convert_errors(path), gzip.open(path) as packed:
        unpacked = BoundedReader(packed, _ARCHIVE_BYTES, str(path))
        with tarfile.open(fileobj=unpacked, mode="r|", bufsize=2**18) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
            for member in archive:
                _check_size(member, path)
                name = member.name.removeprefix("./").removeprefix(f"{layout.folder}/")
                if name in names and member.isreg():
                    found[name] = _member(archive, member, f"{path}:{name}", layout.read)
        unpacked.drain()  # gzip checks its sum at the end, which tar leaves unread
    # Yielded after the drain, so that no image of an archive with a wrong checksum is used.
    for name in names:
        if name not in found:
            raise UserError(f"{path}: has no member {layout.folder}/{name}; download it again")
        yield f"{path}:{name}", found[name]


def _check_size(member: tarfile.TarInfo, path: Path) -> None:
    """Raises UserError for an impossible size, of skipped members too: tarfile reads through every byte a header claims."""
    if not 0 <= member.size <= _BATCH_BYTES:
        raise UserError(
            f"{path}:{member.name}: claims {member.size:,} bytes, more than a batch can have ({_BATCH_BYTES:,})"
        )


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, read: Read) -> Mapping[str, Any]:
    stream = archive.extractfile(member)
    assert stream is not None
    with stream:
        return read(stream, name)
