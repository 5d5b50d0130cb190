"""Re-encoding with classes: the encoder keeps the condition that guidance takes from the network, as in training."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.core.interval import tangent
from diffenc.core.model import Model
from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import NO_CONTEXT, ClassConditional
from diffenc.sampling import sampler
from diffenc_plugins.conditionings import ByClass
from diffenc_plugins.generative_means import Counterterm, Reencoded
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear


@dataclasses.dataclass(frozen=True)
class Shifts(ClassConditional):
    """The image, lighter by the number of its condition; a condition of none is far off, as one that was never trained."""

    classes: int = 3

    def init(self, key, x, log_snr):
        return {}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        condition = context.condition
        assert condition is not None
        shift = jnp.where(condition == 0, 100.0, condition)
        return x + shift[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Halves:
    """x_hat = z / 2, whatever the class."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return 0.5 * z


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_leaves_the_encoder_its_condition(guidance):
    model = Model(Shifts(), Linear(), X(), Reencoded(), Halves(), ByClass(drop=0.1))
    z, condition = jnp.ones((2, 4, 4, 1)), jnp.asarray([1, 3])
    params = {"encoder": {}, "schedule": {}, "network": {}}
    at = tangent(partial(MARKOV.increment, {}), jnp.asarray([-1.0, 2.0]))
    value, _ = sampler.estimator_of(model, params, condition, guidance)(z, at)
    np.testing.assert_allclose(value[:, 0, 0, 0], [1.5, 3.5], rtol=1e-6)


def test_its_bound_is_one_given_the_class_that_its_encoder_reads():
    reencoded = Model(Shifts(), Linear(), X(), Reencoded(), Halves(), ByClass())
    assert reencoded.condition_metadata() == {"condition": "class", "encoder_condition": "class"}
    thrown_away = dataclasses.replace(reencoded, generative_mean=Counterterm())
    assert thrown_away.condition_metadata() == {"encoder_condition": "class"}
