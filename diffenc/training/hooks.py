"""Periodic training hooks: log row, curve of the gradient, evaluation, samples, checkpoint."""

import abc
import functools
from collections.abc import Callable

import jax
from absl import logging
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.evaluation.evaluation_record import evaluation_record
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_grid import check_channels, make_grid, to_uint8
from diffenc.evaluation.loss_over_log_snr import equal_shares
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.interfaces import GRADIENT_CURVE, requires
from diffenc.parallel.sharding import replicated
from diffenc.runtime.progress import Progress, format_duration
from diffenc.training.gradient_curve import MEASURE_EVERY, GradientCurve, GradientMeasurement
from diffenc.training.run_files import RunFiles
from diffenc.training.session import Session
from diffenc.training.state import Sums, TrainState, only_training, zero_sums
from diffenc.workdir import fitted_chains


class Hook(abc.ABC):
    """Work between two training steps.

    Attributes:
      name: the name under which checkpoints record it.
      every: steps between two calls; 0 = only after the last step.
      can_be_owed: whether a run that stops before the hook has run records it in its checkpoint, so that a resumed run
        runs the hook first.
    """

    name: str
    every: int
    can_be_owed: bool = False

    @abc.abstractmethod
    def __call__(self, session: Session) -> None: ...


def make_hooks(experiment: Experiment, mesh: Mesh, files: RunFiles) -> tuple[Hook, ...]:
    """Returns the hooks of a run in the order in which they are called after a step.

    The log row comes first because it empties the sums that a checkpoint would carry; the checkpoint comes last, so
    that it contains the changes of the other hooks.

    Raises:
      UserError: evaluation or sampling needs a part that can only be fitted to a trained run.
    """
    hooks: list[Hook] = [Log(experiment, mesh)]
    # Before evaluation and samples, and always before the checkpoint, which carries the curve.
    if requires(experiment.time_sampler, GRADIENT_CURVE):
        hooks.append(MeasureGradients(experiment, mesh))
    if experiment.evaluate_every:
        hooks.append(Evaluation(experiment, mesh, files))
    if experiment.sample_every:
        hooks.append(Samples(experiment, mesh, files))
    return (*hooks, Checkpoint(experiment))


class Log(Hook):
    """Writes means since the last row and rates; logs the time left."""

    name = "log"

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.every = experiment.log_every
        self._num_steps = experiment.steps
        self._batch_size = experiment.batch_size
        self._mesh = mesh

    def __call__(self, session: Session) -> None:
        # Before anything is fetched or written: another process may have taken over or moved the workdir.
        session.files.check_claim()
        row, session.state = fetch_row(session.state, self._mesh)
        # Checkpoints are written in the background; this call raises their errors in the loop.
        session.files.checkpoints.check()
        speed = session.clock.speed()
        images = {"images_per_second": speed.steps_per_second * self._batch_size}
        session.writer.write_scalars(session.step, {**row, **speed._asdict(), **images})
        done = 100 * session.step // self._num_steps
        left = format_duration(session.clock.seconds_left(session.step, self._num_steps))
        logging.info("%d %% of %d steps done, %s left", done, self._num_steps, left)


def fetch_row(state: TrainState, mesh: Mesh) -> tuple[dict[str, float], TrainState]:
    """Returns means since the last log row, and the state with its sums emptied (`bad_step` stays)."""
    # One transfer per log row: the sums stay on the device,
    # so that steps in between do not wait for the host.
    sums = jax.device_get(state.sums)
    steps = int(sums.steps)
    terms = {f"bpd_{name}": float(total) / steps for name, total in sums.terms._asdict().items()}
    auxiliary = {name: float(total) / steps for name, total in sums.auxiliary.items()}
    row = {"bpd": sum(terms.values()), **terms, **auxiliary, "grad_norm": float(sums.grad_norm) / steps}
    return row, state._replace(sums=_compiled_reset(mesh)(state.sums))


@functools.cache
def _compiled_reset(mesh: Mesh) -> Callable[[Sums], Sums]:
    def reset(sums: Sums) -> Sums:
        return zero_sums(list(sums.auxiliary))._replace(bad_step=sums.bad_step)

    # Compiled with explicit shardings: the compiled train step accepts
    # only these, not arrays made on the host.
    return jax.jit(reset, out_shardings=replicated(mesh))


class MeasureGradients(Hook):
    """Measures the norm of the gradient over time, from which the times of later steps are drawn."""

    name = "gradient_curve"
    every = MEASURE_EVERY
    can_be_owed = True

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self._measurement = GradientMeasurement(only_training(experiment), mesh)

    def __call__(self, session: Session) -> None:
        curve = session.state.curve
        assert isinstance(curve, GradientCurve)  # as the time sampler requires
        # The current parameters, not the average: the variance to
        # reduce is that of the training gradient.
        curve = self._measurement.update(curve, session.state.params, session.step)
        session.state = session.state._replace(curve=curve)


class Evaluation(Hook):
    """Evaluates the averaged parameters; writes a row, and after the last step the workdir's evaluation."""

    name = "evaluation"
    can_be_owed = True

    def __init__(self, experiment: Experiment, mesh: Mesh, files: RunFiles):
        fitted_chains.refuse_fits(experiment.evaluation)
        self.every = experiment.evaluate_every
        self._experiment = experiment
        self._evaluator = Evaluator(experiment, mesh, files.workdir)

    def __call__(self, session: Session) -> None:
        with session.clock.paused():
            after_batch = _progress_and_stop(session, self.name, self._evaluator.num_batches)
            # The averaged parameters, which evaluation and sampling use (`TrainState.ema`).
            terms = self._evaluator.measure(session.state.ema, after_batch)
            # Again before writing: the workdir may have been moved during the evaluation, which can take minutes.
            session.files.check_claim()
            split = self._experiment.evaluate.split
            row = {f"{split}_{key}": value for key, value in terms.metrics().items() if value is not None}
            session.writer.write_scalars(session.step, row)
            losses = {f"{split}_loss_over_log_snr": equal_shares(terms.draws)}
            session.writer.write_histograms(session.step, losses)
            if session.step == self._experiment.steps:
                num_params = count_parameters(session.state.params)
                fitted_on = self._evaluator.fitted_on
                record = evaluation_record(self._experiment, terms, session.step, num_params, fitted_on)
                session.files.save_evaluation(record, terms.arrays())


class Samples(Hook):
    """Draws images from the averaged parameters, and writes them as one picture."""

    name = "samples"
    can_be_owed = True

    def __init__(self, experiment: Experiment, mesh: Mesh, files: RunFiles):
        fitted_chains.refuse_fits(experiment.sampling)
        check_channels(experiment.dataset.image_shape[-1], "; set Experiment.sample_every = 0")
        self.every = experiment.sample_every
        model, dataset = experiment.model, experiment.dataset
        self._num_levels = dataset.num_levels
        self._sampler = ImageSampler(
            model, dataset, experiment.sampling, mesh, files.workdir, trained_at=experiment.num_timesteps
        )

    def __call__(self, session: Session) -> None:
        with session.clock.paused():
            after_stretch = _progress_and_stop(session, self.name, self._sampler.num_stretches)
            images = self._sampler.draw(session.state.ema, after_stretch)
            session.files.check_claim()
            try:
                path = session.files.save_samples(session.step, images, self._num_levels)
            # A run does not end for a picture that cannot be written: no result depends on it.
            except UserError as error:  # such as a disk that is full now
                logging.error("%s; the run goes on", error)
                return
            picture = make_grid(to_uint8(images, self._num_levels))
            session.writer.write_images(session.step, {"samples": picture})
            logging.info("samples in %s", path)


class Checkpoint(Hook):
    """Saves the run."""

    name = "checkpoint"

    def __init__(self, experiment: Experiment):
        self.every = experiment.checkpoint_every

    def __call__(self, session: Session) -> None:
        session.save()


def _progress_and_stop(session: Session, task: str, num_parts: int) -> Callable[[], None]:
    """Returns a function to call after each part of a hook's work: it logs progress and acts on a request to stop."""
    progress = Progress(task, num_parts)

    def after_part() -> None:
        progress()
        # Checked between parts, since an evaluation may take minutes; after
        # a stop the hook is still owed, and a resumed run starts it anew.
        session.interrupts.check()

    return after_part
