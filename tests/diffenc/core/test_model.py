import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.core import objective
from diffenc.core.discretization import equal_steps
from diffenc.core.model import Draws, Model, bits_per_dim, draw_noise
from diffenc.core.parameters import name_leaves
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, Context, PreparedOnce
from diffenc_plugins.stochasticities import Learned

NUM_LEVELS = 16
LOG_SNR_MAX, LOG_SNR_MIN = 6.0, -5.0  # where no term vanishes
SHAPE = (3, 2, 2, 1)


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form; its one parameter starts at the first draw of its key."""

    phase: float = 0.3

    def init(self, key, z, log_snr):
        return {"gain": jax.random.normal(key)}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        out = jnp.sin(params["gain"] * z + self.phase * log_snr[:, None, None, None])
        condition = context.condition
        return out if condition is None else out + condition[:, None, None, None]


def mask(keys, rate, shape):
    return jnp.stack([jax.random.bernoulli(key, rate, shape) for key in keys])


@dataclasses.dataclass(frozen=True)
class MaskedWave(Wave):
    """Drops half of its inputs under a key, and records the keys it has been given."""

    rate: float = 0.5
    keys: list = dataclasses.field(default_factory=list, compare=False)

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        condition, keys = context
        self.keys.append(None if keys is None else tuple(map(tuple, np.asarray(jax.random.key_data(keys)))))
        kept = 1.0 if keys is None else mask(keys, self.rate, z.shape[1:]) / self.rate
        return super().apply(params, z * kept, log_snr, Context(condition))


@dataclasses.dataclass(frozen=True)
class WithKey:
    """A network under the same keys for ever, whatever keys it is given."""

    network: Any
    key_data: tuple

    def init(self, *args, **options):
        return self.network.init(*args, **options)

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        fixed = jax.random.wrap_key_data(jnp.asarray(self.key_data, jnp.uint32))
        fixed = fixed[jnp.arange(len(z)) * len(fixed) // len(z)]  # an image that is encoded twice has one key
        return self.network.apply(params, z, log_snr, Context(context.condition, fixed))


OF_ANY_SHAPE = (
    "identity",
    "nontrainable",
    "trainable",
)  # those that do without an image's shape, and without its class
ENCODERS = {name: registry.encoders[name] for name in OF_ANY_SHAPE}


def model_of(
    encoder="trainable", mean="counterterm", schedule="linear", inner: Any = None, network: Any = None
):
    needs: Any = {"network": inner or Wave(0.2)} if encoder == "trainable" else {}
    return Model(
        ENCODERS[encoder](**needs),
        registry.schedules[schedule](LOG_SNR_MAX, LOG_SNR_MIN),  # pyright: ignore[reportCallIssue]
        registry.parameterizations["v"](),
        registry.generative_means[mean](),
        network or Wave(),
    )


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    levels = jnp.asarray(rng.integers(0, NUM_LEVELS, SHAPE))
    t, eps, eps_0 = rng.uniform(size=3), rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    return levels, Draws(jnp.asarray(t), jnp.asarray(eps), jnp.asarray(eps_0))


def weights(log_snr):
    return 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))


def x_phi_by_hand(encoder, x, log_snr, gain):
    """[15, 16] in numpy, with Wave(0.2) for y_phi."""
    alpha_2, sigma_2 = weights(log_snr)
    return {
        "identity": x,
        "nontrainable": alpha_2 * x,
        "trainable": alpha_2 * x + sigma_2 * np.sin(gain * x + 0.2 * log_snr),
    }[encoder]


def terms_by_hand(encoder, mean, levels, draws, encoder_gain, gain):
    """The three terms image by image, derivatives by central differences."""
    rows = []
    for i in range(len(levels)):
        level, eps, eps_0 = (np.asarray(v, np.float64)[i] for v in (levels, draws.eps, draws.eps_0))
        x, log_snr, h = (2 * level + 1) / NUM_LEVELS - 1, 6 - 11 * float(draws.t[i]), 1e-5
        encode = [x_phi_by_hand(encoder, x, v, encoder_gain) for v in (log_snr, log_snr + h, log_snr - h)]
        slope = (encode[1] - encode[2]) / (2 * h)
        alpha_2, sigma_2 = weights(log_snr)
        z = np.sqrt(alpha_2) * encode[0] + np.sqrt(sigma_2) * eps
        x_hat = np.sqrt(alpha_2) * z - np.sqrt(sigma_2) * np.sin(gain * z + 0.3 * log_snr)
        kappa = sigma_2 if mean == "counterterm" else 0.0
        diffusion = 0.5 * 11 * np.exp(log_snr) * np.sum(((1 + kappa) * x_hat - encode[0] - slope) ** 2)

        alpha_2, sigma_2 = weights(-5.0)
        square = alpha_2 * x_phi_by_hand(encoder, x, -5.0, encoder_gain) ** 2
        latent = 0.5 * np.sum(square + sigma_2 - np.log(sigma_2) - 1)

        alpha, sigma = np.sqrt(weights(6.0))
        z_0 = alpha * x_phi_by_hand(encoder, x, 6.0, encoder_gain) + sigma * eps_0
        values = (2 * np.arange(NUM_LEVELS) + 1) / NUM_LEVELS - 1
        logits = -0.5 * ((z_0[..., None] - alpha * values) / sigma) ** 2
        log_sum = np.logaddexp.reduce(logits, axis=-1)
        chosen = np.take_along_axis(logits, level[..., None].astype(int), axis=-1)[..., 0]
        rows.append([np.sum(log_sum - chosen), latent, diffusion])
    return np.array(rows).T


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("mean", ["vdm", "counterterm"])
def test_the_terms_of_the_elbo_by_hand(x64, encoder, mean):
    model, (levels, draws) = model_of(encoder, mean), inputs()
    params: Any = {
        "encoder": {"gain": jnp.asarray(0.8)},
        "schedule": {},
        "network": {"gain": jnp.asarray(1.7)},
    }
    terms = model.elbo(params, levels, draws, num_levels=NUM_LEVELS)
    want = terms_by_hand(encoder, mean, levels, draws, 0.8, 1.7)
    np.testing.assert_allclose([*terms], want, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(terms.total, want.sum(axis=0), rtol=1e-7)


def test_the_step_rule_decides_the_depth_of_the_diffusion_term(x64):
    model, (levels, draws) = model_of(), inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])
    limit = model.elbo(params, levels, draws, num_levels=NUM_LEVELS)
    deep, shallow = (
        model.elbo(
            params, levels, draws, num_levels=NUM_LEVELS, step_rule=objective.discrete(equal_steps(depth))
        )
        for depth in (10**6, 5)
    )
    np.testing.assert_allclose(deep.diffusion, limit.diffusion, rtol=1e-3)
    assert np.all(np.abs(shallow.diffusion / limit.diffusion - 1) > 1e-2)
    np.testing.assert_array_equal(shallow.latent, limit.latent)
    np.testing.assert_array_equal(shallow.reconstruction, limit.reconstruction)


def test_parameters_come_from_three_different_keys():
    params = model_of(schedule="learned_endpoints").init(jax.random.key(0), SHAPE[1:])
    assert params.keys() == {"encoder", "schedule", "network", "stochasticity", "generative_mean"}
    assert params["encoder"]["gain"] != params["network"]["gain"]
    np.testing.assert_allclose(params["schedule"]["start"], LOG_SNR_MAX, rtol=1e-6)


@pytest.mark.parametrize(
    ("encoder", "changed"), [("trainable", [True] * 3), ("identity", [False, False, True])]
)
def test_the_condition_reaches_encoder_and_network(x64, encoder, changed):
    model, (levels, draws) = model_of(encoder), inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])

    def terms(condition):
        return np.asarray(model.elbo(params, levels, draws, num_levels=NUM_LEVELS, condition=condition))

    without, zero, one = terms(None), terms(jnp.zeros(3, jnp.int32)), terms(jnp.asarray([0, 1, 0]))
    np.testing.assert_array_equal(without, zero)
    np.testing.assert_array_equal(one != without, np.outer(changed, [False, True, False]))


def keys_of(seed):
    return jax.random.split(jax.random.key(seed), SHAPE[0])


def dropout_terms(model, keys):
    levels, draws = inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])
    return model.elbo(params, levels, draws, num_levels=NUM_LEVELS, keys=keys)


@pytest.mark.parametrize("rule", [objective.continuous, objective.discrete(equal_steps(10))])
def test_the_encoder_has_one_mask_and_the_network_another(rule):
    inner, network = MaskedWave(), MaskedWave()
    model, (levels, draws) = model_of(inner=inner, network=network), inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])
    model.elbo(params, levels, draws, num_levels=NUM_LEVELS, keys=keys_of(5), step_rule=rule)
    assert len(inner.keys) >= 2
    assert None not in inner.keys + network.keys
    of_images = [sorted(set(keys)) for keys in inner.keys]  # at the ends, an image is encoded twice
    assert all(keys == of_images[0] for keys in of_images)
    assert len(set(network.keys)) == 1
    assert len({*inner.keys[0], *network.keys[0]}) == 2 * SHAPE[0]


def test_without_a_key_there_is_no_dropout():
    inner, network = MaskedWave(), MaskedWave()
    terms = dropout_terms(model_of(inner=inner, network=network), None)
    assert {*inner.keys, *network.keys} == {None}
    np.testing.assert_array_equal(terms, dropout_terms(model_of(inner=Wave(), network=Wave()), None))


def test_the_loss_with_dropout_is_that_of_one_model(x64):
    """With its masks nailed down, the model without dropout has the very same terms."""
    inner, network = MaskedWave(), MaskedWave()
    dropped = dropout_terms(model_of(inner=inner, network=network), keys_of(5))
    nailed = model_of(
        inner=WithKey(MaskedWave(), inner.keys[0]), network=WithKey(MaskedWave(), network.keys[0])
    )
    np.testing.assert_allclose(dropped, dropout_terms(nailed, None), rtol=1e-12)
    assert not np.allclose(dropped, dropout_terms(model_of(inner=inner, network=network), keys_of(6)))


@pytest.mark.parametrize("term", ["reconstruction", "latent", "diffusion"])
def test_gradients_reach_the_ends_through_every_term(x64, term):
    model, (levels, draws) = model_of(schedule="learned_endpoints"), inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])

    def loss(ends):
        terms = model.elbo({**params, "schedule": ends}, levels, draws, num_levels=NUM_LEVELS)
        return getattr(terms, term).sum()

    ends, h = {"start": jnp.asarray(6.0), "raw_drop": jnp.asarray(9.0)}, 1e-5
    slopes = jax.grad(loss)(ends)
    for name, value in ends.items():
        by_difference = (loss({**ends, name: value + h}) - loss({**ends, name: value - h})) / (2 * h)
        np.testing.assert_allclose(slopes[name], by_difference, rtol=1e-5, atol=1e-9)
    assert slopes["start"] != 0
    assert (slopes["raw_drop"] != 0) == (term != "reconstruction")  # lambda_0 is the start alone


RULES = pytest.mark.parametrize("rule", [objective.continuous, objective.discrete(equal_steps(4))])


@RULES
def test_gradients_reach_a_learned_path(x64, rule):
    model, (levels, draws) = dataclasses.replace(model_of(), stochasticity=Learned()), inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])

    def loss(raw):
        learned = {**params, "stochasticity": {"log_eta_2": raw}}
        return model.elbo(learned, levels, draws, num_levels=NUM_LEVELS, step_rule=rule).total.sum()

    raw, h = jnp.linspace(-0.5, 0.7, 7), 1e-5
    slopes = jax.grad(loss)(raw)
    moved = [raw + h * np.eye(7)[k] for k in range(7)], [raw - h * np.eye(7)[k] for k in range(7)]
    by_difference = [(loss(up) - loss(down)) / (2 * h) for up, down in zip(*moved, strict=True)]
    np.testing.assert_allclose(slopes, by_difference, rtol=1e-5, atol=1e-8)
    assert np.all(np.asarray(slopes) != 0)


@RULES
def test_a_learned_path_starts_at_the_papers_bound_and_at_the_same_parameters(x64, rule):
    markov, (levels, draws) = model_of(), inputs()
    learned = dataclasses.replace(markov, stochasticity=Learned())
    params, with_path = (model.init(jax.random.key(0), SHAPE[1:]) for model in (markov, learned))
    for part in ("encoder", "schedule", "network"):
        assert jax.tree.all(jax.tree.map(np.array_equal, params[part], with_path[part]))
    one, other = (
        model.elbo(given, levels, draws, num_levels=NUM_LEVELS, step_rule=rule)
        for model, given in ((markov, params), (learned, with_path))
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)  # times are float32


def test_a_path_without_parameters_leaves_those_of_earlier_versions_as_they_were():
    """Nothing more is stored, and what was stored serves."""
    model, (levels, draws) = model_of(), inputs()
    params = model.init(jax.random.key(0), SHAPE[1:])
    before = {part: leaves for part, leaves in params.items() if part != "stochasticity"}
    assert list(name_leaves(params)) == list(name_leaves(before))
    one, other = (model.elbo(each, levels, draws, num_levels=NUM_LEVELS) for each in (params, before))
    np.testing.assert_array_equal(one, other)


def test_draws_are_stratified_times_and_two_independent_noises():
    draws = draw_noise(jax.random.key(3), (40, 8, 8, 1))
    np.testing.assert_allclose(np.diff(np.sort(draws.t)), 1 / 40, atol=1e-6)
    eps, eps_0 = (np.asarray(noise, np.float64).ravel() for noise in (draws.eps, draws.eps_0))
    error = 4 / np.sqrt(eps.size)
    for noise in (eps, eps_0):
        assert abs(noise.mean()) < error
        assert abs(noise.var() - 1) < np.sqrt(2) * error
    assert abs(np.mean(eps * eps_0)) < error


def test_draws_depend_on_the_key_alone():
    first, same, other = (draw_noise(jax.random.key(k), SHAPE) for k in (0, 0, 1))
    for a, b, c in zip(first[:3], same[:3], other[:3], strict=True):  # all but the weight, which is 1
        np.testing.assert_array_equal(a, b)
        assert not np.any(np.asarray(a) == np.asarray(c))


def test_bits_per_dim_of_fair_coins():
    """An image of d pixels, each one of 2^8 equally likely levels, holds 8 bits a pixel."""
    np.testing.assert_allclose(bits_per_dim(jnp.asarray(784 * np.log(256)), 784), 8, rtol=1e-6)


def test_the_weight_of_a_time_multiplies_the_diffusion_term_alone(x64):
    model, (levels, draws) = model_of(), inputs()
    params, weight = model.init(jax.random.key(0), SHAPE[1:]), np.array([0.5, 2.0, 3.0])
    plain = model.elbo(params, levels, draws, num_levels=NUM_LEVELS)
    weighed = model.elbo(params, levels, draws._replace(weight=jnp.asarray(weight)), num_levels=NUM_LEVELS)
    np.testing.assert_allclose(weighed.diffusion, weight * plain.diffusion, rtol=1e-12)
    np.testing.assert_array_equal(weighed.latent, plain.latent)
    np.testing.assert_array_equal(weighed.reconstruction, plain.reconstruction)


def test_proposed_times_are_those_moved_from_the_stratified_ones():
    key, shape = jax.random.key(3), (5, 2, 2, 1)
    plain, moved = draw_noise(key, shape), draw_noise(key, shape, lambda u: (u**2, 2 * u))
    np.testing.assert_array_equal(moved.t, np.asarray(plain.t) ** 2)
    np.testing.assert_array_equal(moved.weight, 2 * np.asarray(plain.t))
    np.testing.assert_array_equal(plain.weight, np.ones(5))
    np.testing.assert_array_equal(moved.eps, plain.eps)
    np.testing.assert_array_equal(moved.eps_0, plain.eps_0)


def test_the_error_of_the_estimate_is_what_denoise_makes_less_the_encoded_image(x64):
    model, (levels, draws) = model_of(), inputs()
    params, condition = model.init(jax.random.key(0), SHAPE[1:]), jnp.asarray([0, 1, 2])
    x, log_snr = 2 * (levels + 0.5) / NUM_LEVELS - 1, model.log_snr(params, draws.t)
    np.testing.assert_allclose(log_snr, LOG_SNR_MAX + (LOG_SNR_MIN - LOG_SNR_MAX) * draws.t, rtol=1e-12)
    x_phi = model.encode(params, x, log_snr, Context(condition))
    alpha_2, sigma_2 = (v[:, None, None, None] for v in weights(np.asarray(log_snr)))
    z = np.sqrt(alpha_2) * x_phi + np.sqrt(sigma_2) * draws.eps
    x_hat = model.denoise(params, z, log_snr, Context(condition))
    error = model.x_hat_error(params, x_phi, draws.eps, log_snr, Context(condition))
    np.testing.assert_allclose(error, x_hat - x_phi, rtol=1e-9, atol=1e-12)
    v_hat = model.predict(params, z, log_snr, Context(condition))
    np.testing.assert_allclose(x_hat, np.sqrt(alpha_2) * z - np.sqrt(sigma_2) * v_hat, rtol=1e-9)
    assert not np.allclose(model.denoise(params, z, log_snr), x_hat)


@dataclasses.dataclass(frozen=True)
class SplitScale(PreparedOnce):
    """alpha^2 x, masked; records what each part is called with."""

    prepared: list = dataclasses.field(default_factory=list, compare=False)
    levels: list = dataclasses.field(default_factory=list, compare=False)

    def init(self, key, x, log_snr):
        return {}

    def prepare(self, params, x, context=NO_CONTEXT):
        self.prepared.append(context)
        return x if context.keys is None else x * mask(context.keys, 0.5, x.shape[1:])

    def at(self, params, prepared, log_snr):
        self.levels.append(log_snr)
        return jax.nn.sigmoid(log_snr)[:, None, None, None] * prepared


@dataclasses.dataclass(frozen=True)
class WholeScale:
    """The same encoder without a split."""

    def init(self, key, x, log_snr):
        return {}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return SplitScale().apply(params, x, log_snr, context)


@pytest.mark.parametrize("rule", [objective.continuous, objective.discrete(equal_steps(10))])
@pytest.mark.parametrize("keys", [None, jax.random.split(jax.random.key(5), SHAPE[0])])
def test_an_encoder_that_splits_is_prepared_once_and_has_the_same_bound(rule, keys):
    split, (levels, draws) = SplitScale(), inputs()
    whole = dataclasses.replace(model_of(), encoder=WholeScale())
    model, params = dataclasses.replace(whole, encoder=split), whole.init(jax.random.key(0), SHAPE[1:])
    elbo = lambda model: model.elbo(  # noqa: E731
        params,
        levels,
        draws,
        num_levels=NUM_LEVELS,
        condition=jnp.asarray([0, 1, 2]),
        keys=keys,
        step_rule=rule,
    )
    terms = elbo(model)
    assert len(split.prepared) == 1
    assert sum(map(len, split.levels)) >= 3 * SHAPE[0]  # at both ends and at t
    for one, other in zip(terms, elbo(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@dataclasses.dataclass(frozen=True)
class NoisePerPixel:
    """log_snr of each pixel, which the loss has no sum for."""

    def init(self, key):
        return {}

    def apply(self, params, t):
        return jnp.broadcast_to(-t[:, None, None, None], SHAPE)


def test_noise_that_differs_by_pixel_is_refused_where_it_would_be_broadcast():
    model, (levels, draws) = dataclasses.replace(model_of(), schedule=NoisePerPixel()), inputs()
    params = {"encoder": {"gain": 1.0}, "schedule": {}, "network": {"gain": 1.0}}
    with pytest.raises(
        UserError, match=rf"schedule NoisePerPixel returns .*{SHAPE[1]}.*one number for each time"
    ):
        model.elbo(params, levels, draws, num_levels=NUM_LEVELS)
