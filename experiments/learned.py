"""What a model has learned of its forward process: the path's noise, and the times and variances of a chain of T steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import diffenc
from diffenc.core.discretization import equal_times, make_chain, variance_given
from diffenc.core.gaussian import sigma_squared
from diffenc.core.model import Model
from diffenc.evaluation import plots
from diffenc.interfaces import Params

POINTS = 201


class LearnedChain(NamedTuple):
    """The chain that a model was trained on.

    Attributes:
      log_snr: lambda at the stops, from the data to the noise.
      w: sigma_Q^2 / sigma_P^2 of the steps.
    """

    log_snr: Float[np.ndarray, " stops"]
    w: Float[np.ndarray, " steps"]


class Learned(NamedTuple):
    """The learned path, and the learned chain if any, of one model.

    Attributes:
      log_snr: a grid of lambda between the ends of its schedule, increasing.
      eta_squared: dh/dlambda there.
      chain: None if the model was trained in continuous time.
    """

    log_snr: Float[np.ndarray, " points"]
    eta_squared: Float[np.ndarray, " points"]
    chain: LearnedChain | None


def eta_squared(
    model: Model, params: Params, log_snr: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    """Returns dh/dlambda of the model's path at `log_snr`, as the derivative of H in its upper end."""
    high = jnp.asarray(log_snr)
    # Any lower end gives the same derivative: H = h(high) - h(low).
    low = jnp.full_like(high, high[0])
    _, slope = jax.jvp(lambda high: model.increment(params, low, high), (high,), (jnp.ones_like(high),))
    return np.asarray(slope)


def learned_chain(experiment: diffenc.Experiment, params: Params) -> LearnedChain | None:
    """Returns the chain that `experiment` trains, under `params`; None if it trains in continuous time."""
    if not experiment.num_timesteps:
        return None
    model, stops = experiment.model, equal_times(experiment.num_timesteps)
    variance = variance_given(experiment.variance, params)
    chain = make_chain(lambda t: model.log_snr(params, t), stops, variance)
    return LearnedChain(np.asarray(model.log_snr(params, chain.times)), np.exp(np.asarray(chain.log_w)))


def read_learned(workdir: Path, step: int | None = None, points: int = POINTS) -> Learned:
    """Returns the learned path, at `points` log-SNRs, and chain of a checkpoint of the run in `workdir`; None = the newest.

    Raises:
      UserError: there is no run, or no such checkpoint.
    """
    trained = diffenc.load(workdir, step)
    low, high = np.asarray(trained.model.log_snr(trained.params, jnp.array([1.0, 0.0])))
    grid = np.linspace(low, high, points, dtype=np.float32)
    chain = learned_chain(trained.experiment, trained.params)
    return Learned(grid, eta_squared(trained.model, trained.params, grid), chain)


def plot_learned(
    runs: Sequence[tuple[str, Learned]],
    title: str = "Path, times and variances after training",
    times_label: str = "$\\lambda$ of the time",
) -> plots.Figure:
    """Plots eta^2 of every model and, if any was trained at T steps, lambda of its times and w of its steps.

    Args:
      runs: with labels; those with the same label, as of several seeds, look alike.
    """
    chains = [(label, run.chain) for label, run in runs if run.chain is not None]
    axes_labels = [("$\\lambda$ = log SNR", "$\\eta^2$ = dh/d$\\lambda$")]
    if chains:
        axes_labels += [
            ("time (0 = data)", times_label),
            ("step (1 = least noise)", "w = $\\sigma_Q^2 / \\sigma_P^2$"),
        ]
    figure, (path, *others) = plots.make_axes_row(title, *axes_labels)
    labels = list(dict.fromkeys(label for label, _ in runs))
    # Models often coincide: the first has the widest line, so that it shows beside the later ones.
    styles = {
        label: {"color": f"C{place}", "linewidth": 0.6 + 0.8 * (len(labels) - place)}
        for place, label in enumerate(labels)
    }
    for label, run in runs:
        path.plot(run.log_snr, run.eta_squared, label=label, **styles[label])
    lowest = min(float(run.log_snr[0]) for _, run in runs)
    highest = max(float(run.log_snr[-1]) for _, run in runs)
    grid = np.linspace(lowest, highest, POINTS)
    tight = 1 + 2 * np.asarray(sigma_squared(jnp.asarray(grid)))
    path.plot(grid, tight, color="0.5", linestyle="--", label="$1 + 2\\sigma^2$")
    path.set_ylim(bottom=0)
    for label, chain in chains:
        for axes, values, first in zip(others, chain, (0, 1), strict=True):
            stops = np.arange(len(values)) + first
            axes.plot(stops, values, marker="o", markersize=3, label=label, **styles[label])
    for axes in (path, *others):
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles.keys())
    return figure
