"""The mode: every figure of a trained run, its files, and what it does not do twice."""

import dataclasses
import hashlib
import json
import re
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from diffenc.cli import run, run_mode
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import Diagnose, Sample
from diffenc.errors import UserError
from diffenc.evaluation import commands, image_grid
from diffenc.files import atomic
from diffenc.tools.figures import figures
from diffenc.training import loop

ARRAYS = {"heat_maps", "encoded", "classes", "samples"}
SOME = ("heat_maps", "schedule", "classes", "samples")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A trained run with some figures, and what the mode returned."""
    experiment = tiny(
        diagnose=Diagnose(num_images=20, passes=8, bins=6),
        sample=Sample(num_timesteps=4, num=5),
        figures=Figures(only=SOME),
    )
    workdir = tmp_path_factory.mktemp("figures") / "run"
    loop.train(experiment, workdir)
    return experiment, workdir, run.MODES["figures"].perform(experiment, workdir)


def contents(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "figures").iterdir()}


def only(experiment, *names, **settings):
    return dataclasses.replace(experiment, figures=Figures(only=names, **settings))


@pytest.fixture
def refuse(monkeypatch):
    """Whoever measures from now on is told off."""

    def measured(subject):
        raise AssertionError("measured twice")

    table = {name: kind._replace(measure=measured) for name, kind in figures.FIGURES.items()}
    return lambda: monkeypatch.setattr(figures, "FIGURES", table)


def check_record(workdir, name, said, arrays=True):
    record = json.loads((workdir / "figures" / f"{name}.json").read_text())
    assert record == {**json.loads(atomic.to_json(said)), "sha256": record["sha256"]}
    assert (record["of"]["dataset"], record["of"]["step"]) == ("dots", 12)
    data = (workdir / "figures" / f"{name}.npz").read_bytes() if arrays and name in ARRAYS else b""
    assert record["npz"] == (hashlib.sha256(data).hexdigest() if data else "")


def check_pictures(workdir, name):
    """Both can be read, and are of one size: 150 dots, or 72 points, an inch."""
    picture = Image.open(workdir / "figures" / f"{name}.png")
    assert picture.format == "PNG"
    assert min(picture.size) >= 200
    assert np.asarray(picture.convert("L")).std() > 5
    pdf = (workdir / "figures" / f"{name}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-1.")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
    width, height = (float(side) for side in re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+)", pdf)[0])
    np.testing.assert_allclose([width / 72 * 150, height / 72 * 150], picture.size, atol=1.5)
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    assert max(len(zlib.decompress(stream)) for stream in streams if stream[:1] == b"x") > 500


def check_all(workdir, said, names):
    want = {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "json")}
    assert set(contents(workdir)) == want | {f"{name}.npz" for name in ARRAYS & set(names)}
    assert list(said) == list(names)
    for name in names:
        check_record(workdir, name, said[name])
        check_pictures(workdir, name)


def test_every_figure_asked_for_is_there_with_its_numbers(trained):
    check_all(trained[1], trained[2], SOME)


@pytest.mark.slow
def test_every_figure_there_is(trained, tmp_path):
    experiment, workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    said = figures.figures(only(experiment), tmp_path / "run")
    check_all(tmp_path / "run", said, list(figures.FIGURES))


def test_samples_are_those_that_the_mode_of_that_name_draws(trained):
    experiment, workdir, _ = trained
    with Image.open(commands.sample(experiment, workdir)) as picture:
        drawn = np.asarray(picture)
    levels = np.load(workdir / "figures" / "samples.npz")["levels"]
    assert levels.shape == (5, 4, 4, 1)
    np.testing.assert_array_equal(image_grid.make_grid(image_grid.to_uint8(levels, 5))[..., 0], drawn)


def test_what_there_is_nothing_to_see_of_is_said_in_words(trained, tmp_path):
    """Of two images no class has enough; what was there of more is no longer."""
    experiment, workdir, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    said = figures.figures(only(experiment, "classes", num_images=2), tmp_path / "run")
    assert "Fewer than two classes" in said["classes"]["note"]
    check_record(tmp_path / "run", "classes", said["classes"], arrays=False)
    assert not (tmp_path / "run" / "figures" / "classes.npz").exists()
    check_pictures(tmp_path / "run", "classes")


def test_nothing_is_measured_twice_and_the_same_numbers_give_the_same_files(trained, refuse):
    experiment, workdir, said = trained
    before, names = contents(workdir), ("heat_maps", "classes")
    for lost in ("classes.png", "heat_maps.pdf"):
        (workdir / "figures" / lost).unlink()
    refuse()
    again = figures.figures(only(experiment, *names), workdir)
    assert contents(workdir) == before
    for name in names:
        assert json.loads(atomic.to_json(again[name])) == json.loads(atomic.to_json(said[name]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("heat_maps", {"figures": Figures(only=("heat_maps",), times=(0.5, 1.0))}),
        ("spectra", {"figures": Figures(only=("spectra",), num_images=9)}),
        (
            "samples",
            {"figures": Figures(only=("samples",)), "sample": Sample(num_timesteps=4, num=5, seed=1)},
        ),
        ("loss", {"figures": Figures(only=("loss",)), "diagnose": Diagnose(num_images=20, passes=8, bins=5)}),
    ],
)
def test_other_settings_are_measured(trained, refuse, name, change):
    experiment, workdir, _ = trained
    refuse()
    with pytest.raises(AssertionError, match="measured twice"):
        figures.figures(dataclasses.replace(experiment, **change), workdir)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_numbers_that_are_not_whole_are_not_there(trained, suffix):
    _, workdir, said = trained
    target = workdir / "figures" / "heat_maps"
    numbers = figures.read_figure(target, said["heat_maps"]["of"])
    assert numbers is not None
    assert numbers.arrays["change"].shape == (3, 10, 4, 4)
    whole = target.with_suffix(suffix).read_bytes()
    target.with_suffix(suffix).write_bytes(whole[:-9])
    assert figures.read_figure(target, said["heat_maps"]["of"]) is None
    target.with_suffix(suffix).write_bytes(whole)


def test_a_disk_that_refuses_leaves_the_old_figure_whole(trained, monkeypatch):
    experiment, workdir, _ = trained
    before = contents(workdir)

    def refuse(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        figures.figures(only(experiment, "heat_maps", seed=3), workdir)
    assert contents(workdir) == before


def test_only_those_asked_for_are_drawn_in_the_tables_order(trained):
    assert list(figures.choose_figures(("spectra", "heat_maps"))) == ["heat_maps", "spectra"]
    assert list(figures.choose_figures(())) == list(figures.FIGURES)
    with pytest.raises(
        UserError, match=r"figures\.only: no figure is called 'heat_map'; nearest: heat_maps; there"
    ):
        figures.figures(only(trained[0], "heat_map"), trained[1])


def test_steps_on_the_command_line_are_those_of_the_samples():
    assert run_mode.num_timesteps_bindings("figures", 7) == ["sample.num_timesteps = 7"]
