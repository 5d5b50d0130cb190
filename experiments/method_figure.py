"""Draws the picture that explains the method: encoder, forward path and reverse process, on data of one dimension.

  python -m experiments.method_figure --output=experiments/figures/method.png

The data are three numbers, equally probable, and the encoder is x_phi = alpha^2 x, so that the posterior means of x_phi and of its
slope, which a network has to estimate, are known exactly. Steps are those of the product's own sampler.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.core.gaussian import alpha_sigma, alpha_squared, sigma_squared
from diffenc.core.stochasticity import MARKOV
from diffenc.evaluation import plots
from diffenc.files.user_paths import path_argument
from diffenc.interfaces import Data, Estimate, Interval, LogSNR
from diffenc.runtime.console import exit_status, start_up
from diffenc.sampling.solvers import ancestral

DATA = (-0.9, 0.2, 0.8)
LOG_SNR_MAX, LOG_SNR_MIN = 8.0, -5.0
STEPS = 300
COLOURS = ("C0", "C1", "C2")

Paths = Float[np.ndarray, "paths stops"]


class Grid(NamedTuple):
    """Stops of t, from the data (0) to the noise (1), with the log-SNR there."""

    t: Float[np.ndarray, " stops"]
    log_snr: Float[np.ndarray, " stops"]


def make_grid() -> Grid:
    """Returns equal steps of t, of a linear log-SNR."""
    t = np.linspace(0, 1, STEPS + 1)
    return Grid(t, LOG_SNR_MAX + (LOG_SNR_MIN - LOG_SNR_MAX) * t)


def encode(x: float, log_snr: Float[np.ndarray, " stops"]) -> Float[np.ndarray, " stops"]:
    """Returns x_phi = alpha^2 x."""
    return np.asarray(alpha_squared(jnp.asarray(log_snr))) * x


def draw_forward(x: float, eta: float, grid: Grid, count: int, seed: int) -> Paths:
    """Draws paths z = alpha x_phi + sigma eps of q, whose noise keeps e^(-H/2) of eps in a step with H = eta^2 |d lambda|."""
    random = np.random.default_rng(seed)
    kept = np.exp(-0.5 * eta**2 * -np.diff(grid.log_snr))
    eps = random.standard_normal((count, 1))
    path = [eps[:, 0]]
    for one in kept:
        path.append(one * path[-1] + np.sqrt(1 - one**2) * random.standard_normal(count))
    alpha, sigma = (np.asarray(each) for each in alpha_sigma(jnp.asarray(grid.log_snr)))
    return alpha * encode(x, grid.log_snr) + sigma * np.stack(path, axis=1)


def exact_estimate(z: Data, interval: Interval) -> Estimate:
    """Returns E[x_phi | z] and E[d x_phi / d lambda | z] = sigma^2 E[x_phi | z], for z of shape [B, 1]."""
    log_snr: LogSNR = interval.log_snr
    alpha, sigma = alpha_sigma(log_snr)
    encoded: Float[Array, "b data"] = alpha_squared(log_snr)[:, None] * jnp.asarray([DATA])
    log_likelihood = -0.5 * ((z - alpha[:, None] * encoded) / sigma[:, None]) ** 2
    value = jnp.sum(jax.nn.softmax(log_likelihood) * encoded, axis=-1, keepdims=True)
    return Estimate(value, sigma_squared(log_snr)[:, None] * value)


def draw_reverse(grid: Grid, count: int, seed: int) -> Paths:
    """Draws paths of the generative chain, from N(0, 1) at t = 1 to t = 0, by ancestral steps with exact estimates."""
    increment = partial(MARKOV.increment, {})

    def step(z: Data, at: tuple[Array, Array, Array]) -> tuple[Data, Data]:
        log_snr_t, log_snr_s, key = at
        noisier, cleaner = (jnp.broadcast_to(log_snr, count) for log_snr in (log_snr_t, log_snr_s))
        noise = jax.random.normal(key, z.shape)
        moved = ancestral(z, noisier, cleaner, jnp.zeros(count), exact_estimate, increment, noise)
        return moved, moved

    start, walk = jax.random.split(jax.random.key(seed))
    noisiest_first = jnp.asarray(grid.log_snr[::-1].copy())
    z_1 = jax.random.normal(start, (count, 1))
    stops = noisiest_first[:-1], noisiest_first[1:], jax.random.split(walk, STEPS)
    _, z = jax.lax.scan(step, z_1, stops)
    return np.concatenate([np.asarray(z_1)[None], np.asarray(z)])[::-1, :, 0].T


def plot_method(grid: Grid) -> plots.Figure:
    """Plots the encoder, the forward path at two amounts of noise, and the reverse process, over t."""
    t = "t  (0: data, 1: noise)"
    title = "Encode and diffuse to train; generate without the encoder"
    figure, (encoder, forward, reverse) = plots.make_axes_row(title, (t, "$x_\\phi$"), (t, "z"), (t, "z"))
    alpha, sigma = (np.asarray(each) for each in alpha_sigma(jnp.asarray(grid.log_snr)))
    encoder.set_title("1. Encode: $x_\\phi(x, \\lambda_t)$, here $\\alpha^2 x$", fontsize="medium")
    for x, colour in zip(DATA, COLOURS, strict=True):
        encoder.plot(grid.t, encode(x, grid.log_snr), color=colour)
        encoder.axhline(x, color=colour, linestyle=":", linewidth=1)
    encoder.plot([], [], color="0.3", label="DiffEnc: in general trained with the model")
    encoder.plot([], [], color="0.3", linestyle=":", label="VDM: $x_\\phi = x$")
    encoder.set_ylim(-1.5, 1.0)  # room for the legend
    encoder.legend(loc="lower left", fontsize="small")

    forward.set_title("2. Diffuse: $z_t = \\alpha\\, x_\\phi + \\sigma\\, \\epsilon$", fontsize="medium")
    for x, colour in ((DATA[0], COLOURS[0]), (DATA[2], COLOURS[2])):
        mean = alpha * encode(x, grid.log_snr)
        forward.fill_between(
            grid.t, mean - 2 * sigma, mean + 2 * sigma, color=colour, alpha=0.12, linewidth=0
        )
        forward.plot(grid.t, mean, color=colour, linestyle="--", linewidth=1)
    forward.plot(grid.t, draw_forward(DATA[2], 1.0, grid, 1, seed=3)[0], color=COLOURS[2], linewidth=0.9)
    forward.plot(grid.t, draw_forward(DATA[0], 0.25, grid, 1, seed=5)[0], color=COLOURS[0], linewidth=0.9)
    notes = "above: $\\eta = 1$, the Markov path\nbelow: $\\eta = 0.25$, the same marginals"
    forward.text(0.03, 0.03, notes, transform=forward.transAxes, fontsize="small", va="bottom")

    reverse.set_title("3. Generate: estimates of $x_\\phi$ and its slope from $z_t$", fontsize="medium")
    paths = draw_reverse(grid, 24, seed=0)
    ends = paths[:, 0] / alpha[0]
    nearest = np.abs(ends[:, None] - np.asarray(DATA)).argmin(axis=1)
    for path, kind in zip(paths, nearest, strict=True):
        reverse.plot(grid.t, path, color=COLOURS[kind], linewidth=0.6, alpha=0.8)
    reverse.set_ylim(forward.get_ylim())
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m experiments.method_figure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=path_argument, help="PNG file to write")
    args = parser.parse_args(argv)

    def perform() -> None:
        start_up()
        plots.save_png(plot_method(make_grid()), args.output)
        print(args.output)

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
