"""What experiments.bounds found, as tables for people, as JSON for programs, and as a plot."""

import dataclasses
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from diffenc.evaluation import plots
from diffenc.evaluation.evaluator import format_error_over_images, mean_and_errors
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.uncertainty_format import round_to_error


def text(bits: PassValues) -> str:
    """Returns the mean ± its Monte-Carlo error."""
    return str(round_to_error(bits.mean, bits.mc_se))


def over_images(bits: PassValues) -> str:
    """Returns the error over images, or the upper bound where it is not resolved."""
    return format_error_over_images(mean_and_errors("bpd", bits), "bpd")


@dataclasses.dataclass(frozen=True)
class Results:
    """All that one run of the program found.

    Attributes:
      by_steps: ELBO by column, then by T.
      continuous: ELBO, T -> infinity.
      beside: other bounds and likelihoods by name, each with the continuous ELBO of the same images.
      of: what all of it is of: data set, split, images, passes, checkpoint.
    """

    by_steps: dict[str, dict[int, PassValues]]
    continuous: PassValues
    beside: dict[str, tuple[PassValues, PassValues]]
    of: dict[str, Any]


def title(of: dict[str, Any]) -> str:
    """Which images, how often, which checkpoint."""
    return (
        f"{of['dataset']} {of['split']}, {of['num_images']} images, {of['passes']} passes, step {of['step']}"
    )


def table(results: Results) -> Table:
    """bits/dim ± Monte-Carlo error by T; the last column is of paired differences."""
    of = results.of
    errors = f"± Monte Carlo; over images ± {over_images(results.continuous)}"
    caption = escape(f"{errors}; pixels {of['fingerprint'][:16]}")
    made = Table(title=escape(f"ELBO, bits/dim: {title(of)}"), caption=caption, box=box.MARKDOWN)
    for heading in ("T", *results.by_steps, "equal - fitted"):
        made.add_column(heading, justify="right")
    depths = next(iter(results.by_steps.values()))
    for steps in depths:
        gain = results.by_steps["equal"][steps].minus(results.by_steps["fitted"][steps])
        made.add_row(str(steps), *(text(column[steps]) for column in results.by_steps.values()), text(gain))
    limit = text(results.continuous)
    made.add_row("continuous", *[limit] * (len(results.by_steps) - 1), "infinite", "0")
    return made


def table_beside(results: Results) -> Table:
    """What else is known of the likelihood of some of the images, and their ELBO."""
    made = Table(title="On fewer of the images, bits/dim", box=box.MARKDOWN)
    for heading in ("", "images", "bits/dim", "± over images", "their ELBO, continuous"):
        made.add_column(heading, justify="right" if heading else "left")
    for name, (bits, elbo) in results.beside.items():
        made.add_row(name, str(bits.values.shape[1]), text(bits), over_images(bits), text(elbo))
    return made


def figures(results: Results) -> dict[str, Any]:
    """The same for programs."""

    def plain(bits: PassValues) -> dict[str, Any]:
        return mean_and_errors("bpd", bits)

    return {
        **results.of,
        "continuous": plain(results.continuous),
        "by_steps": {
            name: {
                str(steps): plain(bits) | {"above_continuous": plain(bits.minus(results.continuous))}
                for steps, bits in column.items()
            }
            for name, column in results.by_steps.items()
        },
        "beside": {
            name: plain(bits) | {"num_images": bits.values.shape[1], "elbo": plain(elbo)}
            for name, (bits, elbo) in results.beside.items()
        },
    }


def plot(results: Results) -> Figure:
    """Bound against T, and how far each is above the continuous one, with Monte-Carlo errors."""
    of, limit = results.of, results.continuous
    figure = Figure((10.0, 4.2), layout="constrained")
    whole, distance = figure.subplots(1, 2)
    whole.axhline(limit.mean, color="black", lw=1, ls="--", label="continuous")
    for name, column in results.by_steps.items():
        draw_bits(whole, name, column)
        gaps = {steps: bits.minus(limit) for steps, bits in column.items()}
        draw_bits(distance, name, gaps)
    best = [bits.mean for name in list(results.by_steps)[:3] for bits in results.by_steps[name].values()]
    whole.set_ylim(limit.mean - 0.1 * (max(best) - limit.mean), max(best) + 0.2 * (max(best) - limit.mean))
    whole.set(xscale="log", xlabel="T", ylabel="ELBO, bits/dim")
    distance.set(xscale="log", yscale="log", xlabel="T", ylabel="above the continuous ELBO, bits/dim")
    for side in (whole, distance):
        side.grid(alpha=0.3)
    whole.legend(frameon=False)
    figure.suptitle(plots.escape_dollars(title(of)))
    return figure


def draw_bits(axes: Axes, name: str, column: dict[int, PassValues]) -> None:
    """Points with their Monte-Carlo errors."""
    means, errors = ([getattr(bits, kind) for bits in column.values()] for kind in ("mean", "mc_se"))
    axes.errorbar(list(column), means, yerr=errors, marker="o", ms=3, lw=1, capsize=2, label=name)
