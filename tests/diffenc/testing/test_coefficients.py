"""Checks of parameterizations: each refuses a plugin with its own fault."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.core import Tracer

from diffenc.testing import coefficients as shared
from diffenc.testing import parameterizations


def alpha_sigma(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


@dataclasses.dataclass(frozen=True)
class Fine:
    """v."""

    def __call__(self, log_snr) -> Any:
        alpha, sigma = alpha_sigma(log_snr)
        return -sigma, alpha


class Single(Fine):
    def __call__(self, log_snr):
        p, q = super().__call__(log_snr)
        return p, q.astype(jnp.float32)


class Numbers(Fine):
    def __call__(self, log_snr):
        return jnp.zeros(()), super().__call__(log_snr)[1]


class OtherWhenCompiled(Fine):
    def __call__(self, log_snr):
        p, q = super().__call__(log_snr)
        return p, q + isinstance(q, Tracer)


class Overflows(Fine):
    def __call__(self, log_snr):
        p, q = super().__call__(log_snr)
        return p, q + jnp.exp(10 * log_snr)


class ByPlace(Fine):
    def __call__(self, log_snr):
        p, q = super().__call__(log_snr)
        return p, q + jnp.arange(len(q)) * 1e-3


class Alone(Fine):
    def __call__(self, log_snr):
        return super().__call__(log_snr)[0]


class OfZ(Fine):
    """p x_phi + q eps = z."""

    def __call__(self, log_snr):
        return alpha_sigma(log_snr)


class OfZInTheMiddle(Fine):
    """Of z at log_snr = 0 alone, which is one of those looked at."""

    def __call__(self, log_snr):
        return jnp.full_like(log_snr, 0.5), jnp.full_like(log_snr, 0.5)


FAULTS = [
    (shared.coefficients_match_log_snr, Single(), "a coefficient is float32 .*, not float64"),
    (shared.coefficients_match_log_snr, Numbers(), r"a coefficient is float32 \(\)"),
    (shared.coefficients_match_log_snr, OtherWhenCompiled(), "compiled"),
    (shared.values_and_derivatives_are_finite, Overflows(), "NaN or infinite"),
    (shared.log_snrs_do_not_interact, ByPlace(), "the order of noise levels"),
    (parameterizations.returns_a_pair, Alone(), "does not return a pair"),
    (
        parameterizations.z_and_output_determine_x_phi_and_eps,
        OfZ(),
        r"log_snr = -15\.0: q alpha - p sigma = 0",
    ),
    (parameterizations.z_and_output_determine_x_phi_and_eps, OfZInTheMiddle(), r"at log_snr = 0\.0: q alpha"),
]


@pytest.mark.parametrize("check", parameterizations.CHECKS)
def test_a_parameterization_that_keeps_all_passes_all(check):
    check(Fine())


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == {*parameterizations.CHECKS}
