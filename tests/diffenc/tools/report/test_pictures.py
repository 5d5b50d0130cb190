"""Pictures decoded again, pixel by pixel."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffenc.tools.report import pictures, run_data

from .conftest import heat_maps, png


def pixels(picture):
    data = base64.b64decode(picture.source.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def read(workdir):
    return run_data.read_run(str(workdir), "run")


def frames(workdir):
    found = pictures.make_frames(0, read(workdir))
    assert isinstance(found, tuple)
    return found


def test_images_are_set_in_rows_of_five(made):
    record, arrays = heat_maps(n=7)
    arrays["x"] = np.linspace(-1, 1, 7)[:, None, None, None] * np.ones((7, 3, 3, 1))
    _, found = frames(made("a", figures={"heat_maps": (record, arrays)}))
    sheet = pixels(found.images)
    assert sheet.shape == (3 + 1 + 3, 5 * 3 + 4 * 1, 4)
    assert [tuple(sheet[0, 4 * k]) for k in range(5)] == [(v, v, v, 255) for v in (0, 42, 85, 128, 170)]
    assert tuple(sheet[4, 4]) == (255, 255, 255, 255)
    assert tuple(sheet[4, 8]) == (0, 0, 0, 0)  # there is no eighth
    assert tuple(sheet[0, 3]) == (0, 0, 0, 0)


def test_changes_are_red_where_brighter_and_blue_where_darker(made):
    record, arrays = heat_maps()
    times, found = frames(made("a", figures={"heat_maps": (record, arrays)}))
    assert times == (0.5, 1.0)
    first, last = pixels(found.change[0][0]), pixels(found.change[1][0])
    assert first[0, 0, 2] > first[0, 0, 0]  # from -1
    assert last[-1, -1, 0] > last[-1, -1, 2]  # to 1
    assert [limit for _, limit in found.change] == ["± 1.0", "± 1.0"]
    assert found.encoded == ()


def test_encoded_images_are_shown_if_of_the_same(made):
    record, arrays = heat_maps()
    encoded = {"x": arrays["x"], "x_phi": np.zeros((2, 2, 3, 3, 1))}
    figures = {"heat_maps": (record, arrays), "encoded": (record, encoded)}
    _, found = frames(made("a", figures=figures))
    assert len(found.encoded) == 2
    others = (
        ({**record, "t": [0.1, 1.0]}, encoded),
        ({**record, "of": {"step": 10}}, encoded),
        (record, encoded | {"x": arrays["x"] + 0.5}),
    )
    for name, other in zip("bcd", others, strict=True):
        _, found = frames(made(name, figures=figures | {"encoded": other}))
        assert found.encoded == ()


def test_an_encoder_that_does_nothing(made):
    record, arrays = heat_maps()
    arrays["change"] *= 0
    assert (
        pictures.make_frames(0, read(made("a", figures={"heat_maps": (record, arrays)})))
        == "This encoder does not depend on t (step 20)."
    )


@pytest.mark.parametrize(
    "change",
    [
        {"x": np.zeros((2, 4, 3, 1))},
        {"change": np.zeros((2, 3, 3, 3))},
        {"x": np.zeros(3)},
        {"change": np.zeros((0, 2, 3, 3))},
    ],
)
def test_arrays_of_other_shapes_are_told_of(made, change):
    record, arrays = heat_maps()
    found = pictures.make_frames(0, read(made("a", figures={"heat_maps": (record, arrays | change)})))
    assert found == "figures/heat_maps.npz does not contain valid heat maps."


@pytest.mark.parametrize("t", [10**400, None, "x"])
def test_times_that_are_no_numbers_are_told_of(made, t):
    record, arrays = heat_maps()
    found = pictures.make_frames(
        0, read(made("a", figures={"heat_maps": ({**record, "t": [0.5, t]}, arrays)}))
    )
    assert found == "figures/heat_maps.npz does not contain valid heat maps."


def test_large_pictures_are_of_fewer_images(made, monkeypatch):
    record, arrays = heat_maps(n=10)
    arrays["change"] = np.random.default_rng(0).normal(size=(10, 2, 40, 40))
    arrays["x"] = np.random.default_rng(1).uniform(-1, 1, (10, 40, 40, 1))
    monkeypatch.setattr(pictures, "MAX_BYTES", 60_000)
    _, found = frames(made("a", figures={"heat_maps": (record, arrays)}))
    assert found.size <= 1.2 * 60_000
    assert "class 0" in found.note
    assert "class 9" not in found.note


def test_a_grid_is_embedded_as_it_is(made):
    found = pictures.load_samples(read(made("a", files={"samples/000000007.png": png(5)})))
    assert isinstance(found, tuple)
    assert pixels(found[0]).shape == (5, 5)
    assert (found[0].width, found[1]) == (5, "samples/000000007.png, step 7")


def test_a_grid_that_is_too_large_is_not(made, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 20)
    found = pictures.load_samples(read(made("a", files={"samples/000000007.png": png(5)})))
    assert found == f"samples/000000007.png has {len(png(5))} bytes, more than the limit of 20."


def test_the_figures_own_samples_stand_in(made):
    levels = np.array([0, 4, 2], np.int32)[:, None, None, None] * np.ones((3, 40, 40, 1), np.int32)
    workdir = made("a", figures={"samples": ({"num_levels": 5}, {"levels": levels})})
    found = pictures.load_samples(read(workdir))
    assert isinstance(found, tuple)
    assert found[1] == "figures/samples, step 20"
    assert set(np.unique(pixels(found[0]))) == {0, 128, 255}
    newer = made(
        "b",
        files={"samples/000000030.png": png(5)},
        figures={"samples": ({"num_levels": 5}, {"levels": levels})},
    )
    other = pictures.load_samples(read(newer))
    assert isinstance(other, tuple)
    assert "step 30" in other[1]
