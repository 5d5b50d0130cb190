"""Converting a folder of images to a data set, with splits and classes from the names of its sub-folders."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffenc.data import folder_summary, image_file, split_folders
from diffenc.data.image_file import FORMATS, Colour, Header
from diffenc.data.recipe import Recipe
from diffenc.data.sources import validation_indices
from diffenc.data.split_folders import SplitFolders
from diffenc.data.walk import Skipped, regular_files
from diffenc.errors import UserError
from diffenc.interfaces import Batch
from diffenc.runtime.progress import Advance, StartBar, no_bar

_TEST_SHARE = 10  # one image in so many is held out if there is no test folder
_BATCH = 256  # images decoded at a time


class Labelled(NamedTuple):
    """An image file and its class, counted from 0."""

    path: Path
    label: int


@dataclasses.dataclass(frozen=True)
class Folders:
    """Locations of images, and options of their conversion.

    Attributes:
      source: folder of the splits, or of all images; None if `train` is given.
      train: folder of the train split; None = search `source`.
      test: folder of the test split; None = search `source`, else hold out an evenly spaced tenth of train.
      size: side in pixels to which the central square is reduced; None = keep the size.
      background: colour under transparent images, such as "white"; None = refuse them.
    """

    source: Path | None = None
    train: Path | None = None
    test: Path | None = None
    size: int | None = None
    background: str | None = None

    @property
    def name(self) -> str:
        """Name of the folder of all images, or of the train split."""
        return (self.train or self.source or Path()).name

    @property
    def title(self) -> str:
        """Description of the images if they are not published ones; compared on disk, so keep its wording."""
        one = f"images of the folder {self.name}"
        name = f"images of the folders {self.name} and {self.test.name}" if self.train and self.test else one
        size = f" at {self.size}x{self.size}" if self.size else ""
        return name + size + (f" on {self.background}" if self.background else "")


@dataclasses.dataclass(frozen=True)
class _Found:
    """The images of all splits.

    Attributes:
      note: a remark about the splits for the manifest; may be empty.
      folders: by name in the manifest, each folder with all its images.
      unread: number of images of each folder that is not read.
    """

    splits: dict[str, list[Labelled]]
    classes: list[str]
    note: str
    folders: dict[str, tuple[Path, list[Path]]]
    unread: dict[str, int] = dataclasses.field(default_factory=dict)


def make_recipe(folders: Folders, start: StartBar = no_bar) -> Recipe:
    """Returns the recipe that converts `folders`.

    Splits are folders such as train/ and test/ in any case, or the named ones; without a test folder an evenly spaced
    tenth is held out. Sub-folders of a split are classes; without any, all images are of one class. Images become gray
    if all of them are, else RGB, and are rotated by their EXIF orientation.

    Args:
      start: makes the progress bars of inspected images.

    Raises:
      UserError: there are no images, an image cannot be read without loss (see `image_file.levels`), shapes differ without
        `size`, or it is ambiguous which folders are splits and which are classes.
    """
    if folders.size is not None and folders.size < 1:
        raise UserError(f"--size={folders.size}: must be at least 1")
    background = image_file.parse_colour(folders.background) if folders.background is not None else None
    skipped = Skipped()
    found = _find_images(folders, start, skipped)
    paths = [item.path for items in found.splits.values() for item in items]
    advance = start(f"looking at {folders.name}", len(paths))
    # All headers first, so that an unusable image is found before a long conversion.
    headers = [_inspect(path, background, advance) for path in paths]
    shape = _common_shape(paths, headers, folders.size)

    def read(split: str, first: int) -> Iterator[Batch]:
        return read_batches(found.splits[split][first:], shape, FORMATS, folders.size, background)

    return Recipe(
        name="folder",
        files={name: folder for name, (folder, _) in found.folders.items()},
        members={name: members for name, (_, members) in found.folders.items()},
        image_shape=shape,
        num_classes=max(1, len(found.classes)),
        classes=tuple(found.classes),
        read=read,
        otherwise=folders.title,
        counts={split: len(items) for split, items in found.splits.items()},
        note=found.note,
        summary=folder_summary.format_table(headers, shape, folders.size, found.unread, skipped),
    )


def read_batches(
    items: Sequence[Labelled],
    shape: tuple[int, int, int],
    formats: tuple[str, ...],
    size: int | None = None,
    background: Colour | None = None,
) -> Iterator[Batch]:
    """Yields batches of `items`, all of which must convert to `shape`; the other arguments are those of `image_file.levels`."""
    for first in range(0, len(items), _BATCH):
        part = items[first : first + _BATCH]
        images = [
            image_file.levels(item.path, str(item.path), formats, shape[2], size, background) for item in part
        ]
        for item, image in zip(part, images, strict=True):
            image_file.require_shape(image, shape, str(item.path))
        yield {"image": np.stack(images), "label": np.array([item.label for item in part], np.int32)}


def _find_images(folders: Folders, start: StartBar, skipped: Skipped) -> _Found:
    if folders.train is not None:
        chosen = split_folders.name_splits(folders.train, folders.test)
        images = {
            folder: _list_images(folder, start, skipped) for folder in (chosen.train, chosen.test) if folder
        }
        for folder, paths in images.items():
            split_folders.refuse_nested(folder, paths, pairs_only=True)
        return _assign(chosen, images, images, skipped)
    source = folders.source
    if source is None or not source.is_dir():
        raise UserError(f"--source={source}: is not a folder")
    paths = _list_images(source, start, skipped)
    chosen = split_folders.find_splits(source, paths)
    images = {
        folder: paths if folder == source else [path for path in paths if folder in path.parents]
        for folder in (chosen.train, chosen.test, *chosen.unread)
        if folder
    }
    return _assign(chosen, images, {source: paths}, skipped)


def _assign(
    chosen: SplitFolders, images: dict[Path, list[Path]], listed: dict[Path, list[Path]], skipped: Skipped
) -> _Found:
    """Assigns images to splits and classes.

    Args:
      images: by folder of `chosen`.
      listed: by folder, the images whose digests the manifest records.
    """
    # Classes are those of train: test folders may lack some of them, and the labels must agree.
    classes = _class_names(chosen.train, images[chosen.train])
    train = _label(chosen.train, images[chosen.train], classes)
    for folder in filter(None, (chosen.train, chosen.test)):
        _count_empty(folder, images[folder], skipped)
    entries = {f"{folder.name}/": (folder, paths) for folder, paths in listed.items()}
    if len(entries) < len(listed):  # same names, as of a/images and b/images
        entries = {f"{key}/": entry for key, entry in zip(("train", "test"), listed.items(), strict=True)}
    unread = {f"{folder.name}/": len(images[folder]) for folder in chosen.unread}
    if chosen.test is None:
        splits, note = _hold_out_test(chosen.train, train)
    else:
        splits = {"train": train, "test": _label(chosen.test, images[chosen.test], classes)}
        note = f"test is {chosen.test.name}/" if split_folders.kind_of(chosen.test.name) == "val" else ""
    return _Found(splits, classes, note, entries, unread)


def _hold_out_test(folder: Path, items: list[Labelled]) -> tuple[dict[str, list[Labelled]], str]:
    """Returns both splits, test being an evenly spaced tenth of `items`, and the note about it."""
    if len(items) < 2:
        raise UserError(f"{folder}: one image is too few, as one is held out for testing; add images")
    held_out = set(validation_indices(len(items), max(1, len(items) // _TEST_SHARE)).tolist())
    splits = {
        "train": [item for k, item in enumerate(items) if k not in held_out],
        "test": [item for k, item in enumerate(items) if k in held_out],
    }
    # recipe.json records the note, and is compared on resuming: with another wording, unfinished conversions start over.
    return splits, f"{len(held_out):,} of the {len(items):,} images, evenly spread, are held out for testing"


def _class_names(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Returns the names of the sub-folders of `folder` that contain `paths`; none if all are in `folder` itself."""
    parts = [path.relative_to(folder).parts for path in paths]
    if not parts:
        raise UserError(f"{folder}: contains no images")
    loose = next((part[0] for part in parts if len(part) == 1), None)
    names = sorted({part[0] for part in parts if len(part) > 1})
    if loose is not None and names:
        raise UserError(
            f"{folder}: {loose} is next to folders of classes ({names[0]} …); move it into one of them"
        )
    for name, count in collections.Counter(name.lower() for name in names).items():
        if count > 1:
            same = " and ".join(other for other in names if other.lower() == name)
            raise UserError(
                f"{folder}: the folders of classes {same} differ only in case; rename or merge them"
            )
    return names


def _label(folder: Path, paths: Sequence[Path], classes: Sequence[str]) -> list[Labelled]:
    found = _class_names(folder, paths)
    if unknown := sorted(set(found) - set(classes)) or (bool(classes) and not found):
        what = f"classes {unknown}" if isinstance(unknown, list) else "images without a class"
        raise UserError(f"{folder}: has {what} that train does not have; add them there, or remove them")
    number = {name: label for label, name in enumerate(classes)}
    return [Labelled(path, number[path.relative_to(folder).parts[0]] if classes else 0) for path in paths]


def _list_images(folder: Path, start: StartBar, skipped: Skipped) -> list[Path]:
    """Returns the files with a suffix of FORMATS, in the order of names."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    advance, found = start(f"finding images in {folder.name}", None), []
    for path in regular_files(folder, skipped):
        suffix = path.suffix.lower()
        if suffix in suffixes:
            found.append(path)
            advance(1)
        else:
            skipped(path, f"{suffix or 'no suffix'}: not a supported image format")
    return found


def _count_empty(folder: Path, paths: Sequence[Path], skipped: Skipped) -> None:
    """Reports sub-folders of `folder` without images as skipped."""
    with_images = {path.relative_to(folder).parts[0] for path in paths}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and child.name not in with_images:
            skipped(child, "folder without images, not a class")


def _inspect(path: Path, background: Colour | None, advance: Advance) -> Header:
    header = image_file.inspect(path, background)
    advance(1)
    return header


def _common_shape(paths: Sequence[Path], headers: Sequence[Header], size: int | None) -> tuple[int, int, int]:
    """Returns (H, W, C) of all images. Raises UserError if they differ and `size` is None."""
    channels = 1 if all(header.gray for header in headers) else 3
    if size is not None:
        _require_size(paths, headers, size)
        return size, size, channels
    for path, header in zip(paths, headers, strict=True):
        if header.size != headers[0].size:
            (width, height), (first, second) = header.size, headers[0].size
            raise UserError(
                f"{path} is {width}x{height}, but {paths[0]} is {first}x{second}: give --size=N to crop "
                "the centre of every image and reduce it to N x N"
            )
    width, height = headers[0].size
    return height, width, channels


def _require_size(paths: Sequence[Path], headers: Sequence[Header], size: int) -> None:
    """Raises UserError if an image would have to be upscaled."""
    sides = [min(header.size) for header in headers]
    if min(sides) < size:
        k = int(np.argmin(sides))
        small = sum(side < size for side in sides)
        raise UserError(
            f"--size={size}: {small:,} of the {len(sides):,} images are smaller, the smallest is {paths[k]} with "
            f"{headers[k].size[0]}x{headers[k].size[1]}; take --size={sides[k]} or less, or leave them out"
        )
