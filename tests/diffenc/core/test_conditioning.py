import jax
import jax.numpy as jnp
import numpy as np

from diffenc.core.conditioning import UNCONDITIONAL, drop_condition

TOLD = jnp.asarray(np.arange(20_000) % 7 + 1)


def test_who_is_told_nothing_has_no_condition():
    assert UNCONDITIONAL(np.arange(3)) is None
    assert (UNCONDITIONAL.label, UNCONDITIONAL.drop) == (None, 0.0)
    assert drop_condition(None, 0.5, jax.random.key(0)) is None


def test_a_share_is_dropped_and_the_rest_is_left():
    got = np.asarray(drop_condition(TOLD, 0.3, jax.random.key(0)))
    gone = got == 0
    assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(TOLD))
    np.testing.assert_array_equal(got[~gone], np.asarray(TOLD)[~gone])
    np.testing.assert_array_equal(drop_condition(TOLD, 0.0, jax.random.key(0)), TOLD)


def test_the_key_says_which():
    first, same, other = (np.asarray(drop_condition(TOLD, 0.3, jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.any(first != other)
