"""Metrics to Weights & Biases; needs `pip install 'diffenc[wandb]'`."""

import dataclasses
import importlib
import uuid
from pathlib import Path
from typing import Any

from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.registry import writers

ID = "wandb_id"  # in the workdir: which run of theirs it is


@writers.register("wandb")
@dataclasses.dataclass(frozen=True)
class WeightsAndBiases:
    """Writes scalars, sample grids, histograms and the config to Weights & Biases, in addition to the workdir's files.

    A run that resumes after a kill continues the same W&B run, where rows after its last checkpoint appear twice. Settings of
    the package wandb, as WANDB_MODE=offline, choose online or offline mode and the place of local copies.

    Attributes:
      name: the run's name; None = the workdir's.
    """

    project: str = "diffenc"
    entity: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()

    def open(self, workdir: Path, resume_step: int | None) -> Any:
        """Returns a writer. Raises UserError if the package is missing, or the run cannot be created."""
        from diffenc_plugins.writers.wandb_metric_writer import WandbWriter  # imports clu and tensorboardX

        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                "writer.wandb needs the package wandb: pip install 'diffenc[wandb]', or unbind Experiment.writers"
            ) from error
        file = workdir / ID
        # A new run in a used folder must not append to the W&B run of its predecessor.
        if resume_step is None or not file.is_file():
            atomic.write_text(file, uuid.uuid4().hex)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name or workdir.resolve().name,
                tags=self.tags,
                id=file.read_text(),
                resume="allow",
            )
        except Exception as error:  # they have errors of many kinds, no base class for all
            raise UserError(
                f"writer.wandb: {error}: log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        run.define_metric("*", step_metric="step")
        return WandbWriter(wandb, run)
