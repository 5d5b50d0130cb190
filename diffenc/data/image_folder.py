"""Any folder of images as a data set: splits and classes by the names of its sub-folders."""

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffenc.bars import Advance, Start, unseen
from diffenc.data.digests import all_files
from diffenc.data.paths import reading
from diffenc.data.recipe import Recipe
from diffenc.data.sources import held_out
from diffenc.errors import UserError
from diffenc.interfaces import Batch

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow runs other programs for some others
MAX_PIXELS = 2**26  # in one image; what claims more is refused before it is unpacked
_TEST_NAMES = ("test", "val", "valid", "validation")
_TEST_SHARE = 10  # one image of so many is held out where no folder is for testing
_GRAY, _COLOUR = ("1", "L"), ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LA", "PA")
_BATCH = 256  # images unpacked at a time


class Labelled(NamedTuple):
    """An image file and its class from 0."""

    path: Path
    label: int


def recipe(source: Path, size: int | None, start: Start = unseen) -> Recipe:
    """The images below `source`, centre cut and box-reduced to `size` x `size` unless that is None.

    In `source`/train and `source`/test (or val, valid), else an even tenth of all is held out for testing.
    Within a split a sub-folder is a class; where there are none all images are of one. Images become gray
    if all of them are, else RGB; transparency is dropped.

    Args:
      start: makes the bars that show how many images have been looked at.

    Raises:
      UserError: no images, one that cannot be read, or not all of one shape and no `size`.
    """
    if size is not None and size < 1:
        raise UserError(f"--size={size}: must be at least 1")
    if not source.is_dir():
        raise UserError(f"--source={source}: is no folder")
    splits, classes, note = _splits(source, start)
    paths = [item.path for items in splits.values() for item in items]
    shape = _shape(paths, size, start(f"looking at {source.name}", len(paths)))

    def read(split: str, first: int) -> Iterator[Batch]:
        return batches(splits[split][first:], shape, FORMATS, size)

    return Recipe(
        name="folder",
        files={f"{source.name}/": source},
        image_shape=shape,
        num_classes=max(1, len(classes)),
        classes=tuple(classes),
        read=read,
        otherwise=f"images of the folder {source.name}" + (f" at {size}x{size}" if size else ""),
        counts={split: len(items) for split, items in splits.items()},
        note=note,
    )


def batches(
    items: Sequence[Labelled], shape: tuple[int, int, int], formats: tuple[str, ...], size: int | None = None
) -> Iterator[Batch]:
    """The images in `items`, all of which come out in `shape`; the rest as `pixels` has it."""
    for first in range(0, len(items), _BATCH):
        part = items[first : first + _BATCH]
        images = np.stack([pixels(item.path, str(item.path), shape, formats, size) for item in part])
        yield {"image": images, "label": np.array([item.label for item in part], np.int32)}


def pixels(
    stream: Path | io.BytesIO,
    name: str,
    shape: tuple[int, int, int],
    formats: tuple[str, ...],
    size: int | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """The levels of one image file.

    Args:
      formats: those of FORMATS that the file may be in, whatever its name.
      size: side in pixels that it is cut and reduced to; None = it stays as it is.

    Raises:
      UserError: it cannot be read, is too large, or has not `shape`.
    """
    with reading(name), Image.open(stream, formats=formats) as image:
        _check(image, name)
        if size is not None:
            image = _cut(image.convert("RGB" if shape[2] == 3 else "L"), size)
        if (image.height, image.width) != shape[:2]:
            raise UserError(f"{name}: is {image.width}x{image.height}, not {shape[1]}x{shape[0]}")
        levels = np.asarray(image.convert("RGB" if shape[2] == 3 else "L"))
        return levels.reshape(shape)


def _check(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name}: claims {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if image.mode not in _GRAY + _COLOUR:
        raise UserError(f"{name}: is of mode {image.mode}; only images of 8 bits a channel can be read")


def _cut(image: Image.Image, size: int) -> Image.Image:
    """The square in the centre, reduced to `size` x `size`; each pixel is the mean of those it stands for."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))


def _shape(paths: Sequence[Path], size: int | None, advance: Advance) -> tuple[int, int, int]:
    """(H, W, C) of all images, by their headers alone; `advance` is told how many more were looked at."""
    sizes: dict[tuple[int, int], Path] = {}
    gray = True
    for path in paths:
        with reading(path), Image.open(path, formats=FORMATS) as image:
            _check(image, str(path))
            sizes.setdefault(image.size, path)
            gray = gray and image.mode in _GRAY
        advance(1)
        if size is None and len(sizes) > 1:
            (one, first), (other, second) = itertools.islice(sizes.items(), 2)
            raise UserError(
                f"{second} is {other[0]}x{other[1]}, but {first} is {one[0]}x{one[1]}: give --size=N to cut "
                "the centre of every image and reduce it to N x N"
            )
    width, height = (size, size) if size is not None else next(iter(sizes))
    return height, width, 1 if gray else 3


def _splits(source: Path, start: Start) -> tuple[dict[str, list[Labelled]], list[str], str]:
    """The images of both splits, the names of the classes, and what was cut if anything was."""
    test = next((source / name for name in _TEST_NAMES if (source / name).is_dir()), None)
    if (source / "train").is_dir() and test is not None:
        train, tested = _images(source / "train", start), _images(test, start)
        classes = _classes(source / "train", train)
        splits = {
            "train": _labelled(source / "train", train, classes),
            "test": _labelled(test, tested, classes),
        }
        return splits, classes, ""
    whole = source / "train" if (source / "train").is_dir() else source
    paths = _images(whole, start)
    classes = _classes(whole, paths)
    items = _labelled(whole, paths, classes)
    chosen = set(held_out(len(items), max(1, len(items) // _TEST_SHARE)).tolist())
    if len(items) < 2:
        raise UserError(f"{whole}: one image is too few: one is held out for testing")
    splits = {
        "train": [item for k, item in enumerate(items) if k not in chosen],
        "test": [item for k, item in enumerate(items) if k in chosen],
    }
    return (
        splits,
        classes,
        f"{len(chosen):,} of the {len(items):,} images, evenly spread, are held out for testing",
    )


def _classes(folder: Path, paths: Sequence[Path]) -> list[str]:
    """The sub-folders that hold images, at `paths`; none of them where images lie in `folder` itself."""
    parts = [path.relative_to(folder).parts for path in paths]
    if not parts:
        raise UserError(f"{folder}: holds no image")
    loose = next((part[0] for part in parts if len(part) == 1), None)
    names = sorted({part[0] for part in parts if len(part) > 1})
    if loose is not None and names:
        raise UserError(
            f"{folder}: {loose} lies beside the folders of classes ({names[0]} …); move it into one"
        )
    return names


def _labelled(folder: Path, paths: Sequence[Path], classes: Sequence[str]) -> list[Labelled]:
    found = _classes(folder, paths)
    if unknown := sorted(set(found) - set(classes)) or (bool(classes) and not found):
        what = unknown if isinstance(unknown, list) else "images without a class"
        raise UserError(f"{folder}: holds {what}, of which train has nothing")
    number = {name: label for label, name in enumerate(classes)}
    return [Labelled(path, number[path.relative_to(folder).parts[0]] if classes else 0) for path in paths]


def _images(folder: Path, start: Start) -> list[Path]:
    """The files whose ending is that of one of FORMATS, in the order of names."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    advance, found = start(f"finding images in {folder.name}", None), []
    for path in all_files(folder):
        if path.suffix.lower() in endings:
            found.append(path)
            advance(1)
    return found
