"""Settings of JAX that the programs turn off, or refuse in one line."""

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

from diffenc.errors import UserError
from diffenc.runtime import jax_settings
from diffenc.runtime.compile_cache import compile_ahead


@pytest.fixture
def set_jax():
    """Sets JAX's settings for one test, which may change them again."""
    before = dict(jax.config.values)
    yield jax.config.update
    for name in (*jax_settings.OFF, "jax_enable_x64", "jax_disable_jit", "jax_default_matmul_precision"):
        jax.config.update(name, before[name])


def test_what_the_programs_cannot_run_under_is_off(set_jax):
    set_jax("jax_numpy_dtype_promotion", "strict")
    set_jax("jax_transfer_guard", "disallow")
    jax_settings.override_settings()
    assert jax.config.values["jax_numpy_dtype_promotion"] == "standard"
    assert jax.config.values["jax_transfer_guard"] == "allow"
    assert float(jnp.zeros(3, jnp.int32)[0] + jnp.ones(3, jnp.uint8)[0]) == 1


def test_training_is_in_float32(set_jax):
    set_jax("jax_enable_x64", True)
    jax_settings.train_in_float32()
    assert jnp.zeros(()).dtype == jnp.float32


def test_products_that_the_device_cannot_make_are_one_line(set_jax):
    jax_settings.check_backend()
    set_jax("jax_default_matmul_precision", "ANY_F8_ANY_F8_F32")
    with pytest.raises(UserError, match=r"^JAX_DEFAULT_MATMUL_PRECISION=ANY_F8_ANY_F8_F32: .*not supported"):
        jax_settings.check_backend()


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'nonsense'")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=r"JAX_PLATFORMS.*'nonsense'"):
        jax_settings.check_backend()


def test_without_jit_nothing_is_compiled_ahead(set_jax):
    set_jax("jax_disable_jit", True)
    kinds = []
    function = compile_ahead(
        "it", jax.jit(lambda x: kinds.append(isinstance(x, Tracer)) or x + 1), jnp.ones(())
    )
    assert float(function(jnp.ones(()))) == 2
    assert kinds == [False]
