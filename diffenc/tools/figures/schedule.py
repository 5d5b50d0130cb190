"""The noise schedule of a trained model: lambda(t), alpha^2 and sigma^2, and -dlambda/dt."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffenc.core.gaussian import alpha_squared, sigma_squared
from diffenc.evaluation import plots
from diffenc.evaluation.restore_params import to_default_precision
from diffenc.interfaces import Params, Schedule
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record

POINTS = 201


def measure_schedule(subject: FigureInputs) -> FigureRecord:
    """Returns the curves of the trained schedule at equal steps of t."""
    with jax.enable_x64(True):
        params = jax.tree.map(to_default_precision, subject.params["schedule"])
        return FigureRecord(
            schedule_curves(subject.experiment.model.schedule, params, np.linspace(0, 1, POINTS))
        )


def schedule_curves(schedule: Schedule, params: Params, t: Float[np.ndarray, " points"]) -> Record:
    """Returns `log_snr`, `alpha_squared`, `sigma_squared` and `rate` = -dlambda/dt at `t`."""
    times = jnp.asarray(t)
    log_snr, rate = jax.jvp(lambda t: schedule.apply(params, t), (times,), (jnp.ones_like(times),))
    values = {
        "t": times,
        "log_snr": log_snr,
        "alpha_squared": alpha_squared(log_snr),
        "sigma_squared": sigma_squared(log_snr),
        "rate": -rate,
    }
    return {name: np.asarray(value).tolist() for name, value in values.items()}


def plot_schedule(data: FigureRecord, title: str) -> plots.Figure:
    """Plots lambda, the variances of data and noise, and the rate over t."""
    record, t = data.record, data.record["t"]
    ends = f"$\\lambda$ from {record['log_snr'][0]:.2f} to {record['log_snr'][-1]:.2f}"
    figure, (first, second, third) = plots.make_axes_row(
        f"{title}: schedule, {ends}",
        ("t (0 = data, 1 = noise)", "$\\lambda$ = log SNR"),
        ("t (0 = data, 1 = noise)", "share of the variance"),
        ("t (0 = data, 1 = noise)", "$-d\\lambda/dt$"),
    )
    first.plot(t, record["log_snr"])
    second.plot(t, record["alpha_squared"], label="$\\alpha^2$, of the data")
    second.plot(t, record["sigma_squared"], label="$\\sigma^2$, of the noise")
    second.legend()
    third.plot(t, record["rate"])
    plots.scale_positive(third, np.array(record["rate"], float))
    return figure
