import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.generative_means import Counterterm
from diffenc_plugins.networks import EncoderUNet, UNet
from diffenc_plugins.optimizers import AdamW
from diffenc_plugins.optimizers.adamw import decay_mask
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import LearnedEndpoints


def adamw_by_hand(w, gradients, rates, decay, b1=0.9, b2=0.99, eps=1e-8):
    """Loshchilov and Hutter's algorithm 2, in float64."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for k, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        w = w - rate * (m / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + eps) + decay * w)
    return w


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_steps_are_those_of_adamw_after_a_linear_warm_up(x64, warmup_steps):
    rng = np.random.default_rng(0)
    start = {"layer": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}}
    gradients = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), start) for _ in range(7)]
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=warmup_steps, weight_decay=0.3).build(7)
    params: Any = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    rates = [1e-2 * min(k / warmup_steps, 1) if warmup_steps else 1e-2 for k in range(7)]
    for name, decay in (("w", 0.3), ("b", 0.0)):
        history = [gradient["layer"][name] for gradient in gradients]
        want = adamw_by_hand(start["layer"][name], history, rates, decay)
        np.testing.assert_allclose(params["layer"][name], want, rtol=1e-7)  # optax keeps the rate in float32


def test_the_published_settings_are_the_defaults():
    assert AdamW() == AdamW(2e-4, 100, 0.01, 0.9, 0.99, 1e-8, "constant", 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1e-4),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
        ("clip_norm", -1.0),
    ],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(
        UserError, match=rf"^optimizer\.adamw\.{field} = {re.escape(str(value))}: must be .*$"
    ):
        AdamW(**{field: value})


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "b1", "b2", "eps", "clip_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_not_finite_are_refused(field, value):
    with pytest.raises(UserError, match=rf"^optimizer\.adamw\.{field} = {value}: expected a finite float$"):
        AdamW(**{field: value})


def rates_by_hand(schedule: str, warmup_steps: int, num_steps: int) -> list[float]:
    """The factors of the learning rate at each step, one case after the other."""
    rates = []
    for k in range(num_steps):
        left = (num_steps - k) / max(1, num_steps - warmup_steps)
        if k < warmup_steps:
            rates.append(k / warmup_steps)
        elif schedule == "constant":
            rates.append(1.0)
        elif schedule == "linear":
            rates.append(left)
        elif schedule == "cosine":
            rates.append(np.sin(np.pi / 2 * left) ** 2)
        elif warmup_steps:
            rates.append((warmup_steps / k) ** 0.5)
        else:
            rates.append((k + 1) ** -0.5)
    return rates


@pytest.mark.parametrize(("warmup_steps", "num_steps"), [(0, 9), (4, 9), (1, 9), (12, 9), (9, 9)])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "inverse_sqrt"])
def test_the_rate_follows_its_schedule_after_the_warm_up(x64, schedule, warmup_steps, num_steps):
    """By the steps of AdamW, which with equal gradients are the rate at that step."""
    optimizer = AdamW(1e-2, warmup_steps, weight_decay=0.0, eps=1e-30, schedule=schedule).build(num_steps)
    params = jnp.zeros(())
    state, steps = optimizer.init(params), []
    for _ in range(num_steps):
        updates, state = optimizer.update(jnp.asarray(2.0), state, params)
        steps.append(-float(jax.tree.leaves(updates)[0]))
    want = 1e-2 * np.array(rates_by_hand(schedule, warmup_steps, num_steps))
    np.testing.assert_allclose(steps, want, rtol=1e-6, atol=1e-12)


def test_another_schedule_is_refused():
    with pytest.raises(UserError, match=r"^optimizer\.adamw\.schedule = 'step': expected "):
        AdamW(schedule="step")  # pyright: ignore[reportArgumentType]


def test_a_gradient_is_clipped_by_the_norm_of_all_of_it(x64):
    """One above the bound, 13, and one below it, by hand."""
    start = {"w": np.ones((1, 2)), "b": np.ones(1)}
    gradients = [
        {"w": np.array([[3.0, 4.0]]), "b": np.array([12.0])},
        {"w": np.array([[0.3, 0.4]]), "b": np.array([1.2])},
    ]
    optimizer = AdamW(1e-2, warmup_steps=0, weight_decay=0.3, clip_norm=6.5).build(2)
    params: Any = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    for name, decay in (("w", 0.3), ("b", 0.0)):
        clipped = [gradients[0][name] / 2, gradients[1][name]]
        want = adamw_by_hand(start[name], clipped, [1e-2, 1e-2], decay)
        np.testing.assert_allclose(params[name], want, rtol=1e-7)


def test_without_a_clip_norm_gradients_are_not_clipped():
    """Adam's first step does not depend on the gradient's size; the moments kept for the next do."""
    params = {"layer": {"w": jnp.ones((2, 2))}}
    optimizer = AdamW().build(1)
    _, state = optimizer.update({"layer": {"w": jnp.full((2, 2), 1e6)}}, optimizer.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
    np.testing.assert_allclose(np.sort([leaf[0, 0] for leaf in moments]), [1e5, 1e10], rtol=1e-5)


def test_weight_decay_reaches_the_kernels_of_a_real_model_and_nothing_else():
    model = Model(
        Trainable(EncoderUNet(2, channels=8)), LearnedEndpoints(), V(), Counterterm(), UNet(1, channels=8)
    )
    shapes = jax.eval_shape(lambda key: model.init(key, (8, 8, 1)), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    optimizer = AdamW(learning_rate=1.0, warmup_steps=0, weight_decay=0.5).build(1)
    still = jax.tree.map(np.zeros_like, params)  # with no gradient all that moves is what decays
    updates, _ = jax.jit(optimizer.update)(still, optimizer.init(params), params)
    updates = jax.tree.map(np.asarray, updates)
    decayed = {}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert np.all(update == update.ravel()[0])
        decayed["/".join(entry.key for entry in path)] = float(update.ravel()[0])
    assert set(decayed.values()) == {-0.5, 0.0}
    leaves = {"w", "b", "scale", "offset", "start", "raw_drop"}
    assert {name.rpartition("/")[2] for name in decayed} == leaves
    for name, update in decayed.items():
        assert (update != 0) == (name.rpartition("/")[2] == "w"), name


def test_weight_decay_in_pytrees_that_are_no_dicts():
    """By the last name of a path where it has one, and by the number of axes where it has none."""
    flat, kernel = jnp.ones(2), jnp.ones((2, 2))
    layer = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    state: Any = nnx.state(linear, nnx.Param)
    stacked = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * 3), state
    )  # three layers, whose biases have two axes
    for params, want in (
        ([kernel, (flat, None)], [True, False]),
        (kernel, [True]),
        (flat, [False]),
        ({}, []),
        ({"network": kernel, "schedule": [kernel]}, [True, False]),
        (layer, [True, False]),
        (state, [False, True]),
        (stacked, [False, True]),
        ({"scale": {"w": kernel}, "norm": {"scale": kernel}}, [False, True]),
    ):
        assert jax.tree.leaves(decay_mask(params)) == want
