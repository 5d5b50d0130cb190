"""Losses of recorded parameters, compared with the recorded losses; conventions are those of tests/golden."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.core.model import Draws, Model
from diffenc.core.parameters import name_leaves
from diffenc_plugins import released_diffenc, released_vdm
from diffenc_plugins.encoders import Identity, Nontrainable, Trainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.networks import EncoderUNet, UNet
from diffenc_plugins.parameterizations import Epsilon, V
from diffenc_plugins.schedules import Linear, Monotone

TERMS = {"diffusion": "loss_diff", "latent": "loss_klz", "reconstruction": "loss_recon"}  # ours, theirs
PREFIX = "param/"


class Recorded(NamedTuple):
    """A model, and the function that translates the recorded parameters to its own."""

    model: Model
    translate: Any


def _on_mnist(encoder: Any, mean: Any) -> Recorded:
    return Recorded(
        Model(encoder, Linear(13.3, -5.0), V(), mean, UNet(blocks=1, channels=64)), released_diffenc.translate
    )


MODELS: Mapping[str, Recorded] = {
    "vdmv_mnist": _on_mnist(Identity(), VDM()),
    "nt_mnist": _on_mnist(Nontrainable(), Counterterm()),
    "diffenc_m2_mnist": _on_mnist(Trainable(EncoderUNet(2, channels=64)), Counterterm()),
    "vdm_eps_learnable_nnet_cifar": Recorded(
        Model(Identity(), Monotone(units=1024), Epsilon(), VDM(), UNet(blocks=2, channels=32, groups=32)),
        released_vdm.translate,
    ),
}


def compare(file: Path, name: str) -> dict[str, float]:
    """Returns the largest relative difference of each term of the loss, over the recorded images."""
    arrays, (model, translate) = np.load(file, allow_pickle=False), MODELS[name]
    images = jnp.asarray(arrays["images"])
    like = jax.eval_shape(lambda key: model.init(key, images.shape[1:]), jax.random.key(0))
    named = translate(
        {key.removeprefix(PREFIX): arrays[key] for key in arrays.files if key.startswith(PREFIX)}
    )
    leaves = [jnp.asarray(named[key], jnp.float32) for key in name_leaves(like)]
    params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    draws = Draws(*(jnp.asarray(arrays[key]) for key in ("t", "eps", "eps_0")))
    terms = jax.jit(partial(model.elbo, num_levels=256))(params, images, draws)
    return {
        ours: float(np.max(np.abs(np.asarray(getattr(terms, ours)) / arrays[theirs] - 1)))
        for ours, theirs in TERMS.items()
    }


def describe(differences: Mapping[str, float]) -> str:
    """Returns the differences as a cell of the table."""
    return (
        ", ".join(f"{term} {one:.1e}" for term, one in differences.items()) + " (largest relative difference)"
    )
