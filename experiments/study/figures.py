"""Figures of the study, made from the records of its runs alone."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import stats

from diffenc.config.gin_loader import load_experiment
from diffenc.core.discretization import equal_times
from diffenc.errors import UserError
from diffenc.evaluation import plots
from diffenc.evaluation.significance import LEVEL
from experiments.learned import Learned, plot_learned
from experiments.study.parts import Part, Primary
from experiments.study.records import RESTORE, kept_learned, training_rows
from experiments.study.results import BySeed, name_difference, read_part, recorded_pairs, t_interval


def differences(part: Part) -> list[tuple[str, BySeed]]:
    """Returns the label and the differences by seed, bits/dim, of every pair that the part describes."""
    pairs = recorded_pairs(part, read_part(part))
    return [(name_difference(a.name, b.name), a.values("total") - b.values("total")) for a, b in pairs]


def plot_differences(parts: Sequence[Part], primaries: Sequence[Primary]) -> plots.Figure | None:
    """Plots every described difference: a dot a seed, the mean and its interval; None if there is no record.

    One panel a part, as differences of different data do not share an axis. Labels of primary comparisons are bold.
    """
    bold = {(one.part.name, name_difference(one.a, rival)) for one in primaries for rival in one.rivals}
    shown = [(part, found) for part in parts if (found := differences(part))]
    if not shown:
        return None
    heights = [1 + len(found) for _, found in shown]
    figure = plots.Figure((7.2, 0.34 * sum(heights) + 0.5 * len(shown)), layout="constrained")
    every_axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (part, found) in zip(every_axes, shown, strict=True):
        axes.set_title(part.title, fontsize="medium", loc="right")  # long ones have the labels' room too
        axes.axvline(0, color="0.4", linewidth=0.8)
        for place, (_, values) in enumerate(found):
            axes.plot(values, np.full(len(values), place), "o", color="C0", markersize=3.5, alpha=0.5)
            axes.errorbar(
                values.mean(),
                place,
                xerr=_half_width(values),
                color="C1",
                marker="|",
                markersize=12,
                capsize=4,
            )
        axes.set_yticks(range(len(found)), [label for label, _ in found])
        for text, (label, _) in zip(axes.get_yticklabels(), found, strict=True):
            text.set_fontweight("bold" if (part.name, label) in bold else "normal")
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=6)  # labels of small differences are long
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        f"A − B, bits/dim, each with its own {LEVEL:.0%} interval over seeds; left of 0: A is lower",
        fontsize="medium",
    )
    return figure


def plot_sizes(sizes: Sequence[tuple[Part, Mapping[str, int]]], reference: str) -> plots.Figure | None:
    """Plots bits/dim over the encoder's blocks, by arm of each part, beside the arm `reference`; None if there is no record.

    A dot a seed, and mean ± standard error. One panel a part, on one scale. VDM is no encoder of 0 blocks (that is the
    non-trainable one), so it is a line.
    """
    shown = []
    for part, blocks in sizes:
        results = read_part(part)
        points = [(size, results[arm].values("total")) for arm, size in blocks.items() if results[arm].seeds]
        if points and results[reference].seeds:
            shown.append((part, points, results[reference].values("total")))
    if not shown:
        return None
    figure, panels = plots.make_axes_row("", *[("blocks of the encoder", "bits/dim")] * len(shown))
    for axes, (part, points, level) in zip(panels, shown, strict=True):
        axes.set_title(part.title, fontsize="small")
        axes.sharey(panels[0])
        for size, values in points:
            axes.plot(np.full(len(values), size), values, "o", color="C0", markersize=3.5, alpha=0.5)
            axes.errorbar(
                size, values.mean(), _error(values), color="C1", marker="_", markersize=12, capsize=4
            )
        axes.axhline(level.mean(), color="0.4", linewidth=1, label=f"{reference}, ± standard error")
        axes.axhspan(level.mean() - _error(level), level.mean() + _error(level), color="0.4", alpha=0.15)
        axes.set_xticks([size for size, _ in points])
    panels[0].legend()
    return figure


def plot_training(part: Part, reference: str, start: int = 1_000) -> plots.Figure | None:
    """Plots the training loss from step `start` on, and that of every arm minus the arm `reference`; None without records.

    The loss is a mean over the steps of a row of the metrics, and over an arm's seeds. Differences are paired by seed, with a
    band of one standard error; there are none without two seeds.

    Raises:
      UserError: the metrics are of different steps.
    """
    steps, losses = _training_losses(part)
    if not losses:
        return None
    level = losses.get(reference, {})
    shared = {
        arm: [seed for seed in by_seed if seed in level]
        for arm, by_seed in losses.items()
        if arm != reference
    }
    paired = {
        arm: [losses[arm][seed] - level[seed] for seed in seeds]
        for arm, seeds in shared.items()
        if len(seeds) > 1
    }
    labels = [
        "bits/dim of training batches",
        *([f"the same, A − {reference}, ± standard error"] if paired else []),
    ]
    figure, (whole, *others) = plots.make_axes_row(part.title, *(("step", label) for label in labels))
    colors = {arm: f"C{place}" for place, arm in enumerate(losses)}
    shown = steps >= start
    for arm, by_seed in losses.items():
        label = f"{arm} ({len(by_seed)} {'seed' if len(by_seed) == 1 else 'seeds'})"
        mean = np.mean(list(by_seed.values()), axis=0)
        whole.plot(steps[shown], mean[shown], color=colors[arm], label=label)
    whole.legend()
    for axes in others:
        axes.axhline(0, color="0.4", linewidth=0.8)
        for arm, values in paired.items():
            center, error = np.mean(values, axis=0)[shown], stats.sem(values, axis=0)[shown]
            plots.plot_band(axes, steps[shown], center, error, arm, colors[arm])
    return figure


def _training_losses(part: Part) -> tuple[np.ndarray, dict[str, dict[int, np.ndarray]]]:
    """Returns the steps of the metrics, and the training loss there by arm and seed."""
    rows = {
        arm: {seed: training_rows(workdir) for seed, workdir in result.workdirs.items()}
        for arm, result in read_part(part).items()
        if result.seeds
    }
    steps = {tuple(row["step"] for row in each) for by_seed in rows.values() for each in by_seed.values()}
    if len(steps) > 1:
        raise UserError(f"{part.records}: runs have metrics of different steps; {RESTORE}")
    losses = {
        arm: {seed: np.array([row["bpd"] for row in each]) for seed, each in by_seed.items()}
        for arm, by_seed in rows.items()
    }
    return np.array(next(iter(steps), ()), dtype=float), losses


def plot_kept_learned(part: Part, start: Float[np.ndarray, " times"] | None) -> plots.Figure | None:
    """Plots the learned paths, times and variances after the last step, of every seed; None without records.

    Args:
      start: lambda that the times of all arms start from, which is subtracted; None if none are learned.
    """
    kept = [
        (arm, _since(start, by_step[max(by_step)]))
        for arm in part.learned
        for seed in part.seeds
        if (by_step := kept_learned(part.workdir(arm, seed)))
    ]
    moved = "$\\lambda$ of the time, minus where it started"
    return plot_learned(kept, f"{part.title}: after training", moved) if kept else None


def _since(start: Float[np.ndarray, " times"] | None, learned: Learned) -> Learned:
    if learned.chain is None or start is None:
        return learned
    return learned._replace(chain=learned.chain._replace(log_snr=learned.chain.log_snr - start))


def first_log_snr(part: Part) -> Float[np.ndarray, " times"] | None:
    """Returns lambda of the times that the arms of a part start from; None if they train in continuous time."""
    (variant,) = part.variants(part.arms[:1])
    experiment = load_experiment(variant.gin_files, ())
    if not experiment.num_timesteps:
        return None
    schedule = experiment.model.schedule
    times = jnp.asarray(equal_times(experiment.num_timesteps))
    return np.asarray(schedule.apply(schedule.init(jax.random.key(experiment.seed)), times))


def _half_width(values: BySeed) -> float | None:
    interval = t_interval(values, LEVEL)
    return None if interval is None else interval[1] - float(values.mean())


def _error(values: BySeed) -> float:
    """Returns the standard error of the mean; NaN, which is not drawn, of one value."""
    return float(stats.sem(values)) if len(values) > 1 else math.nan
