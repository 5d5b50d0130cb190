"""A variational diffusion model put together from plugins."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from diffenc.core import objective
from diffenc.core.conditioning import UNCONDITIONAL, conditioned_modules
from diffenc.core.interval import EncodeAt
from diffenc.core.parameters import abstract_arrays, as_parameters
from diffenc.core.pixels import Levels, scale_pixels
from diffenc.core.reverse import BoundMean
from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc.fields.checked import checked
from diffenc.interfaces import (
    NO_CONTEXT,
    Condition,
    Conditioning,
    Context,
    Data,
    Encoder,
    Estimate,
    GenerativeMean,
    ImageKeys,
    Interval,
    Key,
    LogSNR,
    Network,
    Parameterization,
    Params,
    PerExample,
    Schedule,
    Stochasticity,
    Times,
    apply_prepared,
    prepare_once,
)
from diffenc.registry import stochasticities


class Terms(NamedTuple):
    """The terms of -ELBO in nats, [B] each, the first two of fewer images where only some are selected; or their scalar means."""

    reconstruction: PerExample
    latent: PerExample
    diffusion: PerExample

    @property
    def total(self) -> Float[Array, "*b"]:
        """The sum of the terms, which must be of the same images, or means."""
        # Without the check, ends of a single image would broadcast
        # over the batch and give a wrong sum without an error.
        if not jnp.shape(self.reconstruction) == jnp.shape(self.latent) == jnp.shape(self.diffusion):
            raise ValueError("the losses at the ends are those of some of the images alone: add their means")
        return self.reconstruction + self.latent + self.diffusion


class Losses(NamedTuple):
    """The losses of training, which minimises their sum.

    Attributes:
      bound: -ELBO.
      auxiliary: the generative mean's losses for estimates that the bound does not train, by name, [B] each; not in the bound.
    """

    bound: Terms
    auxiliary: dict[str, PerExample]


class Draws(NamedTuple):
    """The random draws of one estimate of the ELBO: the time, and the noise in z_t and in z_0.

    `weight` is 1 / the density that t was drawn from. Where only some images are selected for z_0, `eps_0` has theirs alone.
    """

    t: Times
    eps: Data
    eps_0: Data
    weight: PerExample | float = 1.0


# split and fold_in of one key give the same children
# (`diffenc.core.rng.root_key`): 0, 1 and 2 are those of the split.
# folded into a key that is split into three as well
STOCHASTICITY_STREAM, GENERATIVE_MEAN_STREAM = 3, 4

SampleTimes = Callable[[Times], tuple[Times, PerExample]]
SelectImages = Callable[[Any], Any]  # of a pytree of arrays [B, ...] the entries of some images


def select_all(images: Any) -> Any:
    """Returns all images."""
    return images


@dataclasses.dataclass(frozen=True)
class UniformTimeSampler:
    """Times drawn uniformly, as in VDM."""

    def __call__(self, u: Times, curve: Float[Array, " bins"] | None = None) -> tuple[Times, PerExample]:
        return u, jnp.ones_like(u)


UNIFORM = UniformTimeSampler()


def draw_noise(
    key: Key, shape: tuple[int, ...], sample_times: SampleTimes = UNIFORM, num_ends: int | None = None
) -> Draws:
    """Draws for a batch of `shape` [B, ...]; the times are stratified over the whole batch.

    Args:
      sample_times: maps uniform times to those of another density, and returns their weights too.
      num_ends: the number of images with a reconstruction loss; None = all.
    """
    # The three terms of -ELBO are expectations under separate marginals,
    # so z_t and z_0 may have independent noise: the sum stays unbiased.
    time_key, eps_key, eps_0_key = jax.random.split(key, 3)
    # One uniform number for the whole batch. A sampler of times
    # maps u monotonically, so that its times stay stratified.
    t, weight = sample_times(objective.stratified_times(jax.random.uniform(time_key), shape[0]))
    shape_0 = shape if num_ends is None else (num_ends, *shape[1:])
    return Draws(t, jax.random.normal(eps_key, shape), jax.random.normal(eps_0_key, shape_0), weight)


@checked("Model")
@dataclasses.dataclass(frozen=True)
class Model:
    """DiffEnc [Section 3]; VDM is the identity encoder with the VDM mean.

    Attributes:
      conditioning: of encoder and network, on the class of each image; none by default.
      stochasticity: how noisy the forward path is; Markov, as in the paper, by default.
    """

    encoder: Encoder
    schedule: Schedule
    parameterization: Parameterization
    generative_mean: GenerativeMean
    network: Network
    conditioning: Conditioning = UNCONDITIONAL
    stochasticity: Stochasticity = MARKOV

    def init(self, key: Key, image_shape: tuple[int, ...]) -> Params:
        """Returns {"encoder", "schedule", "network", "stochasticity", "generative_mean"}, each a pytree of any structure.

        Compile it: run eagerly, it is slow.

        Raises:
          UserError: a plugin's `init` returns parameters that cannot be trained (see `diffenc.core.parameters.as_parameters`).
        """
        encoder_key, schedule_key, network_key = jax.random.split(key, 3)
        stochasticity_key = jax.random.fold_in(key, STOCHASTICITY_STREAM)
        mean_key = jax.random.fold_in(key, GENERATIVE_MEAN_STREAM)
        x, log_snr = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
        parts = {
            "encoder": self.encoder.init(encoder_key, x, log_snr),
            "schedule": self.schedule.init(schedule_key),
            "network": self.network.init(network_key, x, log_snr),
            # Parts without parameters have an empty pytree: the structure is the same for every model.
            "stochasticity": self.stochasticity.init(stochasticity_key),
            "generative_mean": self.generative_mean.init(mean_key, x, log_snr),
        }
        # Checked here, for every plugin alike: a leaf that is no float array would fail later, within the
        # gradient or the optimizer, without the plugin's name.
        return {part: as_parameters(self.name_part(part), params) for part, params in parts.items()}

    def abstract_params(self, image_shape: tuple[int, ...]) -> Params:
        """Returns shapes and dtypes of the parameters; computes nothing.

        Raises:
          UserError: as `init`; a plugin cannot be built for these images, or the model is larger than any machine.
        """
        return abstract_arrays(lambda: self.init(jax.random.key(0), image_shape))

    def name_part(self, part: str) -> str:
        """Returns the name of the plugin that is this model's `part`, for messages: "network UNet"."""
        return f"{part} {type(getattr(self, part)).__name__}"

    def condition_metadata(self) -> dict[str, Any]:
        """Returns a record's entries for the conditions of the reverse process, as in p(x | condition), and of the encoder."""
        # Two entries: a condition of the encoder alone does not
        # make the bound one of p(x | condition).
        modules = {"condition": self.reverse_modules, "encoder_condition": conditioned_modules(self.encoder)}
        return {key: self.conditioning.label for key, found in modules.items() if found}

    @property
    def reverse_modules(self) -> list[tuple[str, int]]:
        """The modules of the reverse process that read the condition (see `conditioned_modules`); none for a bound of p(x)."""
        mean = self.generative_mean
        encoder = conditioned_modules(self.encoder) if mean.needs_encoder else []
        return [*conditioned_modules(self.network), *conditioned_modules(mean), *encoder]

    def path_metadata(self) -> dict[str, Any]:
        """Returns a record's entry for the path; none for the paper's path, as in records of versions without the entry."""
        if self.stochasticity == MARKOV:
            return {}
        return {"stochasticity": stochasticities.spell(self.stochasticity)}

    def log_snr(self, params: Params, t: Times) -> LogSNR:
        """Returns lambda at the times `t`, by the schedule.

        Raises:
          UserError: the schedule does not return one number for each time.
        """
        log_snr = self.schedule.apply(params["schedule"], t)
        if jnp.shape(log_snr) != jnp.shape(t):
            raise UserError(
                f"{self.name_part('schedule')} returns log_snr of shape {jnp.shape(log_snr)} for times of shape {jnp.shape(t)}: "
                "it must return one number for each time, the noise of a whole image (docs/noise_by_dimension.md)"
            )
        return log_snr

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        """Returns H = h(lambda_s) - h(lambda_t), by the stochasticity; parameters of earlier versions may lack its part."""
        # Earlier versions had the default alone, which has no parameters.
        return self.stochasticity.increment(params.get("stochasticity", {}), log_snr_t, log_snr_s)

    def prepare(
        self,
        params: Params,
        x: Data,
        context: Context = NO_CONTEXT,
    ) -> EncodeAt:
        """Returns x_phi as a function of lambda, for images `x` that are encoded at several noise levels.

        The work that a `PreparedOnce` prepares is done here, once.
        """
        # prepare_images is an argument and therefore evaluated
        # here: each call of the partial shares its result.
        return partial(self.encode_prepared, params, self.prepare_images(params, x, context))

    def prepare_images(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> Any:
        """Returns the input of `encode_prepared`: a pytree of arrays [B, ...], an entry for each image."""
        return prepare_once(self.encoder, params["encoder"], x, context)

    def encode_prepared(self, params: Params, prepared: Any, log_snr: LogSNR) -> Data:
        """Returns x_phi(lambda) of all or some of the images that were prepared."""
        return apply_prepared(self.encoder, params["encoder"], prepared, log_snr)

    def encode(
        self,
        params: Params,
        x: Data,
        log_snr: LogSNR,
        context: Context = NO_CONTEXT,
    ) -> Data:
        """Returns x_phi(lambda) of the images `x`, scaled pixels."""
        return self.prepare(params, x, context)(log_snr)

    def predict(
        self,
        params: Params,
        z: Data,
        log_snr: LogSNR,
        context: Context = NO_CONTEXT,
    ) -> Data:
        """Returns the network's output: its estimate of p x_phi + q eps, with (p, q) of the parameterization."""
        return self.network.apply(params["network"], z, log_snr, context)

    def denoise(
        self,
        params: Params,
        z: Data,
        log_snr: LogSNR,
        context: Context = NO_CONTEXT,
    ) -> Data:
        """Returns x_hat, the estimate of x_phi given `z`; of x itself for a mean that runs the encoder on it.

        x_hat - x_phi computed from it loses digits where sigma vanishes; `x_hat_error` does not.
        """
        out = self.predict(params, z, log_snr, context)
        return objective.x_hat_from_output(out, z, log_snr, self.parameterization)

    def x_hat_error(
        self,
        params: Params,
        x_phi: Data,
        eps: Data,
        log_snr: LogSNR,
        context: Context = NO_CONTEXT,
    ) -> Data:
        """Returns x_hat - x_phi at z = alpha x_phi + sigma eps, exact in float32 (see `objective.network_error`)."""
        network = partial(self.predict, params, context=context)
        return objective.network_error(log_snr, x_phi, eps, network, self.parameterization)

    def bind_mean(
        self,
        params: Params,
        context: Context = NO_CONTEXT,
        encoder_context: Context | None = None,
    ) -> BoundMean:
        """Returns the generative mean under `params`; parameters of earlier versions may lack its part.

        Args:
          context: of the mean's own networks.
          encoder_context: of the encoder, where the mean runs it; None = `context`.
        """
        prepare = partial(self.prepare, params, context=encoder_context or context)
        return BoundMean(self.generative_mean, params.get("generative_mean", {}), prepare, context)

    def estimate_error(
        self,
        params: Params,
        step: objective.Step,
        eps: Data,
        context: Context = NO_CONTEXT,
        encoder_context: Context | None = None,
    ) -> tuple[Estimate, Data]:
        """Returns the errors of `estimate` and of x_hat at z = alpha x_phi + sigma eps, exact in float32.

        The contexts are those of `bind_mean`.
        """
        network = partial(self.predict, params, context=context)
        mean = self.bind_mean(params, context, encoder_context)
        return objective.estimate_error(step, eps, network, self.parameterization, mean)

    def estimate(
        self,
        params: Params,
        z: Data,
        interval: Interval,
        context: Context = NO_CONTEXT,
        encoder_context: Context | None = None,
    ) -> Estimate:
        """Returns the reverse process's estimates of x_phi and its slope over a step from `z`.

        The contexts are those of `bind_mean`.
        """
        x_hat = partial(self.denoise, params, context=context)
        return self.bind_mean(params, context, encoder_context).estimator(x_hat)(z, interval)

    def elbo(
        self,
        params: Params,
        levels: Levels,
        draws: Draws,
        *,
        num_levels: int,
        condition: Condition | None = None,
        network_condition: Condition | None = None,
        keys: ImageKeys | None = None,
        step_rule: objective.StepRule = objective.continuous,
    ) -> Terms:
        """Returns the terms of -ELBO for images of integer `levels` [B, H, W, C], from one set of draws.

        The arguments are those of `losses`.
        """
        return self.losses(
            params,
            levels,
            draws,
            num_levels=num_levels,
            condition=condition,
            network_condition=network_condition,
            keys=keys,
            step_rule=step_rule,
        ).bound

    def losses(
        self,
        params: Params,
        levels: Levels,
        draws: Draws,
        *,
        num_levels: int,
        condition: Condition | None = None,
        network_condition: Condition | None = None,
        keys: ImageKeys | None = None,
        step_rule: objective.StepRule = objective.continuous,
        select_ends: SelectImages = select_all,
    ) -> Losses:
        """Returns the terms of -ELBO for images of integer `levels` [B, H, W, C] and the auxiliary losses, from one set of draws.

        `network_condition` is the condition of the network where some were dropped; None = `condition`. The encoder keeps
        `condition`, so that the network learns one diffusion process, with and without the condition.
        `keys` [B] draw the dropout masks; None means no dropout. All evaluations of the encoder share an image's
        mask, so that the loss with dropout is the bound of one model.
        The reconstruction and the latent loss are those of the images that `select_ends` takes from arrays [B, ...];
        `draws.eps_0` is the noise of these images.
        """
        # Separate keys: with one key for both, encoder and network of equal layers could drop the same units.
        encoder_keys, network_keys = _two_of_each(keys)
        if network_condition is None:
            network_condition = condition
        x = scale_pixels(levels, num_levels)
        encoder_context = Context(condition, encoder_keys)
        network_context = Context(network_condition, network_keys)
        # Shared by the diffusion loss and both ends, under one dropout mask: otherwise the three terms would
        # belong to three different encoders, and their sum would be no bound of any model.
        prepared = self.prepare_images(params, x, encoder_context)
        encode = partial(self.encode_prepared, params, prepared)
        # Closures over params, so that a step rule may differentiate
        # them by time while the training gradient passes through.
        log_snr_at, increment = partial(self.log_snr, params), partial(self.increment, params)
        # The diffusion loss: lambda_t, the target (value and slope
        # of x_phi) and the weight first, then the estimates' errors.
        step = step_rule(encode, log_snr_at, increment, draws.t)
        error, x_hat_error = self.estimate_error(params, step, draws.eps, network_context, encoder_context)
        # The losses at the ends of time vary little between
        # images, so training evaluates them for some of them.
        at_ends, levels_at_ends = select_ends((prepared, levels))
        # Both ends reuse the prepared part; their noise is eps_0, of the selected images alone.
        reconstruction, latent = self.end_losses(
            params, at_ends, levels_at_ends, draws.eps_0, num_levels=num_levels
        )
        # Importance weights belong to the losses at the drawn t: both ends are at fixed times.
        terms = Terms(reconstruction, latent, draws.weight * objective.step_loss(step, error))
        auxiliary = self.generative_mean.auxiliary_losses(error, x_hat_error, step.log_snr)
        return Losses(terms, jax.tree.map(partial(jnp.multiply, draws.weight), auxiliary))

    def end_losses(
        self, params: Params, prepared: Any, levels: Levels, eps_0: Data, *, num_levels: int
    ) -> tuple[PerExample, PerExample]:
        """Returns the reconstruction and the latent loss [B] of images of integer `levels`, as `prepare_images` has them.

        One call of the encoder serves both ends: each image is repeated side by side, so that a sharded batch is not
        redistributed over the devices.
        """
        # The schedule is evaluated rather than its end points read:
        # learned ends get their gradient through both losses.
        times = jnp.zeros(len(levels)), jnp.ones(len(levels))
        log_snr_0, log_snr_1 = (self.log_snr(params, t) for t in times)
        twice = jax.tree.map(_side_by_side, prepared, prepared)
        x_phi = self.encode_prepared(params, twice, _side_by_side(log_snr_0, log_snr_1))
        # Undoes the interleaving: even rows are at t = 0, odd ones at t = 1.
        x_phi_0, x_phi_1 = x_phi[::2], x_phi[1::2]
        # z_0 / alpha_0 directly: z_0 itself is never formed.
        pixels = objective.diffused_pixels(x_phi_0, eps_0, log_snr_0)
        return (
            objective.reconstruction_loss(pixels, levels, log_snr_0, num_levels),
            objective.latent_loss(x_phi_1, log_snr_1),
        )


def _side_by_side(first: Array, second: Array) -> Array:
    """Returns [first 0, second 0, first 1, ...]."""
    # concatenate would put image i and its copy B rows apart, and so on different devices of a batch that is
    # split in blocks of rows: XLA would move half of it.
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _two_of_each(keys: ImageKeys | None) -> tuple[ImageKeys | None, ImageKeys | None]:
    if keys is None:
        return None, None
    # vmap, for keys are per image; out_axes=1 gives [2, B], a row for the encoder and one for the network.
    both = jax.vmap(jax.random.split, out_axes=1)(keys)
    return both[0], both[1]


def bits_per_dim(nats: Float[ArrayLike, "..."], num_dims: int) -> Float[Array, "..."]:
    """Returns nats / (d ln 2), for d = `num_dims`."""
    return jnp.asarray(nats) / (num_dims * jnp.log(2.0))
