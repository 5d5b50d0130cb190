"""The interfaces of plugins. Each is a small protocol; a plugin is a frozen dataclass that implements it.

Notation, as in VDM (arXiv:2107.00630) and DiffEnc (arXiv:2310.19789):

  t        diffusion time in [0, 1]; 0 = data, 1 = noise; s < t
  log_snr  lambda = log(alpha^2 / sigma^2), strictly decreasing in t; variance preserving, so
           alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)
  x        pixels scaled to the open interval (-1, 1)
  x_phi    the encoded data x_phi(lambda): the mean of the diffusion process is alpha * x_phi
  z        alpha * x_phi + sigma * eps  [10]
  x_hat    the network's estimate of x_phi

Arrays carry a leading batch axis `b`; images are [B, H, W, C] float32. Outputs, dropout masks included, must not depend
on other examples of the batch, so that results do not depend on how a batch is sharded.
"""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, runtime_checkable

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, UInt8

Params = Any  # a pytree of arrays
Key = PRNGKeyArray
ImageKeys = jaxtyping.Key[Array, " b"]  # one for each image
Data = Float[Array, "b *d"]
PerExample = Float[Array, " b"]
Times = Float[Array, " b"]
LogSNR = Float[Array, " b"]
PerStep = Float[Array, " steps"]
Condition = Int[Array, " b"]  # of each image: 0 = no class, k + 1 = class k

SPLITS = ("train", "validation", "test")


class Example(TypedDict):
    """One element of a data source."""

    image: UInt8[np.ndarray, "h w c"]
    label: Int[np.ndarray, ""] | int


class Batch(TypedDict):
    """Examples stacked along a leading axis."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int[np.ndarray, " b"]


class Images(NamedTuple):
    """A batch as an argument of compiled functions. None is an empty pytree: without a condition, XLA sees the levels alone."""

    levels: Integer[Array, "b h w c"]
    condition: Condition | None = None


class Context(NamedTuple):
    """Inputs of an encoder or a network, one per image, besides the image and its noise level.

    Attributes:
      condition: the class of each image, as its conditioning encodes it; None = unconditional.
      keys: the random keys of the dropout masks; None = no dropout.
    """

    condition: Condition | None = None
    # A key per image, not one for the batch: a mask must not depend on the other images or on the sharding.
    keys: ImageKeys | None = None


NO_CONTEXT = Context()


class ClassConditional:
    """Base class of encoders and networks that read `context.condition`; others must ignore it.

    Attributes:
      classes: a field of the subclass: the number of classes; 0 = the condition is ignored.
    """

    classes: int


@runtime_checkable
class Encoder(Protocol):
    """A family x_phi(lambda) of representations of x, smooth in lambda [10].

    An encoder that reads the condition derives from `ClassConditional`. An encoder with work that does not depend on
    lambda can derive from `PreparedOnce`, so that this work is done once for several noise levels.
    """

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        """Returns the initial parameters; only the shapes of `x` and `log_snr` matter."""
        ...

    def apply(self, params: Params, x: Data, log_snr: LogSNR, context: Context) -> Data:
        """Returns x_phi at `log_snr`, shaped like `x`."""
        ...


class PreparedOnce(abc.ABC):
    """Base class of encoders, and of networks for them, that compute part of their output once for all noise levels.

    A subclass defines `prepare` and `at`, and must not override `apply`.
    """

    @abc.abstractmethod
    def prepare(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> Any:
        """Returns a pytree of arrays [B, ...], an entry for each image, with everything that `at` needs of `x` and `context`."""

    @abc.abstractmethod
    def at(self, params: Params, prepared: Any, log_snr: LogSNR) -> Data:
        """Returns the output at `log_snr` of all or some of the images of `prepare`; `prepared` holds their entries."""

    def apply(self, params: Params, x: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        """Returns the output at `log_snr`, shaped like `x`."""
        return self.at(params, self.prepare(params, x, context), log_snr)


def prepare_once(plugin: "Encoder | Network", params: Params, x: Data, context: Context) -> Any:
    """Returns the input of `apply_prepared`, in place of `x` and `context`: a pytree of arrays [B, ...], an entry per image."""
    # Plugins without `prepare` have the input itself prepared: callers have one code path for all encoders.
    # Context is a pytree, so entries of some images can be taken from (x, context) as from any other.
    return plugin.prepare(params, x, context) if isinstance(plugin, PreparedOnce) else (x, context)


def apply_prepared(plugin: "Encoder | Network", params: Params, prepared: Any, log_snr: LogSNR) -> Data:
    """Returns the output of an encoder or a network for all or some of the images that were prepared."""
    if isinstance(plugin, PreparedOnce):
        return plugin.at(params, prepared, log_snr)
    x, context = prepared
    return plugin.apply(params, x, log_snr, context)


@runtime_checkable
class Network(Protocol):
    """A function of (z, log_snr) shaped like z, independent of the loss.

    A network that reads the condition derives from `ClassConditional`. A network with work that does not depend on log_snr can
    derive from `PreparedOnce`, so that an encoder does this work once for several noise levels.
    """

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        """Returns the initial parameters; only the shapes of `z` and `log_snr` matter.

        Raises:
          UserError: the network cannot take images of this shape.
        """
        ...

    def apply(self, params: Params, z: Data, log_snr: LogSNR, context: Context, /) -> Data:
        """Returns the output, shaped like `z`."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """log_snr as a strictly decreasing function of t."""

    def init(self, key: Key) -> Params: ...

    def apply(self, params: Params, t: Times) -> LogSNR: ...


@runtime_checkable
class LearnedInterior(Schedule, Protocol):
    """A schedule that learns how log_snr falls between its ends (for the objective, see diffenc.training.schedule_objective)."""

    def interior(self, params: Params, t: Times) -> LogSNR:
        """Returns the value of `apply`. Gradients of `interior` reach the interior's parameters, those of `apply` all others.

        At finite T both are summed, so that the whole schedule is trained by the bound.
        """
        ...


@runtime_checkable
class Stochasticity(Protocol):
    """The clock h(lambda) of the forward path: an increasing function, of which only differences matter.

    The marginals q(z_t | x) [10] leave open how noisy the path between them is. Its noise per unit of lambda is
    eta^2 sigma^2 with eta^2 = dh / dlambda (`diffenc.core.stochasticity`). h = lambda is the paper's Markov process [11];
    eta is that of DDIM (arXiv:2010.02502), as a function of lambda. Any h gives a bound, and the best h a tighter one.
    """

    def init(self, key: Key) -> Params: ...

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        """Returns H = h(lambda_s) - h(lambda_t): above 0 where lambda_s > lambda_t, its negative where they are swapped.

        It must keep its digits in float32 for short steps, which a difference of two values of h does not:
        eta^2 is its derivative by lambda_s at lambda_s = lambda_t.
        """
        ...


@runtime_checkable
class FittedStochasticity(Stochasticity, Protocol):
    """A clock that --mode=fit_stochasticity measures on a trained model, for `evaluate.stochasticity`."""

    @property
    def is_open(self) -> bool:
        """Whether the clock still lacks its values (see `given`)."""
        ...

    def given(self, log_snr: Sequence[float], eta_2: Sequence[float]) -> Stochasticity:
        """Returns the clock with these eta^2 between neighbours of `log_snr`: rising, and one more than `eta_2`."""
        ...


@runtime_checkable
class Parameterization(Protocol):
    """The target of the network: p(lambda) x_phi + q(lambda) eps."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        """Returns (p, q) at `log_snr`."""
        ...


class Estimate(NamedTuple):
    """Value and slope of x_phi at a reverse step: the encoder's own, or the estimates of the reverse process.

    Attributes:
      value: x_phi(lambda_t).
      slope: (x_phi(lambda_s) - x_phi(lambda_t)) / c of a step, c = 1 - exp(lambda_t - lambda_s); d x_phi / d lambda in
        the limit of short steps.
    """

    value: Data
    slope: Data


class Interval(abc.ABC):
    """A reverse step from lambda_t to lambda_s, or its limit lambda_s = lambda_t (`diffenc.core.interval`).

    Attributes:
      log_snr: lambda_t.
      log_snr_s: lambda_s.
    """

    log_snr: LogSNR
    log_snr_s: LogSNR

    @property
    @abc.abstractmethod
    def value_weight(self) -> PerExample:
        """The weight of the value beside the slope in the mean of p(z_s | z_t): 1 on the paper's path."""

    @property
    @abc.abstractmethod
    def stretch(self) -> PerExample:
        """(lambda_s - lambda_t) / c: d x_phi / d lambda times this factor is, to first order, the slope over the step."""

    @abc.abstractmethod
    def follow(self, encode: Callable[[LogSNR], Data]) -> Estimate:
        """Returns value and slope of x_phi as a function of lambda."""


class StepInputs(NamedTuple):
    """Inputs of a generative mean at a step, besides the network's x_hat.

    Attributes:
      z: z_t.
      interval: the step.
      encode: x -> value and slope of its x_phi over this step, by the model's encoder.
      context: condition and dropout keys of the mean's own networks.
    """

    z: Data
    interval: Interval
    encode: Callable[[Data], Estimate]
    context: Context


class GenerativeMean(abc.ABC):
    """The reverse process's estimates of x_phi and its slope, as a function of the network's x_hat [17].

    The mean of p(z_s | z_t) is that of q(z_s | z_t, x) with these estimates in place of the encoder's value and slope.

    Attributes:
      learns_value: a class variable: the value is learned as E[x_phi | z] by itself, so that the probability-flow ODE is
        that of the trained SDE for every encoder.
      needs_encoder: a class variable: `apply` calls `encode`, so that sampling needs the encoder too.
      auxiliary: a class variable: the names, each ending in "_loss", of losses for estimates that the bound leaves
        undetermined; they are logged under these names.
    """

    # Declared by the class, since metadata and checks of a config need them before any parameters exist.
    learns_value: ClassVar[bool] = False
    needs_encoder: ClassVar[bool] = False
    auxiliary: ClassVar[tuple[str, ...]] = ()

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        """Returns the initial parameters; only the shapes of `z` and `log_snr` matter. None by default."""
        return {}

    @abc.abstractmethod
    def apply(self, params: Params, x_hat: Data, step: StepInputs) -> Estimate:
        """Returns the estimates over a step, from the network's `x_hat`."""

    def error(self, params: Params, x_hat_error: Data, truth: Estimate, step: StepInputs) -> Estimate:
        """Returns `apply` at x_hat = x_phi + `x_hat_error`, less `truth`, the encoder's own."""
        # In float32 the sum rounds x_hat_error against x_phi, which matters where the loss weight e^lambda is
        # large. `AffineMean` avoids the sum.
        made = self.apply(params, truth.value + x_hat_error, step)
        return jax.tree.map(jnp.subtract, made, truth)

    def auxiliary_losses(self, error: Estimate, x_hat_error: Data, log_snr: LogSNR) -> dict[str, PerExample]:
        """Returns the losses named in `auxiliary`, which are trained beside the bound and are no part of it.

        Args:
          error: the result of `error` for `x_hat_error`.
        """
        return {}


class AffineMean(GenerativeMean):
    """Base class of means that are affine in x_hat: their errors stay accurate in float32 where sigma vanishes."""

    def error(self, params: Params, x_hat_error: Data, truth: Estimate, step: StepInputs) -> Estimate:
        """Returns `apply` at x_hat = x_phi + `x_hat_error`, less `truth`: A e + b + (A x_phi - truth), nothing large cancels."""

        def at(x_hat: Data) -> Estimate:
            return self.apply(params, x_hat, step)

        # linearize at 0 splits the affine map A x + b into its constant b and its linear part A in one trace,
        # for whatever `apply` computes. The error then never contains x_phi + e: where sigma vanishes e is
        # far below the last digit of x_phi, and e^lambda multiplies that rounding. A x_phi - truth is small
        # for a mean that suits the encoder, and its two operands are rounded alike.
        dtype = jnp.result_type(x_hat_error, truth.value)
        constant, linear = jax.linearize(at, jnp.zeros(x_hat_error.shape, dtype))
        return jax.tree.map(
            lambda moved, offset, right, true: moved + offset + (right - true),
            linear(x_hat_error.astype(dtype)),
            constant,
            linear(truth.value.astype(dtype)),
            truth,
        )


class ProportionalMean(AffineMean):
    """Base class of means with the slope kappa x_hat, kappa a function of lambda."""

    @abc.abstractmethod
    def kappa(self, params: Params, interval: Interval) -> PerExample:
        """Returns the slope of the step over x_hat: `interval.stretch` times d log x_phi / d lambda, to first order."""

    def apply(self, params: Params, x_hat: Data, step: StepInputs) -> Estimate:
        """Returns (x_hat, kappa x_hat)."""
        kappa = self.kappa(params, step.interval)
        # Linear in x_hat with no constant: `AffineMean.error` then is kappa e + (kappa x_phi - slope), and
        # the last term vanishes where kappa suits the encoder.
        return Estimate(x_hat, kappa.reshape(kappa.shape + (1,) * (x_hat.ndim - 1)) * x_hat)


@runtime_checkable
class Conditioning(Protocol):
    """Maps class labels to the condition of encoder and network (see `diffenc.core.conditioning`)."""

    @property
    def label(self) -> str | None:
        """The name of the condition in tables and records, such as "class"; None if the model is unconditional."""
        ...

    @property
    def drop(self) -> float:
        """The probability with which training drops an image's condition."""
        ...

    def __call__(self, labels: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"] | None:
        """Returns the condition of images of these classes; None if the model is unconditional."""
        ...


EXCESS = "excess"  # E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step, measured by --mode=fit_variance
# root mean square of the diffusion loss over t, measured by --mode=diagnose; training keeps a running one
LOSS_CURVE = "loss_curve"
GRADIENT_CURVE = (
    "gradient_curve"  # root mean square of the gradient's norm over t, which training alone measures
)
MEASUREMENTS = frozenset({EXCESS, LOSS_CURVE, GRADIENT_CURVE})


def requires(plugin: "Variance | TimeSampler", measurement: str) -> bool:
    """Returns whether a variance or time sampler needs a measurement on a trained model, one of `MEASUREMENTS`.

    A plugin declares its needs in a class variable `requires: ClassVar[frozenset[str]]`; without it there are none.
    """
    # getattr: third parties' plugins need not derive from anything here.
    return measurement in getattr(plugin, "requires", frozenset())


@runtime_checkable
class Variance(Protocol):
    """sigma_P^2 of a chain's reverse steps, as w = sigma_Q^2 / sigma_P^2 [9]; sigma_Q^2, that of q(z_s | z_t, x), is the path's.

    A variance that cannot do without `excess` declares `requires = frozenset({EXCESS})` (see `requires`).
    """

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        """Returns log w of each step from log_snr_t to log_snr_s.

        Args:
          excess: E || mu_P - mu_Q ||^2 / (d sigma_Q^2) as measured for each step; None if it was not measured.
            A variance that requires it is never given None.
        """
        ...


@runtime_checkable
class LearnedVariance(Variance, Protocol):
    """A variance with parameters of its own, trained with the model; they belong to the T equal steps of training."""

    def init(self, num_steps: int) -> Params:
        """Returns the initial parameters, for `num_steps` steps."""
        ...

    def given(self, params: Params) -> Variance:
        """Returns the variance under `params`."""
        ...


@runtime_checkable
class TimeSampler(Protocol):
    """The density on [0, 1] that diffusion times are drawn from.

    A time sampler that cannot do without `curve` declares `requires = frozenset({LOSS_CURVE})`, or GRADIENT_CURVE if it is for
    training and draws by the size of the gradient (see `requires`).
    """

    def __call__(self, u: Times, curve: Float[Array, " bins"] | None) -> tuple[Times, PerExample]:
        """Returns times t, and 1 / their density, for u uniform on [0, 1); t rises with u.

        Args:
          curve: root mean square of the diffusion loss, or of the gradient's norm, in equal bins of t; None if it was not
            measured. A time sampler that requires it is never given None.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Examples by index; grain's RandomAccessDataSource with a vectorised look-up beside it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """Returns the examples at `indices`, in one call."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """Images of integer levels 0 .. num_levels - 1, in splits `train`, `validation` and `test`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        ...

    @property
    def num_levels(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def source(self, split: str) -> Source:
        """Returns the examples of a split. Raises UserError if its files are absent, truncated or of other content."""
        ...

    def fingerprint(self, split: str) -> str:
        """Returns the hex SHA-256 of the split's uint8 [N, H, W, C] pixels in source order."""
        ...


Extract = Callable[[UInt8[Array, "b h w c"]], Float[Array, "b features"]]


@runtime_checkable
class Features(Protocol):
    """A fixed network with features by which sets of images are compared."""

    def metric(self) -> str:
        """Returns the name of the Fréchet distance: "fid" for Inception's features with the published weights, and for no others.

        Raises:
          UserError: the weights are missing.
        """
        ...

    @property
    def num_features(self) -> int: ...

    def identity(self) -> str:
        """Returns a text that identifies the features: the SHA-256 of their weights, a version of their code, and their settings.

        Raises:
          UserError: the weights are missing.
        """
        ...

    def load(self) -> Extract:
        """Returns the function of images of levels 0 .. 255, with 1 or 3 channels, to float32 features; each image on its own.

        The function is compiled by its callers. It must be a pytree of its weights (`jax.tree_util.Partial`), so that it can be
        an argument of a compiled function: as constants, the weights would take minutes to compile.

        Raises:
          UserError: the weights are missing, damaged, or not the expected ones.
        """
        ...


@runtime_checkable
class Writer(Protocol):
    """A destination of a run's metrics besides its workdir."""

    def open(self, workdir: Path, resume_step: int | None) -> Any:
        """Returns a metric writer with the interface of clu's (`diffenc.workdir.writers.NullWriter` is a base class).

        Called once per training process; of several processes, in the main one alone.

        Args:
          resume_step: the step that the run resumes from; None for a new run.

        Raises:
          UserError: the destination cannot be written to.
        """
        ...


@runtime_checkable
class Optimizer(Protocol):
    """Makes an optax transformation."""

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Returns the transformation for a training of `num_steps` steps, a number that schedules of the learning rate need."""
        ...
