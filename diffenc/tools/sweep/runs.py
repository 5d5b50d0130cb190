"""The runs of a sweep: one of each variant and seed, in a folder of its own, and what is still to be done for it."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffenc.checkpoint import meta
from diffenc.checkpoint.checkpoints import FOLDER
from diffenc.config import gin_loader, serialize
from diffenc.config.experiment import FREE_TO_MEASURE, Experiment
from diffenc.errors import UserError
from diffenc.evaluation import records
from diffenc.evaluation.evaluated_bound import bound_metadata
from diffenc.files import stores
from diffenc.registry import time_samplers
from diffenc.tools.sweep.summary import read
from diffenc.tools.sweep.variants import Variant
from diffenc.workdir.config_check import refuse_other_config

PROGRAM = (sys.executable, "-m", "diffenc.run")
CHECKPOINT_OF = {"evaluate": "evaluate", "fid": "sample"}  # whose `step` names the checkpoint, by mode
OTHER_FLAGS = "give the flags that it was trained with, or another --output"
ERROR = "error: "  # how `diffenc.run` begins what it ends with


@dataclasses.dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
      folder: of the sweep.
      experiment: what the variant's files and bindings say, with this seed.
    """

    variant: Variant
    seed: int
    folder: Path
    experiment: Experiment

    def __str__(self) -> str:
        return f"{self.variant.name}/seed_{self.seed}"

    @property
    def workdir(self) -> Path:
        return self.folder / str(self)

    @property
    def log(self) -> Path:
        """Beside the workdir: all that its programs wrote."""
        return self.folder / f"{self}.log"

    def command(self, mode: str) -> list[str]:
        """What runs `mode` of it."""
        files = [f"--gin_file={file}" for file in self.variant.gin_files]
        said = (*self.variant.bindings, f"Experiment.seed = {self.seed}", *self._checkpoint(mode))
        bindings = [f"--gin_bindings={text}" for text in said]
        return [*PROGRAM, *files, *bindings, f"--workdir={self.workdir}", f"--mode={mode}"]

    def _checkpoint(self, mode: str) -> list[str]:
        """What a run that was trained on for longer is measured at: the step that is asked for here."""
        settings = CHECKPOINT_OF.get(mode)
        if settings is None or getattr(self.experiment, settings).step is not None:
            return []
        return [f"{settings}.step = {self.experiment.steps}"]

    def failure(self) -> str:
        """The last error in its log, or where to look."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        errors = [line for line in text.splitlines() if line.startswith(ERROR)]
        return errors[-1].removeprefix(ERROR) if errors else f"see {self.log}"


class Task(NamedTuple):
    """A mode that every run goes through, and whether a run has it behind it."""

    mode: str
    done: Callable[[Run], bool]


def trained(run: Run) -> bool:
    """Whether it has a checkpoint of its last step."""
    if not run.workdir.is_dir():
        return False
    found = meta.list_checkpoints(stores.open_store(run.workdir / FOLDER))
    return any(name.step >= run.experiment.steps for name, committed in found.items() if committed)


def evaluated(run: Run) -> bool:
    """Whether its last evaluation is the one that its config asks for, of its last step."""
    record = read(run.workdir)
    if record is None or not records.has_num_images(record, run.experiment.evaluate.num_images):
        return False
    return all(record.get(key) == value for key, value in asked(run.experiment).items())


def asked(experiment: Experiment) -> dict[str, Any]:
    """What an evaluation of `experiment` says of how it was made, as far as that is known beforehand."""
    settings = experiment.evaluate
    return {
        **bound_metadata(settings),
        "split": settings.split,
        "passes": settings.passes,
        "times_per_image": settings.times_per_image,
        "batch_size": settings.batch_size or experiment.batch_size,
        "seed": settings.seed,
        "time_sampler": time_samplers.spell(settings.time_sampler),
        "precision": serialize.network_precision(experiment),
        "step": settings.step or experiment.steps,
    }


# a run that is measured may have lost its checkpoints
TRAIN = Task("train", lambda run: evaluated(run) or trained(run))
EVALUATE = Task("evaluate", evaluated)
TASKS = (TRAIN, EVALUATE)


def left(run: Run, tasks: Sequence[Task]) -> list[str]:
    """The modes that `run` still has to go through, in order."""
    return [task.mode for task in tasks if not task.done(run)]


def runs_of(folder: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Run]:
    """Every variant with every seed; all variants of one seed before the next, so that a part can be compared.

    Raises:
      UserError: a variant's config is at fault, or binds the seed itself, or a workdir holds a run of another config.
    """
    loaded = [(variant, _load(variant)) for variant in variants]
    runs = [
        Run(variant, seed, folder, dataclasses.replace(experiment, seed=seed))
        for seed in seeds
        for variant, experiment in loaded
    ]
    for run in runs:
        refuse_other_config(run.experiment, run.workdir, FREE_TO_MEASURE, OTHER_FLAGS)
    return runs


def _load(variant: Variant) -> Experiment:
    for text in variant.bindings:
        if text.partition("=")[0].strip() == "Experiment.seed":
            raise UserError(f"{text}: a sweep chooses the seeds itself; give --seeds")
    try:
        return gin_loader.load_experiment(variant.gin_files, variant.bindings)
    except UserError as error:
        raise UserError(f"{variant.name}: {error}") from error
