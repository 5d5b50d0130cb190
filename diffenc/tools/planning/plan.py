"""--mode=plan: what a run will cost, before anything is trained. It reads no data and touches no workdir.

Counted: FLOPs of convolutions and matrix products (`diffenc.tools.planning.flops`). Exact: the memory of the state. As XLA
reports for the backend that is here: what the compiled step takes beside it. Expected: the time, at a share of
the peak that the reader chooses.
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
from diffenc.tools.planning.step_time import estimate_speed, is_full_precision
from diffenc.training.state import TrainState, abstract_images, abstract_state, make_train_step


def plan(experiment: Experiment, workdir: str | Path) -> dict[str, Any]:
    """Print what the run will cost; returns the figures. `workdir` is not touched.

    Raises:
      UserError: a plugin cannot be built for these images, or the batch does not divide over the devices.
    """
    figures = compute_plan(experiment)
    Console(soft_wrap=True).print(format_table(figures))
    for note in figures["notes"]:
        logging.warning("FLOPs of the train step: %s", note)
    return figures


def compute_plan(experiment: Experiment) -> dict[str, Any]:
    """All that is planned, by name: bytes, FLOPs, seconds; memory and `images` are of one device."""
    devices = experiment.plan.devices or jax.device_count()
    share = device_share(experiment, devices)
    mesh = make_mesh()  # one device, whatever else there is: each does the same, on a share of the batch
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
    """The experiment with one device's share of the batch. Raises UserError if there is no such share."""
    least = devices * experiment.microbatches
    if experiment.batch_size % least:
        raise UserError(
            f"Experiment.batch_size = {experiment.batch_size} does not divide evenly over plan.devices = {devices}, "
            f"in Experiment.microbatches = {experiment.microbatches} parts each: take a multiple of {least}"
        )
    return dataclasses.replace(experiment, batch_size=experiment.batch_size // devices, mesh=MeshConfig())


def forward_flops(experiment: Experiment, state: TrainState) -> dict[str, int]:
    """FLOPs an image without gradients: one draw of the bound, one call of the network (a sampling step)."""
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
    """Bytes of the training state on each device of a mesh, which splits what `diffenc.parallel.param_sharding` says."""
    mesh = AbstractMesh((1, shape.fsdp), AXES)
    shardings = param_sharding.shardings_of(state, state.params, mesh, shape)

    def size(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    sizes = jax.tree.map(size, state, shardings)
    total = {name: sum(jax.tree.leaves(part)) for name, part in sizes._asdict().items()}
    parts = {"parameters": total["params"], "average": total["ema"], "optimizer": total["opt_state"]}
    return {**parts, "state": sum(total.values())}


def compiled_memory(compiled: Any) -> dict[str, int] | None:
    """Bytes that a compiled step takes on one device; None if the backend does not say.

    What it gives back in the buffers it was given counts once, as `arguments`.
    """
    said = compiled.memory_analysis()
    if said is None:
        return None
    arguments, temporary = said.argument_size_in_bytes, said.temp_size_in_bytes
    results = said.output_size_in_bytes - said.alias_size_in_bytes
    total = arguments + results + temporary
    return {"arguments": arguments, "results": results, "temporary": temporary, "total": total}


def adjust_for_sharding(
    split: dict[str, int], whole: dict[str, int], compiled: dict[str, int] | None
) -> dict[str, int] | None:
    """`compiled_memory` of a step with a `whole` state, as it is with one that is `split` over devices.

    Parameters are then gathered beside a device's part of them; the gradient is whole in both.
    """
    if compiled is None or split == whole:
        return compiled
    arguments = compiled["arguments"] - whole["state"] + split["state"]
    temporary = compiled["temporary"] + whole["parameters"]
    total = arguments + compiled["results"] + temporary
    return {**compiled, "arguments": arguments, "temporary": temporary, "total": total}


def device_memory(experiment: Experiment) -> float | None:
    """Bytes that a device has: of the accelerator that is named, or of the one that is here; None = not known."""
    if experiment.plan.accelerator is not None:
        return accelerators.ACCELERATORS[experiment.plan.accelerator].memory
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def format_table(figures: dict[str, Any]) -> Table:
    """Formats the plan as a table."""
    title = f"{figures['steps']:,} steps of {figures['batch_size']} images on {figures['devices']} device(s)"
    made = Table(title=escape(title), caption=escape(format_caption(figures)), show_header=False)
    for justify in ("left", "right", "left"):
        made.add_column(justify=justify)
    for section in (_parameter_rows, _flops_rows, _memory_rows, _speed_rows):
        for row in section(figures):
            made.add_row(*map(escape, row))
        made.add_section()
    return made


def format_caption(figures: dict[str, Any]) -> str:
    """Returns the remarks below the table."""
    said = ["FLOPs: of convolutions and matrix products", "time: without evaluations and samples"]
    if figures["devices"] > 1:
        said.append("communication between devices is in neither time nor memory")
    if figures["full_precision"]:
        said.append(
            f"{figures['full_precision']:.2%} of the FLOPs ask for full precision, which the time counts at its own peak"
        )
    if figures["compiled"]:
        said += _describe_compiled_step(figures["backend"], figures["accelerator"])
    return "\n".join(said)


def _describe_compiled_step(backend: str, accelerator: str | None) -> list[str]:
    """Whose memory the compiled step's is. A network may take another form on a CPU: no loops."""
    if accelerator is None or backend != "cpu":
        return [f"the compiled step: of the {backend} backend; another's differs"]
    return [
        "the compiled step: of the cpu backend, its loops written out",
        f"memory on {accelerator} differs; what network.unet.remat saves there does not show",
    ]


Rows = list[tuple[str, str, str]]


def _parameter_rows(figures: dict[str, Any]) -> Rows:
    parts = figures["parameters"]
    rows = [(part, f"{number:,}", "parameters") for part, number in parts.items()]
    return [*rows, ("all parts", f"{sum(parts.values()):,}", "parameters")]


def _flops_rows(figures: dict[str, Any]) -> Rows:
    names = {
        "train": "train step",
        "evaluate": "evaluation, one draw",
        "network": "network, once (a sampling step)",
    }
    rows = [(text, f"{figures['flops'][name] / 1e9:,.4g}", "GFLOPs an image") for name, text in names.items()]
    return [*rows, ("products of float32", accelerators.matmul_precision_of(figures["accelerator"]), "")]


def _memory_rows(figures: dict[str, Any]) -> Rows:
    def row(name: str, size: int | float) -> tuple[str, str, str]:
        return name, f"{size / 1e6:,.1f}", "MB a device"

    rows = [row(name, size) for name, size in figures["memory"].items()]
    compiled, there = figures["compiled"], figures["capacity"]
    if compiled:
        rows += [
            row("activations, gradients", compiled["temporary"]),
            row("compiled step", compiled["total"]),
        ]
    else:
        rows += [("activations, gradients", "-", "not known: not compiled")]
    return rows + ([row("there is", there)] if there else [])


def _speed_rows(figures: dict[str, Any]) -> Rows:
    found = figures["speed"]
    if found is None:
        return [("speed", "-", "no convolution or matrix product was found")]
    rates = ", ".join(f"{dtype} {rate / 1e12:,.4g}" for dtype, rate in found["peak"].items())
    return [
        ("peak of a device", rates, f"TFLOP/s, {found['source']}"),
        ("of which are reached", f"{found['share']:.0%}", "plan.share"),
        ("pace", f"{found['steps_per_second']:,.4g}", "steps/s"),
        ("", f"{found['images_per_second']:,.4g}", "images/s"),
        ("the whole run", format_duration(86400 * found["days"]), ""),
        ("", f"{found['device_hours']:,.3g}", "device hours"),
    ]
