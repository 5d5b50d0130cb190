"""A checkpoint as the authors released them, imported by the command and loaded: it has the recorded losses.

Parameters and draws are the recorded ones; the file is written by flax, around an optimiser's state.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import diffenc
from diffenc.core.model import Draws
from diffenc_plugins import reference

SMALL = ("network.unet.blocks = 1", "network.unet.channels = 64")


@pytest.fixture
def arrays(shared):
    return np.load(shared / "golden" / "vdmv_mnist.npz")


def _as_flax(arrays):
    tree = {}
    for name in (name for name in arrays.files if name.startswith("param/")):
        *path, leaf = name.removeprefix("param/").split("/")
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, tree)[leaf] = arrays[name]
    noise = jax.tree.map(np.ones_like, tree)
    return {
        "step": 1_000_000,
        "params": noise,
        "ema_params": tree,
        "opt_state": {"0": {"mu": noise, "count": 3}},
    }


def test_it_has_the_recorded_losses(arrays, tmp_path):
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(_as_flax(arrays)))
    bindings = [f"--gin_bindings={binding}" for binding in SMALL]
    out = tmp_path / "out"
    command = [str(tmp_path / "checkpoint"), "--gin_file=gin/mnist_vdmv_8.gin", *bindings, f"--output={out}"]
    assert reference.main(command) == 0
    loaded = diffenc.load(out)
    draws = Draws(*(jnp.asarray(arrays[name]) for name in ("t", "eps", "eps_0")))
    elbo = jax.jit(functools.partial(loaded.model.elbo, num_levels=256))
    terms = elbo(loaded.params, jnp.asarray(arrays["images"]), draws)
    assert loaded.step == 1_000_000
    np.testing.assert_allclose(terms.diffusion, arrays["loss_diff"], rtol=1e-4)
    np.testing.assert_allclose(terms.latent, arrays["loss_klz"], rtol=1e-3)
    np.testing.assert_allclose(terms.reconstruction, arrays["loss_recon"], rtol=1e-4)
