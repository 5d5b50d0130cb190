"""What training does now and then besides training: log rows, evaluations and samples."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.evaluation.evaluator import Evaluator, evaluation_record
from diffenc.evaluation.image_grid import grid, save_png, to_uint8
from diffenc.evaluation.loss_over_log_snr import equal_shares
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.parallel import distributed
from diffenc.parallel.sharding import replicated
from diffenc.runtime.progress import Progress
from diffenc.training.state import Sums, TrainState, no_sums
from diffenc.workdir import fitted_chains
from diffenc.workdir.measurements import save_measurement
from diffenc.workdir.writers import metric_writers  # not from clu, which needs what that module does first

Visit = Callable[[metric_writers.MetricWriter, TrainState, int], None]


def fetch_row(state: TrainState, mesh: Mesh) -> tuple[dict[str, float], TrainState]:
    """Means since the last log line, and the state with its sums emptied (`bad_step` stays)."""
    sums = jax.device_get(state.sums)
    steps = int(sums.steps)
    terms = {f"bpd_{name}": float(total) / steps for name, total in sums.terms._asdict().items()}
    row = {"bpd": sum(terms.values()), **terms, "grad_norm": float(sums.grad_norm) / steps}
    return row, state._replace(sums=_emptier(mesh)(state.sums))


@functools.cache
def _emptier(mesh: Mesh) -> Callable[[Sums], Sums]:
    def empty(sums: Sums) -> Sums:
        return no_sums()._replace(bad_step=sums.bad_step)

    return jax.jit(empty, out_shardings=replicated(mesh))


class Hooks:
    """Evaluation and sampling within a run, by name.

    `check` is called between their parts, `check_claim` before anything is written; both may raise.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        mesh: Mesh,
        check: Callable[[], None],
        check_claim: Callable[[], None],
    ):
        self._experiment = experiment
        self._workdir = workdir
        self._check = check
        self._check_claim = check_claim
        if experiment.evaluate_every:
            fitted_chains.refuse_untrained(experiment.evaluate)
        if experiment.sample_every:
            fitted_chains.refuse_untrained(experiment.sample)
        self._evaluator = Evaluator(experiment, mesh, workdir) if experiment.evaluate_every else None
        self._sampler = ImageSampler(experiment, mesh, workdir) if experiment.sample_every else None
        self._visits: dict[str, Visit] = {"evaluation": self._evaluate, "samples": self._sample}

    def __getitem__(self, name: str) -> Visit:
        return self._visits[name]

    def _evaluate(self, writer: metric_writers.MetricWriter, state: TrainState, step: int) -> None:
        if self._evaluator is None:  # owed by an earlier visit to the workdir, and given up since
            return
        measured = self._evaluator.measure(
            state.ema, self._between("evaluation", self._evaluator.num_batches)
        )
        self._check_claim()
        split = self._experiment.evaluate.split
        found = {f"{split}_{key}": value for key, value in measured.summary().items() if value is not None}
        writer.write_scalars(step, found)
        writer.write_histograms(step, {f"{split}_loss_over_log_snr": equal_shares(measured.draws)})
        if step == self._experiment.steps:
            num_params = count_parameters(state.params)
            figures = evaluation_record(self._experiment, measured, step, num_params, self._evaluator.of)
            distributed.main_process_only(save_measurement)(
                self._workdir, "evaluation", figures, measured.arrays()
            )

    def _sample(self, writer: metric_writers.MetricWriter, state: TrainState, step: int) -> None:
        if self._sampler is None:  # owed, as above
            return
        images = self._sampler.draw(state.ema, self._between("samples", self._sampler.num_stretches))
        self._check_claim()
        path, num_levels = self._workdir / "samples" / f"{step:09d}.png", self._experiment.dataset.num_levels
        try:
            distributed.main_process_only(save_png)(path, images, num_levels)
        except UserError as error:  # a disk that is full now
            logging.error("%s; the run goes on", error)
            return
        writer.write_images(step, {"samples": grid(to_uint8(images, num_levels))})
        logging.info("samples in %s", path)

    def _between(self, task: str, parts: int) -> Callable[[], None]:
        progress = Progress(task, parts)

        def between() -> None:
            progress()
            self._check()

        return between
