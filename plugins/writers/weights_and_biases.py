"""Metrics to Weights & Biases; needs `pip install 'diffenc[wandb]'`."""

import dataclasses
import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.registry import writers
from diffenc.workdir.writers import NullWriter, Scalars

ID = "wandb_id"  # in the workdir: which run of theirs it is


@writers.register("wandb")
@dataclasses.dataclass(frozen=True)
class WeightsAndBiases:
    """Scalars, sample grids, histograms and the config to Weights & Biases, beside what the workdir keeps.

    A run that goes on after a kill goes on there too; rows after its last checkpoint are there twice. Whether
    it is online and where local copies lie is told by that package's own settings, as WANDB_MODE=offline.

    Attributes:
      name: of the run; None = the workdir's.
    """

    project: str = "diffenc"
    entity: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()

    def open(self, workdir: Path, resume_step: int | None) -> "Writer":
        """Raises UserError if the package is not there, or the run cannot be made."""
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                "writer.wandb needs the package wandb: pip install 'diffenc[wandb]', or unbind Experiment.writers"
            ) from error
        file = workdir / ID
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
        return Writer(wandb, run)


class Writer(NullWriter):
    """One run there. Our step is an axis of its own: theirs may only rise, and a run may go back to a checkpoint."""

    def __init__(self, wandb: Any, run: Any):
        self._wandb = wandb
        self._run = run

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        self._log(step, {name: float(np.asarray(value)) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """One image [H, W, C] or several [N, H, W, C], uint8."""
        for name, value in images.items():
            several = np.asarray(value)[None] if np.ndim(value) == 3 else np.asarray(value)
            self._log(step, {name: [self._wandb.Image(image.squeeze()) for image in several]})

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        for name, value in arrays.items():
            if np.size(value):
                counted = np.histogram(value, bins=(num_buckets or {}).get(name, 30))
                self._log(step, {name: self._wandb.Histogram(np_histogram=counted)})

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log({"step": step, **values})
