"""ImageNet downsampled to 32x32, from its official archives."""

import dataclasses
import functools
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from diffenc import data, safe_pickle
from diffenc.errors import UserError
from diffenc.interfaces import Source
from diffenc.paths import OfficialFiles, Stream, data_directory, reading
from diffenc.registry import datasets
from diffenc_plugins.datasets.rows import collect

_BATCHES = {"train": tuple(f"train_data_batch_{k}" for k in range(1, 11)), "test": ("val_data",)}
_ARCHIVES = {"train": "Imagenet32_train", "test": "Imagenet32_val"}
_OFFICIAL = {"train": 1_281_167, "test": 50_000}
_MAX_MEMBER_BYTES = 2**31  # official batches have 0.4 GB; an archive that claims more than this is refused


def _npz(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}.npz" for name in names)


@datasets.register("imagenet32")
@dataclasses.dataclass(frozen=True)
class Imagenet32:
    """1.3 million photographs in 1,000 classes, 32x32x3 in 256 levels (Chrabaszcz et al. 2017).

    Read from Imagenet32_{train,val}.zip, Imagenet32_{train,val}_npz.zip, or the batches unpacked from them,
    in DATA_DIR/imagenet32. Test is what ImageNet calls val. The whole train split takes 4 GB of memory.

    Attributes:
      validation: number of images cut from train, spread over it.
    """

    validation: int = 0

    image_shape: ClassVar[tuple[int, int, int]] = (32, 32, 3)
    num_levels: ClassVar[int] = 256
    num_classes: ClassVar[int] = 1000
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="imagenet32",
        parts={
            split: (
                (f"{_ARCHIVES[split]}.zip",),
                (f"{_ARCHIVES[split]}_npz.zip",),
                _BATCHES[split],
                _npz(_BATCHES[split]),
            )
            for split in _BATCHES
        },
        downloads=(),
        origin="https://image-net.org/download-images.php, behind a login",
    )

    def source(self, split: str) -> Source:
        read = functools.partial(_cached, data_directory() / "imagenet32")
        return data.split_source(read, split, self.validation, "imagenet32")

    def fingerprint(self, split: str) -> str:
        return data.fingerprint(self.source(split))

    @classmethod
    def read(cls, folder: Path, split: str) -> data.ArraySource:
        """Train or test (ImageNet's val) from the files in `folder`.

        Raises:
          UserError: a file is absent, damaged, or not what its name says.
        """
        files = cls.files.present(folder, split)
        archive = files[0] if files[0].suffix == ".zip" else None
        streams = _members(archive, _BATCHES[split]) if archive else _plain(files)
        batches = ((name, _load(stream, name)) for name, stream in streams)
        source = collect(batches, first_label=1, num_classes=cls.num_classes)
        data.warn_unless_official("ImageNet32", split, len(source), _OFFICIAL[split])
        return source


@functools.lru_cache(maxsize=2)
def _cached(folder: Path, split: str) -> data.ArraySource:
    return Imagenet32.read(folder, split)


def _plain(files: tuple[Path, ...]) -> Iterator[tuple[str, Stream]]:
    for path in files:
        with open(path, "rb") as stream:
            yield str(path), stream


def _members(path: Path, batches: tuple[str, ...]) -> Iterator[tuple[str, Stream]]:
    """The batches in an archive, read in memory: no name in it is ever used as a path."""
    names = _npz(batches) if path.stem.endswith("_npz") else batches
    with reading(path), zipfile.ZipFile(path) as archive:
        known = {PurePosixPath(member.filename).name: member for member in archive.infolist()}
        for name in names:
            if name not in known:
                raise UserError(f"{path}: has no member {name}; get it again")
            _refuse_bomb(f"{path}:{name}", known[name])
            with archive.open(known[name]) as stream:
                yield f"{path}:{name}", stream


def _load(stream: Stream, name: str) -> dict[str, Any]:
    if not name.endswith(".npz"):
        return safe_pickle.load(stream, name)
    with reading(name), np.load(io.BytesIO(stream.read()), allow_pickle=False) as arrays:
        for member in arrays.zip.infolist():
            _refuse_bomb(f"{name}:{member.filename}", member)
        return {key: arrays[key] for key in ("data", "labels") if key in arrays}


def _refuse_bomb(name: str, member: zipfile.ZipInfo) -> None:
    """zipfile never gives more bytes of a member than the archive declares."""
    if member.file_size > _MAX_MEMBER_BYTES:
        raise UserError(f"{name}: claims {member.file_size:,} bytes, more than {_MAX_MEMBER_BYTES:,}")
