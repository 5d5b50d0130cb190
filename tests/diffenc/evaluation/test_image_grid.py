"""Grids and PNG files, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from diffenc.errors import UserError
from diffenc.evaluation import image_grid


def test_levels_spread_over_bytes():
    np.testing.assert_array_equal(image_grid.to_uint8(np.arange(256), 256), np.arange(256))
    np.testing.assert_array_equal(image_grid.to_uint8(np.array([0, 1]), 2), [0, 255])
    levels = np.arange(17, dtype=np.uint8)  # narrow: the product must not wrap round
    np.testing.assert_array_equal(image_grid.to_uint8(levels, 17), [round(255 * k / 16) for k in range(17)])
    assert image_grid.to_uint8(levels, 17).dtype == np.uint8


@pytest.mark.parametrize(("levels", "num_levels"), [([17], 17), ([-1], 17), ([0], 1)])
def test_levels_out_of_range_are_refused(levels, num_levels):
    with pytest.raises(ValueError, match="levels must lie in 0"):
        image_grid.to_uint8(np.array(levels), num_levels)


def test_grid_puts_images_in_reading_order():
    tiles = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
    sheet = image_grid.make_grid(tiles, columns=3, scale=1)
    border = np.full
    rows = []
    for numbers in ([1, 2, 3], [4, 5, 128]):  # the place left over is border
        row = np.concatenate(
            [np.concatenate([border((2, 2), 128), border((2, 3), n)], axis=1) for n in numbers]
            + [border((2, 2), 128)],
            axis=1,
        )
        rows += [border((2, 17), 128), row]
    expected = np.concatenate([*rows, border((2, 17), 128)])
    np.testing.assert_array_equal(sheet[..., 0], expected)


def test_small_images_are_enlarged_by_whole_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    sheet = image_grid.make_grid(image)
    assert sheet.shape == (8 * 8 + 4, 8 * 8 + 4, 3)
    np.testing.assert_array_equal(sheet[2:-2, 2:-2], np.kron(image[0], np.ones((8, 8, 1), np.uint8)))


@pytest.mark.parametrize(("n", "size", "shape"), [(64, 28, (8, 8)), (10, 32, (3, 4)), (1, 100, (1, 1))])
def test_default_grid_is_about_square(n, size, shape):
    side = size * {28: 3, 32: 2, 100: 1}[size] + 2
    sheet = image_grid.make_grid(np.zeros((n, size, size, 1), np.uint8))
    assert sheet.shape == (shape[0] * side + 2, shape[1] * side + 2, 1)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((0, 8, 8, 1), ValueError, "no images"),
        ((1, 8, 8, 2), UserError, "images of 2 channels cannot be shown, only those of 1 or 3"),
    ],
)
def test_what_cannot_be_shown_is_refused(shape, error, message):
    with pytest.raises(error, match=message):
        image_grid.make_grid(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_holds_the_pixels(tmp_path, channels, mode):
    levels = np.random.default_rng(1).integers(0, 17, (4, 8, 8, channels))
    path = tmp_path / "samples" / "000400.png"
    image_grid.save_png(path, levels, 17)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (134, 134))
        corner = np.asarray(picture).reshape(134, 134, channels)[2:66:8, 2:66:8]
    np.testing.assert_array_equal(corner, np.rint(levels[0] * 255 / 16))
    assert [p.name for p in path.parent.iterdir()] == ["000400.png"]


def test_a_picture_that_cannot_be_written_is_the_users_to_fix(tmp_path):
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(UserError, match=r"samples/0\.png"):
        image_grid.save_png(tmp_path / "samples" / "0.png", np.zeros((1, 8, 8, 1), int), 2)
