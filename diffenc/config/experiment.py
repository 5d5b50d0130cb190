"""The experiment: one run, described by values alone."""

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

# Bindings that may change when a run is resumed or measured: lengths, cadences, effort, how networks are computed, and
# all that is chosen after training; never the model that is trained.
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

# Fields that hold a plugin which is trained with. Others of its kind are chosen after training; its own bindings are not free.
TRAINED_PLUGINS = ("Experiment.variance", "Experiment.time_sampler", "Model.stochasticity")

# Bindings of fields that runs of earlier versions do not have, as these runs would have them. They are left out of a
# config's hash, so that such a run keeps the hash that its records state. (Such runs computed the losses at the ends for
# every image: the same objective with next to the same noise.)
ADDED_LATER = (
    "Model.stochasticity = @stochasticity.markov()",
    "Experiment.num_timesteps = 0",
    "Experiment.ends_stride = 8",
    "Experiment.variance = @variance.equal()",
    "Experiment.time_sampler = @time_sampler.uniform()",
)

# Further ones that may change when a run is measured, but not when it is resumed.
FREE_TO_MEASURE = ("network.*.precision",)


@checked("Experiment")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run. A cadence of 0 means never.

    Attributes:
      seed: with the step, the only source of randomness.
      steps: optimiser steps in all.
      num_timesteps: T, the depth of the model whose bound is trained; 0 = continuous time.
      variance: sigma_P^2 of the T steps, which are equal steps of t.
      time_sampler: the density that times are drawn from; of the loss it changes the noise alone. One that needs a curve of
        the loss or of the gradient is given a running one.
      batch_size: images a step, over all devices.
      microbatches: equal parts that a batch is taken in, one after the other, where it does not fit into the
        devices' memory at once. It changes no result but by rounding (but see `ends_stride`).
      ends_stride: in training, the reconstruction and the latent loss, which vary little, are computed for one image in so many
        of each batch, others each step; in fewer where a device's part of a microbatch does not divide by it. 1 = all images.
      ema_decay: largest decay of the averaged parameters that evaluation and samples use.
      log_every: steps between log rows; the end of training always logs.
      checkpoint_every: steps between checkpoints; the end always saves.
      evaluate_every: steps between evaluations; the end evaluates too, unless it is 0.
      sample_every: steps between samples; likewise.
      keep_last: how many of the newest checkpoints are kept.
      keep_every: checkpoints at multiples of it are kept for good.
      profile_at: the step from which on a few are profiled.
      writers: where metrics go besides the workdir.
      init_from: a workdir or checkpoint of another run to take the first parameters from.
      read_from: the gin files it was read from, as config.gin's header names them; no part of the run.
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
        """Returns what messages call the plugin that has the parameters called `part`."""
        return (
            f"variance {type(self.variance).__name__}" if part == "variance" else self.model.name_part(part)
        )

    @property
    def evaluation(self) -> ResolvedEvaluate:
        """`evaluate`; what it leaves open is as trained."""
        return self.evaluate.resolve(self.trained)

    @property
    def sampling(self) -> ResolvedSample:
        """`sample`; what it leaves open is as trained."""
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
        # both check themselves
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
