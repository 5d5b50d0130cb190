"""Where float32 loses the bound, against float64 and the best denoiser of Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.objective import network_error
from diffenc.errors import UserError
from diffenc.evaluation.precision_check import MAX_ROUNDING_SHARE, check_precision, rounding_share
from diffenc.training import loop
from diffenc_plugins.parameterizations import Epsilon, V, X
from diffenc_plugins.schedules import Linear

VARIANCE = 0.25
RANDOM = np.random.default_rng(0)
DATA, NOISE = np.sqrt(VARIANCE) * RANDOM.normal(size=(1, 2000)), RANDOM.normal(size=(1, 2000))


def squared_error(parameterization, log_snr: float) -> float:
    """|| x_hat - x ||^2 in the precision that JAX is set to."""
    at, x, eps = jnp.array([log_snr]), jnp.asarray(DATA), jnp.asarray(NOISE)
    p, q = (coefficient[:, None] for coefficient in parameterization(at))

    def network(z, log_snr):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * log_snr))[:, None] for sign in (1, -1))
        posterior = z / (alpha**2 * VARIANCE + sigma**2)
        return p * alpha * VARIANCE * posterior + q * sigma * posterior

    error = network_error(at, x, eps, network, parameterization)
    return float(jnp.sum(error.astype(x.dtype) ** 2))


@pytest.mark.parametrize("parameterization", [X(), Epsilon(), V()], ids=["x", "epsilon", "v"])
@pytest.mark.parametrize("log_snr", [-13.0, 0.0, 13.0, 24.0, 30.0, 40.0, 60.0])
def test_where_digits_are_said_to_suffice_float32_is_float64(parameterization, log_snr):
    with jax.enable_x64(True):
        exact = squared_error(parameterization, log_snr)
    off = abs(squared_error(parameterization, log_snr) / exact - 1)
    suffices = float(rounding_share(parameterization, jnp.array([log_snr]))[0]) <= MAX_ROUNDING_SHARE
    assert suffices == (off < 0.01)


def of(model, parameterization, log_snr_max):
    return dataclasses.replace(model, parameterization=parameterization, schedule=Linear(log_snr_max, -5.0))


def test_a_run_that_would_lose_its_bound_is_refused_before_it_starts(tiny, tmp_path):
    experiment = tiny()
    lossy = dataclasses.replace(experiment, model=of(experiment.model, X(), 60.0))
    with pytest.raises(UserError, match=r"parameterization\.x has too few digits .* log_snr 60\.0: .*--x64"):
        loop.train(lossy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_has_the_digits_is_not_refused(tiny):
    model = tiny().model
    for parameterization, log_snr_max in ((X(), 29.0), (V(), 60.0), (Epsilon(), 60.0)):
        check_precision(of(model, parameterization, log_snr_max), {})
    with jax.enable_x64(True):
        check_precision(of(model, X(), 60.0), {})
