"""Checks of encoders and networks alike: each refuses a plugin with its own fault."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.interfaces import NO_CONTEXT, ClassConditional, PreparedOnce
from diffenc.testing import image_maps as checks
from diffenc_plugins.encoders import Identity

FOUR = jnp.arange(4.0).reshape(4, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Fine(ClassConditional):
    """x + gain s x, s = sigmoid(-log_snr), half the gains dropped, and a number for each class."""

    classes: int = 2

    def init(self, key, x, log_snr):
        return {"gain": jax.random.normal(key, (x.shape[-1],)), "shift": jnp.zeros(self.classes + 1)}

    def mask(self, x, keys):
        return (
            1.0 if keys is None else jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, x.shape[1:]))(keys)
        )

    def shift(self, params, condition):
        return 0.0 if condition is None else params["shift"].at[0].set(0.0)[condition][:, None, None, None]

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        s = jax.nn.sigmoid(-log_snr)[:, None, None, None]
        gains = jnp.broadcast_to(params["gain"], x.shape) * self.mask(x, context.keys)
        return x + s * (gains * x + self.shift(params, context.condition))


class OneChannel(Fine):
    def apply(self, *args, **kwargs):
        return super().apply(*args, **kwargs)[..., :1]


class Coarse(Fine):
    def apply(self, *args, **kwargs):
        return super().apply(*args, **kwargs).astype(jnp.bfloat16)


class InitOfPixels(Fine):
    def init(self, key, x, log_snr):
        return {"gain": jnp.mean(x, axis=(0, 1, 2)), "shift": jnp.zeros(self.classes + 1)}


class InitOfNoKey(Fine):
    def init(self, key, x, log_snr):
        return {"gain": jnp.asarray(np.random.normal(size=x.shape[-1])), "shift": jnp.zeros(self.classes + 1)}


class InitInfinite(Fine):
    def init(self, key, x, log_snr):
        return {"gain": jnp.full(x.shape[-1], jnp.inf), "shift": jnp.zeros(self.classes + 1)}


class Overflows(Fine):
    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr, context) + jnp.exp(-10 * log_snr)[:, None, None, None]


class RootOfNothing(Fine):
    """Finite, with a gradient 1 / 0 times 0."""

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr, context) + jnp.sqrt(0 * x)


class ByPlace(Fine):
    def apply(self, *args, **kwargs):
        return super().apply(*args, **kwargs) + FOUR


class ByMean(Fine):
    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr, context) + jnp.mean(x, axis=0, keepdims=True)


class SecretClasses(Fine):
    """Looks at the condition, and says it takes none."""

    def shift(self, params, condition):
        return 0.0 if condition is None else 1.0 * condition[:, None, None, None]


class NoneIsOne(Fine):
    def shift(self, params, condition):
        return 0.0 if condition is None else params["shift"][condition][:, None, None, None] + 0.1


class Deaf(Fine):
    def shift(self, params, condition):
        return 0.0


class Gossip(Fine):
    """Tells all images what is known of any."""

    def shift(self, params, condition):
        each = super().shift(params, condition)
        return each if condition is None else each + jnp.where(each == 0, 0.0, 1.0) * jnp.sum(each)


class Unseeded(Fine):
    def mask(self, x, keys):
        return 1.0 if keys is None else np.random.uniform(size=x.shape)


class Restless(Fine):
    def mask(self, x, keys):
        return np.random.uniform(size=x.shape).astype(np.float32) if keys is None else super().mask(x, keys)


class FirstKeyForAll(Fine):
    def mask(self, x, keys):
        return super().mask(x, None if keys is None else jnp.broadcast_to(keys[:1], keys.shape))


class AllKeysForAll(Fine):
    def mask(self, x, keys):
        one = super().mask(x, keys)
        return 1.0 if keys is None else one * jnp.mean(one)


class Holding(Fine):
    """Keeps its parameters in a structure of its own."""

    def _hold(self, params):
        raise NotImplementedError

    def init(self, key, x, log_snr):
        return self._hold(super().init(key, x, log_snr))


class HoldsAFunction(Holding):
    def _hold(self, params):
        return {**params, "activation": jnp.tanh}


class HoldsAnInteger(Holding):
    def _hold(self, params):
        return {**params, "layers": 3}


class HoldsBytes(Holding):
    def _hold(self, params):
        return {**params, "table": np.zeros(3, np.uint8)}


@jax.tree_util.register_pytree_node_class
class Node:
    """Calls its static field what it is given."""

    def __init__(self, params, static):
        self.params, self.static = params, static

    def tree_flatten(self):
        return (self.params,), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(children[0], static)


@jax.tree_util.register_pytree_node_class
class Strict(Node):
    """Does arithmetic when it is unflattened."""

    def __init__(self, params, static):
        super().__init__(params, static)
        self.total = sum(leaf.ndim for leaf in jax.tree.leaves(params))


class HoldsALambda(Holding):
    def _hold(self, params):
        return Node(params, lambda: None)


class HoldsAnArrayAside(Holding):
    def _hold(self, params):
        return Node(params, np.zeros(3))


class HoldsStrictly(Holding):
    def _hold(self, params):
        return Strict(params, "any")


@dataclasses.dataclass(frozen=True)
class Split(PreparedOnce):
    """(1 + gain s) x in two parts."""

    def init(self, key, x, log_snr):
        return {"gain": jnp.ones(())}

    def prepare(self, params, x, context=NO_CONTEXT):
        return x, params["gain"] * x

    def at(self, params, prepared, log_snr):
        x, gained = prepared
        return x + jax.nn.sigmoid(-log_snr)[:, None, None, None] * gained


class Unlike(Split):
    """`apply` is another encoder than its two parts."""

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr + 0.01, context)


class UnlikeUnderKeys(Split):
    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return super().apply(params, x, log_snr + (0.0 if context.keys is None else 0.01), context)


class OneForAll(Split):
    """What it prepares is no entry for each image."""

    def prepare(self, params, x, context=NO_CONTEXT):
        return jnp.mean(x, axis=0), params["gain"] * x

    def at(self, params, prepared, log_snr):
        mean, gained = prepared
        return gained + 0 * mean[None]


class ByPlaceInTheBatch(Split):
    """Entries of what it prepared encode other images than these."""

    def at(self, params, prepared, log_snr):
        return super().at(params, prepared, log_snr) + 0.1 * len(prepared[0])


FAULTS = [
    (
        checks.parameters_are_trainable,
        HoldsAFunction(),
        r"init returns activation, which is a function \(tanh\): parameters are arrays",
    ),
    (checks.parameters_are_trainable, HoldsAnInteger(), "init returns layers, which is of type int"),
    (checks.parameters_are_trainable, HoldsBytes(), r"init returns table, which is uint8\[3\]"),
    (checks.parameters_are_trainable, HoldsALambda(), "two calls of init return pytrees of different"),
    (
        checks.parameters_are_trainable,
        HoldsAnArrayAside(),
        "two calls of init",
    ),
    (checks.parameters_are_trainable, HoldsStrictly(), "cannot hold other leaves than arrays"),
    (
        checks.output_matches_the_image,
        OneChannel(),
        r"OneChannel: the output is float32 \(4, 8, 8, 1\)",
    ),
    (checks.output_matches_the_image, Coarse(), r"the output is bfloat16"),
    (checks.init_depends_only_on_key_and_shapes, InitOfPixels(), "init depends on the images"),
    (checks.init_depends_only_on_key_and_shapes, InitOfNoKey(), "the same key gives other parameters"),
    (
        checks.init_depends_only_on_key_and_shapes,
        InitInfinite(),
        r"an initial parameter: NaN or infinite at gain",
    ),
    (checks.values_and_derivatives_are_finite, Overflows(), "NaN or infinite"),
    (checks.values_and_derivatives_are_finite, RootOfNothing(), "NaN or infinite"),
    (checks.outputs_ignore_other_images, ByPlace(), "the order of the batch changes"),
    (checks.outputs_ignore_other_images, ByMean(), "another image changes"),
    (checks.outputs_follow_their_own_class, SecretClasses(classes=0), "declares no `classes`"),
    (checks.outputs_follow_their_own_class, NoneIsOne(), "condition 0 differs from no condition"),
    (checks.outputs_follow_their_own_class, Deaf(), "a class changes nothing"),
    (checks.outputs_follow_their_own_class, Gossip(), "another image's class changes"),
    (checks.masks_follow_their_own_key, Unseeded(), "the same keys give another output"),
    (checks.masks_follow_their_own_key, Restless(), "random without keys"),
    (checks.masks_follow_their_own_key, FirstKeyForAll(), "depends on more than its own key"),
    (checks.masks_follow_their_own_key, AllKeysForAll(), "another image's key changes"),
    (checks.apply_equals_at_of_prepare, Unlike(), "`at` of `prepare` differs from `apply`"),
    (checks.apply_equals_at_of_prepare, UnlikeUnderKeys(), "`at` of `prepare` differs from `apply`"),
    (checks.apply_equals_at_of_prepare, OneForAll(), "which is no entry for each image"),
    (checks.apply_equals_at_of_prepare, ByPlaceInTheBatch(), "encodes other images"),
]


@pytest.mark.thin
@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("plugin", [Fine(), Fine(classes=0)], ids=["conditional", "unconditional"])
def test_what_keeps_all_passes_all(check, plugin):
    check(plugin)
    check(plugin, image_shape=(4, 6, 1))


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} == set(checks.CHECKS)


@dataclasses.dataclass(frozen=True)
class Noting(Identity):
    """Notes the shapes that it is given."""

    shapes: ClassVar[set[tuple[int, ...]]] = set()

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        self.shapes.add(x.shape[1:])
        return super().apply(params, x, log_snr, context)


def test_all_checks_of_a_kind_are_run_on_images_of_a_given_shape(monkeypatch):
    monkeypatch.setitem(registry.encoders._classes, "noting", Noting)
    testing.check(Noting(), image_shape=(4, 6, 1))
    assert Noting.shapes == {(4, 6, 1)}
