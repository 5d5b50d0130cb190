import itertools

import jax
import numpy as np

from diffenc.randomness import root_key

PURPOSES = ("init", "train", "evaluate", "sample")


def _children(key):
    return {tuple(np.asarray(jax.random.key_data(jax.random.fold_in(key, i)))) for i in range(200)}


def test_no_two_purposes_share_a_key_or_a_child():
    families = [_children(root_key(seed, purpose)) for seed in (0, 1) for purpose in PURPOSES]
    assert all(len(family) == 200 for family in families)
    assert not any(one & other for one, other in itertools.combinations(families, 2))


def test_the_purposes_do_not_meet_the_children_of_the_bare_seed():
    bare = _children(jax.random.key(0)) | _children(jax.random.fold_in(jax.random.key(0), 1))
    assert not any(bare & _children(root_key(0, purpose)) for purpose in PURPOSES)


def test_a_key_is_a_function_of_seed_and_purpose():
    first, second = (jax.random.key_data(root_key(7, "train")) for _ in range(2))
    np.testing.assert_array_equal(first, second)
