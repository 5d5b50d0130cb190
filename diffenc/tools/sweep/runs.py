"""The runs of a sweep, one for each variant and seed, and the remaining tasks of each."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffenc.checkpoint import meta
from diffenc.checkpoint.checkpoints import FOLDER
from diffenc.config import gin_loader
from diffenc.config.experiment import FREE_TO_MEASURE, Experiment
from diffenc.config.network_precision import network_precision
from diffenc.errors import UserError
from diffenc.evaluation import saved_records
from diffenc.evaluation.evaluated_bound import bound_metadata
from diffenc.files import stores
from diffenc.registry import time_samplers
from diffenc.tools.sweep.results import read_record
from diffenc.tools.sweep.variants import Variant
from diffenc.workdir.config_check import refuse_other_config
from diffenc.workdir.fitted_chains import MEASURED_PATH, measured_path

PROGRAM = (sys.executable, "-m", "diffenc.run")
SETTINGS_WITH_STEP = {
    "evaluate": "evaluate",
    "fid": "sample",
}  # mode: the settings whose `step` selects its checkpoint
OTHER_CONFIG_HINT = "use the flags that it was trained with, or another --output"
ERROR_PREFIX = "error: "  # of the last line that a failing `diffenc.run` prints


@dataclasses.dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
      folder: the sweep's folder.
      experiment: the variant's experiment, with this seed.
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
        """The file with the output of all its commands, next to the workdir."""
        return self.folder / f"{self}.log"

    def command(self, mode: str) -> list[str]:
        """Returns the command line of `diffenc.run` that executes `mode` for this run."""
        files = [f"--gin_file={file}" for file in self.variant.gin_files]
        bindings = (*self.variant.bindings, f"Experiment.seed = {self.seed}", *self._step_binding(mode))
        flags = [f"--gin_bindings={binding}" for binding in bindings]
        return [*PROGRAM, *files, *flags, f"--workdir={self.workdir}", f"--mode={mode}"]

    def _step_binding(self, mode: str) -> list[str]:
        """Returns the binding that selects the checkpoint of the last step, for a run that was trained further."""
        settings = SETTINGS_WITH_STEP.get(mode)
        if settings is None or getattr(self.experiment, settings).step is not None:
            return []
        return [f"{settings}.step = {self.experiment.steps}"]

    def last_error(self) -> str:
        """Returns the last error in the log, or the path of the log if there is none."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        errors = [line for line in text.splitlines() if line.startswith(ERROR_PREFIX)]
        return errors[-1].removeprefix(ERROR_PREFIX) if errors else f"see {self.log}"


class Task(NamedTuple):
    """A mode that every run is to execute, and a test of whether a run has done so."""

    mode: str
    is_done: Callable[[Run], bool]


def is_trained(run: Run) -> bool:
    """Returns whether the run has a checkpoint of its last step."""
    if not run.workdir.is_dir():
        return False
    found = meta.list_checkpoints(stores.open_store(run.workdir / FOLDER))
    return any(name.step >= run.experiment.steps for name, committed in found.items() if committed)


def is_evaluated(run: Run) -> bool:
    """Returns whether the run's last evaluation is of its last step, with the settings of its config."""
    record = read_record(run.workdir)
    if record is None or not saved_records.has_num_images(record, run.experiment.evaluate.num_images):
        return False
    return all(record.get(key) == value for key, value in expected_metadata(run.experiment).items())


def expected_metadata(experiment: Experiment) -> dict[str, Any]:
    """Returns the metadata that an evaluation record of `experiment` must have; None where it has no such key."""
    settings = experiment.evaluation
    return {
        **bound_metadata(settings),
        "split": settings.split,
        "passes": settings.passes,
        "times_per_image": settings.times_per_image,
        "batch_size": settings.batch_size or experiment.batch_size,
        "seed": settings.seed,
        "time_sampler": time_samplers.spell(settings.time_sampler),
        "precision": network_precision(experiment),
        MEASURED_PATH: measured_path(experiment).get(MEASURED_PATH),
        "step": settings.step or experiment.steps,
    }


# An evaluated run counts as trained even if its checkpoints were deleted.
TRAIN = Task("train", lambda run: is_evaluated(run) or is_trained(run))
EVALUATE = Task("evaluate", is_evaluated)
TASKS = (TRAIN, EVALUATE)


def remaining_modes(run: Run, tasks: Sequence[Task]) -> list[str]:
    """Returns the modes that `run` still has to execute, in order."""
    return [task.mode for task in tasks if not task.is_done(run)]


def make_runs(folder: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Run]:
    """Returns a run for every variant and seed: all variants of one seed first, so that partial results compare.

    Raises:
      UserError: a variant's config is invalid or binds the seed, or a workdir holds a run of another config.
    """
    loaded = [(variant, _load(variant)) for variant in variants]
    runs = [
        Run(variant, seed, folder, dataclasses.replace(experiment, seed=seed))
        # Seeds are the outer loop: after each all variants can be compared.
        for seed in seeds
        for variant, experiment in loaded
    ]
    for run in runs:
        refuse_other_config(run.experiment, run.workdir, FREE_TO_MEASURE, OTHER_CONFIG_HINT)
    return runs


def _load(variant: Variant) -> Experiment:
    for text in variant.bindings:
        if text.partition("=")[0].strip() == "Experiment.seed":
            raise UserError(f"{text}: a sweep sets the seed itself; use --seeds")
    try:
        return gin_loader.load_experiment(variant.gin_files, variant.bindings)
    except UserError as error:
        raise UserError(f"{variant.name}: {error}") from error
