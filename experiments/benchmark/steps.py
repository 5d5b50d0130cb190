"""Parts of the benchmark that time programs on the devices: the step, its variants, its contractions, sampling."""

import dataclasses
import math
from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from diffenc.config.experiment import Experiment
from diffenc.core.discretization import equal_steps
from diffenc.core.parameters import count_parameters
from diffenc.runtime import accelerators
from diffenc.runtime.progress import Progress
from diffenc.sampling import sampler
from diffenc.sampling.solvers import ancestral
from diffenc.tools.planning.flops import Contraction, Operand, Work
from diffenc.tools.planning.plan import compiled_memory, state_memory
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from experiments.benchmark.subject import (
    Compiled,
    Stepper,
    Subject,
    compile_step,
    first_params,
    first_state,
    work_of_share,
)
from experiments.timing import Call, Times, quartiles, time_interleaved

PEAKS = ("float32", "bfloat16")  # dtypes whose matrix products are timed


def step(subject: Subject) -> dict[str, Any]:
    """The train step: what it costs on paper, to compile, in memory, in time."""
    experiment, devices = subject.experiment, subject.mesh.devices.size
    compiled, stepper = subject.compiled, subject.stepper
    logging.info("timing the train step")
    took = time_interleaved({"step": stepper}, subject.settings.rounds, subject.settings.least)["step"]
    in_use = device_memory()  # before other operands come
    best = {dtype: accelerators.measure_flops(dtype) for dtype in PEAKS}
    counted = subject.work.flops
    return {
        "parameters": {part: count_parameters(part_of) for part, part_of in stepper.state.params.items()},
        "flops_per_image": flops_per_image(experiment, devices, subject.work, compiled),
        "build_seconds": compiled.seconds,
        "step": took.figures(),
        "images_per_second": experiment.batch_size / took.median,
        "flops_per_second": counted / took.median,
        "matrix_peak": best,
        "share_of_peak": {dtype: counted / took.median / peak for dtype, peak in best.items()},
        "memory": {
            **state_memory(stepper.state, experiment.mesh),
            "compiled": compiled_memory(compiled.step),
            **in_use,
        },
    }


def flops_per_image(experiment: Experiment, devices: int, work: Work, compiled: Compiled) -> dict[str, float]:
    """Of the train step: counted in one device's `work`, and XLA's count."""
    images = experiment.batch_size / devices
    return {"counted": work.flops / images, "xla": xla_flops(compiled.step) / images}


def xla_flops(compiled: Any) -> float:
    """XLA's count of a compiled program on one device, in which the body of a loop counts once; NaN if unknown."""
    analysis = compiled.cost_analysis()
    return float(analysis.get("flops", math.nan)) if analysis else math.nan


def device_memory() -> dict[str, int]:
    """Most bytes that this process had in use on the first device so far, where the backend keeps count."""
    said = jax.devices()[0].memory_stats() or {}
    return {"peak_in_use": said["peak_bytes_in_use"]} if "peak_bytes_in_use" in said else {}


def with_encoders(experiment: Experiment) -> dict[str, Experiment]:
    """VDMv, DiffEnc-nt and the file's own model, where it is neither."""

    def replace(**changes: Any) -> Experiment:
        return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))

    found = {
        "vdmv": replace(encoder=Identity(), generative_mean=VDM()),
        "nt": replace(encoder=Nontrainable(), generative_mean=Counterterm()),
    }
    return found if experiment in found.values() else {**found, "own": experiment}


def variants(subject: Subject) -> dict[str, Any]:
    """Steps of models that differ by their encoder, side by side; and what they cost to build, and in FLOPs."""
    steppers, paper = {}, {}
    for name, experiment in with_encoders(subject.experiment).items():
        own = name == "own"
        compiled = subject.compiled if own else compile_step(experiment, subject.mesh)
        work = subject.work if own else work_of_share(experiment, subject.mesh.devices.size)
        paper[name] = on_paper(experiment, subject.mesh.devices.size, work, compiled)
        steppers[name] = (
            subject.stepper
            if own
            else Stepper(compiled.step, first_state(experiment, subject.mesh), subject.images)
        )
    logging.info("timing %s side by side", ", ".join(steppers))
    took = time_interleaved(steppers, subject.settings.rounds, subject.settings.least)
    others = [name for name in took if name != "vdmv"]
    return {
        "steps": {name: times.figures() for name, times in took.items()},
        "over_vdmv": {name: took[name].over(took["vdmv"]) for name in others},
        "on_paper": paper,
        "on_paper_over_vdmv": {name: ratios(paper[name], paper["vdmv"]) for name in others},
    }


def on_paper(experiment: Experiment, devices: int, work: Work, compiled: Compiled) -> dict[str, float]:
    """Seconds to compile, and to build in all (tracing and lowering too); FLOPs an image."""
    counts = flops_per_image(experiment, devices, work, compiled)
    return {
        "compile_seconds": compiled.seconds["compile"],
        "build_seconds": sum(compiled.seconds.values()),
        "flops_counted": counts["counted"],
        "flops_xla": counts["xla"],
    }


def ratios(over: dict[str, float], under: dict[str, float]) -> dict[str, float]:
    """Of each figure; NaN where there is nothing to divide by."""
    return {name: value / under[name] if under[name] else math.nan for name, value in over.items()}


def sampling(subject: Subject) -> dict[str, Any]:
    """A step of ancestral sampling beside the network: called by itself, and in a loop of as many calls.

    A call by itself also pays for memory that a loop takes once.
    """
    steps = subject.settings.sampling_steps
    logging.info("timing %d sampling steps beside calls of the network", steps)
    took = time_interleaved(sampling_calls(subject), subject.settings.rounds, subject.settings.least)
    one, looped = took["walk"] / steps, took["loop"] / steps
    return {
        "sampling_steps": steps,
        "step": one.figures(),
        "network": took["network"].figures(),
        "network_in_loop": looped.figures(),
        "step_over_network": one.over(took["network"]),
        "step_over_network_in_loop": one.over(looped),
    }


def sampling_calls(subject: Subject) -> dict[str, Call]:
    """Sampling (`walk`), the network once (`network`), and as often as sampling calls it (`loop`)."""
    experiment, steps = subject.experiment, subject.settings.sampling_steps
    model, params = experiment.model, first_params(experiment, subject.mesh)
    z = jax.random.normal(jax.random.key(0), subject.images.levels.shape)
    z = jax.device_put(z, subject.images.levels.sharding)
    log_snr = jnp.zeros(len(z))

    @jax.jit
    def walk(params, z):
        down = sampler.reverse_chain(model, params, equal_steps(steps))
        x_hat, increment = (partial(function, params) for function in (model.denoise, model.increment))
        return sampler.walk(jax.random.key(1), z, *down, x_hat, model.generative_mean, increment, ancestral)

    @jax.jit
    def forward(params, z):
        return model.predict(params, z, log_snr)

    @jax.jit
    def loop(params, z):
        return jax.lax.scan(lambda z, _: (forward(params, z), None), z, length=steps)[0]

    calls = {"walk": walk, "network": forward, "loop": loop}
    return {name: partial(call, params, z) for name, call in calls.items()}


def contractions(subject: Subject) -> dict[str, Any]:
    """Every convolution and matrix product of one device's step by itself, beside the whole step.

    What the step takes beyond their sum is all that is not one of them: memory traffic, sums over devices. But a
    time alone includes a call's dispatch, and changes of layout that the step makes once for several. So the sum is
    overstated and the ratio understated, by much on an accelerator with many small contractions: `empty_call` is
    what the least of calls takes.
    """
    counts = subject.work.counts
    alone = time_alone(subject, {one.operation for one in counts})
    took = time_interleaved({"step": subject.stepper}, subject.settings.rounds, subject.settings.least)[
        "step"
    ]
    rows = [row(one, count, alone[one.operation]) for one, count in counts.items()]
    totals: dict[str, float] = defaultdict(float)
    for found in rows:
        for name in ("all", found["kind"], f"{found['kind']} {found['role']}"):
            totals[name] += found["count"] * found["seconds"]
    return {
        "step": took.figures(),
        "calls": sum(counts.values()),
        "empty_call": time_empty(subject).figures(),
        "seconds": dict(totals),
        "step_over": {
            name: quartiles(took.seconds / totals[name], "ratio")
            for name in ("all", "convolution")
            if name in totals
        },
        "each": sorted(rows, key=lambda found: -found["count"] * found["seconds"]),
    }


def row(one: Contraction, count: int, took: Times) -> dict[str, Any]:
    """One contraction and its time alone, for programs."""
    return {
        "kind": "convolution" if one.is_convolution else "matrix product",
        "role": one.role,
        "lhs": spell(one.lhs),
        "rhs": spell(one.rhs),
        "count": count,
        "flops": one.flops,
        "flops_per_second": one.flops / took.median,
        **took.figures(),
    }


def time_alone(subject: Subject, operations: set[Contraction]) -> dict[Contraction, Times]:
    """Each compiled by itself and given random operands."""
    took, progress = {}, Progress("contractions alone", len(operations))
    for operation in sorted(operations, key=lambda one: -one.flops):
        perform = jax.jit(operation.__call__)
        lhs, rhs = random_array(operation.lhs), random_array(operation.rhs)
        call = {"": lambda perform=perform, lhs=lhs, rhs=rhs: perform(lhs, rhs)}
        took[operation] = time_interleaved(call, subject.settings.rounds, subject.settings.least / 10)[""]
        progress()
    return took


def time_empty(subject: Subject) -> Times:
    """A call of two operands that computes next to nothing."""
    least, lhs = jax.jit(lambda lhs, rhs: lhs + rhs), jnp.ones(())
    settings = subject.settings
    return time_interleaved({"": partial(least, lhs, lhs)}, settings.rounds, settings.least / 10)[""]


def random_array(operand: Operand) -> jax.Array:
    return jax.random.normal(jax.random.key(0), operand.shape, jnp.float32).astype(operand.dtype)


def spell(operand: Operand) -> str:
    """float32[128,28,28,1]"""
    return f"{operand.dtype.name}[{','.join(map(str, operand.shape))}]"
