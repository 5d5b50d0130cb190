"""Images drawn in stretches are the images of one chain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import sampler
from diffenc.chain import equal_steps
from diffenc.experiment import Sample
from diffenc.model import Model
from diffenc.randomness import root_key
from diffenc.sample_images import ImageSampler, stretches
from diffenc.sharding import data_mesh
from diffenc_plugins.encoders import Identity
from diffenc_plugins.means import VDM
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear

TARGET = np.array([[0, 1, 2, 3], [4, 3, 2, 1], [0, 0, 4, 4], [2, 3, 0, 1]])[..., None]


@dataclasses.dataclass(frozen=True)
class Sure:
    """Estimates TARGET, whatever it sees."""

    def init(self, key, z, log_snr, *, condition=None):
        return {}

    def apply(self, params, z, log_snr, *, condition=None, key=None):
        assert key is None, "sampling drops nothing out"
        return jnp.broadcast_to(2 * (jnp.asarray(TARGET) + 0.5) / 5 - 1, z.shape)


@pytest.fixture
def params(tiny):
    return jax.jit(lambda: tiny().model.init(jax.random.key(3), (4, 4, 1)))()


@pytest.mark.parametrize("steps", [1, 2, 7, 19, 20, 21, 23, 40, 46, 100, 1000])
def test_stretches_are_equal_and_at_most_twenty(steps):
    count = stretches(steps)
    assert [n for n in range(1, 21) if steps % n == 0][-1] == count


@pytest.mark.parametrize("steps", [6, 23, 40])
def test_stretches_make_one_chain(tiny, params, steps):
    experiment = tiny(sample=Sample(steps=steps, num=3, seed=8))
    drawn = ImageSampler(experiment, data_mesh()).draw(params)
    start = root_key(8, "sample"), (3, 4, 4, 1)
    whole = sampler.sample(experiment.model, params, *start, num_levels=5, chain=equal_steps(steps))
    np.testing.assert_array_equal(drawn, whole)


def test_a_model_that_is_sure_draws_what_it_is_sure_of(tiny):
    model = Model(Identity(), Linear(12.0, -6.0), X(), VDM(), Sure())
    experiment = tiny(model=model, sample=Sample(steps=30, num=5))
    params = model.init(jax.random.key(0), (4, 4, 1))
    drawn = ImageSampler(experiment, data_mesh()).draw(params)
    assert drawn.shape == (5, 4, 4, 1)
    for image in drawn:
        np.testing.assert_array_equal(image, TARGET)


def test_the_seed_alone_decides_the_images(tiny, params):
    def draw(seed):
        return ImageSampler(tiny(sample=Sample(steps=6, num=3, seed=seed)), data_mesh()).draw(params)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert (draw(1)[0] != draw(1)[1]).any()


def test_one_sampler_serves_every_cadence(tiny, params):
    images = ImageSampler(tiny(), data_mesh())
    first = images.draw(params)
    np.testing.assert_array_equal(first, images.draw(params))
    flat = jax.tree.map(jnp.zeros_like, params)
    assert (images.draw(flat | {"schedule": params["schedule"]}) != first).any()
    assert 0 <= first.min() <= first.max() <= 4


def test_after_each_stretch_one_may_stop(tiny, params):
    images, calls = ImageSampler(tiny(sample=Sample(steps=40, num=1)), data_mesh()), []
    images.draw(params, lambda: calls.append(None))
    assert len(calls) == images.num_stretches == 20

    def stop():
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        images.draw(params, stop)
