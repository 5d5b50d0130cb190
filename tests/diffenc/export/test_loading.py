"""The same model from a workdir, an export and a file; and that reading them runs nothing."""

import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import diffenc
from diffenc import registry
from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import restore_ema
from diffenc.export import export, weights
from diffenc.files import stores
from diffenc.parallel.sharding import data_mesh
from diffenc.training.state import abstract_state

TESTS = ("tests",)  # where the plugins of the tiny run are


@pytest.fixture(scope="module")
def exported(experiment, workdir):
    return export.export(experiment, workdir)


@pytest.fixture
def loose(exported, tmp_path):
    """The file alone, in a folder of its own, to be changed."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes((exported / "model.safetensors").read_bytes())
    return path


def _rewritten(path, **changes):
    """The file with other metadata."""
    held = weights.read_metadata(path)
    with weights._opened(path) as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights.write(path, arrays, dataclasses.replace(held, **changes))
    return path


def _ema(experiment, workdir, step):
    wanted = abstract_state(experiment, data_mesh())
    return Checkpoints(workdir / "checkpoints").restore(wanted, step).tree.ema


def test_one_model_by_three_ways(experiment, workdir, exported, loose):
    ema = _ema(experiment, workdir, 12)
    for path in (workdir, str(workdir), exported, loose):
        model = diffenc.load(path, allow_imports=TESTS)
        assert jax.tree.structure(model.params) == jax.tree.structure(ema)
        jax.tree.map(np.testing.assert_array_equal, model.params, ema)
        assert (model.step, model.model) == (12, experiment.model)


def test_an_older_checkpoint_of_a_workdir(experiment, workdir, exported):
    model = diffenc.load(workdir, 5, allow_imports=TESTS)
    jax.tree.map(np.testing.assert_array_equal, model.params, _ema(experiment, workdir, 5))
    assert model.step == 5
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are \[5, 10, 12\]"):
        diffenc.load(workdir, 7, allow_imports=TESTS)
    with pytest.raises(UserError, match=f"{exported}: step = 5 is for a workdir"):
        diffenc.load(exported, 5, allow_imports=TESTS)


def test_a_run_made_for_many_devices_loads_on_one(workdir, loose, tmp_path):
    config = (workdir / "config.gin").read_text()
    assert "mesh.fsdp = 1\n" in config
    other = config.replace("mesh.fsdp = 1\n", "mesh.fsdp = 16\n")
    moved = shutil.copytree(workdir, tmp_path / "moved")
    (moved / "config.gin").write_text(other)
    for path in (_rewritten(loose, config=other), moved):
        model = diffenc.load(path, allow_imports=TESTS)
        assert model.encode(np.zeros((2, 4, 4, 1), np.uint8), t=0.5).shape == (2, 4, 4, 1)


def test_a_store_is_read_as_a_disk_is(experiment, workdir, exported):
    store = stores.open_store(f"memory://{workdir}/elsewhere")
    for path in workdir.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(workdir).as_posix(), path.read_bytes())
    ema = _ema(experiment, workdir, 12)
    for inner in ("", "/export", "/export/model.safetensors"):
        url = f"memory://{workdir}/elsewhere{inner}"
        model = diffenc.load(url, allow_imports=TESTS)
        jax.tree.map(np.testing.assert_array_equal, model.params, ema)
        assert model.name == url


@pytest.mark.parametrize(
    "name", ["", "absent", "x.safetensors", "file", "memory://nowhere", "memory://no/x.safetensors"]
)
def test_where_there_is_no_model(tmp_path, name):
    (tmp_path / "file").write_text("no model")
    path = name if "://" in name else tmp_path / name
    with pytest.raises(UserError, match=f"^{path}: no trained model there: name a workdir"):
        diffenc.load(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("\0", r"path='\\x00': a path cannot hold the character NUL"),
        ("", "path is empty"),
        ("\ud800", "a path cannot hold such characters"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_a_path_that_cannot_be(path, message):
    with pytest.raises(UserError, match=message) as refused:
        diffenc.load(path)
    assert len(str(refused.value)) < 2100


def test_a_home_folder_is_expanded(workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert diffenc.load(f"~/{workdir.name}", allow_imports=TESTS).step == 12


def test_a_config_that_would_run_code_runs_none(workdir, loose, tmp_path, monkeypatch, loud_unimported):
    (tmp_path / "loud.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = "import loud\n" + (workdir / "config.gin").read_text()
    with pytest.raises(UserError) as refused:
        diffenc.load(_rewritten(loose, config=config), allow_imports=TESTS)
    assert str(refused.value).startswith(f"{loose}: config:1: imports loud, and so would run code")
    assert "pass allow_imports=('loud',)" in str(refused.value)
    assert "loud" not in sys.modules
    assert not (tmp_path / "ran").exists()
    diffenc.load(loose, allow_imports=(*TESTS, "loud"))
    assert (tmp_path / "ran").exists()


def test_a_workdir_is_trusted_no_more(workdir):
    with pytest.raises(UserError, match=r"config\.gin:1: imports tests\.conftest, and so would run code"):
        diffenc.load(workdir)


def test_a_name_is_not_allowed_by_what_it_begins_with(loose):
    for allowed in (("test",), ("tests.conf",), "tes"):
        with pytest.raises(UserError, match="would run code"):
            diffenc.load(loose, allow_imports=allowed)
    assert diffenc.load(loose, allow_imports="tests").step == 12


def test_installed_plugins_may_be_imported(workdir, loose):
    config = "import diffenc_plugins.networks\n" + (workdir / "config.gin").read_text()
    assert diffenc.load(_rewritten(loose, config=config), allow_imports=TESTS).step == 12


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("include '/etc/passwd'", "includes '/etc/passwd'"),
        ("Experiment.seed = 'x'", "Experiment.seed = 'x': expected int"),
        ("Experiment.seed = __import__('os')", "config:1"),
        ("Experiment.optimizer = @optimizer.none()", "no optimizer is called 'none'"),
        ("Experiment.optimizer = @gin.macro()", "nothing is called 'gin.macro'"),
        ("Experiment.seed = " + "[" * 5000, "config"),
    ],
)
def test_bad_configs_are_refused_in_a_line(workdir, loose, line, message):
    config = f"{line}\n" + (workdir / "config.gin").read_text()
    if "optimizer" in line:
        config = config.replace("Experiment.optimizer = @optimizer.adamw()\n", "")
    if "seed = 'x'" in line:
        config = config.replace("Experiment.seed = 0\n", "")
    with pytest.raises(UserError) as refused:
        diffenc.load(_rewritten(loose, config=config), allow_imports=TESTS)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_of_another_model_are_refused(workdir, loose):
    config = (
        (workdir / "config.gin").read_text().replace("@schedule.learned_endpoints()", "@schedule.linear()")
    )
    with pytest.raises(UserError, match=r"not of this model: schedule/raw_drop, schedule/start$"):
        diffenc.load(_rewritten(loose, config=config), allow_imports=TESTS)


def test_no_data_are_needed_nor_known(workdir, loose, monkeypatch):
    """The data set's plugin may be somebody's who has not got it here."""
    monkeypatch.delitem(registry.datasets._classes, "dots")
    config = "dataset.dots.folder = 'theirs'\n" + (workdir / "config.gin").read_text()
    model = diffenc.load(_rewritten(loose, config=config), allow_imports=TESTS)
    images = np.zeros((2, 4, 4, 1), np.uint8)
    assert model.elbo(images).bpd.shape == (2,)
    with pytest.raises(UserError, match="weights come without the test images of dots"):
        model.experiment.dataset.source("test")
    with pytest.raises(UserError, match="no dataset is called 'dots'"):
        diffenc.load(workdir, allow_imports=TESTS)


def test_it_is_of_the_precision_asked_for(workdir, loose, x64):
    for path in (workdir, loose):
        params = diffenc.load(path, allow_imports=TESTS).params
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float64"}


def test_what_is_fitted_is_found_beside_a_workdir_alone(workdir, loose):
    for path, told in ((workdir, "--mode=fit_schedule"), (loose, "stay in the run's workdir: load that")):
        with pytest.raises(UserError, match=told):
            diffenc.load(path, allow_imports=TESTS).sample(2, times="fitted")


def test_importing_the_package_is_quick():
    code = "import diffenc, sys; sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'gin', 'safetensors')))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_modes_and_load_read_the_same(experiment, workdir):
    ema, step = restore_ema(experiment, workdir, data_mesh(), None)
    model = diffenc.load(workdir, allow_imports=TESTS)
    jax.tree.map(np.testing.assert_array_equal, model.params, ema)
    assert model.step == step


def test_a_config_changed_in_an_export_is_refused_naming_the_field(exported, tmp_path):
    """In the folder, where it is there to read; and in the file, beside the same parameters."""
    folder, field = shutil.copytree(exported, tmp_path / "export"), "schedule.learned_endpoints.log_snr_max"
    config = (folder / "config.gin").read_text()
    (folder / "config.gin").write_text(config.replace(f"{field} = 6.0\n", f"{field} = 9.0\n"))
    refused = rf"{folder}/config.gin is not the one that was written with the parameters \({field}: 6.0 -> 9.0\): undo"
    with pytest.raises(UserError, match=refused):
        diffenc.load(folder, allow_imports=TESTS)
    assert diffenc.load(folder / "model.safetensors", allow_imports=TESTS).step == 12
    (folder / "config.gin").write_text(config.replace("evaluate.passes = 2\n", "evaluate.passes = 3\n"))
    assert diffenc.load(folder, allow_imports=TESTS).step == 12
    (folder / "config.gin").unlink()
    assert diffenc.load(folder, allow_imports=TESTS).step == 12
    content = (folder / "model.safetensors").read_bytes()
    changed = f"{field} = 9.0\\\\n".encode()
    assert content.count(f"{field} = 6.0\\\\n".encode()) == 1
    (folder / "model.safetensors").write_bytes(content.replace(f"{field} = 6.0\\\\n".encode(), changed))
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(
            UserError, match=rf"its config is not the one .* \({field}: 6.0 -> 9.0\): export the run"
        ):
            diffenc.load(path, allow_imports=TESTS)


def test_an_export_says_which_run_it_is_of(workdir, exported):
    assert (
        weights.read_metadata(exported / "model.safetensors").run == (workdir / "run_id").read_text().strip()
    )
