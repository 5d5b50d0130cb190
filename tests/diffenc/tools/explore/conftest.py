"""Models of closed form: an affine network, with parameters as drawn, and no training."""

import dataclasses
from collections.abc import Callable

import jax
import pytest

from diffenc.export.trained_model import TrainedModel
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM


@pytest.fixture(scope="module")
def trained(tiny) -> Callable[..., TrainedModel]:
    """Makes a model called `name`; with `plain` it is VDM, else it has a trainable encoder and the counterterm."""

    def make(name: str = "runs/one", plain: bool = False, seed: int = 0, **changes) -> TrainedModel:
        experiment = tiny(**changes)
        if plain:
            model = dataclasses.replace(experiment.model, encoder=Identity(), generative_mean=VDM())
            experiment = dataclasses.replace(experiment, model=model)
        params = jax.jit(experiment.init_params)(jax.random.key(seed))
        # The affine network starts with b = 0, which would hide a mistake in it.
        shift = jax.tree.map(lambda leaf: leaf + 0.1, {k: params[k] for k in ("encoder", "network")})
        return TrainedModel(experiment, {**params, **shift}, 12, name)

    return make
