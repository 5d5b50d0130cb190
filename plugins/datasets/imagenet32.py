"""ImageNet downsampled to 32x32 by Chrabaszcz et al., from its official archives."""

import dataclasses
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from diffenc.data import sources
from diffenc.data.official_files import OfficialFiles
from diffenc.data.prepared import Prepared
from diffenc.data.versions import Part, Version
from diffenc.errors import UserError
from diffenc.interfaces import Batch
from diffenc.registry import datasets
from diffenc.safe_io import safe_npz, safe_pickle
from diffenc.safe_io.bounded_reader import BoundedReader
from diffenc.safe_io.reading import Stream, convert_errors
from diffenc_plugins.datasets.rows import examples

_BATCHES = {"train": tuple(f"train_data_batch_{k}" for k in range(1, 11)), "test": ("val_data",)}
_ARCHIVES = {"train": "Imagenet32_train", "test": "Imagenet32_val"}
_BATCH_BYTES = 2**29  # official batches have 0.4 GB; what claims or unpacks to more is refused


def _layouts(split: str) -> tuple[tuple[str, ...], ...]:
    """Returns the accepted sets of file names: an archive, or all batches unpacked from it, in a folder or beside each other."""
    stem, names = _ARCHIVES[split], _BATCHES[split]
    unpacked = [
        tuple(f"{folder}{name}{ending}" for name in names)
        for folder in (f"{stem}/", f"{stem}_npz/", "")
        for ending in ("", ".npz")
    ]
    return ((f"{stem}.zip",), (f"{stem}_npz.zip",), *unpacked)


@datasets.register("imagenet32")
@dataclasses.dataclass(frozen=True)
class Imagenet32(Prepared):
    """1.3 million photographs in 1,000 classes, 32x32x3 in 256 levels (Chrabaszcz et al. 2017).

    Prepared from Imagenet32_{train,val}.zip, Imagenet32_{train,val}_npz.zip, or the folders unpacked from
    them. Test is ImageNet's val split. These are not the images of `imagenet32_oord`.

    Attributes:
      validation: number of images cut from train, spread over it.
      folder: the folder of the prepared data in DATA_DIR.
    """

    folder: str = "imagenet32"

    image_shape = (32, 32, 3)
    num_levels = 256
    num_classes = 1000
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="imagenet32",
        parts={split: _layouts(split) for split in _BATCHES},
        downloads=(),
        origin="https://image-net.org/download-images.php, behind a login",
    )
    versions: ClassVar[tuple[Version, ...]] = (
        Version(
            "ImageNet32 (Chrabaszcz et al. 2017)",
            (
                Part(
                    "train",
                    files=(
                        {
                            "Imagenet32_train_npz.zip": "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc"
                        },
                    ),
                ),
                Part(
                    "test",
                    files=(
                        {
                            "Imagenet32_val_npz.zip": "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a"
                        },
                    ),
                ),
            ),
            origin="P. Chrabaszcz, I. Loshchilov and F. Hutter, photographs of ImageNet (ILSVRC 2012) downsampled; "
            "https://image-net.org/download-images.php",
            licence="ImageNet's terms of access: non-commercial research and education only; the photographs belong to their owners",
        ),
    )

    @classmethod
    def read(cls, found: Mapping[str, Path], split: str, first: int) -> Iterator[Batch]:
        """Returns an iterator over the examples of `split` from index `first` on, given the official files by name.

        Raises:
          UserError: a file is damaged, or is not the official file of its name.
        """
        batches = _batches(found, split)
        return sources.skip_examples(examples(batches, first_label=1, num_classes=cls.num_classes), first)


def _batches(found: Mapping[str, Path], split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, path in found.items():
        stem = name.rpartition("/")[2].removesuffix(".npz")
        if name.startswith(_ARCHIVES[split]) and name.endswith(".zip"):
            yield from _members(path, _BATCHES[split])
        elif stem in _BATCHES[split]:
            with convert_errors(path), open(path, "rb") as stream:
                yield str(path), _load(stream, str(path))


def _members(path: Path, batches: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the batches in an archive, read in memory."""
    names = [f"{name}.npz" for name in batches] if path.stem.endswith("_npz") else batches
    with convert_errors(path), zipfile.ZipFile(path) as archive:
        # By base name: repacked archives differ in their folders.
        # Names only select members, and are never opened as paths.
        known = {PurePosixPath(member.filename).name: member for member in archive.infolist()}
        for name in names:
            if name not in known:
                raise UserError(f"{path}: has no member {name}; download it again")
            safe_npz.refuse_bomb(known[name], f"{path}:{name}", _BATCH_BYTES)
            with archive.open(known[name]) as stream:
                yield f"{path}:{name}", _load(stream, f"{path}:{name}")


def _load(stream: Stream, name: str) -> Mapping[str, Any]:
    if not name.endswith(".npz"):
        return safe_pickle.load(stream, name, _BATCH_BYTES)
    # An .npz is a zip archive, which needs seeking; its size is bounded before any of it is parsed.
    content = io.BytesIO(BoundedReader(stream, _BATCH_BYTES, name).read())
    return safe_npz.load(content, name, ("data", "labels"), _BATCH_BYTES)
