"""--mode=plan: estimates the cost of a run before training. It reads no data and does not touch the workdir.

With `plan.topology`, and the compiler of that topology installed, the run's programs are compiled for it
(`diffenc.tools.planning.compiled_plan`). Otherwise FLOPs of convolutions and matrix products are counted
(`diffenc.tools.planning.flops`), the memory of the state is exact, and that of the compiled step is XLA's report for the present
backend. The time is estimated at a share of peak FLOP/s that the user chooses.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import AbstractMesh, NamedSharding
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffenc.config.experiment import Experiment
from diffenc.config.settings import MeshConfig
from diffenc.core.model import UNIFORM
from diffenc.core.objective import continuous
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.evaluation.batches import PassDraws
from diffenc.evaluation.evaluator import batch_terms
from diffenc.interfaces import Condition, Context, Data, LogSNR, Params
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import AXES, make_mesh
from diffenc.runtime import accelerators
from diffenc.runtime.compile_cache import compile_ahead
from diffenc.runtime.progress import format_duration
from diffenc.tools.planning import flops
from diffenc.tools.planning.compiled_plan import compute_compiled_plan, format_compiled_plan, verdicts
from diffenc.tools.planning.step_time import estimate_speed, is_full_precision
from diffenc.tools.planning.topology import list_devices, missing_compiler, parse_topology
from diffenc.training.state import TrainState, abstract_images, abstract_state, make_train_step


def plan(experiment: Experiment, workdir: str | Path) -> dict[str, Any]:
    """Prints and returns the estimated cost of the run. `workdir` is not touched.

    Raises:
      UserError: a plugin cannot be built for these images, the batch does not divide over the devices, or the topology
        does not exist.
    """
    if experiment.plan.topology is None:
        return _print_estimate(compute_plan(experiment))
    topology = parse_topology(experiment.plan.topology)
    missing = missing_compiler(topology)
    if missing:
        settings = experiment.plan
        elsewhere = dataclasses.replace(
            settings,
            accelerator=settings.accelerator or topology.kind.accelerator,
            devices=topology.num_devices,
            compile=False,
        )
        logging.warning(
            "the compiler for %s is not installed, so that this is an estimate from counted FLOPs at plan.share of the "
            "peak; for the compiler's own: %s",
            topology.text,
            missing,
        )
        return _print_estimate(compute_plan(dataclasses.replace(experiment, plan=elsewhere)))
    costs = compute_compiled_plan(experiment, topology, list_devices(topology))
    console = Console(soft_wrap=True)
    console.print(format_compiled_plan(costs))
    for sentence in verdicts(costs):
        console.print(escape(sentence))
    return costs


def _print_estimate(costs: dict[str, Any]) -> dict[str, Any]:
    Console(soft_wrap=True).print(format_table(costs))
    for note in costs["notes"]:
        logging.warning("FLOPs of the train step: %s", note)
    return costs


def compute_plan(experiment: Experiment) -> dict[str, Any]:
    """Returns all estimates by name, in bytes, FLOPs and seconds; memory and `images` are per device."""
    devices = experiment.plan.devices or jax.device_count()
    # Traced and compiled for one device with its share of the batch, so that planning needs no more than one device.
    share = device_share(experiment, devices)
    mesh = make_mesh()  # of one device: all devices do the same work on equal shares of the batch
    state = abstract_state(share, mesh)
    step, images = cast(jax.stages.Wrapped, make_train_step(share, mesh)), abstract_images(share, mesh)
    split = state_memory(state, experiment.mesh)
    work = flops.count_jaxpr(step.trace(state, images).jaxpr)
    compiled = compile_ahead("the train step", step, state, images) if experiment.plan.compile else None
    return {
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "devices": devices,
        "images": share.batch_size,
        "parameters": {part: count_parameters(branch) for part, branch in state.params.items()},
        "flops": {"train": work.flops / share.batch_size, **forward_flops(experiment, state)},
        "memory": split,
        "compiled": compiled
        and adjust_for_sharding(split, state_memory(state, MeshConfig()), compiled_memory(compiled)),
        "backend": jax.default_backend(),
        "accelerator": experiment.plan.accelerator,
        "capacity": device_memory(experiment),
        "speed": estimate_speed(experiment, work, devices),
        "full_precision": work.where(is_full_precision).flops / max(work.flops, 1),
        "notes": work.notes,
    }


def device_share(experiment: Experiment, devices: int) -> Experiment:
    """Returns the experiment with one device's share of the batch. Raises UserError if the batch does not divide."""
    unit = devices * experiment.microbatches
    if experiment.batch_size % unit:
        raise UserError(
            f"Experiment.batch_size = {experiment.batch_size} does not divide evenly over plan.devices = {devices}, "
            f"in Experiment.microbatches = {experiment.microbatches} parts each: take a multiple of {unit}"
        )
    return dataclasses.replace(experiment, batch_size=experiment.batch_size // devices, mesh=MeshConfig())


def forward_flops(experiment: Experiment, state: TrainState) -> dict[str, int]:
    """Returns FLOPs per image without gradients, of one draw of the bound and one call of the network (a sampling step)."""
    model, dataset = experiment.model, experiment.dataset
    images = abstract_images(experiment, make_mesh(), 1)
    z, log_snr = (
        jax.ShapeDtypeStruct(images.levels.shape, jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
    )
    draws = jax.eval_shape(lambda: PassDraws(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros((1, 1))))

    def network(params: Params, z: Data, log_snr: LogSNR, condition: Condition | None) -> Data:
        return model.predict({"network": params}, z, log_snr, Context(condition))

    terms = partial(batch_terms, model, dataset.num_levels, lambda _: continuous, UNIFORM)
    return {
        "evaluate": flops.count_work(terms, (state.params, None), images, draws).flops,
        "network": flops.count_work(network, state.params["network"], z, log_snr, images.condition).flops,
    }


def state_memory(state: TrainState, shape: MeshConfig) -> dict[str, int]:
    """Returns the bytes of the training state on each device of a mesh, as sharded by `diffenc.parallel.param_sharding`."""
    # abstract: the planned mesh may have more devices than this machine
    mesh = AbstractMesh((1, shape.fsdp), AXES)
    shardings = param_sharding.shardings_of(state, state.params, mesh, shape)

    def size(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    sizes = jax.tree.map(size, state, shardings)
    total = {name: sum(jax.tree.leaves(part)) for name, part in sizes._asdict().items()}
    parts = {"parameters": total["params"], "average": total["ema"], "optimizer": total["opt_state"]}
    return {**parts, "state": sum(total.values())}


def compiled_memory(compiled: Any) -> dict[str, int] | None:
    """Returns the bytes of a compiled step on one device; None if the backend does not report them.

    Results in donated buffers of arguments count once, as `arguments`.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    arguments, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    # Donated buffers are reported as outputs as well.
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    total = arguments + results + temporary
    return {"arguments": arguments, "results": results, "temporary": temporary, "total": total}


def adjust_for_sharding(
    split: dict[str, int], whole: dict[str, int], compiled: dict[str, int] | None
) -> dict[str, int] | None:
    """Converts `compiled_memory` of a step with a `whole` state to that with a state `split` over devices.

    With a split state, gathered parameters need memory in addition to a device's shard; the gradient is whole in both.
    """
    if compiled is None or split == whole:
        return compiled
    arguments = compiled["arguments"] - whole["state"] + split["state"]
    # The gathered copy of all parameters, which the step compiled for one device did not need.
    temporary = compiled["temporary"] + whole["parameters"]
    total = arguments + compiled["results"] + temporary
    return {**compiled, "arguments": arguments, "temporary": temporary, "total": total}


def device_memory(experiment: Experiment) -> float | None:
    """Returns the memory in bytes of `plan.accelerator`, or of the present device; None if unknown."""
    if experiment.plan.accelerator is not None:
        return accelerators.ACCELERATORS[experiment.plan.accelerator].memory
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def format_table(costs: dict[str, Any]) -> Table:
    """Formats the estimates as a table."""
    title = f"{costs['steps']:,} steps of {costs['batch_size']} images on {costs['devices']} device(s)"
    made = Table(title=escape(title), caption=escape(format_caption(costs)), show_header=False)
    for justify in ("left", "right", "left"):
        made.add_column(justify=justify)
    for section in (_parameter_rows, _flops_rows, _memory_rows, _speed_rows):
        for row in section(costs):
            made.add_row(*map(escape, row))
        made.add_section()
    return made


def format_caption(costs: dict[str, Any]) -> str:
    """Returns the remarks below the table."""
    remarks = ["FLOPs: of convolutions and matrix products", "time: without evaluations and samples"]
    if costs["devices"] > 1:
        remarks.append("communication between devices is in neither time nor memory")
    if costs["full_precision"]:
        remarks.append(
            f"{costs['full_precision']:.2%} of the FLOPs ask for full precision, timed at its own peak"
        )
    if costs["compiled"]:
        remarks += _describe_compiled_step(costs["backend"], costs["accelerator"])
    return "\n".join(remarks)


def _describe_compiled_step(backend: str, accelerator: str | None) -> list[str]:
    """Returns remarks on the backend of the compiled step. On a CPU, networks are compiled without loops."""
    if accelerator is None or backend != "cpu":
        return [f"memory of the compiled step: on the {backend} backend; others differ"]
    return [
        "memory of the compiled step: on the cpu backend, with unrolled loops",
        f"memory on {accelerator} differs; savings by network.unet.remat are not visible",
    ]


Rows = list[tuple[str, str, str]]


def _parameter_rows(costs: dict[str, Any]) -> Rows:
    parts = costs["parameters"]
    rows = [(part, f"{number:,}", "parameters") for part, number in parts.items()]
    return [*rows, ("all parts", f"{sum(parts.values()):,}", "parameters")]


def _flops_rows(costs: dict[str, Any]) -> Rows:
    names = {
        "train": "train step",
        "evaluate": "evaluation, one draw",
        "network": "network, once (a sampling step)",
    }
    rows = [(text, f"{costs['flops'][name] / 1e9:,.4g}", "GFLOPs an image") for name, text in names.items()]
    return [*rows, ("products of float32", accelerators.matmul_precision_of(costs["accelerator"]), "")]


def _memory_rows(costs: dict[str, Any]) -> Rows:
    def row(name: str, size: int | float) -> tuple[str, str, str]:
        return name, f"{size / 1e6:,.1f}", "MB a device"

    rows = [row(name, size) for name, size in costs["memory"].items()]
    compiled, capacity = costs["compiled"], costs["capacity"]
    if compiled:
        rows += [
            row("activations, gradients", compiled["temporary"]),
            row("compiled step", compiled["total"]),
        ]
    else:
        rows += [("activations, gradients", "-", "unknown: not compiled")]
    return rows + ([row("capacity", capacity)] if capacity else [])


def _speed_rows(costs: dict[str, Any]) -> Rows:
    speed = costs["speed"]
    if speed is None:
        return [("speed", "-", "no convolution or matrix product was found")]
    rates = ", ".join(f"{dtype} {rate / 1e12:,.4g}" for dtype, rate in speed["peak"].items())
    return [
        ("peak of a device", rates, f"TFLOP/s, {speed['source']}"),
        ("assumed share of peak", f"{speed['share']:.0%}", "plan.share"),
        ("speed", f"{speed['steps_per_second']:,.4g}", "steps/s"),
        ("", f"{speed['images_per_second']:,.4g}", "images/s"),
        ("the whole run", format_duration(86400 * speed["days"]), ""),
        ("", f"{speed['device_hours']:,.3g}", "device hours"),
    ]
