"""What all features promise, as far as their weights are there."""

import functools

import jax
import pytest

from diffenc import registry, testing
from diffenc.errors import UserError

every_kind = pytest.mark.parametrize("name", list(registry.features))
of_a_file = pytest.mark.parametrize(
    "name", [name for name in registry.features if hasattr(registry.features[name], "weights")]
)


@functools.cache
def loaded(name):
    """The plugin's features, or None where the weights are a file of the user's."""
    try:
        return registry.features[name]().load()
    except UserError:
        return None


@every_kind
@pytest.mark.parametrize("check", testing.CHECKS["features"])
def test_they_keep_what_features_keep(name, check):
    if loaded(name) is None and check not in testing.any_plugin.CHECKS:
        pytest.skip(f"no weights of {name}")
    check(registry.features[name]())


@of_a_file
def test_by_any_weights_the_distance_has_a_name_and_it_is_not_fid(name, tmp_path):
    (tmp_path / "w").write_bytes(b"any")
    metric = registry.features[name](weights=str(tmp_path / "w")).metric()  # pyright: ignore[reportCallIssue]
    assert metric.isidentifier()
    assert metric != "fid"


@of_a_file
def test_what_is_not_there_is_told_in_one_line_with_key_and_file(name, tmp_path):
    plugin = registry.features[name](weights=str(tmp_path / "absent"))  # pyright: ignore[reportCallIssue]
    for call in (plugin.identity, plugin.load):
        with pytest.raises(UserError, match=rf"absent: .*features\.{name}\.weights") as refused:
            call()
        assert "\n" not in str(refused.value)


@of_a_file
def test_weights_are_arguments_of_what_is_compiled(name):
    if loaded(name) is None:
        pytest.skip(f"no weights of {name}")
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded(name)))
    assert count > 100_000
