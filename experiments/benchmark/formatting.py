"""Formats the results of experiments.benchmark as tables."""

from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.table import Table

Row = tuple[str, str]
Figures = dict[str, Any]


def format_tables(figures: Figures) -> Iterator[str | Table]:
    """Yields a description of the measurement; then a heading, a table and notes for each measured part."""
    yield "\n".join(describe_circumstances(figures))
    for part, rows in ROWS.items():
        if part in figures:
            yield f"\n{part}: {describe_subject(figures)}\n"
            yield make_table(rows(figures[part]))
            yield f"\n{NOTES[part]}" if part in NOTES else ""


def describe_circumstances(figures: Figures) -> list[str]:
    """Returns the lines of a Markdown list: date, command, hardware and versions."""
    hardware = figures["hardware"]
    return [
        f"- date: {figures['date']}",
        f"- command: `{figures['command']}`",
        f"- devices: {hardware['devices']} x {hardware['device']} ({hardware['platform']})",
        f"- host: {hardware['cpu']}, {hardware['cores_usable']} of {hardware['cores']} cores",
        "- versions: " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        f"- medians and quartiles of {figures['rounds']} rounds",
    ]


def describe_subject(figures: Figures) -> str:
    """Returns batch, image shape, hardware and JAX version in one line."""
    hardware, shape = figures["hardware"], "x".join(map(str, figures["image_shape"]))
    where = hardware["device"] if hardware["platform"] != "cpu" else f"{hardware['cpu']}"
    return (
        f"batch {figures['batch_size']} of {shape} on {hardware['devices']} x {where}, "
        f"{hardware['cores_usable']} cores, jax {figures['versions']['jax']}"
    )


def make_table(rows: list[Row]) -> Table:
    made = Table(box=box.MARKDOWN)
    made.add_column("")
    made.add_column("median (quartiles)", justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def format_seconds(figures: Figures) -> str:
    """Returns the median of seconds with quartiles, in a suitable unit."""
    middle = figures["seconds"]
    scale, unit = (1, "s") if middle >= 1 else (1e3, "ms") if middle >= 1e-3 else (1e6, "µs")
    low, high = (scale * figures[f"quartile_{i}"] for i in (1, 3))
    return f"{scale * middle:.4g} {unit} ({low:.4g} .. {high:.4g})"


def format_ratio(figures: Figures) -> str:
    """Returns the median of a ratio with quartiles."""
    return f"{figures['ratio']:.3f} ({figures['quartile_1']:.3f} .. {figures['quartile_3']:.3f})"


def _step(found: Figures) -> list[Row]:
    flops, memory, build = found["flops_per_image"], found["memory"], found["build_seconds"]
    compiled = memory["compiled"] or {}
    return [
        *((f"parameters, {part}", f"{count:,}") for part, count in found["parameters"].items()),
        ("FLOPs an image, counted", f"{flops['counted'] / 1e9:,.4g} G"),
        ("FLOPs an image, XLA's count (a loop once)", f"{flops['xla'] / 1e9:,.4g} G"),
        *((f"to {name}, once", f"{seconds:.3g} s") for name, seconds in build.items()),
        ("train step", format_seconds(found["step"])),
        ("images a second", f"{found['images_per_second']:,.4g}"),
        *(
            (
                f"share of {found['matrix_peak'][dtype] / 1e12:.4g} TFLOP/s, {dtype} matrix products",
                f"{share:.1%}",
            )
            for dtype, share in found["share_of_peak"].items()
        ),
        *(
            (f"memory, {text}", f"{memory[name] / 1e6:,.1f} MB")
            for name, text in (("state", "state"), ("peak_in_use", "peak in use until the steps were timed"))
            if name in memory
        ),
        *((f"memory, compiled step: {name}", f"{size / 1e6:,.1f} MB") for name, size in compiled.items()),
    ]


ON_PAPER = {
    "compile_seconds": ("to compile", 1, "s"),
    "build_seconds": ("to trace, lower and compile", 1, "s"),
    "flops_counted": ("FLOPs an image, counted", 1e9, "G"),
    "flops_xla": ("FLOPs an image, XLA's count", 1e9, "G"),
}


def _program(found: Figures) -> list[Row]:
    return [
        (f"{what}, {name}", f"{number:.2f}" if what.startswith("seconds") else f"{number:,}")
        for name, counts in found.items()
        for what, number in counts.items()
    ]


def _variants(found: Figures) -> list[Row]:
    return [
        *((f"train step, {name}", format_seconds(step)) for name, step in found["steps"].items()),
        *((f"{name} / vdmv", format_ratio(ratio)) for name, ratio in found["over_vdmv"].items()),
        *(
            (f"{name}, {text}", f"{paper[key] / scale:,.4g} {unit}".rstrip())
            for name, paper in found["on_paper"].items()
            for key, (text, scale, unit) in ON_PAPER.items()
        ),
        *(
            (f"{name} / vdmv, {text}", f"{ratio[key]:.3f}")
            for name, ratio in found["on_paper_over_vdmv"].items()
            for key, (text, _, _) in ON_PAPER.items()
        ),
    ]


def _sampler(found: Figures) -> list[Row]:
    return [
        (f"sampling step, of {found['sampling_steps']}", format_seconds(found["step"])),
        ("network, by itself", format_seconds(found["network"])),
        ("network, in a loop as long", format_seconds(found["network_in_loop"])),
        ("sampling step / network by itself", format_ratio(found["step_over_network"])),
        ("sampling step / network in a loop", format_ratio(found["step_over_network_in_loop"])),
    ]


def _input(found: Figures) -> list[Row]:
    return [
        ("images a second", f"{found['images_per_second']:,.4g}"),
        *((f"train step, {name}", format_seconds(step)) for name, step in found["steps"].items()),
        ("fed / resident", format_ratio(found["fed_over_resident"])),
        ("share of a step spent waiting for images", f"{found['share_waited']:.2%}"),
    ]


def _checkpoint(found: Figures) -> list[Row]:
    names = {
        "save": "save, until on disk",
        "save_holds_training_up": "save, until training continues",
        "file_write": "np.save and fsync",
        "restore": "restore, from the disk",
        "file_read": "np.load, from the disk",
        "restore_cached": "restore, from the page cache",
        "file_read_cached": "np.load, from the page cache",
        "ocdbt_save": "OCDBT, save",
        "ocdbt_restore": "OCDBT, restore, from the disk",
        "ocdbt_restore_cached": "OCDBT, restore, from the page cache",
    }
    return [
        ("state", f"{found['bytes'] / 1e6:,.1f} MB"),
        *((text, format_seconds(found[name])) for name, text in names.items()),
        ("training blocked / save", format_ratio(found["held_up_over_save"])),
        ("save / np.save", format_ratio(found["save_over_file"])),
        ("restore / np.load", format_ratio(found["restore_over_file"])),
        ("the same, from the page cache", format_ratio(found["restore_over_file_cached"])),
        ("OCDBT / save", format_ratio(found["ocdbt_over_save"])),
        ("OCDBT / restore", format_ratio(found["ocdbt_over_restore"])),
        ("OCDBT / restore, from the page cache", format_ratio(found["ocdbt_over_restore_cached"])),
    ]


def _contractions(found: Figures) -> list[Row]:
    over = {"all": "step / all of them", "convolution": "step / convolutions"}
    return [
        ("train step", format_seconds(found["step"])),
        *(
            (f"alone, {name}", f"{1e3 * seconds:.4g} ms")
            for name, seconds in sorted(found["seconds"].items())
        ),
        *((over[name], format_ratio(ratio)) for name, ratio in found["step_over"].items()),
        (f"a call that computes nothing, of {found['calls']:,} calls", format_seconds(found["empty_call"])),
    ]


ROWS: dict[str, Callable[[Figures], list[Row]]] = {
    "step": _step,
    "variants": _variants,
    "sampler": _sampler,
    "input": _input,
    "checkpoint": _checkpoint,
    "contractions": _contractions,
    "program": _program,
}

NOTES = {
    "step": "Peak memory in use: of this process on its first device, from its start until the steps were timed.",
    "variants": "Each was built once, one after the other: a later one may profit from earlier tracing or tuning.",
    "contractions": (
        "The time of a contraction alone includes the dispatch of its call, and changes of layout that the step makes\n"
        "once for several. So the sum is overstated and the step's ratio to it understated, considerably on an\n"
        "accelerator with many small contractions."
    ),
}
