import itertools
import json

import jax
import numpy as np
import pytest

from diffenc.core.rng import USUAL, changed_draws, draw_settings, generator, root_key

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


OTHER = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_enable_x64": True,
}


@pytest.fixture
def set_jax():
    """Sets one of JAX's settings for one test."""
    before = {}

    def set_to(name, value):
        before.setdefault(name, jax.config.values[name])
        jax.config.update(name, value)

    yield set_to
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("setting", OTHER)
def test_a_setting_that_makes_a_seed_draw_other_numbers_is_named(setting, set_jax):
    def numbers():
        return np.asarray(jax.random.normal(root_key(0, "train"), (64, 3)), np.float32)

    saved, first, before = draw_settings(), numbers(), jax.config.values[setting]
    assert changed_draws(saved, draw_settings()) is None
    set_jax(setting, OTHER[setting])
    assert not np.array_equal(numbers(), first), "it matters"
    said = changed_draws(json.loads(json.dumps(saved)), draw_settings())
    assert said == f"{setting} = {before} there and {OTHER[setting]} here"


def test_another_version_of_jax_counts_where_it_draws_other_numbers():
    now = draw_settings()
    other = {**now, "jax": "0.4.1"}
    assert changed_draws(other, now) is None
    rounded = {**other, "drawn": [number * (1 + 1e-6) for number in now["drawn"]]}
    assert changed_draws(rounded, now) is None
    drawn = {**other, "drawn": now["drawn"][::-1]}
    said = changed_draws(drawn, now)
    assert said == f"jax = 0.4.1 there and {jax.__version__} here, which draw other numbers"


def test_a_generator_that_differs_between_backends_has_its_backend_beside_it(set_jax):
    set_jax("jax_default_prng_impl", "unsafe_rbg")
    here = draw_settings()
    said = changed_draws({**here, "backend": "tpu"}, here)
    assert said == f"backend = tpu there and {jax.default_backend()} here"


def test_a_later_setting_is_no_difference_to_a_record_that_lacks_it():
    now = draw_settings()
    assert changed_draws({"jax": "0.10.2"}, now) is None


def test_the_generator_in_words(set_jax):
    assert generator() == USUAL
    set_jax("jax_threefry_partitionable", False)
    set_jax("jax_random_seed_offset", 5)
    assert generator() == "threefry2x32, seed offset 5"
