"""The experiment: the complete description of one run as immutable values."""

import dataclasses

import jax

from diffenc.config.conditioning_check import check_conditioning, check_sample_classes
from diffenc.config.fid_settings import Fid
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import (
    Compress,
    Depth,
    Diagnose,
    Evaluate,
    Fit,
    KSample,
    Likelihood,
    MeshConfig,
    Plan,
    ResolvedEvaluate,
    ResolvedSample,
    Sample,
    check_bounds,
    check_seed,
    require,
)
from diffenc.core.discretization import EQUAL
from diffenc.core.model import UNIFORM, Model
from diffenc.core.parameters import abstract_arrays, as_parameters
from diffenc.fields.checked import checked
from diffenc.interfaces import (
    EXCESS,
    Dataset,
    Key,
    LearnedVariance,
    Optimizer,
    Params,
    TimeSampler,
    Variance,
    Writer,
    requires,
)

# Bindings that may change when a run is resumed or measured: lengths, cadences, effort, ways of computing the networks, and
# everything chosen after training; never the trained model.
FREE_TO_CHANGE = (
    "Experiment.steps",
    "Experiment.microbatches",
    "Experiment.log_every",
    "Experiment.checkpoint_every",
    "Experiment.evaluate_every",
    "Experiment.sample_every",
    "Experiment.keep_last",
    "Experiment.keep_every",
    "Experiment.profile_at",
    "Experiment.writers",
    "Experiment.evaluate",
    "Experiment.sample",
    "Experiment.fit",
    "Experiment.k_sample",
    "Experiment.diagnose",
    "Experiment.figures",
    "Experiment.likelihood",
    "Experiment.compress",
    "Experiment.fid",
    "Experiment.plan",
    "Experiment.mesh",
    "evaluate.*",
    "sample.*",
    "fit.*",
    "k_sample.*",
    "diagnose.*",
    "figures.*",
    "likelihood.*",
    "compress.*",
    "fid.*",
    "plan.*",
    "mesh.*",
    "variance.*",
    "time_sampler.*",
    "stochasticity.*",
    "features.*",
    "writer.*",
    "network.*.scan",
    "network.*.remat",
)

# Fields with a plugin that training uses. The bindings of that plugin are not free to change; those of other plugins of its
# kind, chosen after training, are.
TRAINED_PLUGINS = ("Experiment.variance", "Experiment.time_sampler", "Model.stochasticity")

# Bindings of fields that configs of earlier versions lack, at the values equivalent to those versions. They are left out
# of a config's hash, so that such a run keeps the hash in its records. (Runs without `ends_stride` computed the losses at
# the ends for every image: the same objective with nearly the same noise.)
ADDED_LATER = (
    "Model.stochasticity = @stochasticity.markov()",
    "Experiment.num_timesteps = 0",
    "Experiment.ends_stride = 8",
    "Experiment.variance = @variance.equal()",
    "Experiment.time_sampler = @time_sampler.uniform()",
)

# Further bindings that may change when a run is measured, but not when it is resumed.
FREE_TO_MEASURE = ("network.*.precision",)


@checked("Experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run. A cadence of 0 means never.

    Attributes:
      seed: with the step, the only source of randomness.
      steps: total number of optimiser steps.
      num_timesteps: T, the depth of the model whose bound is trained; 0 = continuous time.
      variance: sigma_P^2 of the T steps, which are equal steps of t.
      time_sampler: the density from which times are drawn; it changes only the variance of the loss. A time sampler that needs
        a curve of the loss or of the gradient gets a running one.
      batch_size: images per step, over all devices.
      microbatches: number of equal parts into which a batch is divided, processed one after the other, if it does not fit into
        the devices' memory at once. It changes results only by rounding (but see `ends_stride`).
      ends_stride: in training, the reconstruction and the latent loss, which vary little, are computed for one image in
        `ends_stride` of each batch, at a random offset in each step; the stride is reduced to a divisor of a device's part of
        a microbatch. 1 = all images.
      ema_decay: largest decay of the averaged parameters that evaluation and samples use.
      log_every: steps between log rows; the end of training always logs.
      checkpoint_every: steps between checkpoints; the end of training always saves.
      evaluate_every: steps between evaluations; unless 0, the end of training evaluates too.
      sample_every: steps between samples; likewise.
      keep_last: number of the newest checkpoints that are kept.
      keep_every: checkpoints at multiples of this step number are never deleted.
      profile_at: the first of a few steps that are profiled.
      writers: writers of metrics in addition to the workdir's.
      init_from: a workdir or checkpoint of another run that provides the initial parameters.
      read_from: the gin files that described the experiment, as listed in the header of config.gin; not part of the run.
    """

    model: Model
    dataset: Dataset
    optimizer: Optimizer
    seed: int = 0
    steps: int = 1000
    num_timesteps: int = 0
    variance: Variance = EQUAL
    time_sampler: TimeSampler = UNIFORM
    batch_size: int = 128
    microbatches: int = 1
    ends_stride: int = 8
    ema_decay: float = 0.9999
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int = 0
    sample_every: int = 0
    keep_last: int = 3
    keep_every: int = 0
    profile_at: int = 0
    writers: tuple[Writer, ...] = ()
    init_from: str | None = None
    evaluate: Evaluate = Evaluate()
    sample: Sample = Sample()
    fit: Fit = Fit()
    k_sample: KSample = KSample()
    diagnose: Diagnose = Diagnose()
    figures: Figures = Figures()
    likelihood: Likelihood = Likelihood()
    compress: Compress = Compress()
    fid: Fid = Fid()
    plan: Plan = Plan()
    mesh: MeshConfig = MeshConfig()
    read_from: tuple[str, ...] = dataclasses.field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self):
        check_seed("Experiment.seed", self.seed)
        check_bounds(
            "Experiment", self, steps=1, batch_size=1, microbatches=1, ends_stride=1, log_every=1, keep_last=1
        )
        check_bounds("Experiment", self, checkpoint_every=0, evaluate_every=0, sample_every=0, keep_every=0)
        check_bounds("Experiment", self, profile_at=0)
        require(
            self.profile_at <= self.steps,
            f"Experiment.profile_at = {self.profile_at}: there are only Experiment.steps = {self.steps}",
        )
        require(0 <= self.ema_decay < 1, f"Experiment.ema_decay = {self.ema_decay}: must be in [0, 1)")
        check_conditioning(self.model, self.dataset)
        check_sample_classes(self.model, self.dataset, self.sample.classes, self.sample.guidance)
        self._check_depth()

    @property
    def trained(self) -> Depth:
        """The depth of the model that is trained, and its path."""
        return Depth(self.num_timesteps, self.variance, self.model.stochasticity)

    def init_params(self, key: Key) -> Params:
        """Returns the parameters of the model, and as "variance" those of a learned variance (see `Model.init`)."""
        params = self.model.init(key, self.dataset.image_shape)
        if not isinstance(self.variance, LearnedVariance):
            return params
        return {
            **params,
            "variance": as_parameters(self.name_part("variance"), self.variance.init(self.num_timesteps)),
        }

    def abstract_params(self) -> Params:
        """Returns shapes and dtypes of the parameters; computes nothing.

        Raises:
          UserError: as `Model.abstract_params`.
        """
        return abstract_arrays(lambda: self.init_params(jax.random.key(0)))

    def name_part(self, part: str) -> str:
        """Returns the name in messages of the plugin with the parameters `part`."""
        return (
            f"variance {type(self.variance).__name__}" if part == "variance" else self.model.name_part(part)
        )

    @property
    def evaluation(self) -> ResolvedEvaluate:
        """`evaluate`, with open fields (None) set as in training."""
        return self.evaluate.resolve(self.trained)

    @property
    def sampling(self) -> ResolvedSample:
        """`sample`, with open fields (None) set as in training."""
        return self.sample.resolve(self.trained)

    def _check_depth(self) -> None:
        """Raises UserError if training, evaluation or sampling has no such depth."""
        check_bounds("Experiment", self, num_timesteps=0)
        require(
            self.num_timesteps > 0 or self.variance == EQUAL,
            "Experiment.variance needs discrete time: bind Experiment.num_timesteps = T",
        )
        require(
            not requires(self.variance, EXCESS),
            "Experiment.variance: what is fitted belongs to a trained run; train with another variance, and bind this "
            "one to evaluate.variance",
        )
        # Constructing both resolved settings also checks them.
        for name, settings in {"evaluate": self.evaluation, "sample": self.sampling}.items():
            # A learned w belongs to the T equal steps it was trained for:
            # any other number, variance or choice of times is refused.
            steps = self.trained._replace(num_timesteps=settings.num_timesteps, variance=settings.variance)
            require(
                not isinstance(settings.variance, LearnedVariance)
                or (steps == self.trained and settings.times == "equal"),
                f"{name}.variance: what is learned belongs to the T equal steps of training; bind another variance, as "
                f"{name}.variance = @variance.fitted()",
            )
