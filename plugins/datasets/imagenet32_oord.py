"""ImageNet downsampled to 32x32 by van den Oord et al., from its official archives of PNGs."""

import dataclasses
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from diffenc.data.official_files import OfficialFiles
from diffenc.data.prepared import Prepared
from diffenc.data.versions import Part, Version
from diffenc.data.walk import HIDDEN, regular_files
from diffenc.errors import UserError
from diffenc.interfaces import Batch
from diffenc.registry import datasets
from diffenc.safe_io.reading import convert_errors

_NAMES = {"train": "train_32x32", "test": "valid_32x32"}
_FORMATS = ("PNG",)
_FILE_BYTES = 2**20  # official PNGs have a few thousand
_BATCH = 256  # images unpacked at a time


@datasets.register("imagenet32_oord")
@dataclasses.dataclass(frozen=True)
class Imagenet32Oord(Prepared):
    """1.3 million photographs without labels, 32x32x3 in 256 levels (van den Oord et al. 2016).

    Prepared from train_32x32.tar and valid_32x32.tar, or the folders unpacked from them, in the order of
    names. Test is the published valid split. Every label is 0. These are not the images of `imagenet32`.

    Attributes:
      validation: number of images cut from train, spread over it.
      folder: the folder of the prepared data in DATA_DIR.
    """

    folder: str = "imagenet32_oord"

    image_shape = (32, 32, 3)
    num_levels = 256
    num_classes = 1
    files: ClassVar[OfficialFiles] = OfficialFiles(
        name="imagenet32_oord",
        parts={split: ((f"{name}.tar",), (f"{name}/",)) for split, name in _NAMES.items()},
        downloads=(),
        origin="https://image-net.org/small, which offers them no more",
    )
    versions: ClassVar[tuple[Version, ...]] = (
        Version(
            "ImageNet32 (van den Oord et al. 2016)",
            (
                Part(
                    "train",
                    files=(
                        {
                            "train_32x32.tar": "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5"
                        },
                    ),
                ),
                Part(
                    "test",
                    files=(
                        {
                            "valid_32x32.tar": "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7"
                        },
                    ),
                ),
            ),
            origin="A. van den Oord, N. Kalchbrenner and K. Kavukcuoglu, photographs of ImageNet (ILSVRC 2012) downsampled; "
            "https://image-net.org/small, which offers them no more",
            licence="ImageNet's terms of access: non-commercial research and education only; the photographs belong to their owners",
        ),
    )

    @classmethod
    def read(cls, found: Mapping[str, Path], split: str, first: int) -> Iterator[Batch]:
        """Returns an iterator over the examples of `split` from index `first` on, given the official files by name.

        Raises:
          UserError: a file is damaged, or is not the official file of its name.
        """
        from diffenc.data.image_folder import (  # imports Pillow, which training does not need
            Labelled,
            read_batches,
        )

        name = _NAMES[split]
        if f"{name}.tar" in found:
            return _from_archive(found[f"{name}.tar"], cls.image_shape, first)
        folder = found[f"{name}/"]
        items = [Labelled(path, 0) for path in regular_files(folder, _refuse) if path.suffix == ".png"]
        if not items:
            raise UserError(f"{folder}: holds no .png")
        return read_batches(items[first:], cls.image_shape, _FORMATS)


def _refuse(path: Path, reason: str) -> None:
    """Raises UserError for a .png that the listing would leave out; hidden files are left out silently."""
    if path.suffix == ".png" and reason != HIDDEN:
        raise UserError(f"{path}: {reason}; remove it, or put the image there")


class _Member(NamedTuple):
    """A file's byte range in an archive."""

    name: str
    offset: int
    size: int


def _from_archive(path: Path, shape: tuple[int, int, int], first: int) -> Iterator[Batch]:
    """Yields the images in the order of their names, read in memory; no name in the archive is used as a path."""
    from diffenc.data.image_file import levels, require_shape

    # Two passes: the order of images is that of their names, not of the archive, and sorting needs all names.
    # The first pass reads headers alone; the second seeks to each file, which "r:" (no compression) allows.
    members = _members(path)
    with open(path, "rb") as stream:
        for start in range(first, len(members), _BATCH):
            part = members[start : start + _BATCH]
            images = []
            for member in part:
                stream.seek(member.offset)
                content = io.BytesIO(stream.read(member.size))
                images.append(levels(content, f"{path}:{member.name}", _FORMATS, shape[2]))
                require_shape(images[-1], shape, f"{path}:{member.name}")
            yield {"image": np.stack(images), "label": np.zeros(len(part), np.int32)}


def _members(path: Path) -> Sequence[_Member]:
    """Returns all PNGs in the archive, sorted by name."""
    found = []
    with convert_errors(path), tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isreg() and member.name.endswith(".png"):
                if member.size > _FILE_BYTES:
                    raise UserError(
                        f"{path}:{member.name}: claims {member.size:,} bytes, more than the {_FILE_BYTES:,} it may have"
                    )
                found.append(_Member(member.name, member.offset_data, member.size))
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - a million of them would take gigabytes
    if not found:
        raise UserError(f"{path}: holds no .png")
    return sorted(found)
