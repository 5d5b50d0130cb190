"""One image file of 8 bits a channel: what its header tells, and its levels, unchanged or changed as stated."""

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
    """What is known of an image before it is converted.

    Attributes:
      kind: its format, such as "PNG".
      size: (width, height) as it is seen, once turned as its EXIF orientation says.
      gray: whether its levels become one channel.
      alterations: what `levels` changes in it, or leaves out.
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
    """Returns the header of the image file at `path`. Pixels are read only where it has an alpha channel.

    Raises:
      UserError: it cannot be read, or holds what `levels` refuses.
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
      formats: those of FORMATS that the file may be in, whatever its name.
      size: side in pixels that the square in the centre is reduced to, by the means of boxes; None = as it is.
      background: what transparent images are put on; None = they are refused.

    Raises:
      UserError: it cannot be read, has more than MAX_PIXELS, 8 bits a channel or one frame, is neither gray nor
        RGB (as CMYK), is transparent without a `background`, in colour where `channels` is 1, or less than `size`.
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
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(
            f"{name}: holds {getattr(image, 'n_frames', 'several')} frames or pages; save the one that is meant, or "
            "each, as a file of its own"
        )


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than the 8 bits that Pillow keeps of it, or is of no integers."""
    if image.mode.startswith(("I", "F")):
        return True
    if tags := getattr(image, "tag_v2", None):
        return max(tags.get(_BITS_PER_SAMPLE) or (1,)) > 8
    if image.format == "PPM":
        return any(tile.codec_name == "ppm" and tile.args[1] > 255 for tile in image.tile)  # pyright: ignore[reportAttributeAccessIssue]
    return image.format == "PNG" and any(";16" in str(tile.args) for tile in image.tile)  # pyright: ignore[reportAttributeAccessIssue]


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in range(2, 9)


def _is_opaque(image: Image.Image) -> bool:
    # Palette and keyed transparency too become an alpha channel here.
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
    """The image in mode L or RGB, put on `background` where it is transparent."""
    gray = image.mode in _GRAY
    if not image.has_transparency_data:
        return image.convert("L" if gray else "RGB")
    opaque = _is_opaque(image)
    _require_background(opaque, background, name)
    flat = image.convert("RGBA")
    if not opaque and background is not None:
        flat = Image.alpha_composite(Image.new("RGBA", flat.size, (*background, 255)), flat)
    return flat.convert("RGB").convert("L" if gray and (opaque or _is_gray(background)) else "RGB")


def _cut(image: Image.Image, size: int, name: str) -> Image.Image:
    """The square in the centre, reduced to `size` x `size`; each pixel is the mean of those it stands for."""
    side = min(image.size)
    if side < size:
        raise UserError(f"{name}: is {image.width}x{image.height}, too small for --size={size}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # BOX averages disjoint areas of the original; interpolating filters mix neighbouring ones.
    return image.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))
