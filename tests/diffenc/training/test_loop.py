"""The trainer: a plain loop's numbers, interrupted and resumed without a trace, and never a bad checkpoint."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffenc.checkpoint import checkpoints
from diffenc.config import gin_loader, names, serialize
from diffenc.config.experiment import Experiment
from diffenc.config.settings import Evaluate
from diffenc.data.batches import train_batches
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.evaluation.evaluator import Evaluator
from diffenc.files import checksummed_json, stores
from diffenc.parallel.sharding import data_mesh, images_to_devices
from diffenc.runtime.signals import Interrupted
from diffenc.training import hooks, loop, prefetch, run_files
from diffenc.training.state import abstract_state, init_state
from diffenc.workdir import mirror

TIMINGS = {"steps_per_second", "images_per_second", "data_wait"}


def _rows(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def _steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints, by the folders' names."""
    return sorted(int(path.name.split("-")[0]) for path in (workdir / "checkpoints").iterdir())


def _state(experiment, workdir: Path, step: int | None = None):
    wanted = abstract_state(experiment, data_mesh())
    return jax.device_get(checkpoints.Checkpoints(workdir / "checkpoints").restore(wanted, step).tree)


def _assert_same(a, b):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    """Runs of one kind share what is compiled, which takes longer than all they do."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((loop, "make_train_step"), (hooks, "Evaluator"), (hooks, "ImageSampler")):
            patch.setattr(module, name, _shared(getattr(module, name)))
        patch.setattr(loop, "compile_ahead", _compile_ahead_once())
        yield


def _compile_ahead_once():
    real, made = loop.compile_ahead, {}

    def compile_ahead(what, function, *arguments):
        if what != "the train step":
            return real(what, function, *arguments)
        if function not in made:
            made[function] = real(what, function, *arguments)
        return made[function]

    return compile_ahead


def _shared(make):
    made = {}

    def get(*arguments, **named):
        every = (*arguments, *named.values())
        key = tuple(_compiled_by(each) for each in every if not isinstance(each, Mesh | Path))
        return made.setdefault(key, None) or made.update({key: make(*arguments, **named)}) or made[key]

    return get


def _compiled_by(argument):
    """What of an argument tells compiled programs apart."""
    if not isinstance(argument, Experiment):
        return argument
    free = {"steps", "init_from", *(name for name in vars(argument) if re.search("_every|keep_", name))}
    kept = tuple(value for name, value in vars(argument).items() if name not in free)
    return (*kept, argument.init_from is None)


@pytest.fixture
def told(monkeypatch):
    """The log lines of the trainer."""
    lines: list[str] = []
    monkeypatch.setattr(loop.logging, "info", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(scope="module")
def full(tiny):
    """Evaluations, samples and logs at cadences that fall together and apart."""
    return tiny(seed=3, evaluate_every=4, sample_every=6)


@pytest.fixture(scope="module")
def straight(full, tmp_path_factory):
    """A workdir in which nothing disturbed `full`."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    loop.train(full, workdir)
    return workdir


def test_a_run_is_the_same_where_float64_is_on(full, straight, tmp_path):
    with jax.enable_x64(True):
        loop.train(full, tmp_path)
    assert _rows(tmp_path) == _rows(straight)
    _assert_same(_state(full, tmp_path), _state(full, straight))


def test_a_run_is_the_plain_loop(full, straight):
    """The same steps by hand, in one row of sums."""
    mesh, source = data_mesh(), full.dataset.source("train")
    state, step = jax.jit(lambda: init_state(full))(), loop.make_train_step(full, mesh)
    batches, totals = train_batches(source, full.batch_size, full.seed), []
    for _ in range(full.steps):
        state = step(state, images_to_devices(next(batches), full.model.conditioning, mesh))
        totals.append([*map(float, state.sums.terms), float(state.sums.grad_norm)])
    saved = _state(full, straight)
    _assert_same(saved.params, state.params)
    _assert_same(saved.ema, state.ema)
    _assert_same(saved.opt_state, state.opt_state)
    each = np.diff(totals, axis=0, prepend=0)
    keys = ["bpd_reconstruction", "bpd_latent", "bpd_diffusion", "grad_norm"]
    rows = [row for row in _rows(straight) if "bpd" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    for row in rows:
        means = each[row["step"] - 3 : row["step"]].mean(axis=0)
        np.testing.assert_allclose([row[key] for key in keys], means, rtol=1e-4)
        np.testing.assert_allclose(row["bpd"], means[:3].sum(), rtol=1e-4)


def test_what_a_step_is_followed_by(full, straight):
    kinds = [(row["step"], "bpd" if "bpd" in row else "test_bpd") for row in _rows(straight)]
    assert kinds == [
        (3, "bpd"), (4, "test_bpd"), (6, "bpd"), (8, "test_bpd"), (9, "bpd"), (12, "bpd"), (12, "test_bpd"),
    ]  # fmt: skip
    assert sorted(path.name for path in (straight / "samples").iterdir()) == [
        "000000006.png",
        "000000012.png",
    ]
    assert _steps(straight) == [5, 10, 12]
    assert int(_state(full, straight, 10).sums.steps) == 1, "steps since the row of step 9"
    assert int(_state(full, straight, 12).sums.steps) == 0, "the row comes before the checkpoint"


def test_the_evaluation_within_a_run_is_of_the_average(full, straight):
    measured = Evaluator(full, data_mesh()).measure(_state(full, straight).ema).metrics()
    last = _rows(straight)[-1]
    known = {f"test_{key}": value for key, value in measured.items() if value is not None}
    assert last == {"step": 12} | known
    figures = json.loads((straight / "evaluation.json").read_text())
    assert {key: figures[key] for key in measured} == measured


def test_tensorboard_shows_the_rows(straight):
    events = EventAccumulator(str(straight), size_guidance={"scalars": 0}).Reload()
    shown = {
        (tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    written = {(key, row["step"]): value for row in rows for key, value in row.items() if key != "step"}
    shown = {(tag, step): value for (tag, step), value in shown.items() if step > 0}  # 0: the hparams tab's
    assert shown.keys() == written.keys()
    assert "test_loss_over_log_snr" in events.Tags()["histograms"]
    np.testing.assert_allclose([shown[key] for key in written], [*written.values()], rtol=1e-6)


def test_what_it_is_trained_in_and_on_is_recorded(straight):
    (start,) = json.loads((straight / "environment.json").read_text())["starts"]
    assert (start["step"], start["backend"]) == (0, "cpu")
    assert json.loads((straight / "dataset.json").read_text())["train_images"] == 23


def test_training_returns_what_it_leaves(full, straight):
    """Here of a run that is finished already, so that all of it is as it was restored."""
    result = loop.train(full, straight)
    _assert_same(jax.device_get(result.state), _state(full, straight))
    assert (result.step, result.workdir) == (12, str(straight))
    row, evaluation = _rows(straight)[-2:]
    assert {key: value for key, value in result.metrics.items() if key not in TIMINGS} == {
        key: value for key, value in (row | evaluation).items() if key != "step"
    }
    assert result.metrics.keys() >= TIMINGS
    assert repr(result).startswith("TrainResult(step=12, metrics={")
    assert len(repr(result)) < 2000  # no arrays


def test_rates_are_images_over_steps(straight):
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "bpd" in row:
            assert row["images_per_second"] == pytest.approx(4 * row["steps_per_second"])
            assert row["steps_per_second"] > 0


def test_compiling_is_not_timed(tiny, tmp_path, monkeypatch, told):
    """Nor is the time left told by it."""
    real = loop.compile_ahead

    def slow(what, function, *arguments):
        time.sleep(1)
        return real(what, function, *arguments)

    monkeypatch.setattr(loop, "compile_ahead", slow)
    loop.train(tiny(seed=3, steps=4, log_every=2), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["steps_per_second"] > 4 for row in rows)
    assert "50 % of 4 steps done, 0 s left" in told


def test_evaluating_does_not_count_as_training(tiny, tmp_path, monkeypatch):
    real = Evaluator.measure

    def slow(self, *arguments):
        time.sleep(1)
        return real(self, *arguments)

    monkeypatch.setattr(Evaluator, "measure", slow)
    loop.train(tiny(steps=6, evaluate_every=5), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in reversed(rows) if "bpd" in row)
    assert row["step"] == 6
    assert row["steps_per_second"] > 3, (
        "three steps since the last row took far less than the second between them"
    )


def test_the_config_alone_is_the_run_again(straight, tmp_path):
    """Through text and gin, into a new workdir."""
    loop.train(gin_loader.load_experiment([str(straight / "config.gin")], [], ["tests"]), tmp_path)
    assert _rows(tmp_path) == _rows(straight)
    assert (tmp_path / "config.gin").read_text() == (straight / "config.gin").read_text()


# Interrupted runs


@pytest.fixture
def signal_after(monkeypatch):
    """Has this process sent a signal after a step."""

    def arrange(step: int, signum: int = signal.SIGTERM):
        real = loop.take_step

        def stepping(session, *arguments):
            real(session, *arguments)
            if session.step == step:
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(loop, "take_step", stepping)

    return arrange


@pytest.fixture
def signal_within(monkeypatch):
    """Has this process sent a signal amid the nth visit of a kind, before a part of it."""

    def arrange(task: str, visit: int, part: int = 2):
        seen = []

        class Progress:
            def __init__(self, name, total):
                self.parts = 0
                self.here = name == task
                if self.here:
                    seen.append(name)

            def __call__(self):
                self.parts += 1
                if self.here and len(seen) == visit and self.parts == part:
                    os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(hooks, "Progress", Progress)

    return arrange


def _assert_undisturbed(experiment, workdir: Path, straight: Path):
    _assert_same(_state(experiment, workdir), _state(experiment, straight))
    assert _rows(workdir) == _rows(straight)
    for name in ("evaluation.json", "samples/000000006.png", "samples/000000012.png"):
        assert (workdir / name).read_bytes() == (straight / name).read_bytes()
    assert len(list((workdir / "evaluations").iterdir())) == 2


@pytest.mark.parametrize(
    ("step", "signum"),
    [
        (1, signal.SIGINT),
        (7, signal.SIGTERM),
        pytest.param(12, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(7, signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(7, signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_run_goes_on(full, straight, tmp_path, signal_after, told, step, signum):
    signal_after(step, signum)
    with pytest.raises(Interrupted) as interrupted:
        loop.train(full, tmp_path)
    assert interrupted.value.signum == signum
    assert max(_steps(tmp_path)) == step
    assert f"stopped at step {step}, and saved: run the same command again to go on" in told
    signal_after(0)
    loop.train(full, tmp_path)
    assert any(line.startswith(f"resuming from step {step} to 12") for line in told)
    _assert_undisturbed(full, tmp_path, straight)


@pytest.mark.parametrize(
    ("task", "visit", "step"),
    [pytest.param("evaluation", 1, 4, marks=pytest.mark.slow), ("evaluation", 3, 12), ("samples", 2, 12)],
)
def test_what_a_signal_cut_short_is_done_on_resuming(
    full, straight, tmp_path, signal_within, task, visit, step
):
    signal_within(task, visit)
    with pytest.raises(Interrupted):
        loop.train(full, tmp_path)
    assert max(_steps(tmp_path)) == step
    signal_within("nothing", 1)
    loop.train(full, tmp_path)
    _assert_undisturbed(full, tmp_path, straight)


def test_a_finished_run_says_so_and_changes_nothing(full, straight, tmp_path, signal_within, told):
    """Also one whose last evaluation was made up for when it was resumed."""
    signal_within("evaluation", 3)
    with pytest.raises(Interrupted):
        loop.train(full, tmp_path)
    for _ in range(3):
        loop.train(full, tmp_path)
        assert "already trained to step 12; bind Experiment.steps to train longer" in told
        _assert_undisturbed(full, tmp_path, straight)


class KilledError(Exception):
    """Stands for SIGKILL at one line."""


@contextlib.contextmanager
def _patched(owner, name: str, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def _dying(at: int):
    """A `take_step` that dies after so many."""
    real = loop.take_step

    def take_step(session, *arguments):
        if session.step == at:
            raise KilledError
        real(session, *arguments)

    return take_step


@pytest.mark.slow
def test_killed_after_making_up_for_an_evaluation_its_row_stays_one(full, straight, tmp_path, signal_within):
    signal_within("evaluation", 1)
    with pytest.raises(Interrupted):
        loop.train(full, tmp_path)

    def die(*_):
        raise KilledError

    with _patched(checkpoints.Checkpoints, "save", die), pytest.raises(KilledError):
        loop.train(full, tmp_path)
    assert _rows(tmp_path)[-1]["step"] == 4
    loop.train(full, tmp_path)
    _assert_undisturbed(full, tmp_path, straight)


def test_rows_past_the_restored_step_are_written_again(full, straight, tmp_path):
    """Dead after the row of step 9, with a checkpoint of step 5."""
    with _patched(loop, "take_step", _dying(9)), pytest.raises(KilledError):
        loop.train(full, tmp_path)
    assert (_rows(tmp_path)[-1]["step"], _steps(tmp_path)) == (9, [5])
    loop.train(full, tmp_path)
    _assert_undisturbed(full, tmp_path, straight)


@pytest.mark.slow
def test_dead_before_any_checkpoint_the_run_starts_anew(full, straight, tmp_path):
    with _patched(loop, "take_step", _dying(4)), pytest.raises(KilledError):
        loop.train(full, tmp_path)
    assert len(_rows(tmp_path)) == 2
    loop.train(full, tmp_path)
    _assert_undisturbed(full, tmp_path, straight)


def test_a_second_signal_while_nothing_changed_leaves_the_checkpoint_alone(
    full, tmp_path, signal_after, monkeypatch
):
    """Replacing the one checkpoint by itself would risk it for nothing."""
    signal_after(7)
    with pytest.raises(Interrupted):
        loop.train(full, tmp_path)
    before = {path: path.stat().st_ino for path in (tmp_path / "checkpoints").rglob("*")}
    real = loop.restore_or_init

    def restore(*arguments):
        session = real(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return session

    with _patched(loop, "restore_or_init", restore), pytest.raises(Interrupted):
        loop.train(full, tmp_path)
    assert {path: path.stat().st_ino for path in (tmp_path / "checkpoints").rglob("*")} == before


def test_a_stop_that_cannot_save_does_not_say_it_did(full, tmp_path, signal_after, told):
    def fail(*_):
        raise OSError(28, "No space left on device")

    signal_after(2)
    with _patched(checkpoints.Checkpoints, "_write", fail), pytest.raises(UserError, match="No space left"):
        loop.train(full, tmp_path)
    assert not any("and saved" in line for line in told)


def test_a_visit_that_fails_costs_none_of_the_steps_before_it(full, straight, tmp_path):
    def fail(*_):
        raise KilledError

    with _patched(hooks.Evaluation, "__call__", fail), pytest.raises(KilledError):
        loop.train(full, tmp_path)
    assert _steps(tmp_path) == [4]
    loop.train(full, tmp_path)
    _assert_undisturbed(full, tmp_path, straight)


def test_what_another_process_writes_before_the_claim_is_respected(full, straight, tmp_path):
    """A whole run, or only its config, between this one's reading and its claim."""
    real = run_files.claim

    def meanwhile(write):
        @contextlib.contextmanager
        def claim(workdir):
            write(workdir)
            with real(workdir):
                yield

        return claim

    def run(workdir):
        shutil.copytree(straight, workdir)

    with _patched(run_files, "claim", meanwhile(run)):
        with pytest.raises(
            UserError, match=r"another process wrote to .*one just now: run the same command again"
        ):
            loop.train(full, tmp_path / "one")
        with pytest.raises(UserError, match=r"holds a run of another config \(Experiment.seed"):
            loop.train(dataclasses.replace(full, seed=4), tmp_path / "two")
    assert _rows(tmp_path / "one") == _rows(tmp_path / "two") == _rows(straight)


def test_checkpoints_without_their_config_are_not_taken_for_anothers(full, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "config.gin").unlink()
    with pytest.raises(
        UserError,
        match=r"000000012 was trained with another config \(Experiment.seed: 3 -> 4\): give the --gin_f",
    ):
        loop.train(dataclasses.replace(full, seed=4), tmp_path / "run")
    assert not (tmp_path / "run" / "config.gin").exists()
    loop.train(full, tmp_path / "run")
    _assert_undisturbed(full, tmp_path / "run", straight)


def test_a_run_does_not_go_on_where_its_seed_draws_other_noise(full, straight, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "run")
    longer = dataclasses.replace(full, steps=13)
    changed = r"jax_threefry_partitionable = True there and False here.* Experiment\.init_from"
    with jax.threefry_partitionable(False):
        with pytest.raises(UserError, match=changed):
            loop.train(longer, workdir)
        assert _steps(workdir) == [5, 10, 12]
        _as_before_draws_were_recorded(workdir)
        loop.train(longer, workdir)
    assert _steps(workdir)[-1] == 13


def _as_before_draws_were_recorded(workdir: Path) -> None:
    for file in (workdir / "checkpoints").glob("*/META.json"):
        content = json.loads(file.read_text())
        del content["checksum"], content["metadata"]["draws"]
        file.write_text(checksummed_json.dumps(content))


# Longer, elsewhere, from elsewhere


def test_a_finished_run_can_be_trained_longer(tiny, tmp_path):
    long, short = tiny(steps=12), tiny(steps=6)
    loop.train(long, tmp_path / "long")
    loop.train(short, tmp_path / "short")
    loop.train(long, tmp_path / "short")
    _assert_same(_state(long, tmp_path / "short"), _state(long, tmp_path / "long"))
    assert _rows(tmp_path / "short") == _rows(tmp_path / "long")
    assert (tmp_path / "short" / "config.gin").read_text() == serialize.config_text(long)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch_size": 8}, {"ema_decay": 0.5}, {"init_from": "else"}]
)
def test_another_config_is_refused(tiny, straight, change):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    key = next(iter(change))
    with pytest.raises(UserError, match=rf"holds a run of another config \(Experiment.{key}: ") as refused:
        loop.train(tiny(**{"seed": 3, "evaluate_every": 4, "sample_every": 6} | change), straight)
    assert "\n" not in str(refused.value)
    assert str(straight / "config.gin") in str(refused.value)
    assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before


def test_cadences_and_efforts_may_change(tiny, tmp_path):
    loop.train(tiny(steps=1), tmp_path)
    changed = tiny(
        steps=2, log_every=1, checkpoint_every=1, evaluate_every=1, sample_every=2, keep_last=1, keep_every=1,
        evaluate=Evaluate(passes=1, split="train"), sample=dataclasses.replace(tiny().sample, num=1),
    )  # fmt: skip
    loop.train(changed, tmp_path)
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 2]
    assert "train_bpd" in _rows(tmp_path)[-1]


@pytest.mark.parametrize(
    "inner", ["", pytest.param("checkpoints", marks=pytest.mark.slow), "checkpoints/000000010"]
)
def test_a_run_can_start_from_another(tiny, full, straight, tmp_path, inner, told):
    frozen = dataclasses.replace(tiny().optimizer, learning_rate=0.0)
    other = tiny(optimizer=frozen, steps=1, init_from=str(straight / inner), ema_decay=0.5)
    loop.train(other, tmp_path)
    origin, state = _state(full, straight, 10 if inner.endswith("10") else 12), _state(other, tmp_path)
    _assert_same(state.params, origin.params)
    used = 0.5  # ema_decay at once: another run's average is a long one already
    average = jax.tree.map(lambda ema, new: used * ema + (1 - used) * new, origin.ema, origin.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, average)
    assert int(state.step) == 1
    assert any(f"parameters taken from {straight / inner}, step" in line for line in told)


def test_a_run_resumes_itself_rather_than_what_it_started_from(tiny, straight, tmp_path, signal_after):
    other = tiny(init_from=str(straight))
    loop.train(other, tmp_path / "whole")
    signal_after(7)
    with pytest.raises(Interrupted):
        loop.train(other, tmp_path / "cut")
    signal_after(0)
    loop.train(other, tmp_path / "cut")
    _assert_same(_state(other, tmp_path / "cut"), _state(other, tmp_path / "whole"))


def test_an_origin_that_is_not_there_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        loop.train(tiny(init_from=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [
        pytest.param(1, 0, [7], marks=pytest.mark.slow),
        pytest.param(2, 0, [6, 7], marks=pytest.mark.slow),
        (1, 3, [3, 6, 7]),
        (3, 2, [2, 4, 5, 6, 7]),
    ],
)
def test_which_checkpoints_are_kept(tiny, tmp_path, last, every, kept):
    loop.train(tiny(steps=7, checkpoint_every=1, log_every=7, keep_last=last, keep_every=every), tmp_path)
    assert _steps(tmp_path) == kept


def test_without_cadences_the_end_still_logs_and_saves(tiny, tmp_path):
    loop.train(tiny(steps=2, log_every=100, checkpoint_every=0), tmp_path)
    assert [row["step"] for row in _rows(tmp_path)] == [2]
    assert _steps(tmp_path) == [2]
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "evaluation.json").exists()


# What must never happen


@dataclasses.dataclass(frozen=True)
class Leap:
    """Gradient descent whose updates are `size` times larger from update `at` on."""

    at: int = 6
    size: float = 1e30

    def build(self, num_steps):
        return optax.sgd(
            lambda count: jnp.asarray(1e-3) * jnp.where(jnp.less(count, self.at), 1.0, self.size)
        )


@pytest.fixture
def leap(tiny, monkeypatch):
    def make(at: int, size: float, **changes):
        monkeypatch.setitem(names.REGISTRIES["optimizer"]._classes, "leap", Leap)
        return tiny(optimizer=Leap(at, size), **{"evaluate_every": 1, "log_every": 12} | changes)

    return make


def _finite(tree) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", [pytest.param(1e20, marks=pytest.mark.slow), 1e38])
def test_a_loss_that_is_not_finite_stops_the_run(leap, tmp_path, size):
    """Update 6 breaks the parameters, if not the loss that it came from."""
    experiment = leap(6, size, checkpoint_every=2, keep_last=99)
    with pytest.raises(UserError) as stopped:
        loop.train(experiment, tmp_path)
    message = str(stopped.value)
    assert "\n" not in message
    bad = next(step for step in (7, 8) if f"NaN or infinite at step {step};" in message)
    assert f"the last good checkpoint is of step {max(_steps(tmp_path))} in {tmp_path}" in message
    assert "Try other settings of optimizer.leap, in a new --workdir" in message
    assert f"Experiment.init_from = '{tmp_path}'" in message
    assert max(_steps(tmp_path)) in (bad - 1, bad - 2)
    for step in _steps(tmp_path):
        assert _finite(_state(experiment, tmp_path, step))
    assert all(value is not None for row in _rows(tmp_path) for value in row.values() if row["step"] < 7)
    assert _rows(tmp_path)[-1]["step"] < bad
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    "checkpoint_every", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(7, marks=pytest.mark.slow)]
)
def test_no_checkpoint_is_ever_of_broken_parameters(leap, tmp_path, checkpoint_every):
    """An update of 1e36 overflows as soon as it is squared; the loss it came from was fine."""
    experiment = leap(6, 1e38, checkpoint_every=checkpoint_every, keep_last=99, evaluate_every=0)
    with pytest.raises(UserError, match="NaN or infinite at step 7"):
        loop.train(experiment, tmp_path)
    kept = _steps(tmp_path) if (tmp_path / "checkpoints").exists() else []
    assert kept == [step for step in range(1, 7) if step % checkpoint_every == 0]


def test_without_a_checkpoint_the_message_says_so(leap, tmp_path):
    with pytest.raises(
        UserError, match="NaN or infinite at step 7, before the first checkpoint, so nothing is saved"
    ) as stopped:
        loop.train(leap(6, 1e38, checkpoint_every=0), tmp_path)
    assert f"delete {tmp_path}, or choose another --workdir, and start again" in str(stopped.value)
    assert "other settings of optimizer.leap" in str(stopped.value)
    assert "init_from" not in str(stopped.value)


def test_a_bad_step_is_told_also_when_resuming_finds_it_first(leap, tmp_path, signal_after):
    """Asked to stop just after it, the run says what is wrong instead of saving it."""
    signal_after(7)
    with pytest.raises(UserError, match="NaN or infinite at step 7"):
        loop.train(leap(6, 1e38), tmp_path)
    assert _steps(tmp_path) == [5]


@contextlib.contextmanager
def _counting_reads(monkeypatch):
    """How often anything waits for the device: each way from an array to the host passes here."""
    reads, kind = [], type(jnp.zeros(1))
    with monkeypatch.context() as patch:
        for name in (
            "__array__",
            "__int__",
            "__float__",
            "__bool__",
            "__index__",
            "block_until_ready",
            "item",
        ):
            patch.setattr(kind, name, _counted(getattr(kind, name), reads))
        patch.setattr(jax, "device_get", _counted(jax.device_get, reads))
        patch.setattr(jax, "block_until_ready", _counted(jax.block_until_ready, reads))
        yield reads


def _counted(real, calls: list):
    def call(*args, **kwargs):
        calls.append(real)
        return real(*args, **kwargs)

    return call


def test_no_step_waits_for_the_device(tiny, tmp_path, monkeypatch):
    """jax's transfer guard lets everything pass on the CPU, where the host's memory is the device's."""
    with _counting_reads(monkeypatch) as reads:
        float(jnp.ones(()))
        np.asarray(jnp.ones(3))
        jax.device_get(jnp.ones(3))
        assert len(reads) >= 3, "the count sees what a step might do"

    monkeypatch.setattr(prefetch, "IN_FLIGHT", 12)  # beyond those it does wait
    counted = {}
    real = loop.run_hooks

    def run_hooks(session, *arguments, **named):
        if session.step == 2:  # compilation is over
            counted["before"] = len(reads)
        real(session, *arguments, **named)
        counted[session.step] = len(reads)

    with _counting_reads(monkeypatch) as reads:
        monkeypatch.setattr(loop, "run_hooks", run_hooks)
        loop.train(tiny(steps=12, log_every=10, checkpoint_every=0), tmp_path)
    assert counted[9] == counted["before"]
    assert counted[10] > counted[9], "a log line does read"


class Slow:
    """Batches each of which takes 50 ms."""

    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(0.05)
        return next(self._batches)

    def close(self):
        self._batches.close()


def test_a_row_tells_how_long_a_step_waits_for_data(tiny, tmp_path, monkeypatch):
    waits = {}
    for name, make in {"slow": lambda *of: Slow(train_batches(*of)), "fast": train_batches}.items():
        monkeypatch.setattr(loop, "train_batches", make)
        loop.train(tiny(seed=3, steps=12, log_every=6), tmp_path / name)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        waits[name] = json.loads(rows[-1])["data_wait"]
    assert 0.05 <= waits["slow"] < 0.15
    assert 0 < waits["fast"] < 0.01


def test_data_that_cannot_be_read_costs_no_step_before_it(tiny, tmp_path, monkeypatch):
    """The eighth batch is asked for two steps ahead of its own."""

    def failing(*of):
        batches = train_batches(*of)
        for _ in range(7):
            yield next(batches)
        raise OSError("the disk is gone")

    monkeypatch.setattr(loop, "train_batches", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        loop.train(tiny(seed=3, steps=12, checkpoint_every=0), tmp_path)
    assert int(_state(tiny(seed=3, steps=12), tmp_path).step) == 5


def test_nothing_crosses_to_the_device_unasked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch.InFlightLimiter, "add", lambda self, token: jnp.ones(3) + 1.0)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(tiny(seed=3, steps=2), tmp_path)


def test_what_can_be_wrong_is_found_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(UserError, match="is not registered, so no config can name it"):
        loop.train(dataclasses.replace(tiny(), optimizer=Unknown()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass(frozen=True)
class Unknown:
    """An optimizer that no config can name."""

    def build(self, num_steps):
        return optax.sgd(0.1)


def test_a_run_on_an_object_store_is_the_run_on_a_disk(full, straight, tmp_path):
    """Trained to step 8, gone on with to the end, and measured, each in a local folder that is gone afterwards."""
    url = f"memory://{tmp_path}/run"
    for steps in (8, full.steps):
        result = loop.train(dataclasses.replace(full, steps=steps), url)
        assert (result.workdir, result.step) == (url, steps)
    figures = commands.evaluate(full, url)
    with mirror.open_workdir(url) as folder:
        assert not (folder / "checkpoints").exists()
        wanted = abstract_state(full, data_mesh())
        held = checkpoints.Checkpoints(mirror.checkpoint_location(folder))
        _assert_same(jax.device_get(held.restore(wanted).tree), _state(full, straight))
        assert held.steps() == [8, 10, 12]
        names = {path.relative_to(straight).as_posix() for path in straight.rglob("*.*") if path.is_file()}
        held_names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {n for n in names if n.startswith(("samples/", "config", "metrics"))} <= held_names
        assert _rows(folder)[-1] == _rows(straight)[-1]
    assert json.loads(stores.open_store(url).read("evaluation.json") or b"")["bpd"] == figures["bpd"]
