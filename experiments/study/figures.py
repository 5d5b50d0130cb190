"""Figures of the study, made from the records of its runs alone."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffenc.evaluation import plots
from diffenc.evaluation.significance import LEVEL
from diffenc.tools.sweep.comparison import common_seeds
from experiments.learned import Learned, LearnedChain, plot_learned
from experiments.study.parts import Part
from experiments.study.records import kept_learned, training_rows
from experiments.study.results import BySeed, mean_error, read_part, t_interval

FEWEST = 3  # seeds of an interval


def differences(part: Part) -> list[tuple[str, BySeed]]:
    """Returns the label and the differences by seed, bits/dim, of every pair that the part describes."""
    results = read_part(part)
    found = []
    for a, b in part.pairs:
        seeds = common_seeds(results[a], results[b])
        if seeds:
            one, two = (results[arm].select(seeds).values("total") for arm in (a, b))
            found.append((f"{a} − {b}", one - two))
    return found


def plot_differences(parts: Sequence[Part]) -> plots.Figure | None:
    """Plots every described difference: a dot a seed, the mean and its interval; None if there is no record.

    One panel a part, as differences of different data do not share an axis.
    """
    shown = [(part, found) for part in parts if (found := differences(part))]
    if not shown:
        return None
    heights = [1 + len(found) for _, found in shown]
    figure = plots.Figure((7.2, 0.34 * sum(heights) + 0.5 * len(shown)), layout="constrained")
    every_axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (part, found) in zip(every_axes, shown, strict=True):
        axes.set_title(part.title, fontsize="medium", loc="left")
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
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    every_axes[-1].set_xlabel(
        f"A − B, bits/dim, with the {LEVEL:.0%} interval over seeds; left of 0: A is lower"
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
        axes.errorbar(
            size, values.mean(), mean_error(values), color="C1", marker="_", markersize=12, capsize=4
        )
    level = results[reference].values("total")
    error = mean_error(level)
    axes.axhline(level.mean(), color="0.4", linewidth=1, label=f"{reference}, ± standard error")
    axes.axhspan(level.mean() - error, level.mean() + error, color="0.4", alpha=0.15)
    axes.set_xticks([size for size, _ in points])
    axes.legend()
    return figure


def plot_training(part: Part, start: int = 1_000) -> plots.Figure | None:
    """Plots bits/dim of the training batches from step `start` on, the mean over an arm's seeds; None without records."""
    results = read_part(part)
    figure, axes = plots.make_axes(part.title, "step", "bits/dim of training batches")
    for arm, result in results.items():
        rows = [training_rows(workdir) for workdir in result.workdirs.values()]
        if rows:
            steps = np.array([row["step"] for row in rows[0]])
            values = np.mean([[row["bpd"] for row in each] for each in rows], axis=0)
            label = f"{arm} ({len(rows)} {'seed' if len(rows) == 1 else 'seeds'})"
            axes.plot(steps[steps >= start], values[steps >= start], label=label)
    if not axes.lines:
        return None
    axes.legend()
    return figure


def plot_kept_learned(part: Part) -> plots.Figure | None:
    """Plots the learned paths, times and variances after the last step, the mean over an arm's seeds; None without records."""
    arms = [_average(arm, found) for arm in part.learned if (found := list(_last_learned(part, arm)))]
    return plot_learned(arms) if arms else None


def _last_learned(part: Part, arm: str) -> Iterator[Learned]:
    for seed in part.seeds:
        by_step = kept_learned(part.workdir(arm, seed), arm)
        if by_step:
            yield by_step[max(by_step)]


def _average(arm: str, runs: Sequence[Learned]) -> Learned:
    # Ends are learned, so that each run has a grid of its own; equally many points from one end to the other.
    log_snr, eta_squared = (
        np.mean([getattr(run, name) for run in runs], axis=0) for name in ("log_snr", "eta_squared")
    )
    chains = [run.chain for run in runs if run.chain is not None]
    chain = LearnedChain(*(np.mean(each, axis=0) for each in zip(*chains, strict=True))) if chains else None
    return Learned(arm, log_snr, eta_squared, chain)


def _half_width(values: BySeed) -> float | None:
    return t_interval(values, LEVEL)[1] - float(values.mean()) if len(values) >= FEWEST else None
