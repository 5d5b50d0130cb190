"""The settings of evaluation, sampling, fits, other modes and the device mesh."""

import dataclasses
from typing import Any, NamedTuple

from diffenc.core.dequantization import DEQUANTISATIONS
from diffenc.core.discretization import EQUAL
from diffenc.core.model import UNIFORM
from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError, nearest
from diffenc.fields.checked import checked
from diffenc.interfaces import SPLITS, Stochasticity, TimeSampler, Variance
from diffenc.runtime.accelerators import ACCELERATORS
from diffenc.sampling.solvers import SOLVERS

TIMES = ("equal", "fitted")
VALUES = ("fitted", "model")

MAX_COUNT = 2**31 - 1  # devices count in 32 bits
MAX_BATCH = 2**24  # at a time
IN_MEMORY = ("batch_size", "num")
USUAL_STEPS = 1000  # of sampling, where the model was trained in continuous time


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def settings_name(settings: Any) -> str:
    """Returns the name of the settings in configs and messages: "evaluate", also for a ResolvedEvaluate."""
    return type(settings).__name__.removeprefix("Resolved").lower()


def check_seed(name: str, seed: int) -> None:
    """Raises UserError unless `seed` has 32 bits: JAX would drop higher bits, but the order of the data would use them."""
    require(0 <= seed < 2**32, f"{name} = {seed}: must be from 0 to {2**32 - 1}")


def check_bounds(name: str, settings: Any, **least: int) -> None:
    """Raises UserError unless each field is at least its given bound, and at most MAX_COUNT (MAX_BATCH for fields IN_MEMORY).

    Fields that are None are not checked.
    """
    for field, bound in least.items():
        value, rule = getattr(settings, field), f"be at least {bound}" if bound else "not be negative"
        if value is None:
            continue
        require(value >= bound, f"{name}.{field} = {value}: must {rule}")
        most = MAX_BATCH if field in IN_MEMORY else MAX_COUNT
        require(value <= most, f"{name}.{field} = {value}: must be at most {most}")


def check_images(name: str, split: str, num_images: int | None) -> None:
    """Raises UserError unless a split is named and the number of images is positive."""
    require(split in SPLITS, f"{name}.split = {split!r}: must be one of {', '.join(SPLITS)}")
    require(num_images is None or num_images >= 1, f"{name}.num_images = {num_images}: must be at least 1")


def check_sampler(sampler: str, variance: Variance | None) -> None:
    """Raises UserError unless the sampler exists, and takes a variance if one is given."""
    require(
        sampler in SOLVERS,
        f"sample.sampler = {sampler!r}: no such sampler; nearest: {nearest(sampler, SOLVERS)}; there are {', '.join(SOLVERS)}",
    )
    require(
        sampler == "ancestral" or variance in (None, EQUAL),
        f"sample.variance is only for sample.sampler = 'ancestral', and it is {sampler!r}: unbind one of them",
    )


def check_times(name: str, times: str) -> None:
    """Raises UserError unless `times` is one of TIMES."""
    require(times in TIMES, f"{name}.times = {times!r}: must be one of {', '.join(TIMES)}")


class Depth(NamedTuple):
    """The depth of a model, and the path on which it was trained.

    Attributes:
      num_timesteps: T; 0 = continuous time.
      variance: sigma_P^2 of the T steps.
    """

    num_timesteps: int
    variance: Variance
    stochasticity: Stochasticity = MARKOV


def _fill(settings: "Evaluate | Sample", trained: Depth, usual: int) -> dict[str, Any]:
    """Returns T and the variance of the settings; open ones are set to `usual` and to the variance trained for T, else EQUAL."""
    num_timesteps = usual if settings.num_timesteps is None else settings.num_timesteps
    # Variances are trained for the steps of training alone;
    # other steps, or other times, start from sigma_P = sigma_Q.
    as_trained = num_timesteps == trained.num_timesteps and settings.times == "equal"
    of_steps = trained.variance if as_trained else EQUAL  # it belongs to the steps that it was trained for
    variance = of_steps if settings.variance is None else settings.variance
    return {"num_timesteps": num_timesteps, "variance": variance}


@checked("evaluate")
@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Settings of the measurement of bits/dim.

    Attributes:
      split: the split, of which every image is seen once per pass.
      num_images: number of its images, drawn by the seed; None = all.
      passes: K; at least two passes are needed to estimate the Monte-Carlo error.
      times_per_image: diffusion times drawn for an image in a pass.
      batch_size: images at a time; 0 = the training batch size.
      step: the checkpoint's step; None = the newest.
      seed: seed of times and noise; with the same seed all models get the same draws. The draws of k_sample and likelihood
        also depend on the batch size.
      num_timesteps: T of the measured bound; 0 = continuous time; None = as trained.
      times: "equal" steps of t, or the "fitted" times that --mode=fit_schedule found for T.
      variance: sigma_P^2 of the T steps; None = as trained if the steps are those of training, else equal.
      time_sampler: the density from which times are drawn; it changes the Monte-Carlo error, not the bound.
      stochasticity: the path on which the bound is measured; None = that of training. The bound holds on any path; records
        state a path other than that of training as `measured_path`. Sampling follows the path of training.
    """

    split: str = "test"
    num_images: int | None = None
    passes: int = 1
    times_per_image: int = 1
    batch_size: int = 0
    step: int | None = None
    seed: int = 0
    num_timesteps: int | None = None
    times: str = "equal"
    variance: Variance | None = None
    time_sampler: TimeSampler = UNIFORM
    stochasticity: Stochasticity | None = None

    def __post_init__(self):
        check_seed("evaluate.seed", self.seed)
        check_images("evaluate", self.split, self.num_images)
        check_times("evaluate", self.times)
        check_bounds("evaluate", self, passes=1, times_per_image=1, batch_size=0, num_timesteps=0)
        if self.num_timesteps == 0:  # any w other than 1 makes the continuous bound infinite
            chosen = "times" if self.times != "equal" else "variance"
            require(
                self.times == "equal" and self.variance in (None, EQUAL),
                f"evaluate.{chosen} needs discrete time: bind evaluate.num_timesteps = T, or give --num_timesteps=T",
            )

    def resolve(self, trained: Depth) -> "ResolvedEvaluate":
        """Returns the settings for a model trained at the depth `trained`."""
        # The path of training named explicitly becomes None, so that records of both spellings can be compared.
        other_path = None if self.stochasticity == trained.stochasticity else self.stochasticity
        filled = _fill(self, trained, trained.num_timesteps)
        return ResolvedEvaluate(**{**vars(self), **filled, "stochasticity": other_path})


@dataclasses.dataclass(frozen=True)
class ResolvedEvaluate(Evaluate):
    """Settings of `evaluate` with T and the variance known; `stochasticity` is None if it is that of training."""

    num_timesteps: int = 0
    variance: Variance = EQUAL


@checked("sample")
@dataclasses.dataclass(frozen=True)
class Sample:
    """Settings of sampling.

    Attributes:
      num_timesteps: T, the number of steps; None = as trained, or 1,000 for a model trained in continuous time.
      num: number of images in the grid.
      step: the checkpoint's step; None = the newest.
      seed: seed of the noise.
      times: "equal" steps of t, or the "fitted" times that --mode=fit_schedule found for T.
      variance: sigma_P^2 of the T steps; None = as trained if the sampler is ancestral and the steps are those of training,
        else equal.
      sampler: "ancestral", "euler_maruyama", "ddim" or "exponential_midpoint", which evaluates the network twice per
        step. The last two solve the probability-flow ODE: with a trained encoder they sample another distribution.
      classes: the classes to draw in turn, for a conditional network; None = all of them.
      guidance: w of classifier-free guidance, x_hat = (1 + w) x_hat(z | class) - w x_hat(z); 0 = none. Guided
        samples are not from the model for which bits/dim are measured.
    """

    num_timesteps: int | None = None
    num: int = 64
    step: int | None = None
    seed: int = 0
    times: str = "equal"
    variance: Variance | None = None
    sampler: str = "ancestral"
    classes: tuple[int, ...] | None = None
    guidance: float = 0.0

    def __post_init__(self):
        check_seed("sample.seed", self.seed)
        check_times("sample", self.times)
        check_sampler(self.sampler, self.variance)
        check_bounds("sample", self, num_timesteps=1, num=1, guidance=0)
        require(self.classes != (), "sample.classes = (): name one class at least, or None for all")

    def resolve(self, trained: Depth) -> "ResolvedSample":
        """Returns the settings for a model trained at the depth `trained`."""
        if self.sampler != "ancestral":  # the others take no variance
            trained = trained._replace(variance=EQUAL)
        return ResolvedSample(**{**vars(self), **_fill(self, trained, trained.num_timesteps or USUAL_STEPS)})


@dataclasses.dataclass(frozen=True)
class ResolvedSample(Sample):
    """Settings of `sample` with T and the variance known."""

    num_timesteps: int = USUAL_STEPS
    variance: Variance = EQUAL


@checked("fit")
@dataclasses.dataclass(frozen=True)
class Fit:
    """Settings of --mode=fit_variance, fit_schedule, fit_stochasticity and fit_ode, on the checkpoint that evaluation reads.

    Attributes:
      split: the split. A bound measured on the images used for the fit would be too good: leave it at "train".
      num_images: number of its images, drawn by the seed; None = all.
      passes: passes over the images.
      times_per_image: diffusion times drawn for an image in a pass.
      batch_size: images at a time; 0 = the training batch size.
      knots: number of equally spaced times at which the table of costs is measured.
      seed: seed of images, times and noise.
      head_steps: steps of --mode=fit_ode, which uses the train split in batches as in training.
    """

    split: str = "train"
    num_images: int | None = 1024
    passes: int = 1
    times_per_image: int = 8
    batch_size: int = 0
    knots: int = 65
    seed: int = 0
    head_steps: int = 1000

    def __post_init__(self):
        check_seed("fit.seed", self.seed)
        check_images("fit", self.split, self.num_images)
        check_bounds("fit", self, passes=1, times_per_image=1, batch_size=0, knots=5, head_steps=1)


@checked("k_sample")
@dataclasses.dataclass(frozen=True)
class KSample:
    """Settings of --mode=k_sample in addition to those of `evaluate`, including its T.

    Attributes:
      samples: K, the number of chains drawn for an image in a pass.
    """

    samples: int = 16

    def __post_init__(self):
        check_bounds("k_sample", self, samples=1)


@checked("likelihood")
@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Settings of --mode=likelihood; images, passes, seed and checkpoint are those of `evaluate`.

    Attributes:
      dequantisation: "truncated_normal" or "uniform": the density, within its cell, by which an image is dequantised.
      rtol: the error per step, in z and in nats/dim of the divergence, is at most about atol + rtol |z|.
      atol: see rtol.
      probes: number of probes in Hutchinson's estimate of the divergence.
      exact_up_to: up to this number of dimensions the divergence is computed exactly, without probes.
      tighter: factor on rtol and atol in a second solution, which estimates the error of the first. In float32, with its
        resolution of 1e-7, the products should not be below 1e-6.
      times_per_image: diffusion times drawn for an image in a pass, in averages along q.
      value: "fitted", the value of the second head that --mode=fit_ode fitted; "model", that of the model as trained; None =
        "fitted" if a head was fitted to this checkpoint, else "model".
    """

    dequantisation: str = "truncated_normal"
    rtol: float = 1e-5
    atol: float = 1e-5
    probes: int = 1
    exact_up_to: int = 16
    tighter: float = 0.1
    times_per_image: int = 64
    value: str | None = None

    def __post_init__(self):
        require(
            self.dequantisation in DEQUANTISATIONS,
            f"likelihood.dequantisation = {self.dequantisation!r}: must be one of {', '.join(DEQUANTISATIONS)}",
        )
        for name in ("rtol", "atol"):
            require(getattr(self, name) > 0, f"likelihood.{name} = {getattr(self, name)}: must be positive")
        require(
            self.value in (None, *VALUES),
            f"likelihood.value = {self.value!r}: must be one of {', '.join(VALUES)}, or None",
        )
        require(0 < self.tighter < 1, f"likelihood.tighter = {self.tighter}: must be between 0 and 1")
        check_bounds("likelihood", self, probes=1, exact_up_to=0, times_per_image=1)


@checked("compress")
@dataclasses.dataclass(frozen=True)
class Compress:
    """Settings of --mode=compress and decompress; images, T, its times and variances, path and checkpoint are those of `evaluate`.

    Attributes:
      batch_size: images per call of the networks, in coding and decoding. The initial bits are those of the latents of one
        batch.
      bins: cells per standard deviation in which latents are coded. Each doubling takes one more initial bit per latent.
      seed: seed of the initial bits.
      file: the coded images; None = compressed.diffenc in the workdir. A run's own config does not decide on it.
      decoded: an .npz file for the decoded images; None = decompressed.npz in the workdir. Nor on this.
    """

    batch_size: int = 16
    bins: int = 16
    seed: int = 0
    file: str | None = None
    decoded: str | None = None

    def __post_init__(self):
        check_seed("compress.seed", self.seed)
        check_bounds("compress", self, batch_size=1, bins=1)


@checked("diagnose")
@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Settings of --mode=diagnose, on the checkpoint that evaluation reads.

    Attributes:
      split: the split.
      num_images: number of its images, drawn by the seed; None = all.
      passes: passes over the images, each with another diffusion time per image.
      bins: number of equal bins of t.
      batch_size: images at a time; 0 = the training batch size.
      seed: seed of images, times and noise.
    """

    split: str = "train"
    num_images: int | None = 512
    passes: int = 16
    bins: int = 64
    batch_size: int = 0
    seed: int = 0

    def __post_init__(self):
        check_seed("diagnose.seed", self.seed)
        check_images("diagnose", self.split, self.num_images)
        check_bounds("diagnose", self, passes=1, bins=1, batch_size=0)


@checked("mesh")
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The mesh of all devices of all processes. It changes results only by rounding, and in training also by the choice of
    images for the losses at the ends (`Experiment.ends_stride`).

    Attributes:
      data: number of copies of the parameters; 0 = the number of devices divided by `fsdp`.
      fsdp: number of devices over which each copy is split, with its average and the optimiser's moments.
      rules: exceptions, as pairs of a pattern for parameters' names (`*`, `?`, `[...]` as in a shell) and the axis
        to split, or None to copy; the first matching pattern applies. parameters.txt of a workdir lists the names.
    """

    data: int = 0
    fsdp: int = 1
    rules: tuple[tuple[str, int | None], ...] = ()

    def __post_init__(self):
        check_bounds("mesh", self, data=0, fsdp=1)


@checked("plan")
@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of --mode=plan: the machine that will train.

    Attributes:
      accelerator: a name in `diffenc.runtime.accelerators`, such as "h200"; None = this machine's.
      peak_tflops: peak rate of one device; None = as stated for the accelerator, or measured if that is not known.
      share: fraction of the peak rate that the train step reaches.
      devices: number of devices; 0 = those of this machine.
      compile: whether to compile the train step; False = only the memory of the state is known.
      topology: a machine to compile for, which need not be present, such as "v5e:4x8"; instead of `accelerator` and
        `devices`.
      quick: compile with 2 and 4 blocks of the network, and extrapolate.
      only_training: compile only the train step for the topology.
    """

    accelerator: str | None = None
    peak_tflops: float | None = None
    share: float = 0.35
    devices: int = 0
    compile: bool = True
    topology: str | None = None
    quick: bool = False
    only_training: bool = False

    def __post_init__(self):
        require(
            not self.quick or self.topology is not None,
            "plan.quick needs plan.topology, a machine to compile for",
        )
        known = self.accelerator is None or self.accelerator in ACCELERATORS
        names = ", ".join(ACCELERATORS)
        require(
            known,
            f"plan.accelerator = {self.accelerator!r}: must be one of {names}; or bind plan.peak_tflops",
        )
        given = self.peak_tflops is None or self.peak_tflops > 0
        require(given, f"plan.peak_tflops = {self.peak_tflops}: must be positive")
        require(0 < self.share <= 1, f"plan.share = {self.share}: must be above 0, and at most 1")
        check_bounds("plan", self, devices=0)
