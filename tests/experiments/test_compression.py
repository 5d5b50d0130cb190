"""The codecs that coded images are compared with lose nothing, and all images together are in one picture."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from diffenc.config.settings import Evaluate
from diffenc.evaluation.commands import evaluate
from diffenc.training import loop
from experiments import compression
from experiments.evaluate_copy import evaluate_copy


@pytest.fixture(scope="module", params=[1, 3])
def images(request):
    return np.random.default_rng(0).integers(0, 256, (7, 5, 4, request.param)).astype(np.uint8)


def test_a_tile_is_all_images_one_below_the_other(images, monkeypatch):
    np.testing.assert_array_equal(compression.tile(images), images.reshape(35, 4, -1))
    monkeypatch.setattr(compression, "MOST_SIDE", 20)
    picture = compression.tile(images)
    assert picture.shape[:2] == (20, 8)
    np.testing.assert_array_equal(picture[5:10, 4:8], images[3])
    monkeypatch.setattr(compression, "MOST_SIDE", 6)
    with pytest.raises(ValueError, match="too many images"):
        compression.tile(images)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_pictures_come_back(images, kind, options):
    picture = compression.tile(images)
    found = Image.open(io.BytesIO(compression.encode(picture, kind, **options)))
    channels = found.convert("RGB" if images.shape[-1] == 3 else "L")
    np.testing.assert_array_equal(np.asarray(channels).reshape(picture.shape), picture)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not there")
def test_zstd_takes_few_bytes_of_what_repeats(images):
    alike, other = compression.zstd_sizes([bytes(1000), images.tobytes()])
    assert alike < 40
    assert images.size < other < images.size + 40, "random pixels"


def test_sizes_are_of_files(images):
    sizes = compression.codec_sizes(images)
    assert sizes["PNG"].alone == sum(len(compression.encode(image, "PNG", optimize=True)) for image in images)
    assert sizes["PNG"].together is not None
    assert images.size < sizes["PNG"].together < sizes["PNG"].alone, "random pixels"


def test_a_row_states_bound_net_and_initial_bits():
    records = [{"bpd_net": net, "bpd_initial": 103.4, "file_bytes": 256_469} for net in (2.0, 2.2)]
    assert compression.row(50, 16, {"bpd": 2.0, "bpd_mc_se": 0.01}, records) == (
        "| 50 | 16 | 2.0000 ± 0.0100 | 2.0000, 2.2000; mean +5.00 % | 103.4 | 256,469 |"
    )


def test_the_bound_is_measured_in_a_copy(tiny, tmp_path):
    experiment, workdir = tiny(steps=2), tmp_path / "run"
    loop.train(experiment, workdir)
    evaluate(experiment, workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    at_t = dataclasses.replace(experiment, evaluate=Evaluate(num_timesteps=4))
    record = evaluate_copy(at_t, workdir)
    assert (record["T"], record["step"]) == (4, 2)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
