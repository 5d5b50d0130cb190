import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core import objective
from diffenc.core.discretization import EQUAL, Chain, equal_steps, equal_times, make_chain
from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc.interfaces import EXCESS

markov = partial(MARKOV.increment, {})
TIMES = np.array([0.0, 0.1, 0.25, 0.7, 1.0])


def log_snr_at(t):
    return 4.0 - 9.0 * t


@pytest.mark.parametrize("num_steps", [1, 3, 1000])
def test_equal_steps_are_equal_and_end_at_both_ends(num_steps):
    t = equal_times(num_steps)
    assert (len(t), t[0], t[-1], t.dtype) == (num_steps + 1, 0, 1, np.float64)
    np.testing.assert_allclose(np.diff(t), 1 / num_steps, rtol=1e-12)
    chain = equal_steps(num_steps)
    np.testing.assert_allclose(chain.times, t, rtol=1e-6)
    np.testing.assert_array_equal(chain.log_w, np.zeros(num_steps))


def test_a_variance_is_told_both_ends_and_the_excess_of_each_step(x64):
    seen = []

    def plugin(log_snr_t, log_snr_s, excess):
        seen.append((log_snr_t, log_snr_s, excess))
        return -0.1 * log_snr_t

    excess = np.array([0.1, 0.2, 0.3, 0.4])
    chain = make_chain(log_snr_at, TIMES, plugin, excess)
    (got,) = seen
    np.testing.assert_allclose(got[0], [3.1, 1.75, -2.3, -5.0], rtol=1e-12)
    np.testing.assert_allclose(got[1], [4.0, 3.1, 1.75, -2.3], rtol=1e-12)
    np.testing.assert_array_equal(got[2], excess)
    np.testing.assert_allclose(chain.times, TIMES, rtol=1e-12)
    np.testing.assert_allclose(chain.log_w, -0.1 * np.array([3.1, 1.75, -2.3, -5.0]), rtol=1e-12)
    make_chain(log_snr_at, TIMES, plugin)
    assert seen[1][2] is None


def test_equal_variances_need_no_excess_and_heed_none():
    for excess in (None, np.ones(4)):
        np.testing.assert_array_equal(make_chain(log_snr_at, TIMES, EQUAL, excess).log_w, np.zeros(4))


def test_a_variance_that_requires_the_excess_is_not_called_without():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        requires: ClassVar[frozenset[str]] = frozenset({EXCESS})

        def __call__(self, log_snr_t, log_snr_s, excess):
            return -jnp.log1p(excess)

    with pytest.raises(
        UserError, match=r"^Needs was not fitted for these 4 steps: .* --num_timesteps=4 first$"
    ):
        make_chain(log_snr_at, TIMES, Needs())
    np.testing.assert_allclose(
        make_chain(log_snr_at, TIMES, Needs(), np.ones(4)).log_w, -np.log(2), rtol=1e-6
    )


def test_a_chain_passes_through_jit():
    chain = jax.jit(lambda drop: make_chain(lambda t: 4.0 - drop * t, TIMES, EQUAL, np.ones(4)))(9.0)
    assert isinstance(chain, Chain)
    np.testing.assert_allclose(chain.times, TIMES, rtol=1e-6)


def test_a_unit_interval_of_draws_is_shared_out_equally_among_unequal_steps(x64):
    """Step k is drawn for t in [k / T, (k + 1) / T), however long it is; its weight is T w (SNR_s - SNR_t) / 2."""
    log_w = np.array([-0.5, 0.0, 0.3, -1.0])
    t = jnp.asarray([0.0, 0.2499, 0.25, 0.5, 0.75, 0.99999])
    chain = Chain(jnp.asarray(TIMES), jnp.asarray(log_w))
    x = np.random.default_rng(0).normal(size=(6, 2))
    step = objective.discrete(chain)(lambda log_snr: jnp.asarray(x), log_snr_at, markov, t)
    index = np.array([0, 0, 1, 2, 3, 3])
    np.testing.assert_allclose(step.log_snr, log_snr_at(TIMES[index + 1]), rtol=1e-12)
    rise = np.exp(log_snr_at(TIMES[index])) - np.exp(log_snr_at(TIMES[index + 1]))
    w = np.exp(log_w[index])
    np.testing.assert_allclose(step.weight, 4 * w * rise / 2, rtol=1e-12)
    np.testing.assert_allclose(step.offset, 4 * 0.5 * 2 * (w - 1 - log_w[index]), rtol=1e-12, atol=1e-15)
