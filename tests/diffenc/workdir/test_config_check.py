"""Whose run a workdir holds, and whose checkpoints: real runs, whose folders are then changed by hand."""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import diffenc
from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.cli import run
from diffenc.config import serialize
from diffenc.config.settings import Evaluate, Sample
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.files import stores
from diffenc.parallel.sharding import data_mesh
from diffenc.tools.fid import fid
from diffenc.training import loop
from diffenc.training.state import abstract_state
from diffenc.workdir import config_check

LAST = "000000004"
BATCH_SIZE = re.escape("another config (Experiment.batch_size: 4 -> 5)")


@pytest.fixture(scope="module")
def make(tiny):
    def make(**changes):
        return tiny(
            **{"steps": 4, "checkpoint_every": 2, "evaluate": Evaluate(num_timesteps=4, passes=1), **changes}
        )

    return make


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """Two runs of the same config, and one of another seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("one", 0), ("again", 0), ("other_seed", 1)):
        loop.train(make(seed=seed), folder / name)
    return folder


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    """A copy of the first run."""
    return shutil.copytree(trained / "one", tmp_path / "run")


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(config_check.logging, "warning", lambda text, *given: lines.append(text % given))
    return lines


def _meta(workdir: Path, name: str = LAST) -> dict:
    return json.loads((workdir / "checkpoints" / name / "META.json").read_text())


def _change_metadata(workdir: Path, change, name: str = LAST) -> None:
    """Rewrite what a checkpoint says of its run, under a checksum that is right."""
    content = _meta(workdir, name)
    del content["checksum"]
    change(content["metadata"])
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path = workdir / "checkpoints" / name / "META.json"
    path.write_text(json.dumps({**content, "checksum": checksum}))


def _make_older(workdir: Path) -> None:
    """As earlier versions wrote it: neither the config nor the identity in checkpoints, and none in the folder."""

    def change(metadata):
        del metadata["config"], metadata["run"]

    for folder in (workdir / "checkpoints").iterdir():
        _change_metadata(workdir, change, folder.name)
    (workdir / "run_id").unlink()


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def _edit_config(workdir: Path, old: str, new: str) -> None:
    text = (workdir / "config.gin").read_text()
    assert text.count(old) == 1
    (workdir / "config.gin").write_text(text.replace(old, new))


def test_its_own_config_is_the_same_run_and_a_damaged_one_is_another(tiny, tmp_path):
    saved = tmp_path / config_check.CONFIG
    config_check.check_config(tiny(), tmp_path)  # none yet
    text = serialize.config_text(tiny()).encode()
    saved.write_bytes(text)
    config_check.check_config(tiny(), tmp_path)
    assert text.count(b"Experiment.seed = 0") == 1
    saved.write_bytes(text.replace(b"Experiment.seed = 0", b"Experiment.seed = \xff"))
    with pytest.raises(
        UserError, match=r"holds a run of another config \(Experiment.seed: .*choose another --workdir"
    ):
        config_check.check_config(tiny(), tmp_path)


def test_a_checkpoint_holds_the_config_and_the_identity_of_its_run(make, trained):
    identities = [(trained / name / "run_id").read_text().strip() for name in ("one", "again", "other_seed")]
    assert len(set(identities)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in identities)
    for name in (LAST, "000000002"):
        said = _meta(trained / "again", name)["metadata"]
        assert (said["run"], said["config"]) == (identities[1], serialize.config_text(make()))


def test_a_resumed_run_keeps_its_identity(make, workdir):
    identity = (workdir / "run_id").read_text()
    loop.train(make(steps=5), workdir)
    assert (workdir / "run_id").read_text() == identity
    assert _meta(workdir, "000000005")["metadata"]["run"] == identity.strip()


def test_a_run_killed_before_its_first_checkpoint_keeps_its_identity(make, tmp_path):
    """The files that are there by then, as the process leaves them."""
    identity = "0123456789abcdef" * 2
    for files in ({"run_id": identity + "\n"}, {"config.gin": serialize.config_text(make())}):
        workdir = tmp_path / str(len(list(tmp_path.iterdir())))
        workdir.mkdir()
        for name, text in files.items():
            (workdir / name).write_text(text)
        loop.train(make(steps=1), workdir)
        found = _meta(workdir, "000000001")["metadata"]["run"]
        assert (found == identity) == ("run_id" in files)
        assert (workdir / "run_id").read_text() == found + "\n"


OF_RUNS = [mode for mode in run.MODES if mode != "plan"]


@pytest.fixture(autouse=True)
def _no_weights_of_inception(monkeypatch):
    """They are not here, and are looked for before the run is."""
    monkeypatch.setattr(fid, "Extractor", lambda features: None)


@pytest.mark.parametrize("mode", OF_RUNS)
def test_every_mode_refuses_a_config_that_was_changed_by_hand(make, workdir, mode):
    """The command without a --gin_file: the experiment is what the changed config.gin says."""
    changed = make(batch_size=5, sample=Sample(num_timesteps=4, num=2))
    (workdir / "config.gin").write_text(serialize.config_text(changed))
    before = _files(workdir)
    with pytest.raises(
        UserError, match=rf"checkpoint .*/{LAST} was trained with {BATCH_SIZE}: undo that in "
    ):
        run.MODES[mode].perform(changed, workdir)
    assert _files(workdir) == before


@pytest.mark.parametrize("mode", OF_RUNS)
def test_every_mode_refuses_a_checkpoint_of_another_run_of_the_same_config(make, trained, workdir, mode):
    shutil.rmtree(workdir / "checkpoints" / LAST)
    shutil.copytree(trained / "again" / "checkpoints" / LAST, workdir / "checkpoints" / LAST)
    before = _files(workdir)
    with pytest.raises(
        UserError, match=rf"/{LAST} is of another run than {workdir}/run_id: move it to its own"
    ):
        run.MODES[mode].perform(make(), workdir)
    assert _files(workdir) == before


def test_loading_refuses_both(trained, workdir):
    load = lambda **given: diffenc.load(workdir, allow_imports=("tests",), **given)  # noqa: E731
    assert load().step == 4
    _edit_config(
        workdir,
        "schedule.learned_endpoints.log_snr_max = 6.0",
        "schedule.learned_endpoints.log_snr_max = 9.0",
    )
    with pytest.raises(
        UserError, match=r"config \(schedule.learned_endpoints.log_snr_max: 6.0 -> 9.0\): undo that in"
    ):
        load()
    shutil.copy(trained / "one" / "config.gin", workdir)
    shutil.rmtree(workdir / "checkpoints" / LAST)
    shutil.copytree(trained / "other_seed" / "checkpoints" / LAST, workdir / "checkpoints" / LAST)
    with pytest.raises(
        UserError,
        match=r"is of another run than .*run_id, of another config \(Experiment.seed: 1 -> 0\): move it",
    ):
        load()
    assert load(step=2).step == 2, "its own"


def test_the_folder_may_be_copied_and_moved_and_lie_on_an_object_store(make, workdir, tmp_path, warned):
    moved = shutil.copytree(workdir, tmp_path / "else" / "where")
    shutil.rmtree(workdir)
    figures = commands.evaluate(make(), moved)
    url = f"memory://{tmp_path}/run"
    for path in moved.rglob("*"):
        if path.is_file():
            stores.open_store(url).write(path.relative_to(moved).as_posix(), path.read_bytes())
    assert commands.evaluate(make(), url)["bpd"] == figures["bpd"]
    loop.train(make(steps=5), url)
    assert stores.open_store(url).read("run_id") == (moved / "run_id").read_bytes()
    assert not warned
    stores.open_store(url).write("run_id", b"0" * 32)
    with pytest.raises(
        UserError, match=rf"checkpoint {url}/checkpoints/000000005 is of another run than {url}/run_id"
    ):
        commands.evaluate(make(steps=5), url)


def test_parameters_are_taken_from_another_run_but_not_from_a_stray_checkpoint(
    make, trained, workdir, tmp_path, warned
):
    for place in (workdir, workdir / "checkpoints", workdir / "checkpoints" / LAST):
        target = tmp_path / f"from_{place.name}"
        loop.train(make(steps=1, init_from=str(place)), target)
        assert (target / "run_id").read_text() != (workdir / "run_id").read_text()
    assert not warned
    shutil.rmtree(workdir / "checkpoints" / LAST)
    shutil.copytree(trained / "again" / "checkpoints" / LAST, workdir / "checkpoints" / LAST)
    with pytest.raises(UserError, match=rf"{LAST} is of another run than {workdir}/run_id"):
        loop.train(make(steps=1, init_from=str(workdir)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Folders of earlier versions


def test_a_run_of_before_goes_on_with_one_warning_and_then_holds_both(make, trained, workdir, warned):
    _make_older(workdir)
    loop.train(make(steps=5), workdir)
    (told,) = warned
    assert re.match(
        r"the checkpoint of step 4 in .*: only its config_hash was compared; the config itself, and", told
    )
    said = _meta(workdir, "000000005")["metadata"]
    assert said["config"] == serialize.config_text(make(steps=5))
    assert (workdir / "run_id").read_text() == said["run"] + "\n"
    commands.evaluate(make(steps=5), workdir)
    assert len(warned) == 1
    commands.evaluate(make(evaluate=Evaluate(step=2)), workdir)
    assert len(warned) == 2, "that one is as it was"


@pytest.mark.parametrize("load", [False, True])
def test_a_run_of_before_is_measured_with_one_warning_unless_its_config_was_changed(
    make, workdir, warned, load
):
    def measure(experiment):
        return (
            diffenc.load(workdir, allow_imports=("tests",))
            if load
            else commands.evaluate(experiment, workdir)
        )

    _make_older(workdir)
    before = _files(workdir)
    measure(make())
    assert len(warned) == 1
    assert not load or _files(workdir) == before
    _edit_config(workdir, "Experiment.batch_size = 4", "Experiment.batch_size = 5")
    with pytest.raises(UserError, match=rf"{LAST} was trained with another config \(its config_hash differs"):
        measure(make(batch_size=5))
    _edit_config(workdir, "Experiment.batch_size = 5", "Experiment.batch_size = 4")
    _edit_config(workdir, "Experiment.microbatches = 1\n", "")  # as of a version without that field
    _edit_config(workdir, "Experiment.ema_decay = 0.8\n", "# by hand\n\nExperiment.ema_decay = 0.8\n")
    measure(make())
    assert len(warned) == 2


def test_a_field_that_came_later_has_its_default_in_older_checkpoints(make, workdir, warned):
    """The version that saved it had no Experiment.init_from, and spelt a number differently."""

    def change(metadata):
        lines = metadata["config"].splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("Experiment.init_from")]
        metadata["config"] = "".join(kept).replace("learning_rate = 0.01\n", "learning_rate = 1e-2\n")
        assert len(kept) == len(lines) - 1

    _change_metadata(workdir, change)
    commands.evaluate(make(), workdir)
    loop.train(make(steps=5), workdir)
    assert not warned


def test_a_folder_that_lost_its_identity_takes_it_from_the_newest_checkpoint(make, workdir, warned):
    identity = (workdir / "run_id").read_bytes()
    (workdir / "run_id").unlink()
    commands.evaluate(make(), workdir)
    assert re.match(
        "whose the checkpoint of step 4 in .* is was not compared: run_id is not there", warned[0]
    )
    assert not (workdir / "run_id").exists(), "measuring writes none"
    loop.train(make(steps=5), workdir)
    assert (workdir / "run_id").read_bytes() == identity
    (workdir / "run_id").write_text("no identity\n")
    for act in (loop.train, commands.evaluate):
        with pytest.raises(UserError, match=f"{workdir}/run_id is damaged: delete it"):
            act(make(steps=5), workdir)


def test_without_its_config_a_run_is_known_by_its_checkpoints(make, workdir):
    (workdir / "config.gin").unlink()
    commands.evaluate(make(), workdir)
    with pytest.raises(UserError, match=rf"{BATCH_SIZE}: give the --gin_file it was trained with"):
        commands.evaluate(make(batch_size=5), workdir)


# What a stranger may have written


@pytest.mark.parametrize("config", ["x = 1\n" * 200_000, 7, ["Experiment.seed = 0"], {}])
def test_a_config_that_cannot_be_one_is_refused_in_few_words(make, workdir, config):
    _change_metadata(workdir, lambda metadata: metadata.update(config=config))
    with pytest.raises(UserError, match=f"{LAST} holds no config that can be one") as refused:
        commands.evaluate(make(), workdir)
    assert len(str(refused.value)) < 400


def test_a_config_in_a_checkpoint_is_compared_as_text_and_told_in_few_words(make, workdir, tmp_path):
    """Nothing that it names is imported, and nothing in it is evaluated or sent to the terminal as it is."""
    lines = [
        "import no_such_module_of_a_stranger",
        "Experiment.seed = @no_such_module_of_a_stranger.made()",
        "Experiment.batch_size = __import__('os').mkdir('made')",
        "Experiment.steps\x1b[31m = '" + 10_000 * "x" + "'",
        "Experiment.ema_decay = " + "(" * 150,
        *(f"Experiment.made_up_{k} = {k}" for k in range(1000)),
    ]
    _change_metadata(workdir, lambda metadata: metadata.update(config="\n".join(lines), run=5 * "\x1b"))
    with pytest.raises(UserError, match=r"is of another run than .*, of another config") as refused:
        commands.evaluate(make(), workdir)
    assert len(str(refused.value)) < 2500
    assert str(refused.value).isprintable()
    assert not Path("made").exists()


def test_an_identity_that_cannot_be_one_is_not_filed(make, workdir):
    (workdir / "run_id").unlink()
    for name in (LAST, "000000002"):
        _change_metadata(workdir, lambda metadata: metadata.update(run="../../x\n" * 1000), name)
    loop.train(make(steps=5), workdir)
    assert re.fullmatch("[0-9a-f]{32}\n", (workdir / "run_id").read_text())


def test_what_is_restored_is_the_state_that_was_saved(make, workdir):
    """The check comes before the arrays, and does not touch them."""
    wanted = abstract_state(make(), data_mesh())
    calls = []
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.restore(wanted, check=lambda where, metadata: calls.append((where, metadata["run"])))
    jax.tree.map(np.testing.assert_array_equal, found.tree, checkpoints.restore(wanted).tree)
    assert calls == [(str(workdir / "checkpoints" / LAST), (workdir / "run_id").read_text().strip())]


def test_settings_that_are_free_may_differ_from_the_checkpoint(make, workdir, warned):
    free = make(log_every=1, keep_last=7, sample=Sample(num_timesteps=2, num=1), evaluate=Evaluate(passes=3))
    commands.evaluate(dataclasses.replace(free, microbatches=2), workdir)
    assert not warned


@pytest.mark.parametrize("act", [loop.train, commands.evaluate])
def test_what_killed_processes_left_is_swept_at_the_start(make, workdir, act):
    left = [".config.gin.tmp-0badcafe", "samples/.000000002.png.tmp-0badcafe", "fits/.T4.json.tmp-0badcafe"]
    for name in left:
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_text("half")
    act(make(steps=5), workdir)
    assert not [path for path in workdir.rglob(".*") if path.name != ".lock"]
