"""The lines that a card shows, run as a reader would: in a process of their own, in the folder of the export."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import diffenc
from diffenc import registry
from diffenc.config.settings import Sample
from diffenc.core.model import Model
from diffenc.core.parameters import name_leaves
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.export import export
from diffenc.workdir import provenance
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear

ROOT = Path(__file__).parents[3]
PLUGINS = """
import dataclasses
import jax.numpy as jnp
from diffenc.data.sources import ArraySource
from diffenc.interfaces import NO_CONTEXT
from diffenc.registry import networks

@networks.register("NAME_gain")
@dataclasses.dataclass(frozen=True)
class Gain:
    \"\"\"z times a learned number.\"\"\"

    def init(self, key, z, log_snr):
        return [jnp.zeros(())]

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return params[0] * z
"""


@dataclasses.dataclass(frozen=True)
class Squares:
    """Two grey images of 2 x 2. The export needs its name alone."""

    image_shape = (2, 2, 1)
    num_levels = 5
    num_classes = 0

    def source(self, split):
        return ArraySource(np.zeros((2, 2, 2, 1), np.uint8), np.zeros(2, np.int32))

    def fingerprint(self, split):
        return f"{split} of squares"


def _package(folder: Path, name: str, entry_point: bool, dist: bool) -> None:
    """A package as pip installs it into `folder`; without `dist` the module alone."""
    (folder / f"{name}.py").write_text(PLUGINS.replace("NAME", name))
    if not dist:
        return
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    (info / "RECORD").write_text(f"{name}.py,,\n{name}-1.2.dist-info/METADATA,,\n")
    if entry_point:
        (info / "entry_points.txt").write_text(f"[diffenc.plugins]\n{name} = {name}\n")


@pytest.fixture
def exported(tiny, tmp_path, monkeypatch):
    """Makes an export whose network comes from a package, and returns its folder and where the package lies."""

    def make(name: str, entry_point: bool, dist: bool) -> tuple[Path, Path]:
        site = tmp_path / "site"
        site.mkdir()
        _package(site, name, entry_point, dist)
        monkeypatch.syspath_prepend(str(site))
        for kind in registry.REGISTRIES.values():
            monkeypatch.setattr(kind, "_classes", dict(kind._classes))
        monkeypatch.setitem(registry.datasets._classes, "squares", Squares)
        network = importlib.import_module(name).Gain()
        # the config must name a data set that the reader has too
        model = Model(Identity(), Linear(), V(), VDM(), network)
        experiment = tiny(model=model, dataset=Squares(), sample=Sample(num_timesteps=2))
        about = export.describe_parameters(experiment, 1, provenance.dataset_metadata(Squares()))
        lines = [line for line in about.config.splitlines(True) if "test_card_snippet" not in line]
        about = dataclasses.replace(about, config="".join(lines))
        params = jax.device_get(model.init(jax.random.key(0), (2, 2, 1)))
        export.write_folder(tmp_path / "export", name_leaves(params), about, None, {})
        return tmp_path / "export", site

    return make


def _run(folder: Path, site: Path) -> subprocess.CompletedProcess:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code += "print(images.dtype, images.shape)\n"
    path = os.pathsep.join([str(site), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "entry_point", "dist", "shows"),
    [
        ("their_plugins", True, True, ["pip install their-plugins==1.2\n", 'load("model.safetensors")\n']),
        pytest.param(
            "their_module",
            False,
            True,
            [
                "pip install their-module==1.2\n",
                "load(\"model.safetensors\", allow_imports=('their_module',))\n",
            ],
            marks=pytest.mark.slow,
        ),
        (
            "their_script",
            False,
            False,
            [
                "config imports `their_script`",
                "load(\"model.safetensors\", allow_imports=('their_script',))\n",
            ],
        ),
    ],
)
def test_the_lines_of_the_card_run_where_plugins_come_from_elsewhere(
    name, entry_point, dist, shows, exported
):
    folder, site = exported(name, entry_point, dist)
    text = (folder / "README.md").read_text()
    assert all(one in text for one in shows)
    assert ("pip install" in text) == dist
    done = _run(folder, site)
    assert (done.stdout, done.returncode) == ("uint8 (16, 2, 2, 1)\n", 0), done.stderr


def test_a_file_names_the_packages_that_are_missing(exported, monkeypatch):
    folder, site = exported("their_lost", True, True)
    monkeypatch.delitem(registry.networks._classes, "their_lost_gain")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    with pytest.raises(UserError, match=r"; its plugins come from their-lost 1\.2, which is not installed$"):
        diffenc.load(folder)


def test_without_other_packages_nothing_is_to_be_installed(tiny):
    assert provenance.plugin_packages(tiny()) == ""
