"""A batch taken in parts: the gradient of the whole, in the memory of a part."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.model import UNIFORM, Draws, Losses, Model, Terms, draw_noise, select_all
from diffenc.errors import UserError
from diffenc.interfaces import Images
from diffenc.parallel.sharding import data_mesh
from diffenc.training import gradient, schedule_objective
from diffenc.training.gradient import batch_gradient
from diffenc.training.trained_bound import trained_bound
from diffenc_plugins.conditionings import ByClass
from diffenc_plugins.schedules import Monotone

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BATCH, NUM_DIMS = 8, 16
KEY = jax.random.key(5)
LEVELS = jnp.asarray(np.random.default_rng(0).integers(0, 5, (BATCH, 4, 4, 1)).astype(np.uint8))


class BoundAlone(Model):
    """A model whose losses are its `elbo`."""

    def losses(self, *args, **options):
        return Losses(self.elbo(*args, **options), {})


@dataclasses.dataclass(frozen=True)
class Stub(BoundAlone):
    """Three layers on the images and all that is drawn with them; `latent` tells what dropout is drawn from.

    Two of its losses are those at the ends of time, of the images that are selected.
    """

    def init(self, key, image_shape):
        return {"encoder": {}, "schedule": {}, "network": {"w": 0.3 * jax.random.normal(key, (3, 16, 16))}}

    def elbo(self, params, levels, draws, *, num_levels, keys=None, select_ends=select_all, **_):
        assert keys is not None
        x, eps, eps_0 = (a.reshape(len(a), -1) for a in (levels / num_levels, draws.eps, draws.eps_0))
        hidden = x + eps * draws.t[:, None]
        for w in params["network"]["w"]:
            hidden = jnp.tanh(hidden @ w)
        latent, ends = jax.vmap(jax.random.uniform)(select_ends(keys)), select_ends(hidden)
        return Terms((ends * eps_0).sum(axis=1), latent, draws.weight * hidden.sum(axis=1))


@dataclasses.dataclass(frozen=True)
class Product(Stub):
    """-ELBO of an image: w times its first pixel."""

    def elbo(self, params, levels, draws, **_):
        zero = jnp.zeros(len(levels))
        return Terms(params["network"]["w"] * levels[:, 0, 0, 0], zero, zero)


@dataclasses.dataclass(frozen=True)
class Known(Stub):
    """A diffusion loss of 1 and the first pixel."""

    def elbo(self, params, levels, draws, **_):
        zero = 0 * params["network"]["w"] * levels[:, 0, 0, 0]
        return Terms(zero, zero, zero + 1.0 + levels[:, 0, 0, 0])


@dataclasses.dataclass(frozen=True)
class Layers(Stub):
    """Twelve layers, whose hidden units are what takes memory."""

    def elbo(self, params, levels, draws, *, num_levels, **_):
        zero = jnp.zeros(len(levels))
        hidden = levels.reshape(len(levels), -1) / num_levels
        for _ in range(4):
            for w in params["network"]["w"]:
                hidden = jnp.tanh(hidden @ w)
        return Terms(hidden.sum(axis=1), zero, zero)


@dataclasses.dataclass(frozen=True)
class Told(Stub):
    """-ELBO of an image: w times what the network is told of it; `latent` is its condition."""

    def elbo(self, params, levels, draws, *, condition=None, network_condition=None, **_):
        assert condition is not None
        assert network_condition is not None
        w = params["network"]["w"]
        return Terms(w * network_condition, jnp.zeros(len(levels)) + condition, network_condition + 0 * w)


@pytest.fixture(scope="module")
def stub(tiny):
    def make(model: type[Stub] = Stub, **changes):
        return tiny(model=model(**vars(tiny().model)), batch_size=BATCH, **{"ends_stride": 1, **changes})

    return make


def _measure(params, experiment, levels=LEVELS):
    """The gradient and the terms of a batch."""

    def measure(params, levels):
        return batch_gradient(
            params, experiment, trained_bound(experiment), UNIFORM, Images(levels), KEY, data_mesh()
        )[:2]

    return jax.jit(measure, compiler_options=QUICK_TO_COMPILE)(params, levels)


@pytest.fixture(scope="module")
def measured(stub):
    """Parts -> (gradient, terms), of the same batch, key and parameters."""
    params = stub().model.init(KEY, ())
    return {parts: _measure(params, stub(microbatches=parts)) for parts in (1, 2, 4)}


@pytest.fixture(scope="module")
def by_image(stub):
    """Each image's terms in bits/dim, but for `latent`, and the gradient of their sum; [B, ...] each."""
    draws, model = draw_noise(jax.random.split(KEY)[0], LEVELS.shape), stub().model

    def bits(params, levels, own):
        one = Draws(*(leaf[None] for leaf in own))
        terms = model.elbo(params, levels[None], one, num_levels=5, keys=KEY[None])
        terms = [term[0] / (NUM_DIMS * np.log(2)) for term in (terms.reconstruction, terms.diffusion)]
        return sum(terms), terms

    each = jax.vmap(jax.grad(bits, has_aux=True), in_axes=(None, 0, 0))
    return jax.device_get(jax.jit(each)(model.init(KEY, ()), LEVELS, draws))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_it_is_the_mean_of_the_images_gradients(measured, by_image, parts):
    got, terms = measured[parts]
    gradients, (reconstruction, diffusion) = by_image
    np.testing.assert_allclose(terms.reconstruction, reconstruction.mean(dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(terms.diffusion, diffusion.mean(dtype=np.float64), rtol=1e-5)
    want = gradients["network"]["w"].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(got["network"]["w"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("parts", "ends_stride"), [(1, 2), (2, 4), (4, 2)])
def test_the_ends_are_those_of_some_images_weighted_up(stub, parts, ends_stride):
    """One image in so many, the same ones in every part; with the right noise, and a gradient that is their mean's."""
    experiment = stub(microbatches=parts, ends_stride=ends_stride)
    params = experiment.model.init(KEY, ())
    got, terms = _measure(params, experiment)
    keys = jax.random.split(jax.random.split(KEY)[1], BATCH)
    drawn = np.asarray([float(jax.random.uniform(key)) for key in keys])
    chosen = [
        list(range(first, BATCH, ends_stride))
        for first in range(ends_stride)
        if np.isclose(drawn[first::ends_stride].mean() / (NUM_DIMS * np.log(2)), terms.latent, rtol=1e-5)
    ]
    assert len(chosen) == 1
    draws = draw_noise(jax.random.split(KEY)[0], LEVELS.shape, num_ends=BATCH // ends_stride)

    def loss(params):
        hidden = (LEVELS / 5 + draws.eps * draws.t[:, None, None, None]).reshape(BATCH, -1)
        for w in params["network"]["w"]:
            hidden = jnp.tanh(hidden @ w)
        ends = (hidden[np.asarray(chosen[0])] * draws.eps_0.reshape(BATCH // ends_stride, -1)).sum(axis=1)
        return (ends.mean() + hidden.sum(axis=1).mean()) / (NUM_DIMS * np.log(2))

    want = jax.grad(loss)(params)["network"]["w"]
    np.testing.assert_allclose(got["network"]["w"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_every_image_has_its_turn():
    """The images for which the ends are computed differ by the step's key; each is as likely as another."""
    images = jnp.arange(12)
    parts = [np.asarray(gradient.take_every(4, jnp.asarray(first), images)) for first in range(4)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), images)
    assert all(len(part) == 3 for part in parts)


@pytest.mark.parametrize(
    ("images", "ends_stride", "stride"),
    [(128, 8, 8), (8, 8, 8), (4, 8, 4), (1, 8, 1), (6, 4, 3), (7, 5, 1), (7, 1, 1)],
)
def test_every_part_has_an_image_at_the_ends(images, ends_stride, stride):
    assert gradient.find_ends_stride(images, ends_stride) == stride


def test_images_are_dealt_out_and_gathered_in_order():
    dealt = gradient.divide_batch({"a": jnp.arange(12).reshape(6, 2)}, 3)
    np.testing.assert_array_equal(dealt["a"], [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]])
    np.testing.assert_array_equal(gradient.merge_microbatches(dealt)["a"], np.arange(12).reshape(6, 2))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_each_image_has_a_dropout_mask_of_its_own_whatever_its_part(measured, parts):
    """The stub's latent loss is a number drawn by an image's key."""
    keys = jax.random.split(jax.random.split(KEY)[1], BATCH)
    drawn = [float(jax.random.uniform(key)) for key in keys]
    assert len(set(drawn)) == BATCH
    np.testing.assert_allclose(measured[parts][1].latent, np.mean(drawn) / (NUM_DIMS * np.log(2)), rtol=1e-5)


def test_the_interior_of_a_schedule_follows_the_whole_batch(stub):
    """Its objective is a ratio of means over the batch, which is not the mean over parts of theirs."""
    schedule, draws = Monotone(6.0, -4.0, units=3), draw_noise(jax.random.split(KEY)[0], LEVELS.shape)
    params = {"encoder": {}, "schedule": schedule.init(KEY), "network": {"w": jnp.ones(())}}

    @jax.jit
    def mean_over(t, first):
        of_schedule = jax.grad(lambda p: schedule_objective.surrogate(schedule, p, t, 1.0 + first))
        return of_schedule(params["schedule"])["interior"]

    experiment = stub(Known, microbatches=2)
    model = dataclasses.replace(experiment.model, schedule=schedule)
    got = _measure(params, dataclasses.replace(experiment, model=model))[0]
    first = LEVELS[:, 0, 0, 0]
    want, *halves = (
        mean_over(draws.t[part], first[part])
        for part in (slice(None), slice(BATCH // 2), slice(BATCH // 2, None))
    )
    far = 0.0
    for name, leaf in want.items():
        np.testing.assert_allclose(got["schedule"]["interior"][name], leaf, rtol=1e-4, atol=1e-6)
        far = max(far, float(np.abs((halves[0][name] + halves[1][name]) / 2 - leaf).max()))
    assert far > 1e-3


def test_gradients_are_summed_in_float32(stub):
    """Parts of 255, 1, 1 and 1: in bfloat16 the ones are lost."""
    levels = jnp.zeros_like(LEVELS).at[:, 0, 0, 0].set(jnp.asarray([255, 255, 1, 1, 1, 1, 1, 1], jnp.uint8))
    params = {"encoder": {}, "schedule": {}, "network": {"w": jnp.ones((), jnp.bfloat16)}}
    got = _measure(params, stub(Product, microbatches=4), levels)[0]["network"]["w"]
    assert got.dtype == jnp.bfloat16
    want = (255 + 1 + 1 + 1) / 4 / (NUM_DIMS * np.log(2))
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=2**-8)


def test_parts_take_the_memory_of_one(stub):
    batch = jax.ShapeDtypeStruct((8192, 4, 4, 1), jnp.uint8)

    def bytes_for(parts: int) -> int:
        experiment = stub(Layers, microbatches=parts)
        params = jax.eval_shape(lambda: experiment.model.init(KEY, ()))
        step = jax.jit(
            lambda params, levels: batch_gradient(
                params, experiment, trained_bound(experiment), UNIFORM, Images(levels), KEY, data_mesh()
            )[0]
        )
        memory = step.lower(params, batch).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    one, four = bytes_for(1), bytes_for(4)
    hidden = 12 * 8192 * 16 * 4  # bytes
    assert one > hidden
    assert four < one - 0.6 * hidden, "a quarter of them, and what a part adds"


def test_a_batch_that_does_not_divide_is_refused(tiny):
    mesh = data_mesh()
    gradient.check_batch(tiny(batch_size=6, microbatches=3), mesh)
    with pytest.raises(UserError) as refused:
        gradient.check_batch(tiny(batch_size=6, microbatches=4), mesh)
    assert str(refused.value) == (
        "Experiment.batch_size = 6 does not divide evenly into Experiment.microbatches = 4 parts, each "
        "split over the devices (1): take a multiple of 4, or another number of parts"
    )
    with pytest.raises(UserError, match=r"Experiment.microbatches = 0: must be at least 1"):
        tiny(microbatches=0)


LABELS = np.arange(BATCH) % 3


def _telling(experiment, drop, parts):
    """key -> what the mean of Told's loss says of a batch of LABELS, and its gradient; the encoder is told all of them."""
    model = dataclasses.replace(experiment.model, conditioning=ByClass(drop=drop))
    experiment = dataclasses.replace(experiment, model=model, microbatches=parts)
    params: Any = {"encoder": {}, "schedule": {}, "network": {"w": jnp.asarray(1.0)}}
    images = Images(LEVELS, jnp.asarray(LABELS + 1))
    of_batch = jax.jit(
        lambda key: batch_gradient(
            params, experiment, trained_bound(experiment), UNIFORM, images, key, data_mesh()
        )[:2]
    )

    def told(key):
        gradient, terms = of_batch(key)
        np.testing.assert_allclose(terms.latent, np.mean(LABELS + 1) / (16 * np.log(2)), rtol=1e-6)
        return float(gradient["network"]["w"]), float(terms.diffusion)

    return told


@pytest.fixture
def unchecked(stub, monkeypatch):
    """Told's experiment; it has no network that is told, and would be refused."""
    monkeypatch.setattr("diffenc.config.experiment.check_conditioning", lambda model, dataset: None)
    return stub(Told)


@pytest.mark.parametrize("parts", [1, 4])
def test_every_image_is_told_its_own_class(unchecked, parts):
    bits = 16 * np.log(2)
    np.testing.assert_allclose(_telling(unchecked, 0.0, parts)(KEY), np.mean(LABELS + 1) / bits, rtol=1e-6)


def test_which_images_are_told_nothing_depends_on_the_key_alone(unchecked):
    whole, parted = (_telling(unchecked, 0.5, parts) for parts in (1, 4))
    np.testing.assert_allclose(whole(KEY), parted(KEY), rtol=1e-6)
    means = {whole(jax.random.key(k))[1] for k in range(6)}
    assert len(means) > 2
    assert max(means) < np.mean(LABELS + 1) / (16 * np.log(2))
