"""What every encoder keeps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.interfaces import NO_CONTEXT, ClassConditional, Context

SHAPE = (4, 8, 8, 2)
LOG_SNR = np.array([-15.0, -5.0, 1.3, 15.0])


@dataclasses.dataclass(frozen=True)
class Wave(ClassConditional):
    """A network in closed form that depends on all it is given."""

    classes: int = 3

    def init(self, key, z, log_snr):
        return {"gain": jax.random.normal(key, (z.shape[-1],))}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        condition, keys = context
        draw = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, z.shape[1:]))
        kept = 1.0 if keys is None else draw(keys) * 2.0
        shift = log_snr / 3 if condition is None else log_snr / 3 + condition
        return jnp.sin(jnp.broadcast_to(params["gain"], z.shape) * z * kept + shift[:, None, None, None])


NEEDS: dict[str, Any] = {
    "trainable": {"network": Wave()},
    "class_template": {"classes": 3},
    "separable": {"network": Wave()},
}
every_encoder = pytest.mark.parametrize("name", list(registry.encoders))


def make(name):
    """(encoder, params, x, log_snr) of the default precision."""
    encoder: Any = registry.encoders[name](**NEEDS.get(name, {}))
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, SHAPE), jnp.result_type(float))
    log_snr = jnp.asarray(LOG_SNR, x.dtype)
    return encoder, encoder.init(jax.random.key(1), x, log_snr), x, log_snr


@pytest.fixture
def wave_is_registered(monkeypatch):
    monkeypatch.setitem(registry.networks._classes, "wave", Wave)


@every_encoder
@pytest.mark.parametrize("check", testing.CHECKS["encoder"])
def test_it_keeps_what_an_encoder_keeps(name, check, wave_is_registered):
    check(make(name)[0])


@every_encoder
def test_compiled_it_is_the_same(name, x64):
    """In float64: how float32 rounds depends on the processor."""
    encoder, params, x, log_snr = make(name)
    got = encoder.apply(params, x, log_snr)
    assert got.dtype == np.float64
    np.testing.assert_allclose(jax.jit(encoder.apply)(params, x, log_snr), got, rtol=1e-12, atol=1e-14)


@every_encoder
def test_no_example_sees_another(name):
    encoder, params, x, log_snr = make(name)
    whole, order = encoder.apply(params, x, log_snr), jnp.asarray([2, 0, 3, 1])
    np.testing.assert_array_equal(encoder.apply(params, x[order], log_snr[order]), whole[order])
    np.testing.assert_allclose(encoder.apply(params, x[1:3], log_snr[1:3]), whole[1:3], rtol=1e-6)


@every_encoder
def test_an_image_is_told_of_its_own_class_alone(name):
    """And none, where an encoder looks at it, is as no condition."""
    encoder, params, x, log_snr = make(name)
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)

    def encode(*condition):
        return np.asarray(encoder.apply(params, x, log_snr, Context(jnp.asarray(condition))))

    told, bare = encode(0, 1, 2, 0), encoder.apply(params, x, log_snr)
    np.testing.assert_array_equal(told[[0, 3]], np.asarray(bare)[[0, 3]])
    np.testing.assert_array_equal(encode(0, 3, 2, 0)[[0, 2, 3]], told[[0, 2, 3]])


@every_encoder
def test_an_images_mask_is_that_of_its_key_whatever_the_batch(name):
    encoder, params, x, log_snr = make(name)
    keys, some = jax.random.split(jax.random.key(1), 4), jnp.asarray([2, 0])
    whole = encoder.apply(params, x, log_snr, Context(keys=keys))
    part = encoder.apply(params, x[some], log_snr[some], Context(keys=keys[some]))
    np.testing.assert_allclose(part, whole[some], rtol=1e-6)


@every_encoder
def test_one_key_is_one_mask_and_no_key_is_none(name):
    encoder, params, x, log_snr = make(name)

    def encode(key=None):
        keys = None if key is None else jax.random.split(jax.random.key(key), 4)
        return np.asarray(encoder.apply(params, x, log_snr, Context(jnp.ones(4, jnp.int32), keys)))

    np.testing.assert_array_equal(encode(), encode())
    np.testing.assert_array_equal(encode(3), encode(3))
    if name == "trainable":
        assert np.any(encode(3) != encode(4))
        assert np.any(encode(3) != encode())
        assert np.any(encode() != encoder.apply(params, x, log_snr))  # the condition counts
