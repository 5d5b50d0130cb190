import numpy as np
import pytest
from PIL import Image

from diffenc import plots
from diffenc.errors import UserError


def picture(y, error=0.1):
    figure, axes = plots.axes("title", "x", "y")
    plots.band(axes, np.arange(5.0), np.full(5, y), np.full(5, error), "curve")
    return figure


def test_a_figure_becomes_a_png_with_something_on_it(tmp_path):
    plots.save(picture(1.0), tmp_path / "new" / "a.png")
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
    plots.save(picture(1.0), path)
    first = path.read_bytes()
    plots.save(picture(3.0), path)
    assert path.read_bytes() != first
    Image.open(path).load()


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    plots.save(picture(1.0), path)
    before, broken = path.read_bytes(), picture(2.0)

    def half(file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, "savefig", half)
    with pytest.raises(UserError, match="No space left"):
        plots.save(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
