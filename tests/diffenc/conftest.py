"""Data whose every density is known in closed form; encoders whose every figure is."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.config.figure_settings import Figures
from diffenc.core.model import Model
from diffenc.core.reverse import BoundMean
from diffenc.data.sources import ArraySource
from diffenc.interfaces import NO_CONTEXT, ProportionalMean
from diffenc.parallel.sharding import data_mesh
from diffenc.tools.figures.figure_data import FigureInputs
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear


@dataclasses.dataclass(frozen=True)
class Mixture:
    """x ~ sum_k weight_k N(mean_k, variance_k I) in d dimensions, encoded as x_phi = r x.

    Nothing here comes from the product: z = alpha r x + sigma eps is itself a mixture of Gaussians, of means
    alpha r mean_k and variances alpha^2 r^2 variance_k + sigma^2, and within a component x given z is Gaussian.

    Attributes:
      weights, variances: one a component; means: d numbers a component.
      encoder: "identity", r = 1; or "nontrainable", r = alpha^2.
      kappa: what the reverse process takes (d x_phi / d lambda) / x_hat to be; None = what it is.
    """

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    variances: tuple[float, ...]
    encoder: str = "identity"
    kappa: Callable | None = None

    def sample(self, rng, n):
        """x [n, d], float64 numpy."""
        component = rng.choice(len(self.weights), n, p=self.weights)
        noise = rng.normal(size=(n, len(self.means[0])))
        return np.array(self.means)[component] + np.sqrt(np.array(self.variances)[component])[:, None] * noise

    def sample_z(self, rng, n, log_snr):
        """z [n, d] at the number `log_snr`, float64 numpy."""
        x = self.sample(rng, n)
        alpha_2, sigma_2 = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
        r = {"identity": 1.0, "nontrainable": alpha_2}[self.encoder]
        return np.sqrt(alpha_2) * r * x + np.sqrt(sigma_2) * rng.normal(size=x.shape)

    def log_density(self, z, log_snr):
        """log p(z) in nats, [B], of z [B, d] at log_snr [B]."""
        return jax.nn.logsumexp(self._log_joint(z, log_snr), axis=1)

    def posterior_mean(self, z, log_snr):
        """E[x | z], [B, d]."""
        residual, gain, spread = self._components(z, log_snr)
        shrunk = (gain[:, None] * jnp.array(self.variances)[None] / spread)[..., None] * residual
        each = jnp.array(self.means)[None] + shrunk
        return jnp.sum(jax.nn.softmax(self._log_joint(z, log_snr), axis=1)[..., None] * each, axis=1)

    def x_hat(self, z, log_snr):
        """E[x_phi + d x_phi / d lambda | z] / (1 + kappa), [B, d]: what minimises the diffusion loss."""
        r, slope = self._encoder(log_snr)
        return ((r + slope) / (1 + self.mean(log_snr)))[:, None] * self.posterior_mean(z, log_snr)

    @property
    def estimate(self):
        """The estimates by `x_hat` and the generative mean of slope kappa x_hat, as solvers take them."""
        return BoundMean(SlopeOf(self.mean)).estimator(self.x_hat)

    def mean(self, log_snr):
        """kappa, [B]."""
        r, slope = self._encoder(log_snr)
        return slope / r if self.kappa is None else self.kappa(log_snr)

    def _encoder(self, log_snr):
        """r and dr / dlambda."""
        alpha_2, sigma_2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        ones = jnp.ones_like(log_snr)
        return {"identity": (ones, 0 * ones), "nontrainable": (alpha_2, alpha_2 * sigma_2)}[self.encoder]

    def _components(self, z, log_snr):
        """z - alpha r mean_k [B, k, d], alpha r [B] and the variance of z within each component [B, k]."""
        gain = jnp.sqrt(jax.nn.sigmoid(log_snr)) * self._encoder(log_snr)[0]
        residual = z[:, None, :] - gain[:, None, None] * jnp.array(self.means)[None]
        spread = (gain**2)[:, None] * jnp.array(self.variances)[None] + jax.nn.sigmoid(-log_snr)[:, None]
        return residual, gain, spread

    def _log_joint(self, z, log_snr):
        residual, _, spread = self._components(z, log_snr)
        log_normal = -0.5 * (
            jnp.sum(residual**2, axis=2) / spread + z.shape[1] * jnp.log(2 * jnp.pi * spread)
        )
        return jnp.log(jnp.array(self.weights))[None] + log_normal


MEANS_OF = {1: ((-0.8,), (0.3,), (0.9,)), 2: ((-0.7, -0.6), (0.2, 0.8), (0.9, -0.3))}


@pytest.fixture(scope="session")
def mixture() -> Callable[..., Mixture]:
    """Makes a mixture of three components in 1 or 2 dimensions."""

    def make(dimensions: int = 1, encoder: str = "identity", **changes) -> Mixture:
        base = Mixture((0.3, 0.5, 0.2), MEANS_OF[dimensions], (0.01, 0.04, 0.0025), encoder)
        return dataclasses.replace(base, **changes)

    return make


@dataclasses.dataclass(frozen=True)
class SlopeOf(ProportionalMean):
    """The slope is kappa(lambda) x_hat."""

    function: Callable

    def kappa(self, params, interval):
        return interval.stretch * self.function(interval.log_snr)


@pytest.fixture(scope="session")
def estimator_of() -> Callable[..., Any]:
    """(x_hat, kappa) -> the estimates x_hat and kappa x_hat, each a function, as solvers take them."""
    return lambda x_hat, kappa: BoundMean(SlopeOf(kappa)).estimator(x_hat)


@dataclasses.dataclass(frozen=True)
class Formula:
    """x_phi = formula(x, lambda), lambda shaped to multiply x."""

    formula: Callable

    def init(self, key, x, log_snr):
        return {}

    def apply(self, params, x, log_snr, context=NO_CONTEXT):
        return self.formula(x, log_snr[:, None, None, None])


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """These images in every split, in 256 levels."""

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    num_levels: int = 256

    @property
    def image_shape(self):
        return self.images.shape[1:]

    def source(self, split):
        return ArraySource(self.images, self.labels)

    def fingerprint(self, split):
        return f"{split} of what was given"


@pytest.fixture
def subject_of(tiny, tmp_path) -> Callable[..., FigureInputs]:
    """What figures are of: an encoder by its formula, some images with their classes, lambda = 13.3 - 18.3 t."""

    def make(formula, given, labels=None, num_classes=None, **settings) -> FigureInputs:
        labels = np.zeros(len(given), np.int32) if labels is None else np.asarray(labels, np.int32)
        classes = int(labels.max()) + 1 if num_classes is None else num_classes
        model = Model(Formula(formula), Linear(13.3, -5.0), V(), VDM(), tiny().model.network)
        figures = Figures(**{"num_images": None, **settings})
        experiment = tiny(model=model, dataset=Given(given, labels, classes), figures=figures)
        return FigureInputs(
            experiment, tmp_path, data_mesh(), {"encoder": {}, "schedule": {}, "network": {}}, 7
        )

    return make


def levels(seed, n, height=6, width=8, channels=1):
    """Random images."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels)).astype(np.uint8)


@pytest.fixture
def images_of() -> Callable[..., np.ndarray]:
    return levels


@pytest.fixture
def loud_unimported():
    """The module `loud`, which tests write to see whether it runs, is imported neither before nor after the test."""
    sys.modules.pop("loud", None)
    yield
    sys.modules.pop("loud", None)
