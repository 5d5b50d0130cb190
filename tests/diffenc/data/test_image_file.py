"""Real files in all modes: read as they are seen, altered as stated, or refused with the way out."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from diffenc.data import image_file
from diffenc.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
WHITE = (255, 255, 255)


def saved(folder: Path, image: Image.Image, name: str = "x.png", **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def read(path: Path, background=None, **options) -> np.ndarray:
    """The levels, in as many channels as the header says."""
    header = image_file.inspect(path, background)
    levels = image_file.levels(
        path, str(path), image_file.FORMATS, 1 if header.gray else 3, background=background, **options
    )
    assert (levels.shape[1], levels.shape[0]) == header.size or options
    return levels


def refused(path: Path, background=None) -> str:
    """The message with which a file is refused, looked at or read."""
    with pytest.raises(UserError) as looked:
        image_file.inspect(path, background)
    with pytest.raises(UserError) as opened:
        image_file.levels(path, str(path), image_file.FORMATS, 3, background=background)
    assert str(looked.value) == str(opened.value)
    assert str(path) in str(looked.value)
    assert "\n" not in str(looked.value)
    return str(looked.value)


def with_alpha(alpha: np.ndarray, gray: bool = False) -> Image.Image:
    colours = GRAY[..., None] if gray else COLOUR
    return Image.fromarray(np.concatenate([colours, alpha[..., None]], axis=-1), "LA" if gray else "RGBA")


CLEAR = np.full((4, 6), 255, np.uint8)
HOLE = CLEAR.copy()
HOLE[1, 2] = 0
HALF = CLEAR.copy()
HALF[1, 2] = 51  # a fifth


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.webp"])
def test_transparent_pixels_are_refused_with_the_way_out(tmp_path, name):
    path = saved(tmp_path, with_alpha(HOLE), name, **({"lossless": True} if name == "x.webp" else {}))
    assert "--background=white" in refused(path)


def test_a_background_takes_the_place_of_hidden_colours(tmp_path):
    path = saved(tmp_path, with_alpha(HOLE))
    expected = COLOUR.copy()
    expected[1, 2] = WHITE
    np.testing.assert_array_equal(read(path, WHITE), expected)
    expected[1, 2] = (10, 20, 30)
    np.testing.assert_array_equal(read(path, (10, 20, 30)), expected)
    assert image_file.inspect(path, WHITE).alterations == ("transparency put on the background",)


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path):
    levels = read(saved(tmp_path, with_alpha(HALF)), WHITE)
    assert np.abs(levels[1, 2] - (COLOUR[1, 2] / 5 + 255 * 4 / 5)).max() <= 1


def test_hidden_colours_do_not_come_out_of_a_reduction(tmp_path):
    red = np.zeros((2, 2, 4), np.uint8)
    red[..., 0] = 255
    levels = read(saved(tmp_path, Image.fromarray(red, "RGBA")), WHITE, size=1)
    np.testing.assert_array_equal(levels, [[WHITE]])


def test_an_opaque_alpha_channel_is_dropped_and_counted(tmp_path):
    path = saved(tmp_path, with_alpha(CLEAR))
    np.testing.assert_array_equal(read(path), COLOUR)
    assert image_file.inspect(path, None).alterations == ("alpha channel dropped: all opaque",)


def test_gray_with_alpha_stays_gray_on_gray(tmp_path):
    np.testing.assert_array_equal(read(saved(tmp_path, with_alpha(CLEAR, gray=True)))[..., 0], GRAY)
    path = saved(tmp_path, with_alpha(HOLE, gray=True))
    assert "--background=white" in refused(path)
    expected = GRAY.copy()
    expected[1, 2] = 255
    np.testing.assert_array_equal(read(path, WHITE)[..., 0], expected)
    assert read(path, (255, 0, 0))[1, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_without_an_alpha_channel_is_seen(tmp_path, mode):
    image = Image.new(mode, (6, 4), 0 if mode != "RGB" else (0, 0, 0))
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 200, 200])
    path = saved(tmp_path, image, transparency=0 if mode != "RGB" else (0, 0, 0))
    assert "transparent" in refused(path)
    assert (read(path, WHITE) == 255).all()


def test_a_palette_is_read_as_its_colours(tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6), "P")
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(read(saved(tmp_path, image)), palette[:24].reshape(4, 6, 3))


def test_a_gif_without_use_of_its_transparent_colour_is_opaque(tmp_path):
    image = Image.new("P", (6, 4), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    path = saved(tmp_path, image, "x.gif", transparency=0)
    assert (read(path) == (200, 100, 50)).all()


def test_one_bit_is_black_and_white(tmp_path):
    bits = GRAY > 127
    path = saved(tmp_path, Image.fromarray(bits))
    np.testing.assert_array_equal(read(path)[..., 0], np.where(bits, 255, 0))
    assert image_file.inspect(path, None).alterations == ("1 bit read as levels 0 and 255",)


def png(depth: int, kind: int, row: int) -> bytes:
    """A black PNG of 2x2 pixels whose rows have as many bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">2I5B", 2, 2, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 + row) * 2))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def tiff16() -> bytes:
    """A TIFF of 1x1 pixels with three channels of 16 bits."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6), (284, 3, 1, 1)]  # fmt: skip
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + struct.pack("<I", entry[3]) for entry in entries)
    head = (
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)
    )
    assert len(head) == 134
    return head + struct.pack("<3H", 16, 16, 16) + struct.pack("<3H", 1000, 2000, 3000)


DEEP = {
    "rgb.png": png(16, 2, 12), "rgba.png": png(16, 6, 16), "la.png": png(16, 4, 8), "gray.png": png(16, 0, 4),
    "rgb.tiff": tiff16(), "rgb.ppm": b"P6 2 1 65535\n" + bytes(12), "gray.ppm": b"P5 2 1 1023\n" + bytes(4),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(DEEP[name])
    assert "more than 8 bits a channel" in refused(tmp_path / name)
    assert "-depth 8" in refused(tmp_path / name)


def test_fewer_bits_are_spread_over_all_levels(tmp_path):
    (tmp_path / "x.png").write_bytes(png(4, 0, 1))
    assert (read(tmp_path / "x.png") == 0).all()


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "F", "I"])
def test_what_has_no_one_conversion_is_refused_with_the_way_out(tmp_path, mode):
    said = refused(saved(tmp_path, Image.new(mode, (6, 4)), "x.tiff"))
    assert "ImageMagick: magick IN" in said


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tiff"])
def test_several_frames_or_pages_are_refused_with_the_way_out(tmp_path, name):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert "holds 2 frames or pages; save the one that is meant" in refused(path)


def test_the_further_pictures_of_a_jpeg_are_counted(tmp_path):
    gray = Image.new("RGB", (6, 4), (77, 77, 77))
    buffer = io.BytesIO()
    gray.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (6, 4))])
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert np.abs(read(tmp_path / "x.jpg").astype(int) - 77).max() <= 2
    header = image_file.inspect(tmp_path / "x.jpg", None)
    assert (header.kind, header.alterations) == ("JPEG", ("further pictures in a JPEG (MPO) left out",))


# How EXIF orientations 1 .. 8 are undone, by the standard's table of where row 0 and column 0 are.
UPRIGHT = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: x[:, ::-1].swapaxes(0, 1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tiff"])
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "x.webp" else {}
    path = saved(tmp_path, Image.fromarray(COLOUR), name, exif=exif, **options)
    np.testing.assert_array_equal(read(path), UPRIGHT[orientation](COLOUR))
    turned = ("turned or mirrored as the EXIF orientation says",) if orientation > 1 else ()
    assert image_file.inspect(path, None).alterations == turned


def test_exif_orientation_of_a_jpeg_is_applied(tmp_path):
    levels = np.full((16, 32, 3), 250, np.uint8)
    levels[:, :16] = 5
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(levels), "x.jpg", exif=exif, quality=95)
    found = read(path)
    assert found.shape == (32, 16, 3)
    assert found[:14].max() < 30
    assert found[18:].min() > 225


def test_a_colour_profile_is_counted_and_levels_are_as_stored(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path, Image.fromarray(COLOUR), icc_profile=profile)
    np.testing.assert_array_equal(read(path), COLOUR)
    (said,) = image_file.inspect(path, None).alterations
    assert "colour profile (ICC) ignored" in said


def test_colour_is_not_made_gray(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOUR))
    with pytest.raises(UserError, match="is in colour, not gray"):
        image_file.levels(path, str(path), image_file.FORMATS, 1)


def test_nothing_is_blown_up(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOUR))
    with pytest.raises(UserError, match="is 6x4, too small for --size=5"):
        image_file.levels(path, str(path), image_file.FORMATS, 3, size=5)


def test_the_square_in_the_centre_is_cut(tmp_path):
    levels = read(saved(tmp_path, Image.fromarray(COLOUR)), size=4)
    np.testing.assert_array_equal(levels, COLOUR[:, 1:5])
    fitted = ImageOps.fit(Image.fromarray(COLOUR), (2, 2), Image.Resampling.BOX)
    np.testing.assert_array_equal(read(tmp_path / "x.png", size=2), np.asarray(fitted))


def test_a_background_is_a_colour():
    assert image_file.parse_colour("white") == WHITE
    assert image_file.parse_colour("#102030") == (16, 32, 48)
    with pytest.raises(UserError, match="--background=nothing: is no colour"):
        image_file.parse_colour("nothing")
