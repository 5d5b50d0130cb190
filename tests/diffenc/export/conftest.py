"""One trained run, for all that is made of it."""

import shutil
from pathlib import Path

import pytest

from diffenc.training import loop

_TRAINED: list[Path] = []


@pytest.fixture(scope="module")
def experiment(tiny):
    """The run of `workdir`."""
    return tiny(ema_decay=0.99)


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory) -> Path:
    """A trained run, its averaged parameters far from its parameters. Trained once, and copied for each module."""
    if not _TRAINED:
        loop.train(experiment, tmp_path_factory.mktemp("trained") / "run")
        _TRAINED.append(next(tmp_path_factory.getbasetemp().glob("trained*/run")))
    return shutil.copytree(_TRAINED[0], tmp_path_factory.mktemp("of_module") / "run")
