"""The program: what it prints, what it refuses, and what it leaves."""

import dataclasses

import pytest

from diffenc.tools.explore import __main__ as program
from diffenc.training import loop
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM

OPTIONS = ["--num_images=3", "--num_times=4", "--allow_imports=tests"]


@pytest.fixture(scope="module")
def workdirs(tiny, tmp_path_factory):
    """Two trained runs on the same images."""
    folder, experiment = tmp_path_factory.mktemp("runs"), tiny(steps=2)
    vdm = dataclasses.replace(experiment.model, encoder=Identity(), generative_mean=VDM())
    for name, model in (("diffenc", experiment.model), ("vdm", vdm)):
        loop.train(dataclasses.replace(experiment, model=model), folder / name)
    return [str(folder / "diffenc"), str(folder / "vdm")]


def test_it_writes_a_page_here_and_replaces_only_such(workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pages = []
    for _ in range(2):
        assert program.main([*workdirs, *OPTIONS]) == 0
        pages.append((tmp_path / "explore.html").read_text())
        size = (tmp_path / "explore.html").stat().st_size
        assert capsys.readouterr().out == f"explore.html: {size:,} bytes\n"
    assert pages[0] == pages[1]
    assert "<h1>diffenc and vdm</h1>" in pages[0]
    assert pages[0].count('data-pick="') == 3
    (tmp_path / "explore.html").write_text("mine")
    assert program.main([*workdirs, *OPTIONS]) == 1
    assert "explore.html: exists, and is no page of this program: name another" in capsys.readouterr().err
    assert (tmp_path / "explore.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["missing"], "missing: no trained model there: name a workdir"),
        (["a", "b", "c"], "3 workdirs: a page shows one model or two"),
        (["a", "--num_images=0"], "--num_images=0: must be at least 1"),
        (["a", "--num_times=-1"], "--num_times=-1: must be at least 1"),
    ],
)
def test_what_cannot_be_is_told_in_a_line_and_nothing_written(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert program.main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
