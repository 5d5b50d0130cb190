import io

import numpy as np
import pytest
from PIL import Image

from diffenc.errors import UserError
from diffenc.evaluation import plots


def picture(y, error=0.1):
    figure, axes = plots.make_axes("title", "x", "y")
    plots.plot_band(axes, np.arange(5.0), np.full(5, y), np.full(5, error), "curve")
    return figure


def test_a_figure_becomes_a_png_with_something_on_it(tmp_path):
    plots.save_png(picture(1.0), tmp_path / "new" / "a.png")
    image = Image.open(tmp_path / "new" / "a.png")
    assert image.format == "PNG"
    assert image.size == (960, 600)
    assert np.asarray(image.convert("L")).std() > 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_the_band_is_one_error_to_both_sides():
    figure = picture(2.0, error=0.5)
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), 2)
    heights = np.asarray(axes.collections[0].get_paths()[0].vertices, np.float64)[:, 1]
    assert (heights.min(), heights.max()) == (1.5, 2.5)


def test_a_later_figure_takes_the_place_of_the_first(tmp_path):
    path = tmp_path / "a.png"
    plots.save_png(picture(1.0), path)
    first = path.read_bytes()
    plots.save_png(picture(3.0), path)
    assert path.read_bytes() != first
    Image.open(path).load()


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    plots.save_png(picture(1.0), path)
    before, broken = path.read_bytes(), picture(2.0)

    def half(file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, "savefig", half)
    with pytest.raises(UserError, match="No space left"):
        plots.save_png(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_both_formats_are_of_one_layout_and_the_same_each_time():
    first, second = (plots.render_files(picture(1.0)) for _ in range(2))
    assert first == second
    assert plots.render_files(picture(3.0)) != first
    assert first[".pdf"].startswith(b"%PDF-")
    assert b"CreationDate" not in first[".pdf"]
    assert b"/TrueType" in first[".pdf"] or b"/CIDFontType2" in first[".pdf"], "its text stays text"
    assert Image.open(io.BytesIO(first[".png"])).size == (960, 600)


def test_a_mosaic_keeps_every_picture_in_its_place():
    """2 rows of 3 pictures of 2 by 4 pixels, each of one grey; borders of 1 are white."""
    greys = np.arange(6.0).reshape(2, 3) / 10
    pictures = np.broadcast_to(greys[:, :, None, None, None], (2, 3, 2, 4, 3))
    whole = plots.tile_pictures(pictures, 1)
    assert whole.shape == (1 + 2 * 3, 1 + 3 * 5, 3)
    for row in range(2):
        for column in range(3):
            part = whole[1 + 3 * row : 3 + 3 * row, 1 + 5 * column : 5 + 5 * column]
            np.testing.assert_array_equal(part, greys[row, column])
    assert np.all(whole[::3] == 1)
    assert np.all(whole[:, ::5] == 1)


def test_labels_stand_at_the_middles_of_pictures():
    figure = plots.sheet_figure(2, 3)
    axes = plots.draw_sheet(figure, np.zeros((2, 3, 2, 4, 3)), ["a", "b", "c"], ["d", "e"])
    np.testing.assert_allclose(axes.get_xticks(), [2.5, 7.5, 12.5])
    np.testing.assert_allclose(axes.get_yticks(), [1.5, 4.5])


@pytest.mark.parametrize(("channels", "want"), [(1, [0.75] * 3), (3, [1.0, 0.5, 0.0]), (2, [0.5] * 3)])
def test_pixels_become_colours(channels, want):
    x = {1: [0.5], 3: [1.0, 0.0, -1.2], 2: [0.4, -0.4]}[channels]
    np.testing.assert_allclose(plots.to_rgb(np.array([[x]]))[0, 0], want)


def test_a_statement_says_it():
    figure = plots.make_statement("title", "There is nothing to see. " * 5)
    assert any("nothing to see" in text.get_text() for text in figure.texts)
    assert figure.get_suptitle() == "title"
