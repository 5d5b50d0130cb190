"""The metric writer of `writer.wandb`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffenc.workdir.writers import NullWriter, Scalars


class WandbWriter(NullWriter):
    """Writes one run. The step is a metric of its own: W&B's step may only rise, and a run may resume at an earlier step."""

    def __init__(self, wandb: Any, run: Any):
        self._wandb = wandb
        self._run = run

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        self._log(step, {name: float(np.asarray(value)) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes one image [H, W, C] or several [N, H, W, C], uint8."""
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
