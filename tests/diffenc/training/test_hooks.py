"""Log rows, and what evaluations and samples within a run write."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffenc.config.settings import Evaluate, Sample
from diffenc.core.model import Terms
from diffenc.errors import UserError
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_grid import make_grid
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.interfaces import Images
from diffenc.parallel.sharding import data_mesh, replicated, to_devices
from diffenc.runtime.signals import Interrupts
from diffenc.training.clock import Clock
from diffenc.training.hooks import fetch_row, make_hooks
from diffenc.training.loop import run_hooks
from diffenc.training.run_files import RunFiles
from diffenc.training.session import Session
from diffenc.training.state import Sums, init_state, make_train_step
from diffenc.workdir import writers


class Recorder(writers.NullWriter):
    """A writer that only remembers."""

    def __init__(self):
        self.rows: list[tuple[int, dict]] = []
        self.images: list[tuple[int, dict]] = []

    def write_scalars(self, step, scalars):
        self.rows.append((step, dict(scalars)))

    def write_images(self, step, images):
        self.images.append((step, dict(images)))


@pytest.fixture
def state(tiny):
    """One whose averaged parameters are not its parameters."""
    state = jax.jit(lambda: init_state(tiny()), out_shardings=replicated(data_mesh()))()
    return state._replace(ema=jax.tree.map(lambda leaf: 0.5 * leaf, state.params))


class CheckedInterrupts(Interrupts):
    """Has `check` say whether to stop."""

    def __init__(self, check):
        super().__init__()
        self.check = check


@pytest.fixture
def run(tiny, tmp_path, state):
    """Runs one hook of an experiment of 12 steps in tmp_path, after a step."""

    def run_hook(name: str, writer: Recorder, step: int, check=lambda: None, **changes):
        experiment = tiny(**{"evaluate_every": 6, "sample_every": 6} | changes)
        files = RunFiles(experiment, tmp_path)
        session = Session(experiment, state, step, [], 0, files, writer, CheckedInterrupts(check), Clock())
        (hook,) = (hook for hook in make_hooks(experiment, data_mesh(), files) if hook.name == name)
        hook(session)
        return experiment

    return run_hook


def _sums(steps, terms, grad_norm, bad_step=0, auxiliary=()):
    losses = {name: jnp.float32(value) for name, value in dict(auxiliary).items()}
    terms = Terms(*map(jnp.float32, terms))
    return Sums(jnp.int32(steps), terms, losses, jnp.float32(grad_norm), jnp.int32(bad_step))


def test_an_auxiliary_loss_has_its_own_column_and_is_no_part_of_bpd(state):
    sums = _sums(4, (1.0, 2.0, 9.0), 6.0, auxiliary={"value_loss": 10.0})
    row, emptied = fetch_row(state._replace(sums=sums), data_mesh())
    assert row["value_loss"] == 2.5
    assert row["bpd"] == 3.0
    assert float(emptied.sums.auxiliary["value_loss"]) == 0


def test_a_row_holds_the_means_since_the_last(state):
    row, _ = fetch_row(state._replace(sums=_sums(4, (1.0, 2.0, 9.0), 6.0)), data_mesh())
    assert row == {
        "bpd": 3.0, "bpd_reconstruction": 0.25, "bpd_latent": 0.5, "bpd_diffusion": 2.25, "grad_norm": 1.5,
    }  # fmt: skip


def test_the_sums_start_again_but_a_bad_step_is_not_forgotten(state):
    _, after = fetch_row(state._replace(sums=_sums(4, (1.0, 2.0, 9.0), 6.0, bad_step=3)), data_mesh())
    assert jax.tree.leaves(jax.device_get(after.sums)) == [0, 0, 0, 0, 0, 3]
    np.testing.assert_array_equal(after.params["network"]["w"], state.params["network"]["w"])
    assert int(after.step) == int(state.step)


def test_a_fetched_state_steps_on_in_the_same_compiled_program(tiny):
    """Also with donated buffers: each accumulator needs one of its own."""
    mesh, levels = data_mesh(), np.zeros((4, 4, 4, 1), np.uint8)
    step = make_train_step(tiny(), mesh)
    state = jax.jit(lambda: init_state(tiny()), out_shardings=replicated(mesh))()
    for number in range(1, 4):
        state = step(state, Images(to_devices(levels, mesh)))
        row, state = fetch_row(state, mesh)
        assert int(state.step) == number
        assert np.isfinite(row["bpd"])
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


def test_an_evaluation_is_of_the_averaged_parameters(run, state):
    writer = Recorder()
    experiment = run("evaluation", writer, 6, evaluate=Evaluate(passes=2, seed=3))
    evaluator = Evaluator(experiment, data_mesh())
    expected = evaluator.measure(state.ema).metrics()
    known = {f"test_{key}": value for key, value in expected.items() if value is not None}
    assert writer.rows == [(6, known)]
    assert expected["bpd"] != evaluator.measure(state.params).metrics()["bpd"]


def test_rows_name_the_split(run):
    writer = Recorder()
    run("evaluation", writer, 6, evaluate=Evaluate(split="validation"))
    assert all(key.startswith("validation_bpd") for key in writer.rows[0][1])


def test_the_last_evaluation_is_filed_with_its_terms(run, tmp_path):
    writer = Recorder()
    run("evaluation", writer, 6)
    assert not (tmp_path / "evaluation.json").exists()
    run("evaluation", writer, 12)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert (figures["step"], figures["num_images"], figures["num_params"]) == (12, 13, 66)
    terms = np.load(tmp_path / "evaluation.npz")
    bits = sum(terms[name] for name in Terms._fields) / (16 * np.log(2))
    np.testing.assert_allclose(figures["bpd"], bits.mean(), rtol=1e-12)
    assert writer.rows[1][1]["test_bpd"] == figures["bpd"]


def test_the_hooks_of_a_step_run_in_one_order(tiny, tmp_path):
    def names(**changes):
        experiment = tiny(**changes)
        return [hook.name for hook in make_hooks(experiment, data_mesh(), RunFiles(experiment, tmp_path))]

    assert names(evaluate_every=1, sample_every=1) == ["log", "evaluation", "samples", "checkpoint"]
    assert names(sample_every=1) == ["log", "samples", "checkpoint"]
    assert names() == ["log", "checkpoint"]


def test_an_evaluation_that_is_owed_but_no_longer_wanted_is_let_go(tiny, state, tmp_path):
    writer, experiment = Recorder(), tiny(evaluate_every=0)
    files = RunFiles(experiment, tmp_path)
    interrupts = CheckedInterrupts(lambda: None)
    session = Session(experiment, state, 12, ["evaluation"], 12, files, writer, interrupts, Clock())
    run_hooks(session, make_hooks(experiment, data_mesh(), files), session.owed)
    assert session.owed == []
    assert writer.rows == []
    assert not (tmp_path / "evaluation.json").exists()


def test_samples_are_of_the_averaged_parameters(run, state, tmp_path):
    writer = Recorder()
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".000000006.png.tmp-55085c68").write_bytes(b"")  # as a kill left it
    experiment = run("samples", writer, 6, sample=Sample(num_timesteps=6, num=4))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["000000006.png"]
    sampler = ImageSampler(experiment.model, experiment.dataset, experiment.sampling, data_mesh())
    images = sampler.draw(state.ema)
    assert (images != sampler.draw(state.params)).any()
    shades = np.array([0, 64, 128, 191, 255], np.uint8)[images]  # five levels over 0 .. 255
    picture = np.asarray(Image.open(tmp_path / "samples" / "000000006.png"))
    np.testing.assert_array_equal(picture, make_grid(shades)[..., 0])
    ((step, shown),) = writer.images
    assert step == 6
    np.testing.assert_array_equal(shown["samples"][..., 0], picture)


def test_images_that_cannot_be_shown_are_refused_before_the_run_begins(tiny, tmp_path):
    class TwoChannels(type(tiny().dataset)):
        image_shape = (4, 4, 2)

    two = TwoChannels()
    with pytest.raises(
        UserError, match=r"images of 2 channels cannot be shown.*; set Experiment.sample_every = 0$"
    ):
        make_hooks(tiny(dataset=two, sample_every=6), data_mesh(), RunFiles(tiny(), tmp_path))
    make_hooks(tiny(dataset=two, sample_every=0), data_mesh(), RunFiles(tiny(), tmp_path))


def test_a_picture_that_a_full_disk_refuses_does_not_end_the_run(run, tmp_path, caplog):
    """Here a file lies where its folder should."""
    (tmp_path / "samples").write_text("in the way")
    run("samples", Recorder(), 6)
    assert "could not write" in caplog.text
    assert "the run goes on" in caplog.text


@pytest.mark.parametrize(("name", "parts"), [("evaluation", 2 * 4), ("samples", 6)])
def test_between_parts_a_hook_asks_whether_to_stop(run, tmp_path, name, parts):
    calls = []
    run(name, Recorder(), 12, lambda: calls.append(None))
    assert len(calls) == parts

    def stop():
        raise KeyError("stop")

    for file in tmp_path.rglob("*.*"):
        file.unlink()
    writer = Recorder()
    with pytest.raises(KeyError, match="stop"):
        run(name, writer, 12, stop)
    assert (writer.rows, writer.images) == ([], [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing half-done is written"
