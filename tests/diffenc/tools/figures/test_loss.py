"""The loss's figure takes what --mode=diagnose filed, if it is of the same; else it measures."""

import dataclasses
import json

import numpy as np
import pytest

from diffenc.config.settings import Diagnose
from diffenc.evaluation import diagnose
from diffenc.evaluation.restore_params import restore_ema
from diffenc.parallel.sharding import data_mesh
from diffenc.tools.figures import loss as figure_loss
from diffenc.tools.figures.figure_data import FigureInputs
from diffenc.training import loop

CURVES = {
    "loss": [1.0, 2.0],
    "density": [0.1, 0.2],
    "density_se": [0.01, 0.02],
    "log_snr_centre": [3.0, -1.0],
}
RECORD = {**CURVES, "bpd_diffusion": 1.5, "bpd_diffusion_se": 0.1, "num_images": 5}


@pytest.mark.slow
def test_what_is_measured_is_what_diagnose_says(tiny, tmp_path):
    experiment = tiny(diagnose=Diagnose(num_images=20, passes=8, bins=6))
    loop.train(experiment, tmp_path)
    params, step = restore_ema(experiment, tmp_path, data_mesh(), None)
    measured = figure_loss.measure_loss(FigureInputs(experiment, tmp_path, data_mesh(), params, step)).record
    said = diagnose.diagnose(experiment, tmp_path)["loss"]
    assert {**said, "bins": 6} == measured


@pytest.fixture
def subject(tiny, tmp_path, monkeypatch):
    """A run in two bins, and what measuring it would say."""
    monkeypatch.setattr(diagnose, "loss_record", lambda *_: {**RECORD, "loss": [7.0, 8.0]})
    experiment = tiny(diagnose=Diagnose(num_images=None, passes=3, bins=2))
    return FigureInputs(experiment, tmp_path, data_mesh(), {}, 7)


@pytest.fixture
def file(subject):
    """What --mode=diagnose filed."""
    path = subject.workdir / "diagnostics" / "loss.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**RECORD, **figure_loss.loss_metadata(subject)}))
    return path


def test_what_was_diagnosed_is_not_measured_again(subject, file):
    numbers = figure_loss.measure_loss(subject)
    assert numbers.record["loss"] == [1.0, 2.0]
    (axes,) = figure_loss.plot_loss(numbers, "").axes
    np.testing.assert_array_equal(np.asarray(axes.lines[0].get_ydata()), CURVES["density"])
    assert "step 7" in axes.get_title()


@pytest.mark.parametrize(
    "change", [{"bins": 5}, {"seed": 1}, {"passes": 4}, {"num_images": 4}, {"split": "test"}]
)
def test_what_was_diagnosed_otherwise_is_measured(subject, file, change):
    settings = dataclasses.replace(subject.experiment.diagnose, **change)
    other = dataclasses.replace(
        subject, experiment=dataclasses.replace(subject.experiment, diagnose=settings)
    )
    assert figure_loss.measure_loss(other).record["loss"] == [7.0, 8.0]


def test_what_was_diagnosed_of_another_step_is_measured_and_left_alone(subject, file):
    before = file.read_bytes()
    record = figure_loss.measure_loss(dataclasses.replace(subject, step=8)).record
    assert (record["loss"], record["step"]) == ([7.0, 8.0], 8)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"loss": 3}', "{}"])
def test_what_is_no_record_is_measured(subject, file, content):
    file.write_text(content)
    assert figure_loss.measure_loss(subject).record["loss"] == [7.0, 8.0]
