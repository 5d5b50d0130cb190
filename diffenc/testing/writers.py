"""What every writer keeps. Writers of services that are not there in a test need a stand-in for their package."""

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
    """For a run that starts, and for one that goes on, in the same workdir."""
    with tempfile.TemporaryDirectory() as workdir:
        for resume_step in (None, 7):
            opened = plugin.open(Path(workdir), resume_step)
            lacking = [name for name in METHODS if not callable(getattr(opened, name, None))]
            require(not lacking, plugin, f"what it opens has no {', '.join(lacking)}")
            kind = metric_writers.MetricWriter
            require(isinstance(opened, kind), plugin, "what it opens is no clu.metric_writers.MetricWriter")
            opened.close()


def it_takes_all_that_a_run_writes(plugin: Any) -> None:
    """Numbers that are not finite too, grey and coloured images, and nothing at all."""
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


CHECKS = (it_opens_a_metric_writer, it_takes_all_that_a_run_writes)
