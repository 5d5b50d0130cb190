"""The chain of a trained model, in compiled functions of one batch shape that sender and receiver share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.compression.bits_back import Latents, Lattice, PixelLevels
from diffenc.compression.numbers import ChainNumbers
from diffenc.core import pixels
from diffenc.core.gaussian import alpha_sigma, scale
from diffenc.core.interval import Chord
from diffenc.core.model import Model
from diffenc.evaluation.batches import compile_on_mesh
from diffenc.interfaces import Condition, Context, Data, Images, Params
from diffenc.sampling.solvers import reverse_step


class StepNumbers(NamedTuple):
    """One step from lambda_t to lambda_s, as scalar arguments of compiled functions: one program serves all steps."""

    log_snr_t: Float[Array | np.ndarray, ""]
    log_snr_s: Float[Array | np.ndarray, ""]
    clock_rise: Float[Array | np.ndarray, ""]

    def chord(self, batch_size: int) -> Chord:
        """Returns the step repeated for each image of a batch."""
        return Chord(*(jnp.broadcast_to(value, (batch_size,)) for value in self))


def mean_p(model: Model, params: Params, given: tuple[Data, Condition | None], numbers: StepNumbers) -> Data:
    """Returns the mean of p(z_s | z_t) [17]; no dropout."""
    z, condition = given
    step = numbers.chord(len(z))
    return reverse_step(z, model.estimate(params, z, step, Context(condition)), step)[0]


def mean_q(_: None, given: tuple[Data, Data, Data], numbers: StepNumbers) -> Data:
    """Returns the mean of q(z_s | z_t, x) [13], from z_t and x_phi at both ends of the step."""
    z, x_t, x_s = given
    step = numbers.chord(len(z))
    return reverse_step(z, step.between(x_t, x_s), step)[0]


def prepare(model: Model, num_levels: int, params: Params, images: Images, _: None) -> Any:
    """Returns the encoder's results that do not depend on the noise level."""
    x = pixels.scale_pixels(images.levels, num_levels)
    return model.prepare_images(params, x, Context(images.condition))


def encode(model: Model, params: Params, prepared: Any, log_snr: Float[Array, ""]) -> Data:
    """Returns x_phi(lambda) of prepared images, at full matmul precision like `Chord.follow`."""
    count = len(jax.tree.leaves(prepared)[0])
    with jax.default_matmul_precision("highest"):
        return model.encode_prepared(params, prepared, jnp.broadcast_to(log_snr, (count,)))


def level_probabilities(
    num_levels: int, _: None, z_0: Data, log_snr: Float[Array, ""]
) -> Float[Array, "b *d levels"]:
    """Returns p(x | z_0) of every level of each pixel [55]."""
    at = jnp.broadcast_to(log_snr, z_0.shape[:1])
    # z_0 / alpha = x + (sigma / alpha) eps, and 1 / (2 sigma^2 / alpha^2) = 0.5 exp(lambda).
    return pixels.level_probabilities(scale(1 / alpha_sigma(at)[0], z_0), 0.5 * jnp.exp(at), num_levels)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedChain:
    """The `ChainModel` of a trained model, for batches of one shape.

    Attributes:
      programs: the compiled functions of this module by name.
      batch_shape: [B, H, W, C].
      condition: the condition of the batch's images; use `dataclasses.replace` for another batch.
    """

    programs: Mapping[str, Any]
    params: Params
    numbers: ChainNumbers
    lattices: tuple[Lattice, ...]
    batch_shape: tuple[int, ...]
    num_levels: int
    condition: Int[np.ndarray, " b"] | None = None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of latents and means."""
        return np.dtype(jnp.zeros(()).dtype)

    def generative_mean(self, index: int, z: Latents | None) -> Latents:
        if z is None:
            return np.zeros(self.batch_shape, self.dtype)
        return np.asarray(self.programs["mean_p"](self.params, (z, self.condition), self.step(index)))

    def infer(self, levels: PixelLevels) -> "TrainedInference":
        images = Images(levels.astype(np.uint8), self.condition)  # pyright: ignore[reportArgumentType]
        return TrainedInference(self, self.programs["prepare"](self.params, images, None))

    def level_probabilities(self, z_0: Latents) -> Float[np.ndarray, "b ... levels"]:
        return np.asarray(self.programs["level_probabilities"](None, z_0, self.log_snr(0)))

    def step(self, index: int) -> StepNumbers:
        """Returns the step from stop index + 1 to stop `index`."""
        rise = np.asarray(self.numbers.clock_rise[index], self.dtype)
        return StepNumbers(self.log_snr(index + 1), self.log_snr(index), rise)

    def log_snr(self, index: int) -> Float[np.ndarray, ""]:
        """Returns lambda at a stop."""
        return np.asarray(self.numbers.log_snr[index], self.dtype)


class TrainedInference:
    """q(z_1 .. z_0 | x) of one batch; keeps x_phi at the last two stops, since consecutive steps share a stop."""

    def __init__(self, chain: TrainedChain, prepared: Any):
        self._chain, self._prepared = chain, prepared
        self._x_phi: dict[int, Latents] = {}

    def mean(self, index: int, z: Latents | None) -> Latents:
        chain = self._chain
        if z is None:
            return chain.numbers.first_mean(self.x_phi(index))
        given = (z, self.x_phi(index + 1), self.x_phi(index))
        return np.asarray(chain.programs["mean_q"](None, given, chain.step(index)))

    def x_phi(self, index: int) -> Latents:
        """Returns x_phi at a stop."""
        if index not in self._x_phi:
            chain = self._chain
            found = chain.programs["encode"](chain.params, self._prepared, chain.log_snr(index))
            near = {stop: x_phi for stop, x_phi in self._x_phi.items() if abs(stop - index) == 1}
            self._x_phi = near | {index: np.asarray(found)}
        return self._x_phi[index]


def make_trained_chain(
    model: Model,
    params: Params,
    numbers: ChainNumbers,
    mesh: Mesh,
    *,
    batch_shape: tuple[int, ...],
    num_levels: int,
    bins: int,
) -> TrainedChain:
    """Returns the chain for batches of `batch_shape` [B, H, W, C]; compiles nothing yet.

    Args:
      bins: cells per standard deviation.

    Raises:
      UserError: as `ChainNumbers.lattices`.
    """
    programs = {
        "mean_p": compile_on_mesh(mesh, mean_p, model),
        "mean_q": compile_on_mesh(mesh, mean_q),
        "prepare": compile_on_mesh(mesh, prepare, model, num_levels),
        "encode": compile_on_mesh(mesh, encode, model),
        "level_probabilities": compile_on_mesh(mesh, level_probabilities, num_levels),
    }
    return TrainedChain(programs, params, numbers, numbers.lattices(bins), batch_shape, num_levels)
