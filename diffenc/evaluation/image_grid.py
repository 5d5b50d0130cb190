"""Image grids: levels to bytes, images to a grid, a grid to a PNG file."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from diffenc.errors import UserError
from diffenc.files import atomic

BORDER = 2  # pixels
BORDER_LEVEL = 128  # told apart from black and from white
TILE = 64  # pixels: the least side of an image in a grid


def to_uint8(levels: Integer[np.ndarray, "*shape"], num_levels: int) -> UInt8[np.ndarray, "*shape"]:
    """Returns levels 0 .. num_levels - 1 spread over 0 .. 255, rounded to the nearest.

    Raises:
      ValueError: a level is out of range, or there are fewer than two.
    """
    top = num_levels - 1
    if top < 1 or (levels.size and not 0 <= levels.min() <= levels.max() <= top):
        raise ValueError(f"levels must lie in 0 .. {top}, and there must be at least two")
    # round(255 level / top) in integers: half a step is added before the floor division.
    return ((levels.astype(np.int64) * 510 + top) // (2 * top)).astype(np.uint8)


def check_channels(channels: int, way_out: str = "") -> None:
    """Raises UserError unless images of so many channels can be shown; `way_out` ends the message."""
    if channels not in (1, 3):
        raise UserError(f"images of {channels} channels cannot be shown, only those of 1 or 3{way_out}")


def make_grid(
    images: UInt8[np.ndarray, "n h w c"], columns: int | None = None, scale: int | None = None
) -> UInt8[np.ndarray, "rows cols c"]:
    """Returns images side by side, row by row, with a thin grey border around each.

    Args:
      columns: images in a row; by default, a number that makes the grid about square.
      scale: every pixel becomes scale x scale pixels; by default, the smallest scale for which
        an image's shorter side has 64 pixels or more.

    Raises:
      ValueError: no images.
      UserError: neither 1 nor 3 channels.
    """
    n, height, width, channels = images.shape
    if n == 0:
        raise ValueError("no images to show")
    check_channels(channels)
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or math.ceil(TILE / min(height, width))
    tiles = np.full((-(-n // columns) * columns, height * scale + BORDER, width * scale + BORDER, channels),
                    BORDER_LEVEL, np.uint8)  # fmt: skip
    tiles[:n, BORDER:, BORDER:] = images.repeat(scale, axis=1).repeat(scale, axis=2)
    rows = tiles.reshape(-1, columns, *tiles.shape[1:]).swapaxes(1, 2)
    sheet = rows.reshape(-1, columns * tiles.shape[2], channels)
    return np.pad(sheet, ((0, BORDER), (0, BORDER), (0, 0)), constant_values=BORDER_LEVEL)


def save_png(path: atomic.PathLike, images: Integer[np.ndarray, "n h w c"], num_levels: int) -> None:
    """Writes images of integer levels as one grid to the PNG file `path`, atomically.

    Raises:
      UserError: the file cannot be written, or the images cannot be shown.
      ValueError: a level is out of range.
    """
    sheet = make_grid(to_uint8(images, num_levels))
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
    path = Path(path)
    with atomic.replace_file(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, format="PNG")
