"""VDM's monotone network as schedule.monotone: gamma is computed here by its formula, in float64.

Names and losses of a whole model are tested in tests/golden.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc_plugins import released_vdm
from diffenc_plugins.schedules import Monotone

TIMES = np.linspace(0, 1, 33)


def network(seed, units=1024, line=18.3, steep=0.02, weight=1.0):
    random = np.random.default_rng(seed)
    return {
        "gamma/l1/kernel": np.full((1, 1), line, np.float32),
        "gamma/l1/bias": np.full(1, -13.3, np.float32),
        "gamma/l2/kernel": random.normal(0, steep, (1, units)).astype(np.float32),
        "gamma/l2/bias": random.normal(0, 1, units).astype(np.float32),
        "gamma/l3/kernel": random.normal(0, weight, (units, 1)).astype(np.float32),
    }


def gamma_of(arrays, t):
    """A line, and tanh(x / 2) = 2 sigmoid(x) - 1 of 2 t - 1, with kernels' magnitudes."""
    l1, b1, l2, b2, l3 = (np.asarray(array, np.float64).ravel() for array in arrays.values())
    inner = np.multiply.outer(2 * t - 1, np.abs(l2)) + b2
    return b1[0] + abs(l1[0]) * t + np.tanh(inner / 2) @ np.abs(l3) / len(l3)


def log_snr_of(arrays, t):
    ours = released_vdm.translate(arrays)
    tree: dict = {"ends": {}, "interior": {}}
    for name, array in ours.items():
        kind, part, leaf = name.split("/")
        assert kind == "schedule"
        tree[part][leaf] = jnp.asarray(array)
    schedule = Monotone(units=arrays["gamma/l3/kernel"].size)
    first = schedule.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, first)
    return schedule.apply(tree, jnp.asarray(t, jnp.float32))


@pytest.mark.parametrize(
    "arrays",
    [
        network(0),
        network(1, line=-18.3),
        network(2, steep=3.0, weight=30.0),  # bumps fall by more than the line does
        network(3, units=1, steep=20.0, weight=5.0),
        network(4, units=7, steep=0.0),  # all of it is the line
    ],
)
def test_it_falls_as_theirs_does(arrays):
    np.testing.assert_allclose(log_snr_of(arrays, TIMES), -gamma_of(arrays, TIMES), atol=1e-4)


def test_too_little_of_a_line_is_refused():
    """Of the whole rise, by the formula; schedule.monotone keeps a twentieth of the bumps' part, and a thousandth."""
    arrays = network(5, line=0.5, steep=3.0, weight=30.0)
    linear = 0.5 / np.ptp(gamma_of(arrays, np.array([0.0, 1.0])))
    assert linear < 0.05
    with pytest.raises(
        ValueError, match=f"line, l1, for {linear:.3g} of the whole, and schedule.monotone for 0.0"
    ):
        released_vdm.translate(arrays)


def test_sizes_that_do_not_go_together_are_refused():
    arrays = {**network(6, units=4), "gamma/l2/bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="gamma/l1 to l3 hold 1, 1, 4, 3 and 4 numbers"):
        released_vdm.translate(arrays)


def test_a_part_of_a_network_stays_unknown():
    arrays = network(7, units=4)
    del arrays["gamma/l2/bias"]
    assert released_vdm.translate(arrays).keys() == arrays.keys()


def test_scalars_are_read_as_diffencs():
    ours = released_vdm.translate({"gamma/w": np.array([18.3], np.float32), "gamma/b": np.array([-13.3])})
    assert ours["schedule/start"] == pytest.approx(13.3)


def test_the_time_embedding_stands_in_the_network_itself():
    ours = released_vdm.translate(
        {"score_model/dense0/kernel": np.zeros((3, 2)), "score_model/dense1/bias": np.zeros(2)}
    )
    assert ours.keys() == {"network/embed_0/w", "network/embed_1/b"}
