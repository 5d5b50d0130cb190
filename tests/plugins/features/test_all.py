"""What all features promise, as far as their weights are there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import interfaces, registry
from diffenc.errors import UserError

every_kind = pytest.mark.parametrize("name", list(registry.features))


@functools.cache
def loaded(name):
    """The plugin's features, or None where the weights are a file of the user's."""
    try:
        return registry.features[name]().load()
    except UserError:
        return None


@pytest.fixture
def extract(name):
    """Features of images."""
    function = loaded(name)
    if function is None:
        pytest.skip(f"no weights of {name}")
    compiled = jax.jit(
        lambda loaded, images: loaded(images), compiler_options={"xla_backend_optimization_level": 0}
    )
    return lambda images: np.asarray(compiled(function, jnp.asarray(images)))


@every_kind
def test_the_interface_is_kept(name):
    plugin = registry.features[name]()
    assert isinstance(plugin, interfaces.Features)
    assert plugin.num_features > 0
    assert plugin == registry.features[name]()
    hash(plugin)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin.weights = "x"  # pyright: ignore[reportAttributeAccessIssue]


@every_kind
def test_by_any_weights_the_distance_has_a_name_and_it_is_not_fid(name, tmp_path):
    (tmp_path / "w").write_bytes(b"any")
    metric = registry.features[name](weights=str(tmp_path / "w")).metric()  # pyright: ignore[reportCallIssue]
    assert metric.isidentifier()
    assert metric != "fid"


@every_kind
def test_what_is_not_there_is_told_in_one_line_with_key_and_file(name, tmp_path):
    plugin = registry.features[name](weights=str(tmp_path / "absent"))  # pyright: ignore[reportCallIssue]
    for call in (plugin.identity, plugin.load):
        with pytest.raises(UserError, match=rf"absent: .*features\.{name}\.weights") as refused:
            call()
        assert "\n" not in str(refused.value)


@every_kind
def test_each_image_has_features_of_its_own_grey_ones_too(name, extract):
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 1), dtype=np.uint8)
    found = extract(images)
    assert (found.shape, found.dtype) == ((3, registry.features[name]().num_features), np.float32)
    assert np.isfinite(found).all()
    scale = np.abs(found).max()
    np.testing.assert_allclose(extract(images[::-1])[::-1], found, atol=1e-4 * scale)
    np.testing.assert_allclose(extract(np.repeat(images, 3, axis=-1)), found, atol=1e-4 * scale)
    assert np.abs(found[0] - found[1]).max() > 1e-3 * scale


@every_kind
def test_in_float64_they_are_the_same(name, extract, x64):
    images = np.random.default_rng(0).integers(0, 256, (1, 12, 10, 3), dtype=np.uint8)
    assert extract(images).dtype == np.float32


@every_kind
def test_weights_are_arguments_of_what_is_compiled(name, extract):
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded(name)))
    assert count > 100_000
