"""Images drawn in stretches are the images of one chain, whatever its times, variances and solver."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from diffenc.config.settings import ResolvedSample, Sample
from diffenc.core.discretization import EQUAL, Chain, equal_steps
from diffenc.core.model import Model
from diffenc.core.rng import root_key
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.evaluation.sample_images import ImageSampler, count_stretches, sample_file_name
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel.sharding import data_mesh
from diffenc.sampling import sampler
from diffenc.sampling.solvers import SOLVERS
from diffenc.training import loop
from diffenc.training.hooks import make_hooks
from diffenc.training.run_files import RunFiles
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear
from diffenc_plugins.variances import Fitted

TARGET = np.array([[0, 1, 2, 3], [4, 3, 2, 1], [0, 0, 4, 4], [2, 3, 0, 1]])[..., None]


@dataclasses.dataclass(frozen=True)
class Sure:
    """Estimates TARGET, whatever it sees."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        assert context.keys is None, "sampling drops nothing out"
        return jnp.broadcast_to(2 * (jnp.asarray(TARGET) + 0.5) / 5 - 1, z.shape)


def image_sampler(experiment, workdir=None, step=None):
    return ImageSampler(
        *(experiment.model, experiment.dataset, experiment.sampling, data_mesh(), workdir, step),
        trained_at=experiment.num_timesteps,
    )


@pytest.fixture
def params(tiny):
    return jax.jit(lambda: tiny().model.init(jax.random.key(3), (4, 4, 1)))()


@pytest.mark.parametrize("steps", [1, 2, 7, 19, 20, 21, 23, 40, 46, 100, 1000])
def test_stretches_are_equal_and_at_most_twenty(steps):
    count = count_stretches(steps)
    assert [n for n in range(1, 21) if steps % n == 0][-1] == count


@pytest.mark.parametrize(
    "steps", [pytest.param(6, marks=pytest.mark.slow), 23, pytest.param(40, marks=pytest.mark.slow)]
)
def test_stretches_make_one_chain(tiny, params, steps):
    experiment = tiny(sample=Sample(num_timesteps=steps, num=3, seed=8))
    drawn = image_sampler(experiment).draw(params)
    start = root_key(8, "sample"), (3, 4, 4, 1)
    whole = sampler.sample(experiment.model, params, *start, num_levels=5, chain=equal_steps(steps))
    np.testing.assert_array_equal(drawn, whole)


def test_a_model_that_is_sure_draws_what_it_is_sure_of(tiny):
    model = Model(Identity(), Linear(12.0, -6.0), X(), VDM(), Sure())
    experiment = tiny(model=model, sample=Sample(num_timesteps=30, num=5))
    params = model.init(jax.random.key(0), (4, 4, 1))
    drawn = image_sampler(experiment).draw(params)
    assert drawn.shape == (5, 4, 4, 1)
    for image in drawn:
        np.testing.assert_array_equal(image, TARGET)


def test_the_seed_alone_decides_the_images(tiny, params):
    def draw(seed):
        return image_sampler(tiny(sample=Sample(num_timesteps=6, num=3, seed=seed))).draw(params)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert (draw(1)[0] != draw(1)[1]).any()


def test_a_key_takes_the_place_of_the_seed(tiny, params):
    images = image_sampler(tiny(sample=Sample(num_timesteps=6, num=3, seed=1)))
    keys = root_key(2, "sample"), root_key(1, "sample")
    other, same = (images.draw(params, key=key) for key in keys)
    np.testing.assert_array_equal(same, images.draw(params))
    seeded = image_sampler(tiny(sample=Sample(num_timesteps=6, num=3, seed=2)))
    np.testing.assert_array_equal(other, seeded.draw(params))
    assert (other != same).any()


def test_one_sampler_serves_every_cadence(tiny, params):
    images = image_sampler(tiny())
    first = images.draw(params)
    np.testing.assert_array_equal(first, images.draw(params))
    flat = jax.tree.map(jnp.zeros_like, params)
    assert (images.draw(flat | {"schedule": params["schedule"]}) != first).any()
    assert 0 <= first.min() <= first.max() <= 4


def test_after_each_stretch_one_may_stop(tiny, params):
    images, calls = image_sampler(tiny(sample=Sample(num_timesteps=40, num=1))), []
    images.draw(params, lambda: calls.append(None))
    assert len(calls) == images.num_stretches == 20

    def stop():
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        images.draw(params, stop)


@pytest.fixture
def warnings(monkeypatch):
    """The warnings that are logged."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda line, *values: lines.append(line % values))
    return lines


@pytest.mark.parametrize("name", SOLVERS)
def test_the_chosen_solver_makes_the_steps(tiny, params, warnings, name):
    experiment = tiny(sample=Sample(num_timesteps=22, num=3, sampler=name))
    start = root_key(0, "sample"), (3, 4, 4, 1)
    options = {"num_levels": 5, "chain": equal_steps(22), "solver": SOLVERS[name]}
    whole = sampler.sample(experiment.model, params, *start, **options)
    np.testing.assert_array_equal(image_sampler(experiment).draw(params), whole)
    usual = tiny(sample=Sample(num_timesteps=22, num=3))
    assert (image_sampler(usual).draw(params) == whole).all() == (name == "ancestral")


TIMES, EXCESS = [0.0, 0.1, 0.2, 0.6, 1.0], [3.0, 0.5, 9.0, 1.0]


def file_fit(workdir, name, **content):
    (workdir / "fits").mkdir(exist_ok=True)
    (workdir / "fits" / name).write_text(json.dumps({"steps": 4, "step": 12, **content}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "times", "variance"),
    [
        ("T4.json", np.arange(5) / 4, Fitted()),
        ("T4_fitted_fitted.json", TIMES, Fitted()),
        ("T4_fitted_equal.json", TIMES, EQUAL),
    ],
)
def test_the_chain_may_be_a_fitted_one(tiny, params, tmp_path, name, times, variance):
    file_fit(tmp_path, name, times=list(times), excess=EXCESS)
    settings = Sample(
        num_timesteps=4, num=9, times="fitted" if "_fitted_" in name else "equal", variance=variance
    )
    experiment = tiny(sample=settings)
    drawn = image_sampler(experiment, tmp_path, 12).draw(params)
    log_w = -np.log1p(EXCESS) if variance == Fitted() else np.zeros(4)
    chain = Chain(jnp.asarray(times, jnp.float32), jnp.asarray(log_w, jnp.float32))
    start = root_key(0, "sample"), (9, 4, 4, 1)
    wanted = sampler.sample(experiment.model, params, *start, num_levels=5, chain=chain)
    np.testing.assert_array_equal(drawn, wanted)
    equal = tiny(sample=Sample(num_timesteps=4, num=9))
    assert (drawn != image_sampler(equal).draw(params)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Sample(num_timesteps=4, variance=Fitted()),
            "variance.fitted was not fitted for these 4 steps: run the same ",
        ),
        (Sample(num_timesteps=4, times="fitted"), "no times are fitted for T = 4 and variance.equal "),
    ],
)
def test_what_is_not_fitted_is_missed_before_anything_is_drawn(tiny, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        image_sampler(tiny(sample=settings), tmp_path)
    sampling = tiny(sample=settings, sample_every=5)
    with pytest.raises(UserError, match="fits need a trained run"):
        make_hooks(sampling, data_mesh(), RunFiles(sampling, tmp_path))
    plain = tiny(sample=settings)  # which draws none
    make_hooks(plain, data_mesh(), RunFiles(plain, tmp_path))


def test_the_mode_reads_the_fits_beside_the_run_and_names_the_file_so(tiny, tmp_path, warnings):
    loop.train(tiny(), tmp_path)
    file_fit(tmp_path, "T4_fitted_equal.json", times=TIMES, times_of={"step": 7})
    paths = [
        commands.sample(tiny(sample=Sample(num_timesteps=4, num=3, times=times)), tmp_path)
        for times in ("equal", "fitted")
    ]
    names = ["000000012_T4_n3_seed0.png", "000000012_T4_fitted-times_n3_seed0.png"]
    assert [path.name for path in paths] == names
    assert paths[0].read_bytes() != paths[1].read_bytes()
    assert [("fitted at step 7, not 12" in line) for line in warnings] == [True]


def test_the_files_name_says_what_is_not_usual():
    settings = [
        ResolvedSample(num_timesteps=4),
        ResolvedSample(num_timesteps=4, sampler="ddim"),
        ResolvedSample(num_timesteps=4, times="fitted", sampler="euler_maruyama"),
        ResolvedSample(num_timesteps=4, times="fitted", variance=Fitted()),
    ]
    assert [sample_file_name(each, 5) for each in settings] == [
        "000000005_T4_n64_seed0.png",
        "000000005_T4_ddim_n64_seed0.png",
        "000000005_T4_euler_maruyama_fitted-times_n64_seed0.png",
        "000000005_T4_fitted-times_fitted-variance_n64_seed0.png",
    ]


@pytest.mark.parametrize(("name", "count"), [("ancestral", 0), ("euler_maruyama", 0), ("ddim", 1)])
def test_an_ode_says_once_that_it_is_not_the_model(tiny, params, warnings, name, count):
    settings = Sample(num_timesteps=2, num=1, sampler=name)
    born = params | {"encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}
    images = image_sampler(tiny(sample=settings))
    images.draw(born)
    assert warnings == []
    for _ in range(2):
        images.draw(params)
    assert len(warnings) == count
    assert all(f"sample.sampler = {name} takes the generative mean to know" in line for line in warnings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "encoder", "count"),
    [
        ("ancestral", 2, "nontrainable", 0),
        ("ancestral", 3, "nontrainable", 1),
        ("euler_maruyama", 3, "nontrainable", 1),
        ("euler_maruyama", 2, "nontrainable", 1),
        ("euler_maruyama", 2, "identity", 0),
        ("ddim", 2, "nontrainable", 1),
        ("ancestral", 3, "identity", 0),
        ("ddim", 3, "identity", 0),
    ],
)
def test_a_model_trained_at_t_says_once_that_other_steps_are_not_its_own(
    tiny, params, warnings, name, steps, encoder, count
):
    encoding, mean = (Identity(), VDM()) if encoder == "identity" else (Nontrainable(), Counterterm())
    model = dataclasses.replace(tiny().model, encoder=encoding, generative_mean=mean)
    settings = Sample(num_timesteps=steps, num=1, sampler=name)
    images = image_sampler(tiny(model=model, num_timesteps=2, sample=settings))
    for _ in range(2):
        images.draw(params | {"encoder": {}})
    assert ["the model was trained at T = 2, " in line for line in warnings] == [True] * count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "dim"}, "sample.sampler = 'dim': no such sampler; nearest: ddim; there are ancestral, "),
        ({"sampler": "euler"}, "nearest: euler_maruyama; "),
        ({"sampler": ""}, "no such sampler"),
        (
            {"sampler": "ddim", "variance": Fitted()},
            "sample.variance is only for sample.sampler = 'ancestral'",
        ),
        ({"sampler": "euler_maruyama", "variance": Fitted()}, "and it is 'euler_maruyama'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as refused:
        Sample(**settings)
    assert "\n" not in str(refused.value)
