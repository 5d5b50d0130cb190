"""What every network keeps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.errors import UserError
from diffenc.interfaces import Context
from diffenc.testing import image_maps
from diffenc.testing.make_inputs import subject

SHAPE = (4, 8, 8, 2)
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"blocks": 1, "channels": 8, "dropout": 0.5},
    "encoder_unet": {"blocks": 2, "channels": 8, "dropout": 0.5},
}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", params=list(registry.networks))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return registry.networks[name](**SMALL.get(name, {}))


@pytest.fixture(scope="module")
def params(network):
    """As initialised, every leaf shaken so that nothing is silent."""
    return subject(network, SHAPE[1:]).params


@pytest.fixture(scope="module")
def apply(network):
    return subject(network, SHAPE[1:]).apply


@pytest.fixture(scope="module")
def inputs():
    z = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    return z, jnp.asarray([-15.0, -5.0, 1.3, 15.0])


@pytest.mark.parametrize("check", testing.CHECKS["network"])
def test_it_keeps_what_a_network_keeps(network, check):
    check(network)


def test_the_noise_level_is_seen(apply, params, inputs):
    z, log_snr = inputs
    change = np.asarray(apply(params, z, log_snr + 0.5) - apply(params, z, log_snr))
    assert np.all(np.max(np.abs(change), axis=(1, 2, 3)) > 1e-2)


@pytest.fixture(scope="module")
def told(name, network):
    """(the network that takes 2 classes, its parameters, shaken; apply)."""
    if not hasattr(network, "classes"):
        pytest.skip(f"network.{name} takes no classes")
    network = dataclasses.replace(network, classes=2)
    its = subject(network, SHAPE[1:])
    return network, its.params, its.apply


CONDITION = np.array([0, 1, 0, 2])


def test_the_class_is_seen_by_its_images(told, inputs):
    image_maps.outputs_follow_their_own_class(told[0])
    _, params, apply = told
    bare, labelled = (np.asarray(apply(params, *inputs, Context(c))) for c in (None, jnp.asarray(CONDITION)))
    assert np.all(np.max(np.abs(labelled - bare)[[1, 3]], axis=(1, 2, 3)) > 1e-3)
    swapped = np.asarray(apply(params, *inputs, Context(jnp.asarray([0, 2, 0, 1]))))
    assert np.all(np.max(np.abs(swapped - labelled)[[1, 3]], axis=(1, 2, 3)) > 1e-3)


@pytest.mark.slow
def test_every_class_learns(told, inputs):
    network, params, _ = told

    @quick
    def gradient(params):
        loss = lambda p: jnp.sum(network.apply(p, *inputs, Context(jnp.asarray(CONDITION))) ** 2)  # noqa: E731
        return jax.grad(loss)(params)

    rows = gradient(params)["classes"]["table"]
    assert rows.shape == (3, 32)
    assert np.all(np.max(np.abs(rows), axis=1) > 0)


def test_classes_start_as_one_and_add_nothing_but_their_table(told, network, inputs):
    told, _, apply = told
    plain, params = (
        quick(net.init)(jax.random.key(0, impl="unsafe_rbg"), *inputs) for net in (network, told)
    )
    assert params.keys() - plain.keys() == {"classes"}
    np.testing.assert_array_equal(params["classes"]["table"], np.zeros((3, 32)))
    shaken = {**params, "conv_out": jax.tree.map(lambda leaf: leaf + 0.1, params["conv_out"])}
    bare, labelled = (apply(shaken, *inputs, Context(c)) for c in (None, jnp.asarray(CONDITION)))
    np.testing.assert_array_equal(labelled, bare)


def test_without_classes_it_does_not_look(apply, params, inputs):
    labelled = apply(params, *inputs, Context(jnp.asarray(CONDITION)))
    np.testing.assert_array_equal(labelled, apply(params, *inputs))


def keys_of(seed):
    return jax.random.split(jax.random.key(seed), SHAPE[0])


def test_another_key_draws_another_mask(name, network, apply, params, inputs):
    if not hasattr(network, "dropout"):
        pytest.skip(f"network.{name} drops nothing")
    first, other = (apply(params, *inputs, Context(keys=keys_of(k))) for k in (0, 1))
    assert np.any(first != other)
    assert np.any(first != apply(params, *inputs))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("channels", 0, "must be at least 1"),
        ("channels", -8, "must be at least 1"),
        ("groups", 3, "does not divide"),
        ("groups", 0, "does not divide"),
        ("dropout", 1.0, r"must be in \[0, 1\)"),
        ("dropout", -0.1, r"must be in \[0, 1\)"),
        ("blocks", 0, "must be"),
        ("classes", -1, "must not be negative"),
        ("precision", "float8", "must be float32 or bfloat16"),
        ("log_snr_max", -6.0, "greater than log_snr_min"),
    ],
)
def test_impossible_settings_are_refused(name, field, value, why):
    if not hasattr(registry.networks[name](), field):
        pytest.skip(f"network.{name} has no {field}")
    with pytest.raises(UserError, match=rf"^network\.{name}\.{field} = {value!r}.*{why}") as caught:
        registry.networks[name](**{**SMALL.get(name, {}), field: value})
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def rounded(name, network):
    if not hasattr(network, "precision"):
        pytest.skip(f"network.{name} has one precision")
    return dataclasses.replace(network, precision="bfloat16")


def test_in_bfloat16_the_output_is_float32_and_near(rounded, apply, params, inputs):
    """Eight bits a rounding, through a dozen layers: a few in a thousand; none at all would be float32 throughout."""
    want, got = apply(params, *inputs), quick(rounded.apply)(params, *inputs)
    assert got.dtype == jnp.float32
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-4 < error < 0.02


def test_in_bfloat16_parameters_and_their_gradients_are_float32(rounded, params, inputs):
    shapes = jax.eval_shape(rounded.init, jax.random.key(0), *inputs)
    assert shapes == jax.eval_shape(lambda tree: tree, params)
    loss = lambda params: jnp.sum(rounded.apply(params, *inputs))  # noqa: E731
    gradient = jax.eval_shape(jax.grad(loss), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
