"""A workdir that is moved, deleted or replaced while a run trains in it, or is evaluated: nothing goes elsewhere."""

import json
import os
import shutil
from pathlib import Path

import pytest

from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.files.location import MovedError
from diffenc.training import loop


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    """Runs of one seed and model share their train step, which takes longer to compile than all they do."""
    steps, compiled = {}, {}
    make, ahead = loop.make_train_step, loop.compile_ahead

    def step_of(experiment, mesh):
        return steps.setdefault(experiment.seed, make(experiment, mesh))

    def compile_ahead(what, function, *arguments):
        key = function if what == "the train step" else object()
        return compiled.get(key) or compiled.setdefault(key, ahead(what, function, *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", step_of)
        patch.setattr(loop, "compile_ahead", compile_ahead)
        yield


@pytest.fixture
def amid(monkeypatch):
    """amid(step, act): has `act()` done after a step of a run in this process."""

    plan, real = {}, loop.take_step

    def stepping(session, *arguments):
        real(session, *arguments)
        act = plan.pop(session.step, None)
        if act is not None:
            session.files.checkpoints.wait()
            act()

    monkeypatch.setattr(loop, "take_step", stepping)
    return lambda step, act: plan.update({step: act})


@pytest.fixture
def experiment(tiny):
    """12 steps, saved at 4, 8 and 12, and a row only at the end."""
    return tiny(seed=3, checkpoint_every=4, log_every=12)


def _steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_workdir_that_is_moved_ends_the_run_which_goes_on_at_its_new_place(experiment, tmp_path, amid):
    run, new = tmp_path / "run", tmp_path / "new"
    amid(5, lambda: run.rename(new))
    with pytest.raises(
        MovedError, match=f"{run} is no longer .*, which is at {new} now: continue there"
    ) as moved:
        loop.train(experiment, run)
    assert "\n" not in str(moved.value)
    assert not run.exists()
    assert _steps(new) == [4]
    loop.train(experiment, new)
    assert 12 in _steps(new)
    assert [json.loads(line)["step"] for line in (new / "metrics.jsonl").open()] == [12]


def test_one_that_is_deleted_is_not_made_anew(experiment, tmp_path, amid):
    run = tmp_path / "run"
    amid(5, lambda: shutil.rmtree(run))
    with pytest.raises(MovedError, match="which was deleted"):
        loop.train(experiment, run)
    assert not run.exists()


@pytest.mark.parametrize("how", ["move", "link"])
def test_nothing_is_written_into_another_run_that_takes_its_place(experiment, tiny, tmp_path, amid, how):
    loop.train(tiny(seed=4, steps=2, checkpoint_every=1), tmp_path / "b")
    before = content(tmp_path / "b")
    run = tmp_path / "run"
    if how == "link":
        (tmp_path / "a").mkdir()
        run.symlink_to("a")

    def replace():
        if how == "link":
            run.unlink()
            run.symlink_to("b")
        else:
            run.rename(tmp_path / "a")
            (tmp_path / "b").rename(run)

    amid(5, replace)
    with pytest.raises(MovedError, match=f"which is at {tmp_path}/a now"):
        loop.train(experiment, run)
    assert content(run) == before
    assert _steps(tmp_path / "a") == [4]


def test_a_copy_that_takes_its_place_is_another_folder(experiment, tmp_path, amid):
    run = tmp_path / "run"

    def swap():
        shutil.copytree(run, tmp_path / "copy")
        shutil.rmtree(run)
        (tmp_path / "copy").rename(run)

    amid(5, swap)
    with pytest.raises(MovedError):
        loop.train(experiment, run)
    assert _steps(run) == [4]


def test_a_row_of_metrics_notices_too(tiny, tmp_path, amid):
    run = tmp_path / "run"
    amid(5, lambda: run.rename(tmp_path / "new"))
    with pytest.raises(MovedError):
        loop.train(tiny(seed=3, checkpoint_every=12, log_every=6), run)
    assert (tmp_path / "new" / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("visit", ["evaluate_every", "sample_every"])
def test_an_evaluation_amid_training_is_not_written_elsewhere(tiny, tmp_path, amid, visit):
    run = tmp_path / "run"
    amid(6, lambda: shutil.rmtree(run))
    with pytest.raises(MovedError):
        loop.train(tiny(seed=3, checkpoint_every=12, log_every=12, **{visit: 6}), run)
    assert not run.exists()


def test_the_lock_alone_is_made_anew(experiment, tmp_path, amid):
    run = tmp_path / "run"
    amid(5, (run / ".lock").unlink)
    loop.train(experiment, run)
    assert (run / ".lock").read_text() == f"{os.getpid()}\n"
    assert 12 in _steps(run)


def test_the_lock_of_another_process_is_respected(experiment, tmp_path, amid):
    run = tmp_path / "run"

    def claim():
        (run / ".lock").unlink()
        (run / ".lock").write_text("4242\n")

    amid(5, claim)
    with pytest.raises(UserError, match="run is in use by the training process with pid 4242"):
        loop.train(experiment, run)
    assert _steps(run) == [4]


def test_a_relative_workdir_of_a_process_that_goes_elsewhere(experiment, tmp_path, amid, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    amid(5, lambda: os.chdir("elsewhere"))
    with pytest.raises(MovedError, match=f"which is at {tmp_path}/run now"):
        loop.train(experiment, "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_local_copy_of_an_object_store_that_is_tidied_away(experiment, tmp_path, amid, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    amid(5, lambda: [shutil.rmtree(folder) for folder in tmp_path.glob("diffenc-open-*")])
    with pytest.raises(MovedError, match="which was deleted"):
        loop.train(experiment, f"memory://{tmp_path}/run")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_on_its_way_is_not_committed_elsewhere(experiment, tmp_path, monkeypatch):
    """Nor is what lies there under its name removed."""
    from diffenc.checkpoint import checkpoint_write

    run, real = tmp_path / "run", checkpoint_write.arrays.write_arrays

    def write(store, part, mine):
        real(store, part, mine)
        if part.startswith("000000008"):
            run.rename(tmp_path / "new")
            (run / "checkpoints" / "000000008").mkdir(parents=True)
            (run / "checkpoints" / "000000008" / "META.json").write_text("another run's")

    monkeypatch.setattr(checkpoint_write.arrays, "write_arrays", write)
    with pytest.raises(MovedError):
        loop.train(experiment, run)
    assert content(run) == {"checkpoints/000000008/META.json": b"another run's"}


def test_an_evaluation_by_hand_is_not_filed_in_another_run(experiment, tiny, tmp_path, monkeypatch):
    run, real = tmp_path / "run", commands.Evaluator.measure
    loop.train(experiment, run)
    loop.train(tiny(seed=4, steps=2), tmp_path / "b")
    before = content(tmp_path / "b")

    def measure(self, *arguments):
        run.rename(tmp_path / "a")
        (tmp_path / "b").rename(run)
        return real(self, *arguments)

    monkeypatch.setattr(commands.Evaluator, "measure", measure)
    with pytest.raises(MovedError, match=f"which is at {tmp_path}/a now"):
        commands.evaluate(experiment, run)
    assert content(run) == before
