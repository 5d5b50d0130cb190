"""That the samples are those of --mode=sample is tested with the mode of the figures."""

import dataclasses
import json

import numpy as np
import pytest

from diffenc.config.settings import Sample
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.parallel.sharding import data_mesh
from diffenc.tools.figures import samples as figure_samples
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord
from diffenc_plugins.variances import Fixed


@pytest.fixture
def of(tiny, tmp_path):
    """What samples by such settings depend on."""

    def made(sample, step=7):
        subject = FigureInputs(tiny(sample=sample), tmp_path, data_mesh(), {}, step)
        return json.loads(atomic.to_json(figure_samples.samples_metadata(subject)))

    return made


def test_samples_depend_on_their_settings_and_the_checkpoint_alone(of):
    base = Sample(num_timesteps=6, num=3)
    for other in (
        {"seed": 1},
        {"num_timesteps": 5},
        {"num": 4},
        {"sampler": "ddim"},
        {"variance": Fixed(2.0)},
    ):
        assert of(dataclasses.replace(base, **other)) != of(base)
    assert of(base, step=8) != of(base)
    assert of(dataclasses.replace(base, step=3)) == of(base), "the checkpoint is that of all figures"


def test_times_that_are_not_fitted_are_told_of_before_anything_is_drawn(of):
    with pytest.raises(UserError, match="--mode=fit_schedule"):
        of(Sample(num_timesteps=6, times="fitted"))


def test_the_grid_shows_every_image():
    levels = np.zeros((3, 4, 4, 1), np.int32)
    levels[1] = 4
    sample = {"num": 3, "sampler": "ancestral", "num_timesteps": 6, "guidance": 0.5}
    numbers = FigureRecord({"num_levels": 5, "of": {"sample": sample}}, {"levels": levels})
    figure = figure_samples.plot_samples(numbers, "dots, step 7")
    picture = np.asarray(figure.axes[0].images[0].get_array())
    assert (picture == 255).mean() == pytest.approx(64 * 64 / picture[..., 0].size)
    assert figure.get_suptitle() == "dots, step 7: 3 samples, ancestral, T = 6, guidance 0.5"
