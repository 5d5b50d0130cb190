"""Options of XLA's compiler for the CPU: those that the environment leaves open and this jaxlib knows, on a CPU alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.runtime import compile_options


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    compile_options._known_options.cache_clear()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    yield
    compile_options._known_options.cache_clear()


def test_all_are_known_to_this_jaxlib():
    assert compile_options.brief_options("cpu") == dict(compile_options.BRIEF)
    assert compile_options.steady_options("cpu") == dict(compile_options.STEADY)


def test_other_devices_have_none():
    assert compile_options.brief_options("gpu") is None
    assert compile_options.steady_options("tpu") is None


def test_what_xla_flags_sets_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert compile_options.steady_options("cpu") is None
    assert "xla_backend_optimization_level" not in (compile_options.brief_options("cpu") or {})


def test_an_option_that_this_jaxlib_lacks_is_left_out():
    options = (("xla_backend_optimization_level", "1"), ("xla_no_such_option", "1"))
    assert compile_options._known_options(options) == {"xla_backend_optimization_level": "1"}


def test_they_change_no_result_beyond_rounding():
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

    def function(x):
        return jax.nn.swish(x @ x) / (1 + jnp.exp(-x))

    double = x.astype(np.float64)
    product = np.matmul(double, double)
    want = product / (1 + np.exp(-product)) / (1 + np.exp(-double))
    for options in (None, compile_options.brief_options("cpu"), compile_options.steady_options("cpu")):
        np.testing.assert_allclose(jax.jit(function, compiler_options=options)(x), want, rtol=1e-4, atol=1e-4)
