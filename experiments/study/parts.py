"""The parts of the study: which arms and seeds there are, in which order they run, and what was named as primary."""

import os
from pathlib import Path
from typing import NamedTuple

from diffenc.tools.sweep.variants import Variant, make_variants

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "records"


class Part(NamedTuple):
    """Arms that were measured alike.

    Attributes:
      name: of its base NAME.gin and of its folder NAME/ of arms.
      title: in tables.
      base: the gin file that all arms stack on.
      arms: stems of their gin files.
      pairs: (A, B), whose difference A - B is described.
      seeds: of every arm.
      borrowed: arms of other parts that `pairs` may name too.
      equal_steps: False if arms are trained for different numbers of steps.
    """

    name: str
    title: str
    base: str
    arms: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    borrowed: tuple[tuple["Part", str], ...] = ()
    equal_steps: bool = True

    @property
    def records(self) -> Path:
        """The folder of its runs, ARM/seed_K."""
        return RECORDS / self.name

    def variants(self, arms: tuple[str, ...]) -> list[Variant]:
        """Returns some of its arms, as variants of a sweep."""
        # Relative to the current folder, the checkout: a run's config.gin states the names as they are given.
        folder = os.path.relpath(FOLDER)
        files = [f"{folder}/{self.name}/{arm}.gin" for arm in arms]
        return make_variants([f"{folder}/{self.base}"], [], [], self.name, files)


class Primary(NamedTuple):
    """A comparison A - B that was named before the runs.

    Attributes:
      part: of the runs.
      a: an arm.
      rivals: arms; B is the one of the lowest mean over the seeds.
    """

    part: Part
    a: str
    rivals: tuple[str, ...]


class Stage(NamedTuple):
    """Runs of a part that belong together: seed by seed, all arms of one seed first."""

    part: Part
    arms: tuple[str, ...]


MNIST = Part(
    "mnist",
    "MNIST, continuous time",
    "mnist.gin",
    ("vdm", "vdm_nontrainable_snr", "nontrainable", "nontrainable_tight", "diffenc", "diffenc_learned_path"),
    (
        ("vdm_nontrainable_snr", "vdm"),
        ("nontrainable", "vdm"),
        ("nontrainable_tight", "nontrainable"),
        ("nontrainable_tight", "vdm_nontrainable_snr"),
        ("diffenc", "vdm"),
        ("diffenc_learned_path", "vdm"),
        ("diffenc_learned_path", "diffenc"),
    ),
    (0, 1, 2, 3, 4),
)
MNIST_T10 = Part(
    "mnist_t10",
    "MNIST, T = 10, trained at T with learned times and variances",
    "mnist_t10.gin",
    ("vdm", "nontrainable_tight", "diffenc_learned_path"),
    (("nontrainable_tight", "vdm"), ("diffenc_learned_path", "vdm")),
    (0, 1, 2, 3, 4),
)
CIFAR10 = Part(
    "cifar10",
    "CIFAR-10, continuous time",
    "cifar10.gin",
    ("vdm", "nontrainable_tight", "diffenc_learned_path"),
    (("nontrainable_tight", "vdm"), ("diffenc_learned_path", "vdm")),
    (0, 1, 2),
)
DIGITS_SIZE = Part(
    "digits_size",
    "Digits, size of the encoder at equal steps",
    "digits.gin",
    ("vdm", "diffenc_1", "diffenc_2", "diffenc_4"),
    (("diffenc_1", "vdm"), ("diffenc_2", "vdm"), ("diffenc_4", "vdm")),
    (0, 1, 2, 3, 4),
)
DIGITS_TIME = Part(
    "digits_time",
    "Digits, size of the encoder at the time of VDM's 3,000 steps",
    "digits.gin",
    ("diffenc_1", "diffenc_2", "diffenc_4"),
    (("diffenc_1", "vdm"), ("diffenc_2", "vdm"), ("diffenc_4", "vdm")),
    (0, 1, 2, 3, 4),
    borrowed=((DIGITS_SIZE, "vdm"),),
    equal_steps=False,
)

# What is tested runs first.
STAGES = (
    Stage(
        MNIST, ("vdm", "vdm_nontrainable_snr", "nontrainable", "nontrainable_tight", "diffenc_learned_path")
    ),
    Stage(MNIST_T10, ("vdm", "diffenc_learned_path")),
    Stage(MNIST, ("diffenc",)),
    Stage(MNIST_T10, ("nontrainable_tight",)),
    Stage(DIGITS_SIZE, DIGITS_SIZE.arms),
    Stage(CIFAR10, CIFAR10.arms),
    Stage(DIGITS_TIME, DIGITS_TIME.arms),
)
PARTS = (MNIST, MNIST_T10, CIFAR10, DIGITS_SIZE, DIGITS_TIME)
PRIMARIES = (
    Primary(MNIST, "diffenc_learned_path", ("vdm", "vdm_nontrainable_snr")),
    Primary(MNIST, "nontrainable_tight", ("nontrainable",)),
    Primary(MNIST_T10, "diffenc_learned_path", ("vdm",)),
)
SIZES = {
    "vdm": 0,
    "diffenc_1": 1,
    "diffenc_2": 2,
    "diffenc_4": 4,
}  # blocks of the encoder of each arm of DIGITS_SIZE
