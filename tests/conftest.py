"""Shared by all tests: the CPU, a compilation cache, every plugin, real data where it is named."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = Path(__file__).parent.parent / ".cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402 - reads the environment set above
import pytest  # noqa: E402

from diffenc import registry  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
registry.discover()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material: real data sets and golden arrays."""
    folder = os.environ.get("DIFFENC_SHARED")
    if not folder:
        pytest.skip("DIFFENC_SHARED is not set")
    return Path(folder)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
