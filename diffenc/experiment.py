"""What a user binds: one run, described by values alone."""

import dataclasses

from diffenc.errors import UserError
from diffenc.interfaces import Dataset, Optimizer
from diffenc.model import Model

SPLITS = ("train", "validation", "test")

# What may differ between two visits to one workdir: how long, how often and with what effort, never what.
FREE_TO_CHANGE = (
    "Experiment.steps",
    "Experiment.log_every",
    "Experiment.checkpoint_every",
    "Experiment.evaluate_every",
    "Experiment.sample_every",
    "Experiment.keep_last",
    "Experiment.keep_every",
    "evaluate.",
    "sample.",
)


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition`."""
    if not condition:
        raise UserError(message)


def check_seed(name: str, seed: int) -> None:
    """Raise UserError unless `seed` has 32 bits: jax drops the others, and the data's order would not."""
    require(0 <= seed < 2**32, f"{name} = {seed}: must be from 0 to {2**32 - 1}")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How bits/dim are measured.

    Attributes:
      split: the split, every image of which is seen once a pass.
      passes: K; from two passes on the Monte-Carlo error is known.
      times_per_image: diffusion times drawn for an image in a pass.
      batch_size: images at a time; 0 = the training batch size.
      step: the checkpoint's step; None = the newest.
      seed: of times and noise; with the same batch size, the same seed gives every model the same draws.
    """

    split: str = "test"
    passes: int = 1
    times_per_image: int = 1
    batch_size: int = 0
    step: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_seed("evaluate.seed", self.seed)
        require(self.split in SPLITS, f"evaluate.split = {self.split!r}: must be one of {', '.join(SPLITS)}")
        for name in ("passes", "times_per_image"):
            require(getattr(self, name) >= 1, f"evaluate.{name} = {getattr(self, name)}: must be at least 1")
        require(self.batch_size >= 0, f"evaluate.batch_size = {self.batch_size}: must not be negative")


@dataclasses.dataclass(frozen=True)
class Sample:
    """How images are drawn.

    Attributes:
      steps: T, the number of ancestral steps.
      num: number of images in the grid.
      step: the checkpoint's step; None = the newest.
      seed: of the noise.
    """

    steps: int = 1000
    num: int = 64
    step: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_seed("sample.seed", self.seed)
        for name in ("steps", "num"):
            require(getattr(self, name) >= 1, f"sample.{name} = {getattr(self, name)}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run. A cadence of 0 means never.

    Attributes:
      seed: with the step, the only source of randomness.
      steps: optimiser steps in all.
      batch_size: images a step, over all devices.
      ema_decay: largest decay of the averaged parameters that evaluation and samples use.
      log_every, evaluate_every, sample_every, checkpoint_every: cadences in steps; the end of training
        always logs and saves, and evaluates and samples where their cadence is not 0.
      keep_last: how many of the newest checkpoints are kept.
      keep_every: checkpoints at multiples of it are kept for good.
      init_from: a workdir or checkpoint of another run to take the first parameters from.
    """

    model: Model
    dataset: Dataset
    optimizer: Optimizer
    seed: int = 0
    steps: int = 1000
    batch_size: int = 128
    ema_decay: float = 0.9999
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int = 0
    sample_every: int = 0
    keep_last: int = 3
    keep_every: int = 0
    init_from: str | None = None
    evaluate: Evaluate = Evaluate()
    sample: Sample = Sample()

    def __post_init__(self):
        check_seed("Experiment.seed", self.seed)
        for name in ("steps", "batch_size", "log_every", "keep_last"):
            require(
                getattr(self, name) >= 1, f"Experiment.{name} = {getattr(self, name)}: must be at least 1"
            )
        for name in ("checkpoint_every", "evaluate_every", "sample_every", "keep_every"):
            require(
                getattr(self, name) >= 0, f"Experiment.{name} = {getattr(self, name)}: must not be negative"
            )
        require(0 <= self.ema_decay < 1, f"Experiment.ema_decay = {self.ema_decay}: must be in [0, 1)")
