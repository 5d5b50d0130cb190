"""--mode=plan --topology=…: a run's programs, compiled for an absent machine by that machine's own compiler.

Nothing is measured: memory, programs and collectives are those of the compiled code, and times are the compiler's estimates.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from rich.markup import escape
from rich.table import Table

from diffenc.config.experiment import Experiment
from diffenc.errors import UserError
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.compile_cache import without_compile_cache
from diffenc.runtime.progress import format_duration
from diffenc.tools.planning.flops import Work
from diffenc.tools.planning.programs import Measured, Program, extrapolate, make_programs, measure_program
from diffenc.tools.planning.step_time import time_at_peak
from diffenc.tools.planning.topology import TPU, Topology

QUICK = (2, 4)  # blocks
TITLES = {"train": "train step", "evaluate": "evaluation, a batch", "sample": "sampling, a step"}


def compute_compiled_plan(
    experiment: Experiment, topology: Topology, devices: Sequence[Any]
) -> dict[str, Any]:
    """Returns the compiler's numbers for each program, by name; bytes, FLOPs and seconds are those of one device.

    Args:
      devices: the devices of `topology` to compile for.

    Raises:
      UserError: as `make_programs`; plan.quick is on, and the network has no blocks to leave out.
    """
    peaks = dataclasses.replace(
        experiment.plan, accelerator=experiment.plan.accelerator or topology.kind.accelerator
    )
    experiment = dataclasses.replace(experiment, plan=peaks)
    mesh = data_mesh(experiment.mesh, devices)
    programs = make_programs(experiment, mesh)
    # Programs compiled for absent devices cannot be loaded from the compile cache.
    with contextlib.nullcontext() if devices[0] in jax.devices() else without_compile_cache():
        measured = _measure_all(experiment, programs, devices)
    found = {
        name: _describe(experiment, topology, program, program.count_work(), measured[name])
        for name, program in programs.items()
    }
    return {
        "topology": topology.text,
        "compiler": _compiler(topology),
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "capacity": topology.accelerator.memory,
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "quick": experiment.plan.quick,
        "programs": found,
        "days": _days(experiment.steps, found["train"]),
        "ways_out": {name: ways_out(experiment, name) for name, one in found.items() if not one["fits"]},
    }


def _measure_all(
    experiment: Experiment, programs: Mapping[str, Program], devices: Sequence[Any]
) -> dict[str, Measured]:
    if not experiment.plan.quick:
        return {name: measure_program(program) for name, program in programs.items()}
    small, large = (
        make_programs(with_blocks(experiment, blocks), data_mesh(experiment.mesh, devices))
        for blocks in QUICK
    )
    blocks = _blocks_of(experiment)
    return {
        name: extrapolate(measure_program(small[name]), measure_program(large[name]), QUICK, blocks)
        for name in programs
    }


def _blocks_of(experiment: Experiment) -> int:
    blocks = getattr(experiment.model.network, "blocks", None)
    if not isinstance(blocks, int) or not dataclasses.is_dataclass(experiment.model.network):
        raise UserError(
            "plan.quick compiles fewer blocks of the network, and this network has no field `blocks`"
        )
    return blocks


def with_blocks(experiment: Experiment, blocks: int) -> Experiment:
    """Returns the experiment with `blocks` blocks in its network. Raises UserError if the network has no such field."""
    _blocks_of(experiment)
    network: Any = experiment.model.network
    model = dataclasses.replace(experiment.model, network=dataclasses.replace(network, blocks=blocks))
    return dataclasses.replace(experiment, model=model)


def _describe(
    experiment: Experiment, topology: Topology, program: Program, work: Work, measured: Measured
) -> dict[str, Any]:
    """Returns the facts about a program, per step of the run instead of per execution."""
    numbers, steps = measured.numbers, program.steps
    # `work` is that of one execution on all devices; the plan is per device and per step of the run.
    parts = program.shares * steps
    peak, at_peak = time_at_peak(experiment, work) if work.flops else (None, 0.0)
    at_peak /= parts
    cycles = numbers.get("cycles", 0.0)
    estimated = cycles / topology.kind.clock / steps if cycles and topology.kind.clock else None
    total = numbers.get("total")
    return {
        "numbers": {
            **numbers,
            **{name: numbers[name] / steps for name in ("traffic", "cycles") if name in numbers},
        },
        "collectives": {
            name.removeprefix("calls of "): (
                number / steps,
                numbers[f"bytes of {name.removeprefix('calls of ')}"] / steps,
            )
            for name, number in numbers.items()
            if name.startswith("calls of ")
        },
        "images": program.images,
        "flops": work.flops / parts,
        "peak": peak and peak.flops,
        "source": peak and peak.source,
        "seconds_at_peak": at_peak,
        "estimated_seconds": estimated,
        "share_of_peak": at_peak / estimated if estimated else None,
        "assumed_seconds": at_peak / experiment.plan.share,
        "assumed_share": experiment.plan.share,
        "fits": measured.too_large is None and (total is None or total <= topology.accelerator.memory),
        "too_large": measured.too_large,
        "notes": work.notes,
    }


def _days(steps: int, train: Mapping[str, Any]) -> float:
    return steps * (train["estimated_seconds"] or train["assumed_seconds"]) / 86400


def _compiler(topology: Topology) -> str:
    packages = ("libtpu",) if topology.kind.platform == TPU else ("jax-cuda12-plugin", "jax-cuda13-plugin")
    for package in packages:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return "of this machine"


def ways_out(experiment: Experiment, name: str) -> list[str]:
    """Returns bindings with which a program takes less memory, the cheapest first."""
    if name == "evaluate":
        return ["a smaller evaluate.batch_size"]
    if name == "sample":
        return ["a smaller sample.num"]
    parts = experiment.microbatches
    remat = getattr(experiment.model.network, "remat", None)
    narrow = getattr(experiment.model.network, "precision", None) == "float32"
    return [
        *(["PRECISION = 'bfloat16'"] if narrow else []),
        f"Experiment.microbatches = {2 * parts}",
        *(["network.unet.remat = True"] if remat is False else []),
        f"mesh.fsdp = {2 * experiment.mesh.fsdp}, which splits the state",
        "more chips",
    ]


def format_compiled_plan(plan: Mapping[str, Any]) -> Table:
    """Returns the table: a column for each program."""
    title = (
        f"{plan['topology']}: {plan['devices']} device(s) {plan['kind']}, {plan['steps']:,} steps of "
        f"{plan['batch_size']} images"
    )
    made = Table(title=escape(title), caption=escape("\n".join(_remarks(plan))))
    made.add_column("")
    for name in plan["programs"]:
        made.add_column(TITLES[name], justify="right")
    made.add_column("")
    programs = list(plan["programs"].values())
    for section in _sections(programs, plan["capacity"]):
        for label, cells, unit in section:
            made.add_row(*map(escape, (label, *cells, unit)))
        made.add_section()
    return made


Row = tuple[str, list[str], str]


def _sections(programs: Sequence[Mapping[str, Any]], capacity: float) -> list[list[Row]]:
    def row(label: str, key: str, unit: str, scale: float = 1.0, form: str = ",.4g") -> Row:
        numbers = [one["numbers"].get(key) for one in programs]
        return label, ["-" if number is None else format(number / scale, form) for number in numbers], unit

    def own(label: str, key: str, unit: str, scale: float = 1.0) -> Row:
        return label, ["-" if one[key] is None else f"{one[key] / scale:,.4g}" for one in programs], unit

    kinds = dict.fromkeys(kind for one in programs for kind in one["collectives"])
    collectives = [
        (kind, [_collective(one["collectives"].get(kind)) for one in programs], "calls: MB") for kind in kinds
    ]
    memory = [
        row(part, part, "MB a device", 1e6, ",.1f") for part in ("arguments", "results", "temporary", "code")
    ]
    fits = [f"{'yes' if one['fits'] else 'NO'}" for one in programs]
    return [
        [
            ("images", [f"{one['images']:,}" for one in programs], "of all devices"),
            *memory,
            row("in all", "total", "MB a device", 1e6, ",.1f"),
            (f"fits in {capacity / 1e6:,.0f} MB", fits, ""),
        ],
        [
            own("FLOPs", "flops", "GFLOPs a device", 1e9),
            row("to and from main memory", "traffic", "MB a device", 1e6),
            *collectives,
        ],
        [
            own("at peak", "seconds_at_peak", "ms", 1e-3),
            own("the compiler's estimate", "estimated_seconds", "ms", 1e-3),
            own("share of peak", "share_of_peak", "of the estimate"),
        ],
        [
            row("lines of the program", "lines", "", form=",.0f"),
            row("fusions", "fusions", "", form=",.0f"),
            row("convolutions", "convolutions", "", form=",.0f"),
            row("to compile", "processor_seconds", "processor s", form=",.0f"),
        ],
    ]


def _collective(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{found[0]:,.4g}: {found[1] / 1e6:,.4g}"


def _remarks(plan: Mapping[str, Any]) -> list[str]:
    train = plan["programs"]["train"]
    remarks = [
        f"compiled by {plan['compiler']}, for a machine that is not here: nothing of this was measured",
        "FLOPs: of convolutions and matrix products; bytes: of loops as often as they run, without padding to tiles",
    ]
    if train["source"]:
        rates = ", ".join(f"{dtype} {rate / 1e12:,.4g}" for dtype, rate in train["peak"].items())
        remarks.append(f"peak of a device: {rates} TFLOP/s, {train['source']}")
    if plan["quick"]:
        remarks.append(
            f"extrapolated from {QUICK[0]} and {QUICK[1]} blocks of the network, but for the FLOPs"
        )
    if train["estimated_seconds"] is None:
        remarks.append(
            f"this compiler estimates no time: the whole run at {train['assumed_share']:.0%} of the peak (plan.share), "
            f"{format_duration(86400 * plan['days'])}"
        )
    else:
        remarks.append(
            "the estimate leaves out collectives and waiting for memory; by it, the whole run, without evaluations and "
            f"samples: {format_duration(86400 * plan['days'])}"
        )
    return remarks


def verdicts(plan: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each program that does not fit, with the ways out."""
    sentences = []
    for name, ways in plan["ways_out"].items():
        one = plan["programs"][name]
        size = (
            one["too_large"] or f"{one['numbers']['total'] / 1e9:,.1f} GB of {plan['capacity'] / 1e9:,.1f} GB"
        )
        sentences.append(
            f"the {TITLES[name]} does not fit on a device of {plan['topology']} ({size}). Ways out: {'; '.join(ways)}"
        )
    return sentences
