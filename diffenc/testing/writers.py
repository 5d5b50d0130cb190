"""Conformance checks of writers. A writer to a service needs a stand-in for the package of the service."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diffenc.testing.assertions import require
from diffenc.workdir.writers import metric_writers

METHODS = (
    "write_scalars",
    "write_images",
    "write_texts",
    "write_histograms",
    "write_hparams",
    "flush",
    "close",
)


def it_opens_a_metric_writer(plugin: Any) -> None:
    """Requires a clu MetricWriter, for a new run and for a resumed one in the same workdir."""
    with tempfile.TemporaryDirectory() as workdir:
        for resume_step in (None, 7):
            opened = plugin.open(Path(workdir), resume_step)
            missing = [name for name in METHODS if not callable(getattr(opened, name, None))]
            require(not missing, plugin, f"the returned writer has no {', '.join(missing)}")
            kind = metric_writers.MetricWriter
            require(isinstance(opened, kind), plugin, "`open` returns no clu.metric_writers.MetricWriter")
            opened.close()


def it_accepts_all_that_a_run_writes(plugin: Any) -> None:
    """Requires that it accepts all data a run writes, such as NaN, grey and coloured images and empty histograms."""
    with tempfile.TemporaryDirectory() as workdir:
        opened = plugin.open(Path(workdir), None)
        opened.write_hparams({"Experiment.seed": 1, "Model.encoder": "@encoder.identity()"})
        opened.write_scalars(1, {"bpd": np.float32(2.5), "data_wait": float("nan")})
        opened.write_images(
            1, {"samples": np.zeros((8, 8, 1), np.uint8), "two": np.zeros((2, 8, 8, 3), np.uint8)}
        )
        opened.write_histograms(1, {"loss": np.arange(10.0), "none": np.empty(0)})
        opened.flush()
        opened.close()


CHECKS = (it_opens_a_metric_writer, it_accepts_all_that_a_run_writes)
