"""Grid of samples (DiffEnc, Figs. 3, 5), drawn with the settings of `sample`."""

from diffenc.evaluation import image_grid, plots
from diffenc.evaluation.sample_images import ImageSampler, settings_metadata
from diffenc.runtime.progress import Progress
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record
from diffenc.workdir import fitted_chains


def samples_metadata(subject: FigureInputs) -> Record:
    """Returns all inputs that the samples depend on, fitted times and variances included."""
    settings = subject.experiment.sampling
    fitted_on = fitted_chains.find_chain(subject.workdir, settings, subject.step).of
    return {**subject.model_metadata, "sample": settings_metadata(settings), "fitted": fitted_on}


def measure_samples(subject: FigureInputs) -> FigureRecord:
    """Draws the samples; the array is `levels`."""
    experiment = subject.experiment
    sampler = ImageSampler(
        *(
            experiment.model,
            experiment.dataset,
            experiment.sampling,
            subject.mesh,
            subject.workdir,
            subject.step,
        ),
        trained_at=experiment.num_timesteps,
    )
    levels = sampler.draw(subject.params, Progress("samples", sampler.num_stretches))
    return FigureRecord({"num_levels": experiment.dataset.num_levels}, {"levels": levels})


def plot_samples(data: FigureRecord, title: str) -> plots.Figure:
    """Plots the images in a grid; the title states how they were drawn."""
    settings = data.record["of"]["sample"]
    sheet = image_grid.make_grid(image_grid.to_uint8(data.arrays["levels"], data.record["num_levels"]))
    height, width = sheet.shape[:2]
    figure = plots.Figure((6.4, 6.4 * height / width + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet if sheet.shape[-1] == 3 else sheet.repeat(3, axis=-1), interpolation="nearest")
    axes.set_axis_off()
    guided = f", guidance {settings['guidance']:g}" if settings["guidance"] else ""
    figure.suptitle(
        f"{title}: {settings['num']} samples, {settings['sampler']}, T = {settings['num_timesteps']}{guided}",
        fontsize="medium",
    )
    return figure
