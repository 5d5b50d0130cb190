"""Reads one image file of 8 bits a channel: its header, and its levels, converted only as requested."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageOps

from diffenc.errors import UserError
from diffenc.safe_io.reading import convert_errors

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow runs other programs for some others
MAX_PIXELS = 2**26  # in one image; what claims more is refused before it is unpacked
_GRAY, _COLOUR = ("1", "L", "LA", "La"), ("RGB", "RGBA", "RGBa", "P", "PA", "YCbCr")
_ORIENTATION = 0x0112  # EXIF: 1 = stored upright, 2 .. 8 = mirrored or turned
_BITS_PER_SAMPLE = 258  # TIFF

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Header:
    """Properties of an image, read before the conversion.

    Attributes:
      kind: its format, such as "PNG".
      size: (width, height) as displayed, after the EXIF orientation is applied.
      gray: whether its levels become one channel.
      alterations: descriptions of the changes that `levels` makes, or of the parts that it drops.
    """

    kind: str
    size: tuple[int, int]
    gray: bool
    alterations: tuple[str, ...]


def parse_colour(text: str) -> Colour:
    """Returns the RGB levels of a colour by name or as #rrggbb. Raises UserError if it is none."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UserError(f"--background={text}: is no colour; for example white, black, #808080") from error


def inspect(path: Path, background: Colour | None) -> Header:
    """Returns the header of the image file at `path`. Decodes pixels only for images with transparency or an orientation.

    Raises:
      UserError: the file cannot be read, or `levels` would refuse it.
    """
    # Image.open reads headers alone; the number of pixels is checked before any is decoded.
    with convert_errors(path), Image.open(path, formats=FORMATS) as image:
        _check(image, str(path))
        turned = _is_turned(image)
        upright = ImageOps.exif_transpose(image) if turned else image
        alterations = [
            *(["turned or mirrored as the EXIF orientation says"] if turned else []),
            *(["colour profile (ICC) ignored: levels as stored"] if image.info.get("icc_profile") else []),
            *(["further pictures in a JPEG (MPO) left out"] if image.format == "MPO" else []),
            *(["1 bit read as levels 0 and 255"] if image.mode == "1" else []),
        ]
        gray = image.mode in _GRAY
        if image.has_transparency_data:
            opaque = _is_opaque(image)
            _require_background(opaque, background, str(path))
            gray = gray and (opaque or _is_gray(background))
            alterations.append(
                "alpha channel dropped: all opaque" if opaque else "transparency put on the background"
            )
        return Header(
            "JPEG" if image.format == "MPO" else image.format or "", upright.size, gray, tuple(alterations)
        )


def levels(
    stream: Path | io.BytesIO,
    name: str,
    formats: tuple[str, ...],
    channels: int,
    size: int | None = None,
    background: Colour | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """Returns the levels of one image file, upright, in `channels` = 1 or 3.

    Args:
      formats: those of FORMATS that are admitted; the content decides, not the file's suffix.
      size: side in pixels to which the central square is reduced by averaging over boxes; None = keep the size.
      background: colour on which transparent images are composited; None = refuse them.

    Raises:
      UserError: the file cannot be read, has more than MAX_PIXELS, more than 8 bits a channel or more than one frame, is
        neither gray nor RGB (such as CMYK), has transparent pixels without a `background`, is in colour where `channels`
        is 1, or is smaller than `size`.
    """
    with convert_errors(name), Image.open(stream, formats=formats) as opened:
        _check(opened, name)
        image = _flattened(ImageOps.exif_transpose(opened), background, name)
        if channels == 1 and image.mode != "L":
            raise UserError(f"{name}: is in colour, not gray")
        image = image.convert("RGB" if channels == 3 else "L")
        if size is not None:
            image = _cut(image, size, name)
        return np.asarray(image).reshape(image.height, image.width, channels)


def require_shape(image: UInt8[np.ndarray, "h w c"], shape: tuple[int, int, int], name: str) -> None:
    """Raises UserError if an image is not (H, W, C)."""
    if image.shape != shape:
        raise UserError(f"{name}: is {image.shape[1]}x{image.shape[0]}, not {shape[1]}x{shape[0]}")


def _check(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name}: claims {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if _is_deep(image):
        raise UserError(
            f"{name}: has more than 8 bits a channel (mode {image.mode}), of which 8 would be kept; reduce it "
            "to 8 first, for example with ImageMagick: magick IN -depth 8 OUT"
        )
    if image.mode not in _GRAY + _COLOUR:
        raise UserError(
            f"{name}: is of mode {image.mode}; only gray and RGB images are read, since others have no one "
            "conversion: convert it first, for example with ImageMagick: magick IN -colorspace sRGB OUT"
        )
    # MPO is a JPEG with further pictures after the first; `inspect` reports that they are left out.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(
            f"{name}: holds {getattr(image, 'n_frames', 'several')} frames or pages; save the one that is meant, or "
            "each, as a file of its own"
        )


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than the 8 bits that Pillow's modes keep, or is not of integers."""
    if image.mode.startswith(("I", "F")):
        return True
    # The mode does not show the depth: Pillow reads 16-bit RGB as mode RGB, and drops the low bytes. It shows in the
    # headers instead.
    if tags := getattr(image, "tag_v2", None):
        return max(tags.get(_BITS_PER_SAMPLE) or (1,)) > 8
    if image.format == "PPM":
        return any(tile.codec_name == "ppm" and tile.args[1] > 255 for tile in image.tile)  # pyright: ignore[reportAttributeAccessIssue]
    return image.format == "PNG" and any(";16" in str(tile.args) for tile in image.tile)  # pyright: ignore[reportAttributeAccessIssue]


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in range(2, 9)


def _is_opaque(image: Image.Image) -> bool:
    # The conversion to RGBA turns palette and colour-key transparency into an alpha channel too.
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    return low == 255


def _is_gray(colour: Colour | None) -> bool:
    return colour is not None and len(set(colour)) == 1


def _require_background(opaque: bool, background: Colour | None, name: str) -> None:
    if not opaque and background is None:
        raise UserError(
            f"{name}: has transparent pixels, under which any colours may lie; --background=white, or of another "
            "colour, puts all such images on it"
        )


def _flattened(image: Image.Image, background: Colour | None, name: str) -> Image.Image:
    """Returns the image in mode L or RGB, composited on `background` if it has transparent pixels."""
    gray = image.mode in _GRAY
    if not image.has_transparency_data:
        return image.convert("L" if gray else "RGB")
    opaque = _is_opaque(image)
    _require_background(opaque, background, name)
    flat = image.convert("RGBA")
    if not opaque and background is not None:
        flat = Image.alpha_composite(Image.new("RGBA", flat.size, (*background, 255)), flat)
    # From RGB to L, gray levels are kept exactly: Pillow's luma weights sum to 1.
    return flat.convert("RGB").convert("L" if gray and (opaque or _is_gray(background)) else "RGB")


def _cut(image: Image.Image, size: int, name: str) -> Image.Image:
    """Returns the central square reduced to `size` x `size`; each pixel is the mean of the box of pixels that it replaces."""
    side = min(image.size)
    if side < size:
        raise UserError(f"{name}: is {image.width}x{image.height}, too small for --size={size}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # BOX averages over the area of each output pixel alone; interpolating filters mix in neighbouring areas.
    return image.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))
