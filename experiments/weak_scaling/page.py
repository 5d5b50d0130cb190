"""Renders the results of experiments.weak_scaling as a Markdown page."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.weak_scaling.paper import BYTES, SOURCES, Row

Figures = dict[str, Any]

SENT = f"""\
Bytes are those of the results of collectives; {BYTES} for each parameter would be {{:,}}. Equal gradients are sent once:
those of two biases that are added, as at the shortcut of a block. The three terms of the loss are sent too."""
VIRTUAL = """\
Virtual devices share the cores of this machine: N of them do N times the work on the same cores. So the last column
compares images/s: 1 means that splitting, synchronising and summing cost nothing, and more than 1 that one device alone
does not keep the cores busy. It does not measure a network between devices."""
REAL = """\
The last column is images/s divided by N times those of one device."""
PAPER = f"""\
    compute    = FLOPs per image x images per device / (peak x share)
    all-reduce = 2 (N - 1) / N x bytes / bandwidth, level by level
    efficiency = compute / (compute + exposed)

FLOPs are those of convolutions and matrix products (`diffenc.tools.planning.flops`), peaks those of `diffenc.runtime.accelerators`, the share of the
peak is `plan.share`. Bytes are {BYTES} for each parameter. A torus has simultaneous rings along all axes: two links of a chip
along an axis that closes (slices of whole 4x4x4 cubes), else one. Nodes of GPUs first reduce within the node, over
NVLink, then an eighth each over the network. "In turn": communication after computing (exposed = all-reduce), as of a
single all-reduce after the whole gradient. "At once": as much overlap as possible (exposed = all-reduce - compute, or
none). "For 95 %": images per device for 95 % in turn. Neglected: latency, stragglers, input, and hardware below its data
sheet."""


def render_page(figures: Figures, rows: Sequence[Row]) -> str:
    """Returns the page.

    Args:
      figures: the measured points, with date, hardware and the estimated run.
      rows: estimates of clusters.
    """
    parts = [
        "# Weak scaling",
        "The batch grows with the number of devices: each has the same number of images. Made by the command below.",
        *measured_section(figures),
        *estimated_section(figures["paper"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def measured_section(figures: Figures) -> Iterator[str]:
    """Yields the measured part."""
    points, real = figures["points"], figures["points"][0]["platform"] != "cpu"
    yield "## Measured"
    yield "\n".join(
        [
            f"- date: {figures['date']}",
            f"- command: `{figures['command']}`",
            f"- devices: {'' if real else 'virtual, '}{points[0]['device']} ({points[0]['platform']})",
            f"- host: {figures['cpu']}, {figures['cores']} cores usable",
            "- versions: " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items()),
            f"- run: {figures['run']}, {figures['images']} images per device, {points[0]['parameters']:,} parameters",
            *([f"- {figures['remark']}"] if figures["remark"] else []),
        ]
    )
    heading = ("devices", "batch", "step (quartiles)", "images/s", "collectives", "bytes", "efficiency")
    yield markdown_table(heading, [format_point(point, points[0], real) for point in points])
    yield SENT.format(BYTES * points[0]["parameters"])
    yield REAL if real else VIRTUAL


def format_point(point: Figures, first: Figures, real: bool) -> tuple[str, ...]:
    """Returns a row of the measured table, with the efficiency relative to the first point."""
    low, middle, high = 1e3 * np.quantile(point["seconds"], (0.25, 0.5, 0.75))
    kinds = Counter(kind for kind, _ in point["sent"])
    return (
        str(point["devices"]),
        str(point["batch_size"]),
        f"{middle:.4g} ms ({low:.4g} .. {high:.4g})",
        f"{images_per_second(point):,.4g}",
        ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none",
        f"{sum(size for _, size in point['sent']):,}",
        f"{efficiency(point, first, real):.3f}",
    )


def images_per_second(point: Figures) -> float:
    """Returns images/s."""
    return point["batch_size"] / float(np.median(point["seconds"]))


def efficiency(point: Figures, first: Figures, real: bool) -> float:
    """Returns images/s relative to the first point, per device if each has its own hardware (`real`)."""
    # virtual devices share the same cores, so their number does not add hardware
    scale = point["devices"] / first["devices"] if real else 1
    return images_per_second(point) / images_per_second(first) / scale


def estimated_section(paper: Figures, rows: Iterable[Row]) -> Iterator[str]:
    """Yields the estimated part."""
    yield "## On paper"
    yield PAPER
    yield (
        f"`{paper['run']}`: {paper['flops_per_image'] / 1e9:,.4g} GFLOPs per image, {paper['parameters']:,} parameters, "
        f"{paper['images']} images per device, {paper['share']:.0%} of the peak."
    )
    heading = (
        "machine",
        "devices",
        "batch",
        "compute",
        "all-reduce",
        "in turn",
        "at once",
        "images/s",
        "for 95 %",
    )
    yield markdown_table(heading, [format_estimate(row) for row in rows])
    yield "Sources:\n\n" + "\n".join(f"- {source}" for source in SOURCES)


def format_estimate(row: Row) -> tuple[str, ...]:
    """Returns a row of the estimated table."""
    devices = row.cluster.devices
    return (
        row.cluster.name,
        str(devices),
        f"{devices * row.images:,}",
        f"{1e3 * row.compute:.3g} ms",
        f"{1e3 * row.all_reduce:.3g} ms",
        f"{row.efficiency:.1%}",
        f"{row.efficiency_hidden:.1%}",
        f"{row.images_per_second:,.0f}",
        str(row.enough),
    )


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table with the first column aligned left, the others right."""
    rule = ("---", *("--:" for _ in heading[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rows))
