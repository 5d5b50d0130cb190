import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffenc.config import gin_loader, serialize
from diffenc.errors import UserError
from diffenc_plugins.optimizers import AdamW, Chain


def train(optimizer: optax.GradientTransformation, start: Any, gradients: list[Any]) -> list[Any]:
    """The parameters after each gradient."""
    params = jax.tree.map(jnp.asarray, start)
    state, history = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.asarray, params))
    return history


def test_lion_with_clipping_and_a_cosine_is_that_by_hand(x64):
    """Chen et al. (arXiv:2302.06675), algorithm 2: the sign of an average of gradients and their momentum."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), [rng.normal(size=5) for _ in range(8)]
    cosine = ("cosine_decay_schedule", {"init_value": 1e-2, "decay_steps": "num_steps"})
    lion = ("lion", {"learning_rate": cosine, "b1": 0.8, "b2": 0.95, "weight_decay": 0.3})
    made = Chain((("clip_by_global_norm", {"max_norm": 1.5}), lion)).build(8)
    momentum, params = np.zeros(5), start
    for k, (gradient, got) in enumerate(zip(gradients, train(made, start, gradients), strict=True)):
        gradient = gradient * min(1, 1.5 / np.linalg.norm(gradient))
        direction = np.sign(0.8 * momentum + 0.2 * gradient)
        momentum = 0.95 * momentum + 0.05 * gradient
        params = params - 1e-2 * (1 + np.cos(np.pi * k / 8)) / 2 * (direction + 0.3 * params)
        np.testing.assert_allclose(got, params, rtol=1e-6)


def test_the_kernels_are_those_that_adamw_decays():
    """The same numbers as the plugin's, bit for bit."""
    rng = np.random.default_rng(1)
    start = {"layer": {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}}
    start = jax.tree.map(np.float32, start)
    gradients = [jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), start) for _ in range(3)]
    settings = {"learning_rate": 1e-2, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.3}
    chain = Chain((("adamw", {**settings, "mask": "kernels"}),))
    plugin = AdamW(learning_rate=1e-2, warmup_steps=0, weight_decay=0.3)
    ours, theirs = (train(optimizer.build(3), start, gradients) for optimizer in (chain, plugin))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_it_is_bound_from_gin_and_read_back(tmp_path):
    """Bound as dicts; config.gin has tuples of pairs, which is the same value."""
    rate = "('linear_schedule', {'init_value': 1e-3, 'end_value': 0.0, 'transition_steps': 'num_steps'})"
    bindings = [
        "Experiment.optimizer = @optimizer.chain()",
        f"optimizer.chain.transformations = (('centralize', {{}}), ('sgd', {{'learning_rate': {rate}}}))",
    ]
    experiment = gin_loader.load_experiment(["gin/quickstart.gin"], bindings)
    pairs = (("init_value", 1e-3), ("end_value", 0.0), ("transition_steps", "num_steps"))
    sgd = ("sgd", (("learning_rate", ("linear_schedule", pairs)),))
    assert experiment.optimizer == Chain((("centralize", ()), sgd))
    assert hash(experiment.optimizer) == hash(Chain((("centralize", ()), sgd)))
    (tmp_path / "config.gin").write_text(serialize.config_text(experiment))
    again = gin_loader.load_experiment([str(tmp_path / "config.gin")], [])
    assert again == experiment


@pytest.mark.parametrize(
    ("transformation", "message"),
    [
        (("eval", {}), "'eval' is none of adabelief, "),
        (("apply_if_finite", {}), "'apply_if_finite' is none of "),
        (("chain", {}), "'chain' is none of "),
        (("adam", {"rate": 1.0}), "adam has no argument 'rate'; it has learning_rate, b1, "),
        (("adam", {}), "adam: .*learning_rate"),
        (("adam", {"learning_rate": "1e-3"}), "adam: learning_rate = '1e-3' is no number"),
        (("adam", {"learning_rate": ("open", {})}), "'open' is none of constant_schedule, "),
        (
            ("adam", {"learning_rate": ("adam", {"learning_rate": 1.0})}),
            "'adam' is none of constant_schedule",
        ),
        (("adam", {"learning_rate": "kernels"}), "adam: learning_rate = 'kernels' is no number"),
        ("adam", "expected tuple"),
        (("adam",), r"\('adam',\) must be a pair of a name and arguments"),
        (("adam", 1e-3), "must be a pair of a name and arguments"),
    ],
)
def test_what_is_none_of_optax_is_refused_when_it_is_made(transformation, message):
    with pytest.raises(UserError, match=r"^optimizer\.chain\.transformations.*: .*" + message):
        Chain((transformation,))


def test_nothing_but_numbers_reaches_optax():
    with pytest.raises(UserError, match="learning_rate"):
        Chain((("adam", {"learning_rate": print}),))
    assert re.search("is no number", _refusal({"learning_rate": float("nan")}))


def _refusal(arguments: dict) -> str:
    with pytest.raises(UserError) as refused:
        Chain((("adam", arguments),))
    return str(refused.value)
