"""The measurements on the device."""

import time
from pathlib import Path

import jax

from diffenc.config.experiment import Experiment
from diffenc.evaluation.commands import evaluate
from diffenc.evaluation.evaluation_record import format_error_over_images
from diffenc.runtime import accelerators
from diffenc.runtime.matmul_precision import matmul_precision
from diffenc.tools.planning.step_time import time_at_peak
from diffenc.training.loop import train
from experiments.benchmark.machine import package_versions
from experiments.benchmark.steps import device_memory
from experiments.benchmark.subject import Settings, Subject
from experiments.on_device import golden as recorded
from experiments.on_device.schedule import Rows
from experiments.timing import time_interleaved

PROFILED = 3  # steps


def describe_device() -> Rows:
    """Returns the device, the versions, and FLOP/s of matrix products."""
    device = jax.devices()[0]
    rates = {
        dtype: accelerators.measure_flops(dtype)
        for dtype in ("bfloat16", "float32", accelerators.FULL_PRECISION)
    }
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "versions": ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        "products of float32": matmul_precision(),
        **{f"products of {dtype}": f"{rate / 1e12:,.4g} TFLOP/s" for dtype, rate in rates.items()},
    }


def compare_golden(folder: Path) -> Rows:
    """Returns the differences of the losses from those recorded in `folder`, with float32 products at full precision."""
    rows = {}
    with jax.default_matmul_precision("highest"):
        for name in recorded.MODELS:
            file = folder / f"{name}.npz"
            rows[name] = recorded.describe(recorded.compare(file, name)) if file.is_file() else "no such file"
    return rows


def time_step(experiment: Experiment, profile: Path | None) -> Rows:
    """Returns the time of the train step, and its share of the peak; writes a profile of some steps if given a folder."""
    subject = Subject(experiment, Settings(rounds=5, least=1.0))
    seconds = subject.compiled.seconds
    took = time_interleaved({"step": subject.stepper}, subject.settings.rounds, subject.settings.least)[
        "step"
    ]
    memory = device_memory()
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            for _ in range(PROFILED - 1):
                subject.stepper()
            jax.block_until_ready(subject.stepper())
    peak, at_peak = time_at_peak(experiment, subject.work)
    figures = took.figures()
    return {
        "batch": f"{experiment.batch_size} images in {experiment.microbatches} part(s)",
        "to trace and compile": f"{sum(seconds.values()):,.0f} s",
        "a step": f"{1e3 * took.median:,.4g} ms ({1e3 * figures['quartile_1']:,.4g} .. {1e3 * figures['quartile_3']:,.4g})",
        "images/s": f"{experiment.batch_size / took.median:,.4g}",
        "counted": f"{subject.work.flops / took.median / 1e12:,.4g} TFLOP/s a device",
        "share of peak": f"{at_peak / took.median:.3f} ({peak.source})",
        **{f"memory, {name}": f"{size / 1e9:,.2f} GB" for name, size in memory.items()},
        **({"profile": f"of {PROFILED} steps, in {profile.name}"} if profile is not None else {}),
    }


def run_quickstart(experiment: Experiment, workdir: Path) -> Rows:
    """Trains and evaluates a run, as the modes train and evaluate do."""
    began = time.monotonic()
    train(experiment, workdir)
    trained = time.monotonic()
    record = evaluate(experiment, workdir)
    monte_carlo = record.get("bpd_mc_se")
    return {
        "to train": f"{trained - began:,.0f} s for {experiment.steps:,} steps, compiling included",
        "bits/dim": f"{record['bpd']:.4f}",
        "error over images": format_error_over_images(record, "bpd"),
        "Monte-Carlo error": "-" if monte_carlo is None else f"{monte_carlo:.4f}",
        "of": f"{record['dataset']}, {record['num_images']} images of {record['split']}, continuous T, {record['passes']} pass(es)",
    }
