"""Which images a measurement sees, how often, and with what keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.devices.sharding import data_mesh
from diffenc.errors import UserError
from diffenc.interfaces import Images
from diffenc.measuring.passes import Passes, compile_over
from diffenc.settings import Diagnose, Evaluate, Fit


def passes(tiny, settings, purpose="some", **more):
    return Passes(tiny(batch_size=4), settings, data_mesh(), purpose, **more)


@pytest.mark.parametrize(
    "settings", [Evaluate("test", passes=3), Fit("test", passes=3), Diagnose("test", passes=3)]
)
def test_every_image_comes_once_a_pass_in_source_order(tiny, settings):
    seen = passes(tiny, settings)
    images = tiny().dataset.source("test").images
    visits = list(seen)
    assert len(visits) == len(seen) == 3 * 4
    rows = [np.asarray(visit.images.levels)[visit.real] for visit in visits]
    for one in seen.by_pass(rows):
        np.testing.assert_array_equal(np.concatenate(one), images)
    assert [visit.number for visit in visits] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(visit.images.levels.shape == (4, 4, 4, 1) for visit in visits)


def test_all_keys_differ_but_those_of_the_same_seed_and_purpose(tiny):
    def keys(**changes):
        settings = Evaluate(passes=2, **{"seed": 0, **changes})
        return {tuple(jax.random.key_data(visit.key).tolist()) for visit in passes(tiny, settings)}

    assert len(keys()) == 2 * 4
    assert keys() == keys()
    assert not keys() & keys(seed=1)
    settings = Evaluate(passes=2)
    others = {tuple(jax.random.key_data(v.key).tolist()) for v in passes(tiny, settings, "another")}
    assert not keys() & others


def test_what_the_settings_say(tiny):
    assert passes(tiny, Evaluate(batch_size=5)).batch_size == 5
    assert passes(tiny, Evaluate()).batch_size == 4
    assert len(passes(tiny, Evaluate(num_images=3)).source) == 3
    assert len(passes(tiny, Fit(num_images=None)).source) == 23
    assert len(passes(tiny, Fit(passes=2), passes=7)) == 7 * 6


def test_a_batch_that_does_not_divide_is_refused_by_its_name(tiny, monkeypatch):
    def refuse(name, batch_size, mesh):
        raise UserError(f"{name} = {batch_size}")

    monkeypatch.setattr("diffenc.measuring.passes.check_divisible", refuse)
    for settings, name in ((Evaluate(), "evaluate"), (Fit(), "fit"), (Diagnose(), "diagnose")):
        with pytest.raises(UserError, match=rf"^{name}\.batch_size = 4$"):
            passes(tiny, settings)


def test_what_is_compiled_is_the_function(tiny):
    compiled = compile_over(data_mesh(), lambda params, images, key: params["a"] + images.levels.sum())
    levels = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    assert float(compiled({"a": 1.0}, Images(jnp.asarray(levels)), jax.random.key(0))) == 29.0
