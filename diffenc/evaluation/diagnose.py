"""--mode=diagnose: the diffusion loss over time, the network's output at both ends of time, and possible savings of the loss.

Three measurements over a data set, each written as a record and as a plot: `loss`, the diffusion loss in bins of t,
`ends`, the network's v_hat compared with theory at t = 0 and at t = 1 (DiffEnc, App. L), and `worth`, the savings by a better
path and by a better slope (`diffenc.evaluation.worth`).
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float
from rich.console import Console

from diffenc.config.experiment import Experiment
from diffenc.config.settings import Diagnose
from diffenc.core.gaussian import alpha_sigma, diffuse, scale, sum_squares
from diffenc.core.model import Draws, Model, bits_per_dim
from diffenc.core.objective import continuous, step_error, step_index
from diffenc.core.pixels import scale_pixels
from diffenc.data.sources import describe_images
from diffenc.evaluation import plots
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.bin_means import BinIndex, BinMeans, Metrics, log_snr_at, measure_bins
from diffenc.evaluation.evaluation_record import image_metadata, pass_metadata, run_metadata
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.streaming_stats import ImageMeans
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.evaluation.worth import worth_record, worth_table
from diffenc.files import atomic, record_checksum
from diffenc.interfaces import Condition, Context, Data, Dataset, Images, Params, Times
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.sharding import data_mesh
from diffenc.workdir import loss_curves
from diffenc.workdir.mirror import on_local_copy

Record = dict[str, Any]

LOG_SNR = "$\\lambda$ = log SNR (right: data, left: noise)"


@on_local_copy
def diagnose(experiment: Experiment, workdir: Path) -> dict[str, Record]:
    """Writes WORKDIR/diagnostics/{loss,ends,worth}.{json,pdf,png} of the averaged parameters; returns the records.

    Prints the table of `worth`.

    Raises:
      UserError: no run there, one of another config, no such checkpoint, or a bin was drawn less than twice.
    """
    mesh = data_mesh(experiment.mesh)
    params, step = restore_for_bound(experiment, workdir, mesh, experiment.evaluate.step)
    model, dataset = experiment.model, experiment.dataset
    settings = resolve_batch_size(experiment.diagnose, experiment.batch_size)
    records = {
        # All three measurements see the same images, times and noise (`measure_bins`).
        name: make(model, dataset, settings, mesh, params)
        for name, make in (("loss", loss_record), ("ends", ends_record), ("worth", worth_record))
    }
    metadata = {
        **image_metadata(dataset, model, settings.split, records["loss"]["num_images"]),
        **pass_metadata(settings),
        **run_metadata(experiment),
        "step": step,
    }
    records = {name: record | metadata for name, record in records.items()}
    _write(workdir, records)
    return records


@main_process_only
def _write(workdir: Path, records: dict[str, Record]) -> None:
    target = loss_curves.curve_path(workdir)
    target.parent.mkdir(parents=True, exist_ok=True)
    Console(soft_wrap=True).print(worth_table(records["worth"], _describe_record(records["worth"])))
    # The figures first, the loss curve last: an interrupted run
    # leaves no new curve with older figures beside it.
    for name, plot in (("loss", plot_loss), ("ends", plot_ends), ("worth", plot_worth)):
        for suffix, content in plots.render_files(plot(records[name])).items():
            atomic.write_bytes(target.with_name(name + suffix), content)
    for name in ("worth", "ends", "loss"):  # the last is the curve that time samplers read
        record_checksum.write_record(target.with_name(f"{name}.json"), records[name])
    loss = records["loss"]
    bits = round_to_error(loss["bpd_diffusion"], loss["bpd_diffusion_se"])
    logging.info("diffusion loss %s bits/dim, by log-SNR in %s", bits, target.parent)


def loss_record(model: Model, dataset: Dataset, settings: Diagnose, mesh: Mesh, params: Params) -> Record:
    """Returns the diffusion loss in equal bins of t, in bits/dim.

    `loss` is its mean in each bin, `rms` its root mean square, and `density` the loss per unit of lambda, which integrates
    over lambda to the mean over bins, `bpd_diffusion`. Errors (`_se`) are over images, with all their draws.
    `t` and `log_snr` are the bins' edges, `t_centre` and `log_snr_centre` their centres.
    """
    bins = settings.bins
    means = measure_bins(model, dataset, settings, mesh, params, bins, measure_loss)
    loss, square = means["loss"], means["square"]
    edges = np.linspace(0, 1, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    log_snr = log_snr_at(model, params, edges)
    width = -np.diff(log_snr) * bins  # mean |d lambda / dt| of a bin
    return {
        "bpd_diffusion": loss.mean.mean(),
        "bpd_diffusion_se": loss.mean_error,
        "num_images": loss.num_images,
        "t": edges.tolist(),
        "log_snr": log_snr.tolist(),
        "t_centre": centres.tolist(),
        "log_snr_centre": log_snr_at(model, params, centres).tolist(),
        # The loss per unit of t over |d lambda / dt| is the loss per unit of lambda.
        "density": (loss.mean / width).tolist(),
        "density_se": (loss.standard_error / width).tolist(),
        "loss": loss.mean.tolist(),
        "loss_se": loss.standard_error.tolist(),
        "rms": np.sqrt(square.mean).tolist(),
        "draws": loss.count.tolist(),
    }


def measure_loss(
    model: Model, num_levels: int, num_bins: int, params: Params, images: Images, draws: Draws
) -> tuple[BinIndex, Metrics]:
    """Returns the bin of each image's time, and the diffusion loss there in bits/dim and its square."""
    levels, condition = images
    terms = model.elbo(params, levels, draws, num_levels=num_levels, condition=condition)
    bits = bits_per_dim(terms.diffusion, levels[0].size)
    # The square for `rms`: times drawn in proportion to it give the estimate of the loss the least variance.
    return step_index(draws.t, num_bins), {"loss": bits, "square": jnp.square(bits)}


def ends_record(model: Model, dataset: Dataset, settings: Diagnose, mesh: Mesh, params: Params) -> Record:
    """Returns root mean squares of the network's output at the edges of the bins of t, over images, noise and dimensions.

    With z = alpha x_phi + sigma eps and the network's error e = x_hat - x_phi, its v_hat is alpha eps_hat -
    sigma x_hat = alpha eps - sigma x_phi - e / sigma, for any parameterization. `expected` is the v_hat with zero
    loss; NaN for a generative mean that runs the encoder. With a slope kappa x_hat, `expected` has
    e = (dx_phi/dlambda - kappa x_phi) / (G + kappa), where G = (1 + eta^2) / 2 is 1 on the paper's path.
    At t -> 1 it is -(G x_phi + dx_phi/dlambda) / (G + kappa); where x_hat is near x_phi too, this is
    -dx_phi/dlambda [178], hence `slope` and the distance to its negative. At t -> 0, v_hat -> eps [170, 172].

    `at_0` and `at_1` are mean squared distances there, relative to the mean square of the limit.
    """
    means = measure_bins(model, dataset, settings, mesh, params, settings.bins + 1, measure_edges)
    t = np.linspace(0, 1, settings.bins + 1)
    return {
        "num_images": means["v_hat"].num_images,
        "t": t.tolist(),
        "log_snr": log_snr_at(model, params, t).tolist(),
        **{f"{name}_rms": np.sqrt(mean.mean).tolist() for name, mean in means.items()},
        **{f"{name}_rms_se": root_error(mean).tolist() for name, mean in means.items()},
        "draws": means["v_hat"].count.tolist(),
        "at_0": {"v_hat_from_eps": relative_distance(means, "v_hat_from_eps", "eps", 0)},
        "at_1": {
            "v_hat_from_expected": relative_distance(means, "v_hat_from_expected", "expected", -1),
            "v_hat_from_minus_slope": relative_distance(means, "v_hat_from_minus_slope", "slope", -1),
        },
    }


def measure_edges(
    model: Model, num_levels: int, num_edges: int, params: Params, images: Images, draws: Draws
) -> tuple[BinIndex, Metrics]:
    """Returns the edge nearest to each image's time, and the mean squares of `v_and_expectations` at that edge."""
    bins = num_edges - 1
    # Evaluated at the edge and not at the drawn time: both ends, t = 0 and t = 1, are edges.
    edge = jnp.round(draws.t * bins).astype(jnp.int32)
    x = scale_pixels(images.levels, num_levels)
    arrays = v_and_expectations(model, params, x, edge / bins, draws.eps, images.condition)
    return edge, {name: sum_squares(array) / array[0].size for name, array in arrays.items()}


def v_and_expectations(
    model: Model, params: Params, x: Data, t: Times, eps: Data, condition: Condition | None = None
) -> dict[str, Data]:
    """Returns v_hat, its expected limits and their distances: the arrays that `ends_record` takes root mean squares of."""

    context = Context(condition)
    # No dropout, and the step of the continuous bound: truth has x_phi and d x_phi / d lambda.
    encode = model.prepare(params, x, context)
    step = continuous(encode, partial(model.log_snr, params), partial(model.increment, params), t)
    alpha, sigma = alpha_sigma(step.log_snr)
    error = model.x_hat_error(params, step.x_phi, eps, step.log_snr, context)
    mean, z = model.bind_mean(params, context), diffuse(step.x_phi, eps, step.log_snr)

    def loss_root(error: Data) -> Data:
        return step_error(step.interval, mean.error(error, step.truth, z, step.interval))

    # For a slope kappa x_hat, loss_root is affine in the error and acts on each pixel by itself: value and
    # derivative at 0 give its zero, -value / derivative.
    at_x_phi, per_error = jax.jvp(loss_root, (jnp.zeros_like(error),), (jnp.ones_like(error),))
    unknown = model.generative_mean.needs_encoder  # its loss at a pixel depends on x_hat at others
    best_error = jnp.full_like(error, jnp.nan) if unknown else -at_x_phi / per_error
    # v_hat - v = -(error / sigma), for x_hat = alpha z - sigma v_hat.
    v = scale(alpha, eps) - scale(sigma, step.x_phi)
    v_hat, expected = v - scale(1 / sigma, error), v - scale(1 / sigma, best_error)
    return {
        "v_hat": v_hat,
        "expected": expected,
        "slope": step.truth.slope,
        "eps": eps,
        "v_hat_from_expected": v_hat - expected,
        "v_hat_from_minus_slope": v_hat + step.truth.slope,
        "v_hat_from_eps": v_hat - eps,
    }


def root_error(mean: ImageMeans) -> Float[np.ndarray, " bins"]:
    """Returns the standard error of the root of a mean square; zero where that is zero, since nothing varies there."""
    # d sqrt(m) = dm / (2 sqrt(m)).
    return mean.standard_error / np.where(mean.mean > 0, 2 * np.sqrt(mean.mean), 1)


def relative_distance(means: BinMeans, distance: str, reference: str, index: int) -> dict[str, float]:
    """Returns the ratio of two mean squares in a bin, with the standard error of the first; NaN where the second is 0."""
    # A reference of exactly 0, as the slope of the identity encoder, has no relative distance.
    whole = means[reference].mean[index] or np.nan
    return {
        "distance": means[distance].mean[index] / whole,
        "distance_se": means[distance].standard_error[index] / whole,
    }


def plot_loss(record: Record) -> plots.Figure:
    """Plots the loss per unit of log-SNR; the area below it is the diffusion loss."""
    bits = f"{round_to_error(record['bpd_diffusion'], record['bpd_diffusion_se'])} bits/dim"
    figure, axes = plots.make_axes(
        f"{_describe_record(record)}: diffusion loss {bits}", LOG_SNR, "bits/dim per unit of $\\lambda$"
    )
    x, y, error = (np.asarray(record[key]) for key in ("log_snr_centre", "density", "density_se"))
    plots.plot_band(axes, x, y, error, "mean and standard error")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def plot_ends(record: Record) -> plots.Figure:
    """Plots the network's v_hat and its distances from the v_hat of zero loss."""
    figure, axes = plots.make_axes(
        f"{_describe_record(record)}: the estimate of v",
        LOG_SNR,
        "root mean square",
    )
    for name, label in (
        ("v_hat", "$\\hat{v}$"),
        ("expected", "$v^*$, for which the loss is 0"),
        ("slope", "$dx_\\phi/d\\lambda$"),
        ("v_hat_from_expected", "$\\hat{v} - v^*$"),
        ("v_hat_from_eps", "$\\hat{v} - \\epsilon$"),
    ):
        rms, error = np.asarray(record[f"{name}_rms"]), np.asarray(record[f"{name}_rms_se"])
        plots.plot_band(axes, np.asarray(record["log_snr"]), rms, error, label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def plot_worth(record: Record) -> plots.Figure:
    """Plots the loss per unit of log-SNR, and its savings by a better path and a better slope."""
    # Side by side: savings may be a thousandth of the loss.
    figure, (loss, savings) = plots.make_axes_row(
        f"{_describe_record(record)}: what the diffusion loss could save",
        (LOG_SNR, "bits/dim per unit of $\\lambda$"),
        (LOG_SNR, "bits/dim saved per unit of $\\lambda$"),
    )
    for axes, name, label in (
        (loss, "diffusion", "the loss"),
        (savings, "saved_by_path", "by the best noise of the path"),
        (savings, "saved_by_slope", "by a slope head"),
        (savings, "saved_by_both", "by both"),
    ):
        density, error = (np.asarray(record[f"density_{name}{kind}"]) for kind in ("", "_se"))
        plots.plot_band(axes, np.asarray(record["log_snr_centre"]), density, error, label)
    loss.legend()
    savings.legend(fontsize="small")
    return figure


def _describe_record(record: Record) -> str:
    return plots.escape_dollars(
        f"{describe_images(record)}, {record['num_images']} images, step {record['step']}"
    )
