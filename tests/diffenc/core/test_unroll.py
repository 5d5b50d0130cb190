"""The same sums on every device; written out in full on the CPU alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core import unroll

PARTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def _running_sums(weight, parts):
    """The weighted sum of the parts, and its value before each of them."""

    def turn(total, part):
        return total + weight * part, total

    return unroll.scan(turn, jnp.zeros(4), parts)


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """Its name; what is compiled is for the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


def test_a_loop_sums_and_stacks(backend):
    total, before = jax.jit(_running_sums)(2.0, PARTS)
    np.testing.assert_allclose(total, 2 * PARTS.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(before, 2 * (PARTS.cumsum(axis=0) - PARTS), rtol=1e-5, atol=1e-6)


def test_its_gradient_is_that_of_the_sum(backend):
    gradient = jax.grad(lambda weight: _running_sums(weight, PARTS)[0].sum())(2.0)
    np.testing.assert_allclose(gradient, PARTS.sum(), rtol=1e-5)


@pytest.mark.parametrize("turns", [1, 3])
def test_on_the_cpu_it_is_written_out(backend, turns):
    assert unroll.unrolls() == (backend == "cpu")
    text = (
        jax.jit(jax.grad(lambda weight: _running_sums(weight, PARTS[:turns])[0].sum())).lower(2.0).as_text()
    )
    assert ("while" in text) == (backend != "cpu")


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_devices_compiled_for_decide_and_not_this_machine(backend, platform):
    text = jax.jit(unroll.trace_for(platform, _running_sums)).lower(2.0, PARTS).as_text()
    assert ("while" in text) == (platform != "cpu")
    assert unroll.unrolls() == (backend == "cpu")  # outside of it, as before


def test_what_is_stored_is_unchanged_and_so_is_its_gradient():
    x = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)

    def total(x):
        return jnp.sum(jnp.sin(unroll.stored(2 * x)))

    np.testing.assert_allclose(total(jnp.asarray(x)), np.sin(2 * x.astype(np.float64)).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.grad(total))(jnp.asarray(x)), 2 * np.cos(2 * x), rtol=1e-5, atol=1e-6
    )
    value, slope = jax.jvp(unroll.stored, (jnp.asarray(x),), (jnp.ones_like(x),))
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(slope, np.ones_like(x))


def test_xla_keeps_the_branches_that_store():
    """It would remove them if it could tell that they change nothing, and fuse across them."""

    def last(terms):
        total = jnp.zeros_like(terms[0])
        for term in terms:
            total = unroll.stored(total + jnp.tanh(term))
        return total

    text = jax.jit(last).lower([jnp.ones((64, 64))] * 4).compile().as_text()
    assert text is not None
    assert len(re.findall(r" conditional\(", text)) == 4
