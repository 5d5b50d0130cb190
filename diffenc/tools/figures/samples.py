"""The sample grid (DiffEnc, Figs. 3, 5), drawn by the settings of `sample`."""

import dataclasses

from diffenc.evaluation import image_grid, plots
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.registry import variances
from diffenc.runtime.progress import Progress
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record
from diffenc.workdir import fitted_chains


def samples_metadata(subject: FigureInputs) -> Record:
    """All that the samples depend on, fitted times and variances included."""
    settings = subject.experiment.sample
    chosen = {**dataclasses.asdict(settings), "variance": variances.spell(settings.variance)}
    del chosen["step"]  # which is the subject's
    fitted = fitted_chains.plan(subject.workdir, settings, subject.step).of
    return {**subject.model_of, "sample": chosen, "fitted": fitted}


def measure_samples(subject: FigureInputs) -> FigureRecord:
    """`levels` of the images."""
    sampler = ImageSampler(subject.experiment, subject.mesh, subject.workdir, subject.step)
    levels = sampler.draw(subject.params, Progress("samples", sampler.num_stretches))
    return FigureRecord({"num_levels": subject.experiment.dataset.num_levels}, {"levels": levels})


def plot_samples(numbers: FigureRecord, title: str) -> plots.Figure:
    settings = numbers.record["of"]["sample"]
    sheet = image_grid.make_grid(image_grid.to_uint8(numbers.arrays["levels"], numbers.record["num_levels"]))
    height, width = sheet.shape[:2]
    figure = plots.Figure((6.4, 6.4 * height / width + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet if sheet.shape[-1] == 3 else sheet.repeat(3, axis=-1), interpolation="nearest")
    axes.set_axis_off()
    guided = f", guidance {settings['guidance']:g}" if settings["guidance"] else ""
    figure.suptitle(
        f"{title}: {settings['num']} samples, {settings['sampler']}, T = {settings['steps']}{guided}",
        fontsize="medium",
    )
    return figure
