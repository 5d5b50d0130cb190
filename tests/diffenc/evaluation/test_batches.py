"""Which images a measurement sees, how often, and with what keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffenc.config.settings import Diagnose, Evaluate, Fit
from diffenc.core.conditioning import UNCONDITIONAL
from diffenc.errors import UserError
from diffenc.evaluation.batches import (
    EvaluationBatches,
    compile_on_mesh,
    make_draws,
    map_batches,
    resolve_batch_size,
)
from diffenc.interfaces import Images
from diffenc.parallel.sharding import data_mesh


def passes(tiny, settings, purpose="some", **more):
    settings = resolve_batch_size(settings, 4)
    return EvaluationBatches(tiny().dataset, UNCONDITIONAL, settings, data_mesh(), purpose, **more)


@pytest.mark.parametrize(
    "settings", [Evaluate("test", passes=3), Fit("test", passes=3), Diagnose("test", passes=3)]
)
def test_every_image_comes_once_a_pass_in_source_order(tiny, settings):
    seen = passes(tiny, settings)
    images = tiny().dataset.source("test").images
    visits = list(seen)
    assert len(visits) == len(seen) == 3 * 4
    rows = [np.moveaxis(np.asarray(visit.images.levels), 0, -1)[..., visit.mask] for visit in visits]
    for one in seen.stack_passes(rows):
        np.testing.assert_array_equal(np.moveaxis(one, -1, 0), images)
    assert [visit.pass_index for visit in visits] == [0] * 4 + [1] * 4 + [2] * 4
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

    monkeypatch.setattr("diffenc.evaluation.batches.check_divisible", refuse)
    for settings, name in ((Evaluate(), "evaluate"), (Fit(), "fit"), (Diagnose(), "diagnose")):
        with pytest.raises(UserError, match=rf"^{name}\.batch_size = 4$"):
            passes(tiny, settings)


def test_what_is_compiled_is_the_function(tiny):
    compiled = compile_on_mesh(data_mesh(), lambda params, images, key: params["a"] + images.levels.sum())
    levels = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    assert float(compiled({"a": 1.0}, Images(jnp.asarray(levels)), jax.random.key(0))) == 29.0


def test_passes_image_by_image_are_the_same_in_another_order(tiny):
    seen = passes(tiny, Evaluate(passes=3))
    by_image = list(seen.image_by_image())
    assert [visit.first for visit in by_image] == [first for first in (0, 4, 8, 12) for _ in range(3)]
    for one, other in zip(sorted(by_image, key=lambda visit: visit.pass_index), seen, strict=True):
        assert (one.pass_index, one.first) == (other.pass_index, other.first)
        assert one.key == other.key
        np.testing.assert_array_equal(one.images.levels, other.images.levels)
        np.testing.assert_array_equal(one.draws.times, other.draws.times)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_each_batch_is_mapped_before_the_next_is_made(tiny):
    """So that only one batch is on the devices; progress shows what the caller is done with."""
    events = []

    def batches():
        for visit in passes(tiny, Evaluate(passes=2)):
            events.append("made")
            yield visit

    compiled = compile_on_mesh(data_mesh(), lambda scale, images, key: scale * images.levels.sum((1, 2, 3)))
    results = map_batches(
        compiled, 3, batches(), lambda visit: (visit.images, visit.key), lambda: events.append("done")
    )
    sums = []
    for result, visit in results:
        events.append("used")
        assert isinstance(result, np.ndarray)
        sums.append(visit.without_padding(result))
    assert events == ["made", "used", "done"] * 8
    images = tiny().dataset.source("test").images.astype(int)
    np.testing.assert_array_equal(np.concatenate(sums), np.tile(3 * images.sum((1, 2, 3)), 2))


@pytest.mark.parametrize(("batch_size", "times"), [(4, 1), (5, 1), (13, 3), (16, 3)])
def test_times_are_stratified_over_all_images_of_a_pass(tiny, batch_size, times):
    """Each of 13 x `times` equal parts of [0, 1) is hit once in a pass, and each image has one time in each of `times`."""
    seen = passes(tiny, Evaluate(passes=3, batch_size=batch_size), times_per_image=times)
    by_pass = seen.stack_passes([visit.without_padding(np.asarray(visit.draws.times).T) for visit in seen])
    by_pass = by_pass.swapaxes(1, 2)
    for number, drawn in enumerate(by_pass):
        np.testing.assert_array_equal(
            np.sort((drawn.ravel() * 13 * times).astype(int)), np.arange(13 * times)
        )
        np.testing.assert_array_equal((np.sort(drawn, axis=1) * times).astype(int), [[*range(times)]] * 13)
        np.testing.assert_array_equal(drawn, seen.times(number))
    assert all(np.any(np.argsort(by_pass[0][:, 0]) != np.argsort(other[:, 0])) for other in by_pass[1:])


@pytest.mark.slow
def test_an_images_time_is_uniform_and_moves_freely_from_pass_to_pass(tiny):
    drawn = np.stack([passes(tiny, Evaluate(passes=1)).times(number)[:, 0] for number in range(400)])
    for one in drawn.T[:4]:
        assert stats.kstest(one, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 4 / np.sqrt(400)
    assert np.all((drawn >= 0) & (drawn < 1))


def test_noise_is_of_the_image_and_the_pass_alone(tiny):
    def noise(batch_size):
        found = []
        for visit in passes(tiny, Evaluate(passes=2, batch_size=batch_size)):
            draws = make_draws(visit.draws, (batch_size, 4, 4, 1))
            found.append(np.stack([draws.eps, draws.eps_0], axis=1)[visit.mask])
        return np.concatenate(found)

    one, other = noise(4), noise(13)
    np.testing.assert_array_equal(one, other)
    assert one.shape == (2 * 13, 2, 4, 4, 1)
    assert len(np.unique(one)) > 0.99 * one.size, "no two draw the same"
    assert stats.kstest(one.ravel(), "norm").pvalue > 1e-3
