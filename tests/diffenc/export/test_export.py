"""--mode=export: what is in the folder, and that it is there whole or not at all."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.config.settings import Evaluate, MeshConfig, ResolvedEvaluate
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.evaluation.measurement_text import format_measurement
from diffenc.export import export, weights
from diffenc.files import atomic, stores
from diffenc.parallel.sharding import data_mesh
from diffenc.training.state import abstract_state
from diffenc.workdir.mirror import Mirror

FILES = {"README.md", "config.gin", "model.safetensors"}


def _ema(experiment, workdir, step=12):
    """The averaged parameters as numpy, by the names of parameters.txt."""
    state = Checkpoints(workdir / "checkpoints").restore(abstract_state(experiment, data_mesh()), step).tree
    ema = state.ema
    return {
        "encoder/b": ema["encoder"]["b"], "encoder/w": ema["encoder"]["w"],
        "network/b": ema["network"]["b"], "network/w": ema["network"]["w"],
        "schedule/raw_drop": ema["schedule"]["raw_drop"], "schedule/start": ema["schedule"]["start"],
    }  # fmt: skip


def _at(experiment, step):
    return dataclasses.replace(experiment, evaluate=Evaluate(passes=2, step=step))


@pytest.mark.parametrize("step", [pytest.param(None, marks=pytest.mark.slow), 5])
def test_the_average_of_a_checkpoint_bit_by_bit(experiment, workdir, step):
    folder = export.export(_at(experiment, step), workdir)
    assert folder == workdir / "export"
    assert {path.name for path in folder.iterdir()} == FILES
    found, want = load_file(folder / "model.safetensors"), _ema(experiment, workdir, step or 12)
    assert found.keys() == want.keys()
    for name, array in want.items():
        assert (found[name].dtype, found[name].shape) == (np.float32, array.shape)
        assert found[name].tobytes() == np.asarray(array).tobytes()
    listed = (workdir / "parameters.txt").read_text()
    assert all(f"| {name} " in listed for name in found)


def test_the_file_alone_says_all(experiment, workdir, read_record):
    folder = export.export(_at(experiment, 10), workdir)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        said = json.loads(file.metadata()["diffenc"])
    assert said["step"] == 10
    assert said["config"] == (folder / "config.gin").read_text() == (workdir / "config.gin").read_text()
    meta = json.loads((workdir / "checkpoints" / "000000010" / "META.json").read_text())["metadata"]
    assert said["config_hash"] == meta["config_hash"]
    assert said["dataset"] == {
        "dataset": "dots", "source": None, "image_shape": [4, 4, 1], "num_levels": 5, "num_classes": 3,
        "train_images": 23, "train_identity": "train of dots",
    }  # fmt: skip
    assert said["dataset"] == read_record(workdir / "dataset.json")
    assert meta["train_images"] == "train of dots"


def test_the_card_has_the_evaluation_of_its_step_and_config(experiment, workdir, write_record):
    def card(step):
        return (export.export(_at(experiment, step), workdir) / "README.md").read_text()

    assert "This checkpoint was not evaluated" in card(12)
    of_ten = commands.evaluate(_at(experiment, 10), workdir)
    assert "This checkpoint was not evaluated" in card(12), "that was of another step"
    assert f"| bits/dim | {format_measurement(of_ten, 'bpd')[0]} |" in card(10)
    of_twelve = commands.evaluate(_at(experiment, 12), workdir)
    assert f"| bits/dim | {format_measurement(of_twelve, 'bpd')[0]} |" in card(12)
    assert f"| bits/dim | {format_measurement(of_ten, 'bpd')[0]} |" in card(10), "it is still kept"
    for path in (workdir / "evaluations").glob("*.json"):
        said = json.loads(path.read_text())
        write_record(path, {**said, "config_hash": "another"})
    assert "This checkpoint was not evaluated" in card(12)


def test_the_newest_evaluation_by_number_and_broken_ones_are_passed_over(tmp_path, monkeypatch):
    folder, warned = tmp_path / "evaluations", []
    folder.mkdir()
    monkeypatch.setattr(export.logging, "warning", lambda text, *given: warned.append(text % given))
    for number in (2, 9999, 10_000):
        (folder / f"{number:04d}.json").write_text(json.dumps(RECORD | {"number": number}))
    (folder / "10001.json").write_text("{")
    (folder / "copy of 3.json").write_text("{}")
    found = export.find_evaluation(tmp_path, ABOUT, ResolvedEvaluate())
    assert found is not None
    assert found["number"] == 10_000
    assert len(warned) == 1
    assert f"{folder}/10001.json: is not valid JSON" in warned[0]


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        (ResolvedEvaluate(), 2),
        (ResolvedEvaluate(split="train", num_timesteps=5, num_images=16), 3),
        (ResolvedEvaluate(num_timesteps=5), 4),
        (ResolvedEvaluate(num_images=5), 5),
        (ResolvedEvaluate(num_images=5_000), 2),  # more than there are: all
        (ResolvedEvaluate(split="train"), 6),
        (ResolvedEvaluate(num_timesteps=7), 6),  # the newest, as none is of that
    ],
)
def test_the_evaluation_that_the_config_asks_for_goes_before_newer_ones(tmp_path, settings, number):
    train = {"split": "train", "split_images": 60}
    of = [{}, {}, train | {"T": 5, "num_images": 16}, {"T": 5}, {"num_images": 5}, train | {"num_images": 60}]
    (tmp_path / "evaluations").mkdir()
    for at, change in enumerate([*of, {"step": 2}], 1):
        record = RECORD | change | {"number": at}
        (tmp_path / "evaluations" / f"{at:04d}.json").write_text(json.dumps(record))
    found = export.find_evaluation(tmp_path, ABOUT, settings)
    assert found is not None
    assert found["number"] == number


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": ...}, "lacks precision"),
        pytest.param({"fingerprint": ..., "T": ...}, "lacks fingerprint, T", marks=pytest.mark.slow),
        pytest.param({"passes": "many"}, "has passes 'many'", marks=pytest.mark.slow),
        pytest.param({"split_images": "all"}, "has split_images 'all'", marks=pytest.mark.slow),
    ],
)
def test_a_record_that_the_card_cannot_state_is_passed_over(
    experiment, workdir, tmp_path, monkeypatch, write_record, change, says
):
    warned = []
    monkeypatch.setattr(export.logging, "warning", lambda text, *given: warned.append(text % given))
    run = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    commands.evaluate(_at(experiment, 12), run)
    commands.evaluate(_at(experiment, 12), run)
    path = run / "evaluations" / "0002.json"
    said = {**json.loads(path.read_text()), "bpd": 1234.5, **change}
    write_record(path, {key: value for key, value in said.items() if value is not ...})
    card = (export.export(_at(experiment, 12), run) / "README.md").read_text()
    assert "| bits/dim |" in card
    assert "1234.5" not in card
    assert f"skipped: {path}: {says}" in warned


@pytest.mark.slow
def test_what_it_was_trained_on_is_what_the_run_filed(experiment, workdir, write_record):
    def said():
        folder = export.export(experiment, workdir)
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            return json.loads(file.metadata()["diffenc"])["dataset"]

    path = workdir / "dataset.json"
    whole = path.read_text()
    filed = {key: value for key, value in json.loads(whole).items() if key != "sha256"}
    try:
        write_record(path, {**filed, "train_images": 17})
        assert said()["train_images"] == 17
        edited = path.read_text().replace("17", "18")  # beside the checksum of 17
        for other in (json.dumps({**filed, "train_images": 17, "num_levels": 6}), edited, "[]", "{"):
            path.write_text(other)
            assert said() == filed, "the data, of which there are 23"
        path.unlink()
        assert said() == filed
    finally:
        path.write_text(whole)


def test_a_changed_digit_is_not_on_the_card(tmp_path, monkeypatch, write_record):
    warned = []
    monkeypatch.setattr(export.logging, "warning", lambda text, *given: warned.append(text % given))
    file = tmp_path / "evaluations" / "0001.json"
    file.parent.mkdir()
    write_record(file, RECORD | {"bpd": 4.7026})
    assert export.find_evaluation(tmp_path, ABOUT, ResolvedEvaluate()) == json.loads(file.read_text())
    file.write_text(file.read_text().replace("4.7026", "4.7016"))
    assert export.find_evaluation(tmp_path, ABOUT, ResolvedEvaluate()) is None
    assert len(warned) == 1
    assert f"skipped: {file}: its content does not match its sha256" in warned[0]
    assert "evaluate the run again" in warned[0]


def test_a_record_without_a_checksum_that_its_terms_contradict_is_not_on_the_card(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(export.logging, "warning", lambda text, *given: warned.append(text % given))
    folder = tmp_path / "evaluations"
    folder.mkdir()
    nats = {name: np.full((2, 5), 3.0 * np.log(2)) for name in ("reconstruction", "latent", "diffusion")}
    (folder / "0001.npz").write_bytes(atomic.encode_npz(nats))
    parts = {f"bpd_{name}": 1.0 for name in nats}
    said = RECORD | parts | {"bpd": 3.0, "num_images": 5, "split_images": 5}
    (folder / "0001.json").write_text(json.dumps(said))  # images of 3 dimensions
    assert export.find_evaluation(tmp_path, ABOUT, ResolvedEvaluate()) is not None
    for change in ({"bpd": 2.0}, {"bpd_latent": 0.9}):
        (folder / "0001.json").write_text(json.dumps(said | change))
        assert export.find_evaluation(tmp_path, ABOUT, ResolvedEvaluate()) is None
        assert "0001.npz: is of another evaluation" in warned[-1]


def test_the_chain_of_the_config_goes_before_a_newer_one_of_the_same_length(tmp_path, write_record):
    """Of T = 5 with equal times: not the fitted ones, which came later."""
    (tmp_path / "evaluations").mkdir()
    for number, times in enumerate(("equal", "fitted"), 1):
        said = RECORD | {"T": 5, "times": times, "variance": "equal", "number": number}
        write_record(tmp_path / "evaluations" / f"{number:04d}.json", said)
    found = export.find_evaluation(tmp_path, ABOUT, ResolvedEvaluate(num_timesteps=5))
    assert found is not None
    assert found["number"] == 1


def test_what_was_trained_in_float32_is_exported_so(experiment, workdir, x64):
    found = load_file(export.export(experiment, workdir) / "model.safetensors")
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_an_address_gets_the_same_files(experiment, workdir):
    url = f"memory://{workdir}/run"
    store = stores.open_store(url)
    for path in workdir.rglob("*"):
        if path.is_file() and "export" not in path.parts:
            store.write(path.relative_to(workdir).as_posix(), path.read_bytes())
    export.export(experiment, url)
    export.export(experiment, url)  # over what is there
    folder = export.export(experiment, workdir)
    for name in FILES:
        assert store.read(f"export/{name}") == (folder / name).read_bytes()
    with Mirror(url) as mirror:  # what other modes copy here
        assert (mirror.folder / "config.gin").exists()
        assert not (mirror.folder / "export").exists()


def test_no_run_no_export(experiment, workdir, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        export.export(experiment, tmp_path)
    with pytest.raises(UserError, match="another config"):
        export.export(dataclasses.replace(experiment, seed=5), workdir)
    assert not list(tmp_path.iterdir())


def test_parts_of_parameters_are_put_together():
    """As mesh.fsdp has them, on as many devices as there are."""
    mesh = data_mesh(MeshConfig(data=1, fsdp=jax.device_count()))
    spread = jax.device_put(np.arange(64.0, dtype=np.float32), jax.NamedSharding(mesh, jax.P("fsdp")))
    np.testing.assert_array_equal(export.fetch_parameters({"a": spread}, mesh)["a"], np.arange(64.0))


def test_a_disk_that_refuses(experiment, workdir, monkeypatch):
    folder = export.export(experiment, workdir)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real = os.replace

    def refuse(source, target):
        if Path(target) == folder and Path(source).name.endswith("-old") is False:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=f"could not write {folder}: No space left on device"):
        export.export(experiment, workdir)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not [path for path in workdir.iterdir() if path.name.startswith(".export")]


ABOUT = weights.WeightsMetadata(
    "", "", 1, "", {"dataset": "d", "image_shape": [1, 1, 1], "num_levels": 2, "num_classes": 0}
)


RECORD = {
    "config_hash": "", "step": 1, "dataset": "d", "split": "test", "num_images": 10, "split_images": 10,
    "fingerprint": "f00d", "T": "continuous", "passes": 1, "precision": "float32", "bpd": 1.0,
}  # fmt: skip


def _put(folder, value):
    export.write_folder(folder, {"a": np.full(4, value, np.float32)}, ABOUT, None, {})


def _value(folder):
    return load_file(folder / "model.safetensors")["a"][0]


def test_a_link_to_a_folder_stays_one(tmp_path):
    disk, link = tmp_path / "disk" / "kept", tmp_path / "run" / "export"
    link.parent.mkdir()
    link.symlink_to(disk, target_is_directory=True)
    (disk.parent).mkdir()
    (disk.parent / ".kept.tmp-dead-old").symlink_to(tmp_path)  # of an export that moved links
    for value in (1, 2, 3):
        _put(link, value)
        assert link.is_symlink()
        assert (_value(link), _value(disk)) == (value, value)
    assert os.listdir(disk.parent) == ["kept"]
    assert os.listdir(link.parent) == ["export"]


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    _put(Path("."), 1)
    assert _value(tmp_path / "here") == 1


def test_a_name_is_no_pattern(tmp_path):
    (tmp_path / ".run[a].tmp-1").mkdir()
    (tmp_path / ".runa.tmp-1").mkdir()  # of another export, which may be being written
    _put(tmp_path / "run[a]", 1)
    assert sorted(os.listdir(tmp_path)) == [".runa.tmp-1", "run[a]"]


@pytest.mark.parametrize("name", ["LICENSE", ".gitattributes", "README.md"])
def test_what_somebody_put_beside_it_is_kept(tmp_path, name):
    folder = tmp_path / "export"
    _put(folder, 1)
    _put(folder, 2)
    if name == "README.md":  # a folder in place of the card
        (folder / name).unlink()
        (folder / name).mkdir()
    else:
        (folder / name).write_text("a licence")
    with pytest.raises(UserError, match=rf"export holds {name}, which no export wrote.*: move it out"):
        _put(folder, 3)
    assert _value(folder) == 2
    assert (folder / name).exists()
    assert os.listdir(tmp_path) == ["export"]


def test_a_file_in_its_place_is_kept(tmp_path):
    (tmp_path / "export").write_text("a thesis")
    with pytest.raises(UserError, match="export: Not a directory; fix that and run"):
        _put(tmp_path / "export", 1)
    assert (tmp_path / "export").read_text() == "a thesis"
    assert os.listdir(tmp_path) == ["export"]


def test_what_a_kill_between_two_renamings_left_is_kept_until_the_next_is_whole(tmp_path, monkeypatch):
    folder, left = tmp_path / "export", tmp_path / ".export.tmp-0badcafe-old"
    _put(folder, 1)
    folder.rename(left)

    def refuse(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write", refuse)
        with pytest.raises(UserError, match="free space there"):
            _put(folder, 2)
    assert _value(left) == 1
    _put(folder, 2)
    assert os.listdir(tmp_path) == ["export"]
    assert _value(folder) == 2


# Each child dies at another of the calls that change the disk; what it leaves must be whole.
KILLED = """
    import os, shutil, sys
    from pathlib import Path
    import numpy as np
    from diffenc.export import export, weights

    about = weights.WeightsMetadata("", "", 1, "", {"dataset": "d", "image_shape": [1, 1, 1], "num_levels": 2, "num_classes": 0})

    def write(folder, value):
        export.write_folder(folder, {"a": np.full(4, value, np.float32)}, about, None, {})

    def dying(call, countdown):
        def step(*args, **options):
            countdown[0] -= 1
            if countdown[0] < 0:
                os._exit(9)
            return call(*args, **options)
        return step

    def dies_at(number, folder):
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        countdown = [number]
        for module, name in ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "open"), (os, "rmdir"), (os, "unlink")):
            setattr(module, name, dying(getattr(module, name), countdown))
        write(folder, 2.0)
        os._exit(0)

    for old in (False, True):
        number, folder = 0, Path(sys.argv[1], str(old), "export")
        while True:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            if old:
                write(folder, 1.0)
            died = dies_at(number, folder)
            files = sorted(path.name for path in folder.iterdir()) if folder.exists() else None
            value = float(weights.read(folder / "model.safetensors", {"a": np.zeros(4, np.float32)})["a"][0]) if files else None
            print(old, number, died, files, value)
            write(folder, 3.0)
            assert [path.name for path in folder.parent.iterdir()] == ["export"], "what was left is swept up"
            if not died:
                break
            number += 1
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_nothing_half(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    whole = str(sorted(FILES))
    for line in lines:
        old, _, died, rest = line.split(" ", 3)
        allowed = {f"{whole} 2.0", "None None"} | ({f"{whole} 1.0"} if old == "True" else set())
        assert rest in allowed, line
        assert died == "True" or rest == f"{whole} 2.0"
    states = {line.split(" ", 3)[3] for line in lines if line.startswith("True")}
    assert f"{whole} 1.0" in states
    assert f"{whole} 2.0" in states
