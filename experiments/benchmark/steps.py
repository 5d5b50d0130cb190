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
from diffenc.core.conditioning import conditioned_modules
from diffenc.core.discretization import equal_steps
from diffenc.core.parameters import count_parameters
from diffenc.core.stochasticity import MARKOV
from diffenc.runtime import accelerators
from diffenc.runtime.progress import Progress
from diffenc.sampling import sampler
from diffenc.sampling.solvers import ancestral
from diffenc.tools.planning.flops import Contraction, Operand, Work
from diffenc.tools.planning.plan import compiled_memory, state_memory
from diffenc_plugins.conditionings import Nothing
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from experiments.benchmark.subject import (
    Compiled,
    Stepper,
    Subject,
    batch_of,
    compile_step,
    count_share_work,
    make_initial_params,
    make_initial_state,
)
from experiments.timing import Call, Times, quartiles, time_interleaved

PEAKS = ("float32", "bfloat16")  # dtypes whose matrix products are timed


def measure_step(subject: Subject) -> dict[str, Any]:
    """Measures the train step: parameters, FLOPs, compile time, time and memory."""
    experiment, devices = subject.experiment, subject.mesh.devices.size
    compiled, stepper = subject.compiled, subject.stepper
    logging.info("timing the train step")
    took = time_interleaved({"step": stepper}, subject.settings.rounds, subject.settings.least)["step"]
    in_use = device_memory()  # before measuring FLOP/s allocates more
    peaks = {dtype: accelerators.measure_flops(dtype) for dtype in PEAKS}
    counted = subject.work.flops
    return {
        "parameters": {part: count_parameters(branch) for part, branch in stepper.state.params.items()},
        "flops_per_image": flops_per_image(experiment, devices, subject.work, compiled),
        "build_seconds": compiled.seconds,
        "step": took.figures(),
        "images_per_second": experiment.batch_size / took.median,
        "flops_per_second": counted / took.median,
        "matrix_peak": peaks,
        "share_of_peak": {dtype: counted / took.median / peak for dtype, peak in peaks.items()},
        "memory": {
            **state_memory(stepper.state, experiment.mesh),
            "compiled": compiled_memory(compiled.step),
            **in_use,
        },
    }


def flops_per_image(experiment: Experiment, devices: int, work: Work, compiled: Compiled) -> dict[str, float]:
    """Returns FLOPs of the train step per image, as counted in one device's `work` and by XLA."""
    images = experiment.batch_size / devices
    return {"counted": work.flops / images, "xla": xla_flops(compiled.step) / images}


def xla_flops(compiled: Any) -> float:
    """Returns XLA's count for a compiled program on one device, where loop bodies count once; NaN if unknown."""
    analysis = compiled.cost_analysis()
    return float(analysis.get("flops", math.nan)) if analysis else math.nan


def device_memory() -> dict[str, int]:
    """Returns the peak bytes in use by this process on the first device, if the backend reports them."""
    memory = jax.devices()[0].memory_stats() or {}
    return {"peak_in_use": memory["peak_bytes_in_use"]} if "peak_bytes_in_use" in memory else {}


def with_encoders(experiment: Experiment) -> dict[str, Experiment]:
    """Returns VDMv, DiffEnc-nt, both on the paper's path, and the file's own model, if it is neither."""
    model = experiment.model
    # A conditioning that was the encoder's alone would be read by nothing.
    conditioning = model.conditioning if conditioned_modules(model.network) else Nothing()
    model = dataclasses.replace(model, stochasticity=MARKOV, conditioning=conditioning)

    def replace(**changes: Any) -> Experiment:
        return dataclasses.replace(experiment, model=dataclasses.replace(model, **changes))

    found = {
        "vdmv": replace(encoder=Identity(), generative_mean=VDM()),
        "nt": replace(encoder=Nontrainable(), generative_mean=Counterterm()),
    }
    return found if experiment in found.values() else {**found, "own": experiment}


def measure_variants(subject: Subject) -> dict[str, Any]:
    """Measures interleaved steps of models that differ in their encoder, with compile times and FLOPs."""
    steppers, paper = {}, {}
    for name, experiment in with_encoders(subject.experiment).items():
        own = name == "own"
        compiled = subject.compiled if own else compile_step(experiment, subject.mesh)
        work = subject.work if own else count_share_work(experiment, subject.mesh.devices.size)
        paper[name] = build_costs(experiment, subject.mesh.devices.size, work, compiled)
        steppers[name] = (
            subject.stepper
            if own
            else Stepper(
                compiled.step,
                make_initial_state(experiment, subject.mesh),
                batch_of(experiment, subject.mesh),
            )
        )
    logging.info("timing %s interleaved", ", ".join(steppers))
    took = time_interleaved(steppers, subject.settings.rounds, subject.settings.least)
    others = [name for name in took if name != "vdmv"]
    return {
        "steps": {name: times.figures() for name, times in took.items()},
        "over_vdmv": {name: took[name].over(took["vdmv"]) for name in others},
        "on_paper": paper,
        "on_paper_over_vdmv": {name: ratios(paper[name], paper["vdmv"]) for name in others},
    }


def build_costs(experiment: Experiment, devices: int, work: Work, compiled: Compiled) -> dict[str, float]:
    """Returns seconds to compile and to build (with tracing and lowering), and FLOPs per image."""
    counts = flops_per_image(experiment, devices, work, compiled)
    return {
        "compile_seconds": compiled.seconds["compile"],
        "build_seconds": sum(compiled.seconds.values()),
        "flops_counted": counts["counted"],
        "flops_xla": counts["xla"],
    }


def ratios(over: dict[str, float], under: dict[str, float]) -> dict[str, float]:
    """Returns the ratio of each value; NaN for a zero denominator."""
    return {name: value / under[name] if under[name] else math.nan for name, value in over.items()}


def measure_sampling(subject: Subject) -> dict[str, Any]:
    """Measures a step of ancestral sampling, and the network in a single call and in a loop of as many calls.

    A single call also includes allocations that a loop makes once.
    """
    steps = subject.settings.sampling_steps
    logging.info("timing %d sampling steps and calls of the network", steps)
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
    """Returns sampling (`walk`), one call of the network (`network`), and as many calls as in sampling (`loop`)."""
    experiment, steps = subject.experiment, subject.settings.sampling_steps
    model, params = experiment.model, make_initial_params(experiment, subject.mesh)
    z = jax.random.normal(jax.random.key(0), subject.images.levels.shape)
    z = jax.device_put(z, subject.images.levels.sharding)
    log_snr = jnp.zeros(len(z))

    @jax.jit
    def walk(params, z):
        down = sampler.reverse_chain(model, params, equal_steps(steps))
        estimate, increment = partial(model.estimate, params), partial(model.increment, params)
        return sampler.walk(jax.random.key(1), z, *down, estimate, increment, ancestral)

    @jax.jit
    def forward(params, z):
        return model.predict(params, z, log_snr)

    @jax.jit
    def loop(params, z):
        # the output is the next input, so that XLA cannot move the call out of the loop
        return jax.lax.scan(lambda z, _: (forward(params, z), None), z, length=steps)[0]

    calls = {"walk": walk, "network": forward, "loop": loop}
    return {name: partial(call, params, z) for name, call in calls.items()}


def measure_contractions(subject: Subject) -> dict[str, Any]:
    """Measures every convolution and matrix product of one device's step by itself, and the whole step.

    The difference between the step and their sum is the rest of the step: memory traffic, sums over devices. But the time
    of a contraction alone includes the dispatch of a call, and changes of layout that the step makes once for several. So the
    sum is overstated and the ratio understated, considerably on an accelerator with many small contractions: `empty_call`
    is the time of a minimal call.
    """
    counts = subject.work.counts
    alone = time_alone(subject, {one.operation for one in counts})
    took = time_interleaved({"step": subject.stepper}, subject.settings.rounds, subject.settings.least)[
        "step"
    ]
    rows = [contraction_row(one, count, alone[one.operation]) for one, count in counts.items()]
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


def contraction_row(one: Contraction, count: int, took: Times) -> dict[str, Any]:
    """Returns the properties of a contraction and its time alone."""
    return {
        "kind": "convolution" if one.is_convolution else "matrix product",
        "role": one.role,
        "lhs": format_operand(one.lhs),
        "rhs": format_operand(one.rhs),
        "count": count,
        "flops": one.flops,
        "flops_per_second": one.flops / took.median,
        **took.figures(),
    }


def time_alone(subject: Subject, operations: set[Contraction]) -> dict[Contraction, Times]:
    """Times each contraction, compiled by itself, with random operands."""
    took, progress = {}, Progress("contractions alone", len(operations))
    for operation in sorted(operations, key=lambda one: -one.flops):
        perform = jax.jit(operation.__call__)
        lhs, rhs = random_array(operation.lhs), random_array(operation.rhs)
        # bound as defaults: a closure would see the values of the last iteration
        call = {"": lambda perform=perform, lhs=lhs, rhs=rhs: perform(lhs, rhs)}
        took[operation] = time_interleaved(call, subject.settings.rounds, subject.settings.least / 10)[""]
        progress()
    return took


def time_empty(subject: Subject) -> Times:
    """Times a call with two operands that computes almost nothing."""
    add, lhs = jax.jit(lambda lhs, rhs: lhs + rhs), jnp.ones(())
    settings = subject.settings
    return time_interleaved({"": partial(add, lhs, lhs)}, settings.rounds, settings.least / 10)[""]


def random_array(operand: Operand) -> jax.Array:
    return jax.random.normal(jax.random.key(0), operand.shape, jnp.float32).astype(operand.dtype)


def format_operand(operand: Operand) -> str:
    """Returns dtype and shape, such as float32[128,28,28,1]."""
    return f"{operand.dtype.name}[{','.join(map(str, operand.shape))}]"
