"""Results of experiments.bounds as tables, as JSON and as a plot."""

import dataclasses
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from diffenc.evaluation import plots
from diffenc.evaluation.evaluation_record import format_error_over_images, mean_and_errors
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.uncertainty_format import round_to_error


def format_mean(bits: PassValues) -> str:
    """Returns the mean ± its Monte-Carlo error."""
    return str(round_to_error(bits.mean, bits.mc_se))


def format_image_error(bits: PassValues) -> str:
    """Returns the error over images, or its upper bound if the error is not resolved."""
    return format_error_over_images(mean_and_errors("bpd", bits), "bpd")


@dataclasses.dataclass(frozen=True)
class Results:
    """All results of one run of the program.

    Attributes:
      by_num_timesteps: ELBO by column, then by T.
      continuous: ELBO, T -> infinity.
      others: other bounds and likelihoods by name, each with the continuous ELBO of the same images.
      metadata: data set, split, images, passes and checkpoint.
    """

    by_num_timesteps: dict[str, dict[int, PassValues]]
    continuous: PassValues
    others: dict[str, tuple[PassValues, PassValues]]
    metadata: dict[str, Any]


def format_title(metadata: dict[str, Any]) -> str:
    """Returns the images, the number of passes and the checkpoint as text."""
    images = f"{metadata['dataset']} {metadata['split']}, {metadata['num_images']} images"
    return f"{images}, {metadata['passes']} passes, step {metadata['step']}"


def bounds_table(results: Results) -> Table:
    """Returns bits/dim ± Monte-Carlo error by T; the last column has paired differences."""
    errors = f"± Monte Carlo; over images ± {format_image_error(results.continuous)}"
    caption = escape(f"{errors}; pixels {results.metadata['fingerprint'][:16]}")
    table = Table(
        title=escape(f"ELBO, bits/dim: {format_title(results.metadata)}"), caption=caption, box=box.MARKDOWN
    )
    for heading in ("T", *results.by_num_timesteps, "equal - fitted"):
        table.add_column(heading, justify="right")
    for num_timesteps in next(iter(results.by_num_timesteps.values())):
        gain = results.by_num_timesteps["equal"][num_timesteps].minus(
            results.by_num_timesteps["fitted"][num_timesteps]
        )
        table.add_row(
            str(num_timesteps),
            *(format_mean(column[num_timesteps]) for column in results.by_num_timesteps.values()),
            format_mean(gain),
        )
    limit = format_mean(results.continuous)
    table.add_row("continuous", *[limit] * (len(results.by_num_timesteps) - 1), "infinite", "0")
    return table


def few_images_table(results: Results) -> Table:
    """Returns the other bounds of some of the images, and the ELBO of the same images."""
    table = Table(title="On fewer of the images, bits/dim", box=box.MARKDOWN)
    for heading in ("", "images", "bits/dim", "± over images", "their ELBO, continuous"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, (bits, elbo) in results.others.items():
        table.add_row(
            name, str(bits.values.shape[1]), format_mean(bits), format_image_error(bits), format_mean(elbo)
        )
    return table


def bounds_record(results: Results) -> dict[str, Any]:
    """Returns the content of bounds.json."""

    def metrics(bits: PassValues) -> dict[str, Any]:
        return mean_and_errors("bpd", bits)

    return {
        **results.metadata,
        "continuous": metrics(results.continuous),
        "by_steps": {
            name: {
                str(steps): metrics(bits) | {"above_continuous": metrics(bits.minus(results.continuous))}
                for steps, bits in column.items()
            }
            for name, column in results.by_num_timesteps.items()
        },
        "beside": {
            name: metrics(bits) | {"num_images": bits.values.shape[1], "elbo": metrics(elbo)}
            for name, (bits, elbo) in results.others.items()
        },
    }


def plot_bounds(results: Results) -> Figure:
    """Plots bounds over T, and their differences from the continuous one, with Monte-Carlo errors."""
    limit = results.continuous
    figure = Figure((10.0, 4.2), layout="constrained")
    whole, distance = figure.subplots(1, 2)
    whole.axhline(limit.mean, color="black", lw=1, ls="--", label="continuous")
    for name, column in results.by_num_timesteps.items():
        plot_bits(whole, name, column)
        gaps = {steps: bits.minus(limit) for steps, bits in column.items()}
        plot_bits(distance, name, gaps)
    best = [
        bits.mean
        for name in list(results.by_num_timesteps)[:3]
        for bits in results.by_num_timesteps[name].values()
    ]
    whole.set_ylim(limit.mean - 0.1 * (max(best) - limit.mean), max(best) + 0.2 * (max(best) - limit.mean))
    whole.set(xscale="log", xlabel="T", ylabel="ELBO, bits/dim")
    distance.set(xscale="log", yscale="log", xlabel="T", ylabel="above the continuous ELBO, bits/dim")
    for side in (whole, distance):
        side.grid(alpha=0.3)
    whole.legend(frameon=False)
    figure.suptitle(plots.escape_dollars(format_title(results.metadata)))
    return figure


def plot_bits(axes: Axes, name: str, column: dict[int, PassValues]) -> None:
    """Plots points with their Monte-Carlo errors."""
    means, errors = ([getattr(bits, kind) for bits in column.values()] for kind in ("mean", "mc_se"))
    axes.errorbar(list(column), means, yerr=errors, marker="o", ms=3, lw=1, capsize=2, label=name)
