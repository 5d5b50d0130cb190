"""An experiment to benchmark that takes a step in no time."""

import contextlib
import dataclasses

import jax.numpy as jnp
import pytest

from diffenc.interfaces import NO_CONTEXT
from experiments.benchmark.subject import Settings, Subject


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A network that mixes all 16 pixels by a matrix, twice."""

    def init(self, key, z, log_snr):
        return jnp.zeros((16, 16))

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return (z.reshape(-1, 16) @ params @ params).reshape(z.shape)


@pytest.fixture(autouse=True)
def cached(monkeypatch):
    """The tests' own cache makes their compilation quick."""
    monkeypatch.setattr("experiments.benchmark.subject.without_compile_cache", contextlib.nullcontext)


@pytest.fixture(scope="module")
def subject(tiny):
    """4x4 images, 4 a step; a matrix in the score network."""
    return Subject(
        tiny(model=dataclasses.replace(tiny().model, network=Mixed())),
        Settings(rounds=2, least=0.0, sampling_steps=3, images=40),
    )
