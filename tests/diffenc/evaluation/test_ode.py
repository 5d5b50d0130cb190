"""The ODE's density against densities in closed form; its divergence against a Jacobian written down."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc.evaluation import ode

markov = partial(MARKOV.increment, {})


def solver(velocity, divergence=ode.exact_divergence):
    """log p_0 of an array as numpy, compiled once; the solver reached its end."""

    @jax.jit
    def compiled(z, log_snr_0, log_snr_1, tolerance):
        return ode.log_density(z, log_snr_0, log_snr_1, velocity, divergence, tolerance, tolerance)

    def solve(z, ends=(9.0, -12.0), tolerance=1e-7):
        z = jnp.asarray(z)
        log_p, result = compiled(z, *(jnp.asarray(number, z.dtype) for number in (*ends, tolerance)))
        ode.require_reached(result)
        return np.asarray(log_p)

    return solve


@pytest.mark.parametrize(
    ("encoder", "variance"), [pytest.param("identity", 2.0, marks=pytest.mark.slow), ("nontrainable", 0.09)]
)
def test_gaussian_data_have_the_density_of_a_linear_flow(x64, mixture, encoder, variance):
    """x ~ N(0, v): the path is z_0 s / s_0 for s the deviation of z, also where the prior does not fit."""
    data = mixture(weights=(1.0,), means=((0.0, 0.0, 0.0),), variances=(variance,), encoder=encoder)
    z, solve = np.random.default_rng(0).normal(size=(7, 3)), solver(ode.ode_velocity(data.estimate, markov))

    def spread(log_snr):
        alpha_2 = 1 / (1 + np.exp(-log_snr))
        return alpha_2 * variance * (alpha_2**2 if encoder == "nontrainable" else 1) + 1 - alpha_2

    for ends in [(6.0, -2.0), (9.0, -5.0)]:
        stretch = np.sqrt(spread(ends[1]) / spread(ends[0]))
        want = stats.norm.logpdf(z * stretch).sum(axis=1) + 3 * np.log(stretch)
        np.testing.assert_allclose(solve(z, ends, 1e-9), want, atol=1e-6)


@pytest.mark.thin
@pytest.mark.parametrize("encoder", ["identity", "nontrainable"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_with_the_best_denoiser_the_density_is_the_datas(x64, mixture, dimensions, encoder):
    data = mixture(dimensions, encoder)
    z = data.sample_z(np.random.default_rng(1), 40, 9.0)
    want = np.asarray(data.log_density(jnp.asarray(z), jnp.full(40, 9.0)))
    np.testing.assert_allclose(solver(ode.ode_velocity(data.estimate, markov))(z), want, atol=1e-3)


def test_without_the_counterterm_it_is_not(x64, mixture, estimator_of):
    data = mixture(1, "nontrainable")
    z = data.sample_z(np.random.default_rng(1), 40, 9.0)
    want = np.asarray(data.log_density(jnp.asarray(z), jnp.full(40, 9.0)))
    assert (
        np.abs(solver(ode.ode_velocity(estimator_of(data.x_hat, jnp.zeros_like), markov))(z) - want).mean()
        > 0.1
    )


def test_float32_holds_where_the_noise_is_least(mixture):
    data = mixture(2, "nontrainable")
    z = data.sample_z(np.random.default_rng(2), 40, 13.3).astype(np.float32)
    got = solver(ode.ode_velocity(data.estimate, markov))(z, (13.3, -12.0), 1e-5)
    assert got.dtype == np.float32
    with jax.enable_x64(True):
        want = data.log_density(jnp.asarray(z, jnp.float64), jnp.full(40, 13.3))
    np.testing.assert_allclose(got, want, atol=1e-3)


MIX = np.random.default_rng(3).normal(size=(6, 6))


def curved(z):
    """Of [B, 2, 3]: tanh(z A), row by row of the flattened z."""
    return jnp.tanh(z.reshape(-1, 6) @ jnp.asarray(MIX)).reshape(z.shape)


def bent(z):
    """The trace of its Jacobian, by hand."""
    return ((1 - np.tanh(z.reshape(-1, 6) @ MIX) ** 2) * np.diag(MIX)).sum(axis=1)


def signs(key, *shape):
    return jax.random.rademacher(jax.random.key(key), shape, jnp.float64)


def test_the_exact_divergence_is_the_jacobians_trace(x64):
    z = np.random.default_rng(4).normal(size=(5, 2, 3))
    dz, divergence = ode.exact_divergence(curved, jnp.asarray(z))
    np.testing.assert_allclose(dz, curved(z), rtol=1e-12)
    np.testing.assert_allclose(divergence, bent(z), rtol=1e-12)


def test_hutchinsons_mean_is_the_divergence(x64):
    z = np.random.default_rng(5).normal(size=(4, 2, 3))
    shape, n = z.shape, 4000
    each = jax.jit(jax.vmap(lambda e: ode.hutchinson_divergence(e[None])(curved, jnp.asarray(z))[1]))(
        signs(0, n, *shape)
    )
    np.testing.assert_array_less(np.abs(each.mean(axis=0) - bent(z)), 4 * each.std(axis=0) / np.sqrt(n))
    assert np.all(each.std(axis=0) > 0.1), "which says something"
    dz, several = ode.hutchinson_divergence(signs(0, n, *shape))(curved, jnp.asarray(z))
    np.testing.assert_allclose(several, each.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(dz, curved(z), rtol=1e-12)


def test_by_random_signs_a_diagonal_jacobian_is_traced_exactly(x64):
    z = np.random.default_rng(6).normal(size=(4, 2, 3))
    _, divergence = ode.hutchinson_divergence(signs(1, 1, *z.shape))(jnp.sin, jnp.asarray(z))
    np.testing.assert_allclose(divergence, np.cos(z).sum(axis=(1, 2)), rtol=1e-12)


@pytest.mark.slow
def test_with_probes_the_density_is_right_on_average(x64):
    """Probes do not move the path, and log p is linear in them."""
    z, n = np.repeat(np.random.default_rng(7).normal(size=(1, 2, 3)), 500, axis=0), 500
    got = solver(lambda z, _: curved(z), ode.hutchinson_divergence(signs(2, 1, *z.shape)))(z, (1.0, -1.0))
    want = solver(lambda z, _: curved(z))(z[:1], (1.0, -1.0))[0]
    assert got.std() > 0.1
    assert abs(got.mean() - want) < 4 * got.std() / np.sqrt(n)


def test_the_ode_carries_quantiles_to_quantiles(x64, mixture):
    """In one dimension a path keeps its share of the mass below it: a sampler, then, of the data."""
    data, high, low = mixture(1, "nontrainable"), jnp.asarray(9.0), jnp.asarray(-12.0)
    velocity = ode.ode_velocity(data.estimate, markov)
    transport = jax.jit(lambda z, start, end: ode.solve_ode(z, start, end, velocity, 1e-8, 1e-8))
    share, alpha_2 = np.linspace(0.01, 0.99, 33), 1 / (1 + np.exp(-9.0))
    noise = jnp.asarray(stats.norm.ppf(share))[:, None]
    z, result = transport(noise, low, high)
    ode.require_reached(result)
    centres = alpha_2**1.5 * np.array(data.means)[:, 0]
    scales = np.sqrt(alpha_2**3 * np.array(data.variances) + 1 - alpha_2)
    got = stats.norm.cdf(np.asarray(z), centres, scales) @ np.array(data.weights)
    np.testing.assert_allclose(got, share, atol=2e-3)
    np.testing.assert_allclose(transport(z, high, low)[0], noise, atol=1e-5)


def wavy(z, log_snr):
    """Easy for small z, and the harder the larger."""
    return 0.3 * jnp.sin(z * log_snr[:, None])


@pytest.mark.slow
def test_in_a_batch_the_most_difficult_example_meets_the_tolerance(x64):
    """A mean over the batch would let it be ten times as wrong among so many that are easy."""
    hard, ends, solve = np.full((200, 2), 30.0), (3.0, -3.0), solver(wavy)
    among = np.concatenate([np.full((199, 2), 1e-3), hard[:1]])
    np.testing.assert_allclose(solve(hard, ends, 1e-5), solve(hard, ends, 1e-11), atol=1e-2)
    np.testing.assert_allclose(solve(among, ends, 1e-5)[-1], solve(hard, ends, 1e-5)[-1], rtol=1e-9)


def test_evaluations_are_those_of_the_velocity():
    calls = []

    def note(log_snr):
        calls.append(log_snr)
        return np.zeros_like(log_snr)

    def velocity(z, log_snr):
        return wavy(z, log_snr + jax.pure_callback(note, jax.ShapeDtypeStruct((), jnp.float32), log_snr[0]))

    ends = jnp.float32(3.0), jnp.float32(-3.0)
    compiled = jax.jit(lambda z, tolerance: ode.solve_ode(z, *ends, velocity, tolerance, tolerance))
    for tolerance in (1e-3, 1e-6):
        calls.clear()
        _, result = jax.block_until_ready(compiled(jnp.full((3, 2), 20.0), tolerance))
        assert result.evaluations == len(calls) > 50


def test_a_solver_that_gives_up_says_so():
    """Nothing, an overflow at once, and one after a stretch that no step is small enough for."""
    solve = solver(lambda z, log_snr: -(z**3))
    for value in (np.nan, 1e30, 1.0):
        with pytest.raises(
            UserError, match=r"not solved: .* bind likelihood.rtol and likelihood.atol"
        ) as gave:
            solve(np.full((3, 2), value, np.float32), tolerance=1e-5)
        assert "\n" not in str(gave.value)
    assert np.isfinite(solve(np.full((3, 2), 0.1, np.float32), tolerance=1e-5)).all()


def test_a_solver_out_of_steps_says_so(monkeypatch):
    monkeypatch.setattr(ode, "MAX_STEPS", 5)
    with pytest.raises(UserError, match="more than 5 steps"):
        solver(wavy)(np.full((3, 2), 20.0, np.float32), tolerance=1e-5)
