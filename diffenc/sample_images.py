"""A grid's worth of images from a trained model, in stretches of one compiled scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc import sampler
from diffenc.experiment import Experiment
from diffenc.interfaces import Data, Key, Params
from diffenc.randomness import root_key
from diffenc.sharding import on_each, split_over

MOST_STRETCHES = 20


def stretches(steps: int) -> int:
    """Into how many equal stretches `steps` are cut: the largest divisor up to MOST_STRETCHES."""
    return max(count for count in range(1, min(steps, MOST_STRETCHES) + 1) if steps % count == 0)


class ImageSampler:
    """Draws `sample.num` images by `sample.steps` ancestral steps. Compiled once, used at every cadence."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.settings = experiment.sample
        self.num_stretches = stretches(self.settings.steps)
        self._model = experiment.model
        self._num_levels = experiment.dataset.num_levels
        self._shape = (self.settings.num, *experiment.dataset.image_shape)
        # a number that does not divide over the devices is drawn whole on each
        self._sharding = on_each(mesh) if self.settings.num % mesh.devices.size else split_over(mesh)
        self._stretch = jax.jit(self._run_stretch, out_shardings=self._sharding, donate_argnums=1)
        self._log_snrs = jax.jit(
            lambda params: sampler.sampling_log_snrs(self._model, params, self.settings.steps)
        )

    def draw(
        self, params: Params, after_stretch: Callable[[], None] = lambda: None
    ) -> Int[np.ndarray, "n h w c"]:
        """Integer levels. `after_stretch` is called after each stretch: to show progress, or to raise."""
        z_key, step_key = jax.random.split(root_key(self.settings.seed, "sample"))
        z = jax.device_put(jax.random.normal(z_key, self._shape), self._sharding)
        log_snrs = self._log_snrs(params)
        length = self.settings.steps // self.num_stretches
        for first in range(0, self.settings.steps, length):
            z = self._stretch(params, z, log_snrs[first : first + length + 1], step_key, jnp.asarray(first))
            jax.block_until_ready(z)
            after_stretch()
        log_snr_0 = jnp.broadcast_to(log_snrs[-1], self._shape[:1])
        return np.asarray(sampler.decode(z, log_snr_0, self._num_levels))

    def _run_stretch(
        self,
        params: Params,
        z: Data,
        log_snrs: Float[Array, " length_plus_one"],
        key: Key,
        first: Int[Array, ""],
    ) -> Data:
        x_hat = sampler.x_hat_of(self._model, params)
        return sampler.ancestral(key, z, log_snrs, x_hat, self._model.mean, first)
