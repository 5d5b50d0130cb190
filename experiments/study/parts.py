"""The parts of the study: which arms and seeds there are, in which order they run, and what was named as primary."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import Stochasticity
from diffenc.registry import stochasticities
from diffenc.tools.sweep.variants import Variant, make_variants
from diffenc_plugins.stochasticities import Nontrainable

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "records"
MODELS_FOLDER = FOLDER / "models"


class OtherPath(NamedTuple):
    """A path on which an arm's networks are measured besides that of their training."""

    arm: str
    path: Stochasticity

    @property
    def name(self) -> str:
        """The path, as records have it."""
        return stochasticities.spell(self.path)

    @property
    def record_name(self) -> str:
        """The record in the folder of a run, without its ending."""
        return f"on_{self.name}"


class Part(NamedTuple):
    """Arms that were measured alike.

    Attributes:
      name: of the folder of its records.
      title: in tables.
      base: the gin file that all its arms stack on.
      arms: stems of their gin files in arms/.
      pairs: (A, B), whose difference A - B is described.
      seeds: of every arm.
      borrowed: arms of other parts, shown beside its own, which `pairs` may name too.
      equal_steps: False if arms are trained for different numbers of steps.
      learned: arms that learn their path, their times or their variances.
      other_paths: on which arms are measured too.
    """

    name: str
    title: str
    base: str
    arms: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    borrowed: tuple[tuple["Part", str], ...] = ()
    equal_steps: bool = True
    learned: tuple[str, ...] = ()
    other_paths: tuple[OtherPath, ...] = ()

    @property
    def records(self) -> Path:
        """The folder of its runs, ARM/seed_K."""
        return RECORDS / self.name

    def workdir(self, arm: str, seed: int) -> Path:
        """The folder of one of its runs."""
        return self.records / arm / f"seed_{seed}"

    def variants(self, arms: Sequence[str]) -> list[Variant]:
        """Returns some of its arms, as variants of a sweep."""
        # Relative to the current folder, the checkout: a run's config.gin states the names as they are given.
        folder = os.path.relpath(FOLDER)
        files = [f"{folder}/arms/{arm}.gin" for arm in arms]
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


VDM, CONTROL = "vdm", "vdm_nontrainable_snr"
NT, TIGHT = "nontrainable", "nontrainable_tight"
DIFFENC, LEARNED_PATH = "diffenc", "diffenc_learned_path"
FIVE = (0, 1, 2, 3, 4)

MNIST = Part(
    "mnist",
    "MNIST, continuous time",
    "mnist.gin",
    (VDM, CONTROL, NT, TIGHT, DIFFENC, LEARNED_PATH),
    (
        (CONTROL, VDM),
        (NT, VDM),
        (NT, CONTROL),
        (TIGHT, NT),
        (TIGHT, VDM),
        (TIGHT, CONTROL),
        (DIFFENC, VDM),
        (DIFFENC, NT),
        (LEARNED_PATH, VDM),
        (LEARNED_PATH, CONTROL),
        (LEARNED_PATH, DIFFENC),
        (LEARNED_PATH, TIGHT),
    ),
    FIVE,
    learned=(LEARNED_PATH,),
    other_paths=(OtherPath(NT, Nontrainable()), OtherPath(LEARNED_PATH, MARKOV)),
)
MNIST_T10 = Part(
    "mnist_t10",
    "MNIST, T = 10, trained at T with learned times and variances",
    "mnist_t10.gin",
    (VDM, TIGHT, LEARNED_PATH),
    ((TIGHT, VDM), (LEARNED_PATH, VDM), (LEARNED_PATH, TIGHT)),
    FIVE,
    learned=(VDM, TIGHT, LEARNED_PATH),
)
CIFAR10 = Part(
    "cifar10",
    "CIFAR-10, continuous time",
    "cifar10.gin",
    (VDM, TIGHT, LEARNED_PATH),
    ((TIGHT, VDM), (LEARNED_PATH, VDM), (LEARNED_PATH, TIGHT)),
    (0, 1, 2),
    learned=(LEARNED_PATH,),
)
SIZES = {"diffenc_1": 1, "diffenc_2": 2, "diffenc_4": 4}  # blocks of the encoder, by arm
DIGITS_SIZE = Part(
    "digits_size",
    "Digits, size of the encoder at equal steps",
    "digits.gin",
    (VDM, *SIZES),
    tuple((arm, VDM) for arm in SIZES),
    FIVE,
)
EQUAL_TIME = tuple(f"{arm}_equal_time" for arm in SIZES)
DIGITS_TIME = Part(
    "digits_time",
    "Digits, size of the encoder in the time of VDM's 3,000 steps",
    "digits.gin",
    EQUAL_TIME,
    tuple((arm, VDM) for arm in EQUAL_TIME),
    FIVE,
    borrowed=((DIGITS_SIZE, VDM),),
    equal_steps=False,
)

TIMES = dict(zip(EQUAL_TIME, SIZES.values(), strict=True))

PARTS = (MNIST, MNIST_T10, DIGITS_SIZE, DIGITS_TIME, CIFAR10)
PRIMARIES = (
    Primary(MNIST, LEARNED_PATH, (VDM, CONTROL)),
    Primary(MNIST, TIGHT, (NT,)),
    Primary(MNIST_T10, LEARNED_PATH, (VDM,)),
)
# What is tested runs first. If time ends, what is last is missing.
STAGES = (
    Stage(MNIST, (VDM, CONTROL, NT, TIGHT, LEARNED_PATH)),
    Stage(MNIST_T10, (VDM, LEARNED_PATH)),
    Stage(MNIST, (DIFFENC,)),
    Stage(MNIST_T10, (TIGHT,)),
    Stage(DIGITS_SIZE, DIGITS_SIZE.arms),
    Stage(CIFAR10, CIFAR10.arms),
    Stage(DIGITS_TIME, DIGITS_TIME.arms),
)
# Models that come with a release, by their folder, of seed 0: to take the best seed would be to choose on the test images.
MODELS = {
    f"{part.name}_{arm}": (part, arm) for part, arm in ((MNIST, VDM), (MNIST, TIGHT), (MNIST, LEARNED_PATH))
}
