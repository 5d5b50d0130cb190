import jax
import numpy as np

from diffenc.evaluation import plots
from diffenc.tools.figures import encoded_images
from diffenc.tools.figures import figure_data as figure_subject


def shrunk(x, log_snr):
    return jax.nn.sigmoid(log_snr) * x


def test_a_heat_map_is_the_change_summed_over_channels(subject_of, images_of):
    """alpha^2 x falls from 1 to 1 - sigma^2: by hand at t = 1, s = 0.5."""
    images = images_of(0, 3, channels=3)
    subject = subject_of(shrunk, images, times=(0.5, 1.0), gap=0.5)
    numbers = encoded_images.measure_heat_maps(subject)
    x = (2.0 * images + 1) / 256 - 1
    late, early = 1 / (1 + np.exp(5)), 1 / (1 + np.exp(5 - 18.3 / 2))
    order = figure_subject.select_shown(subject.experiment.dataset, subject.settings)
    want = (late - early) / 0.5 * x.sum(axis=-1)[order]
    np.testing.assert_allclose(numbers.arrays["change"][:, 1], want, atol=1e-12)
    np.testing.assert_allclose(numbers.arrays["x"], x[order])
    assert numbers.record["rows"] == ["image 1", "image 2", "image 3"]


def test_every_row_and_column_is_named(subject_of, images_of):
    subject = subject_of(shrunk, images_of(1, 4), [0, 2, 2, 0], times=(0.5, 1.0), gap=0.5)
    figure = encoded_images.plot_heat_maps(encoded_images.measure_heat_maps(subject), "dots test, step 7")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["class 0", "class 2"]
    columns = [text.get_text() for text in axes.get_xticklabels()]
    assert columns[0] == "x"
    assert [column.split("\n")[0] for column in columns[1:]] == ["t = 0.5", "t = 1"]
    assert "dots test, step 7" in figure.get_suptitle()
    assert "nothing" not in figure.get_suptitle()
    (bar,) = axes.child_axes
    assert "per unit of t" in bar.get_ylabel()


def test_positive_is_red_negative_blue_and_each_column_has_its_own_scale():
    """One image of four pixels whose change is 1, -1, 0, 1/2 early, and a hundred times that late."""
    change = np.array([1.0, -1.0, 0.0, 0.5]).reshape(1, 1, 2, 2) * np.array([1.0, 100.0])[:, None, None]
    numbers = encoded_images.FigureRecord(
        {"rows": ["class 0"], "t": [0.4, 1.0], "gap": 0.1},
        {"x": np.zeros((1, 2, 2, 1)), "change": change},
    )
    figure = encoded_images.plot_heat_maps(numbers, "title")
    (axes,) = figure.axes
    picture = np.asarray(axes.images[0].get_array())
    assert picture.shape == (1 + 2 + 1, 3 * (2 + 1) + 1, 3), "a border of 1 around pictures of 2 by 2"
    early, late = picture[1:3, 4:6], picture[1:3, 7:9]
    np.testing.assert_array_equal(early, late)
    red, blue, white, pink = early.reshape(4, 3)
    assert red[0] > 0.3 > max(red[1:])
    assert blue[2] > 0.3 > max(blue[:2])
    assert min(white) > 0.95
    assert pink[0] > pink[2] > red[2]
    columns = [text.get_text() for text in axes.get_xticklabels()]
    assert columns[1:] == ["t = 0.4\n± 1", "t = 1\n± 1e+02"]


def test_an_encoder_that_changes_nothing_is_said_to(subject_of, images_of):
    subject = subject_of(lambda x, log_snr: x, images_of(2, 3))
    heat_maps = encoded_images.plot_heat_maps(encoded_images.measure_heat_maps(subject), "title")
    encoded = encoded_images.plot_encoded_images(encoded_images.measure_encoded_images(subject), "title")
    assert all("this encoder changes nothing" in figure.get_suptitle() for figure in (heat_maps, encoded))
    white = plots.diverging_colours(np.zeros((2, 2)), 0.0)
    np.testing.assert_allclose(white, plots.DIVERGING(0.5)[0:3] * np.ones((2, 2, 3)))


def test_encoded_images_on_both_scales(subject_of, images_of):
    """alpha^2 x, which stretched to its own range is x stretched to its own."""
    images = images_of(3, 2)
    subject = subject_of(shrunk, images, images=(1, 0), times=(0.8,), gap=0.1)
    numbers = encoded_images.measure_encoded_images(subject)
    x = ((2.0 * images + 1) / 256 - 1)[[1, 0]]
    alpha_2 = 1 / (1 + np.exp(-(13.3 - 18.3 * 0.8)))
    np.testing.assert_allclose(numbers.arrays["x_phi"][:, 0], alpha_2 * x, rtol=1e-12)
    np.testing.assert_allclose(numbers.record["alpha_squared"], [alpha_2], rtol=1e-12)
    stretched = encoded_images.stretch_contrast(numbers.arrays["x_phi"])[:, 0]
    low, high = (side(x, axis=(1, 2, 3), keepdims=True) for side in (np.min, np.max))
    np.testing.assert_allclose(stretched, 2 * (x - low) / (high - low) - 1, atol=1e-12)
    figure = encoded_images.plot_encoded_images(numbers, "title")
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert rows == ["image 1", "stretched", "image 2", "stretched"]


def test_a_flat_picture_is_stretched_to_grey():
    np.testing.assert_array_equal(encoded_images.stretch_contrast(np.full((1, 1, 2, 2, 1), 0.7)), 0)
