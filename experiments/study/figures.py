"""Figures of the study, made from the records of its runs alone."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from diffenc.errors import UserError
from diffenc.evaluation import plots
from diffenc.evaluation.significance import LEVEL
from diffenc.tools.sweep.results import VariantResults
from experiments.learned import plot_learned
from experiments.study.parts import Part, Primary
from experiments.study.records import RESTORE, kept_learned, training_rows
from experiments.study.results import BySeed, read_part, recorded_pairs, t_interval


def differences(part: Part) -> list[tuple[str, BySeed]]:
    """Returns the label and the differences by seed, bits/dim, of every pair that the part describes."""
    pairs = recorded_pairs(part, read_part(part))
    return [(f"{a.name} − {b.name}", a.values("total") - b.values("total")) for a, b in pairs]


def plot_differences(parts: Sequence[Part], primaries: Sequence[Primary]) -> plots.Figure | None:
    """Plots every described difference: a dot a seed, the mean and its interval; None if there is no record.

    One panel a part, as differences of different data do not share an axis. Labels of primary comparisons are bold.
    """
    bold = {(one.part.name, f"{one.a} − {rival}") for one in primaries for rival in one.rivals}
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
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        f"A − B, bits/dim, each with its own {LEVEL:.0%} interval over seeds; left of 0: A is lower",
        fontsize="medium",
    )
    return figure


def plot_sizes(part: Part, sizes: Mapping[str, int], reference: str) -> plots.Figure | None:
    """Plots bits/dim over the encoder's blocks, `sizes` by arm, beside the arm `reference`; None if there is no record.

    A dot a seed, and mean ± standard error. VDM is no encoder of 0 blocks (that is the non-trainable one), so it is a line.
    """
    results = read_part(part)
    points = [(size, results[arm].values("total")) for arm, size in sizes.items() if results[arm].seeds]
    if not points or not results[reference].seeds:
        return None
    figure, axes = plots.make_axes(part.title, "blocks of the encoder", "bits/dim")
    for size, values in points:
        axes.plot(np.full(len(values), size), values, "o", color="C0", markersize=3.5, alpha=0.5)
        axes.errorbar(size, values.mean(), _error(values), color="C1", marker="_", markersize=12, capsize=4)
    level = results[reference].values("total")
    error = _error(level)
    axes.axhline(level.mean(), color="0.4", linewidth=1, label=f"{reference}, ± standard error")
    axes.axhspan(level.mean() - error, level.mean() + error, color="0.4", alpha=0.15)
    axes.set_xticks([size for size, _ in points])
    axes.legend()
    return figure


def plot_training(part: Part, reference: str, start: int = 1_000) -> plots.Figure | None:
    """Plots the training loss from step `start` on, and that of every arm minus the arm `reference`; None without records.

    The loss is the mean over an arm's seeds. Differences are paired by seed, with a band of one standard error.
    """
    losses = {arm: _losses(part, arm, result) for arm, result in read_part(part).items() if result.seeds}
    if not losses:
        return None
    y_label = "bits/dim of training batches"
    figure, (whole, differences) = plots.make_axes_row(
        part.title, ("step", y_label), ("step", f"A − {reference}, {y_label}")
    )
    for place, (arm, (steps, by_seed)) in enumerate(losses.items()):
        shown, num_seeds = steps >= start, len(by_seed)
        label = f"{arm} ({num_seeds} {'seed' if num_seeds == 1 else 'seeds'})"
        mean = np.mean(list(by_seed.values()), axis=0)
        whole.plot(steps[shown], mean[shown], color=f"C{place}", label=label)
        shared = [seed for seed in by_seed if seed in losses.get(reference, (steps, {}))[1]]
        if arm != reference and len(shared) > 1:
            paired = np.array([by_seed[seed] - losses[reference][1][seed] for seed in shared])[:, shown]
            center, error = paired.mean(axis=0), stats.sem(paired, axis=0)
            differences.plot(steps[shown], center, color=f"C{place}")
            differences.fill_between(
                steps[shown], center - error, center + error, color=f"C{place}", alpha=0.15, linewidth=0
            )
    differences.axhline(0, color="0.4", linewidth=0.8)
    whole.legend()
    return figure


def _losses(part: Part, arm: str, result: VariantResults) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Returns the steps of an arm's metrics, and the training loss there by seed."""
    rows = {seed: training_rows(workdir) for seed, workdir in result.workdirs.items()}
    first, *others = ([row["step"] for row in each] for each in rows.values())
    if any(steps != first for steps in others):
        raise UserError(f"{part.records / arm}: the seeds have metrics of different steps; {RESTORE}")
    return np.array(first), {seed: np.array([row["bpd"] for row in each]) for seed, each in rows.items()}


def plot_kept_learned(part: Part) -> plots.Figure | None:
    """Plots the learned paths, times and variances after the last step, of every seed; None without records.

    Of times, it is how far they are from the linear log-SNR that they start from.
    """
    kept = [
        (arm, by_step[max(by_step)])
        for arm in part.learned
        for seed in part.seeds
        if (by_step := kept_learned(part.workdir(arm, seed)))
    ]
    if not kept:
        return None
    chain = kept[0][1].chain
    if chain is None or part.first_ends is None:
        return plot_learned(kept)
    return plot_learned(kept, np.linspace(*part.first_ends, len(chain.log_snr)))


def _half_width(values: BySeed) -> float | None:
    interval = t_interval(values, LEVEL)
    return None if interval is None else interval[1] - float(values.mean())


def _error(values: BySeed) -> float:
    """Returns the standard error of the mean; NaN, which is not drawn, of one value."""
    return float(stats.sem(values)) if len(values) > 1 else math.nan
