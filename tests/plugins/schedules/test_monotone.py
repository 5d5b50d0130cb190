import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc.core.model import Model, draw_noise
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, LearnedInterior
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import LearnedEndpoints, Monotone

SCHEDULE = Monotone(6.0, -4.0, units=4)
apply = jax.jit(SCHEDULE.apply)


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return jnp.sin(2 * z + log_snr[:, None] / 3)


def parameters(seed, scale=2.0):
    """Of the interior random, with the first ends."""
    random = np.random.default_rng(seed)
    params = SCHEDULE.init(jax.random.key(0))
    return {
        **params,
        "interior": jax.tree.map(lambda a: jnp.asarray(random.normal(0, scale, a.shape)), params["interior"]),
    }


def softplus_from(raw, first):
    return np.log1p(np.exp(np.asarray(raw, np.float64)) * np.expm1(first))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_a_line_and_sigmoids_scaled_to_its_ends(x64, seed):
    params, t = parameters(seed), np.linspace(0, 1, 41)
    raw = params["interior"]
    w, a = softplus_from(raw["weight"], 0.2 / 4), softplus_from(raw["steepness"], 4.0)
    b = np.asarray(raw["offset"]) - a * np.array([1, 3, 5, 7]) / 8

    def bumps(t):
        return sum(w_k / (1 + np.exp(-a_k * t - b_k)) for w_k, a_k, b_k in zip(w, a, b, strict=True))

    line = softplus_from(raw["linear"], 0.8) + 1e-3 + 0.05 * (bumps(1.0) - bumps(0.0))
    g = line * t + bumps(t)
    want = 6 - 10 * (g - g[0]) / (g[-1] - g[0])
    np.testing.assert_allclose(SCHEDULE.apply(params, jnp.asarray(t)), want, rtol=1e-6, atol=1e-6)


def test_it_starts_nearly_linear(x64):
    schedule = Monotone()
    t = jnp.linspace(0, 1, 401)
    log_snr = np.asarray(schedule.apply(schedule.init(jax.random.key(0)), t))
    np.testing.assert_allclose(log_snr, 13.3 - 18.3 * np.asarray(t), atol=0.1)
    np.testing.assert_allclose(np.diff(log_snr) * 400, -18.3, rtol=0.1)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 2.0**100), start=st.floats(-32, 32, width=32))
@settings(deadline=None, max_examples=100)
def test_a_hundred_steps_fall_strictly_whatever_the_parameters(seed, scale, start):
    ends = {"start": jnp.float32(start), "raw_drop": jnp.float32(-50)}  # the smallest drop, 0.01
    interior = jax.tree.map(jnp.float32, parameters(seed, scale)["interior"])
    log_snr = np.asarray(apply({"ends": ends, "interior": interior}, jnp.linspace(0, 1, 101)), np.float64)
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(log_snr[[0, -1]], [start, start - 0.01], atol=1e-5)


def test_it_has_a_learned_interior_and_learned_endpoints_have_none():
    assert isinstance(SCHEDULE, LearnedInterior)
    assert not isinstance(LearnedEndpoints(), LearnedInterior)


@pytest.mark.parametrize(("method", "learns"), [("apply", "ends"), ("interior", "interior")])
def test_each_method_teaches_its_own_parameters(method, learns):
    params, t = parameters(5), jnp.asarray([0.0, 0.3, 0.8, 1.0])
    np.testing.assert_array_equal(getattr(SCHEDULE, method)(params, t), SCHEDULE.apply(params, t))
    slopes = jax.jacobian(getattr(SCHEDULE, method))(params, t)
    for part, branch in slopes.items():
        for leaf in jax.tree.leaves(branch):
            assert (np.abs(leaf).max() > 0) == (part == learns)
    ends = jax.jacobian(SCHEDULE.interior)(params, t)["interior"]["weight"][np.array([0, 3])]
    np.testing.assert_allclose(ends, 0, atol=1e-5)  # where it starts and stops is not the interior's


@pytest.mark.slow
def test_the_ends_learn_as_learned_endpoints_where_it_is_linear(x64):
    """All three terms of the bound, with the sigmoids' weights at nothing."""
    ends = LearnedEndpoints(6.0, -4.0)
    levels = jnp.asarray(np.random.default_rng(0).integers(0, 7, (5, 3)))
    draws = draw_noise(jax.random.key(1), (5, 3))

    def gradient(schedule, params):
        model = Model(Identity(), schedule, V(), VDM(), Wave())

        def bound(params):
            parts = {"encoder": {}, "schedule": params, "network": {}}
            return model.elbo(parts, levels, draws, num_levels=7).total.sum()

        return jax.grad(bound)(params)

    flat = parameters(0)
    flat["interior"]["weight"] = jnp.full(4, -1e3)
    got = gradient(SCHEDULE, flat)
    want = gradient(ends, flat["ends"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), got["ends"], want)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(got["interior"]))
    assert want["start"] != 0


def test_it_needs_a_unit():
    with pytest.raises(UserError, match=r"^schedule\.monotone\.units = 0: must be at least 1$"):
        Monotone(units=0)


def test_three_parameters_a_unit_and_three():
    assert sum(leaf.size for leaf in jax.tree.leaves(Monotone(units=7).init(jax.random.key(0)))) == 24
