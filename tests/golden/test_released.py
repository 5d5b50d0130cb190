"""A checkpoint as the authors released them, imported by the command and loaded: it has the recorded losses.

Parameters and draws are the recorded ones; the file is written by flax, around an optimiser's state. Of VDM's, the
schedule is its monotone network, whose values are recorded too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import diffenc
from diffenc.core.model import Draws
from diffenc_plugins import released_diffenc, released_vdm

# The recorded arrays, the command, the run files of such a model, and its size.
RELEASED = {
    "vdmv_mnist": (
        released_diffenc.main,
        ["mnist_vdmv_8"],
        ["network.unet.blocks = 1", "network.unet.channels = 64"],
    ),
    "vdm_eps_learnable_nnet_cifar": (
        released_vdm.main,
        ["cifar10_vdmv_32", "vdm_released"],
        ["network.unet.blocks = 2", "network.unet.channels = 32", "network.unet.groups = 32"],
    ),
}


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


@pytest.mark.parametrize("name", RELEASED)
def test_it_has_the_recorded_losses(name, shared, tmp_path):
    arrays, (main, files, bindings) = np.load(shared / "golden" / f"{name}.npz"), RELEASED[name]
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(_as_flax(arrays)))
    out = tmp_path / "out"
    command = [
        str(tmp_path / "checkpoint"),
        *(f"--gin_file=gin/{file}.gin" for file in files),
        *(f"--gin_bindings={binding}" for binding in bindings),
        f"--output={out}",
    ]
    assert main(command) == 0
    loaded = diffenc.load(out)
    assert loaded.step == 1_000_000
    images, t = jnp.asarray(arrays["images"]), jnp.asarray(arrays["t"])
    log_snr, slope = jax.jvp(
        lambda t: loaded.model.schedule.apply(loaded.params["schedule"], t), (t,), (jnp.ones_like(t),)
    )
    np.testing.assert_allclose(-log_snr, arrays["gamma_t"], atol=2e-5)
    np.testing.assert_allclose(-slope, arrays["dgamma_dt"], rtol=1e-5)
    draws = Draws(t, jnp.asarray(arrays["eps"]), jnp.asarray(arrays["eps_0"]))
    elbo = jax.jit(functools.partial(loaded.model.elbo, num_levels=256))
    terms = elbo(loaded.params, images, draws)
    np.testing.assert_allclose(terms.diffusion, arrays["loss_diff"], rtol=1e-4)
    np.testing.assert_allclose(terms.latent, arrays["loss_klz"], rtol=1e-3)
    np.testing.assert_allclose(terms.reconstruction, arrays["loss_recon"], rtol=1e-4)
