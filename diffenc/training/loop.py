"""Training: one loop, whose order is fixed.

After each step, each where its cadence says so: the log line, the evaluation, the samples, the checkpoint.
The log line comes first because it empties the sums that a checkpoint would carry. A request to stop is
heeded after every step and within evaluation and sampling; what a step still owes then is written into
its checkpoint, and done first when the run goes on.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh

from diffenc.checkpoint import checkpoints
from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters, name_leaves
from diffenc.core.rng import root_key
from diffenc.data.batches import train_batches
from diffenc.data.sources import train_identity
from diffenc.errors import UserError
from diffenc.evaluation.precision_check import check_precision
from diffenc.files import atomic, stores, temporaries
from diffenc.interfaces import Images
from diffenc.parallel import distributed
from diffenc.parallel.collectives import agree_on
from diffenc.parallel.sharding import data_mesh, rows_here
from diffenc.runtime.compile_cache import compile_ahead
from diffenc.runtime.progress import format_duration
from diffenc.runtime.signals import Interrupted, Interrupts, watch_stop_signals
from diffenc.training import not_finite
from diffenc.training.clock import Clock
from diffenc.training.gradient import check_batch
from diffenc.training.hooks import Hooks, fetch_row
from diffenc.training.prefetch import InFlightLimiter, Prefetcher
from diffenc.training.profiling import Profile
from diffenc.training.state import (
    TrainState,
    abstract_images,
    abstract_state,
    check_structure,
    init_state,
    make_train_step,
    shardings,
)
from diffenc.workdir import claim as workdirs
from diffenc.workdir import config_check, mirror, provenance, run_id, writers
from diffenc.workdir.config_check import check_config, check_data, write_config


def train(experiment: Experiment, workdir: stores.PathLike = "runs/experiment") -> None:
    """Train `experiment` in `workdir`, a folder or an address, or go on with the run that is there.

    Raises:
      UserError: something is wrong with the experiment, its data or the workdir (then nothing was written),
        or the loss became NaN or infinite.
      Interrupted: SIGTERM or Ctrl-C came; the run is saved.
    """
    _train(experiment, workdir)


@mirror.mirrored
def _train(experiment: Experiment, workdir: Path) -> None:
    mesh = data_mesh(experiment.mesh)
    check_config(experiment, workdir)
    check_batch(experiment, mesh)
    check_precision(experiment.model, experiment.model.schedule.init(root_key(experiment.seed, "init")))
    with watch_stop_signals() as interrupts:
        distributed.barrier("before the checkpoints are read")
        run = Run(experiment, workdir, mesh, interrupts)
        claim = workdirs.claim(workdir) if distributed.is_main() else contextlib.nullcontext()
        with claim as claimed, run.checkpoints:
            run.check_unchanged()
            distributed.barrier("the workdir is ours")
            distributed.main_process_only(temporaries.sweep_folder)(workdir, checkpoints.FOLDER)
            run.start(claimed)
            run.loop()


class Run:
    """One training run. Making it checks all that can be wrong with it, and writes nothing."""

    def __init__(self, experiment: Experiment, workdir: Path, mesh: Mesh, interrupts: Interrupts):
        self.experiment = experiment
        self.workdir = workdir
        self.checkpoints = checkpoints.Checkpoints(
            mirror.checkpoints_of(workdir), experiment.keep_last, experiment.keep_every
        )
        self._mesh = mesh
        self._interrupts = interrupts
        self._source = experiment.dataset.source("train")
        self._train_images = train_identity(experiment.dataset)
        self._abstract = abstract_state(experiment, mesh)
        check_structure(experiment, self._abstract.params)
        self._train_step = make_train_step(experiment, mesh)
        self._clock, self._in_flight = Clock(), InFlightLimiter()
        self._profile = Profile(workdir, experiment.profile_at, self._clock)
        self._visits = Hooks(experiment, workdir, mesh, interrupts.check, self.check_claim)
        self._config_text = serialize.config_text(experiment)
        self._restored = self._latest() if self.checkpoints.found else None
        self._saved = (self._restored.step, self._restored.metadata["owed"]) if self._restored else None
        if self._restored:
            check_data(self._train_images, self._restored, workdir)
            config_check.check_draws(self._restored, workdir)
        self._origin = None if self._restored else self._from_other_run()

    def _latest(self) -> checkpoints.Restored:
        wanted = config_check.expected(self.experiment, self.workdir, mirror.name_of(self.workdir))
        restored = self.checkpoints.restore(self._abstract, check=wanted.check)
        wanted.warn_unchecked(restored)
        return restored

    def check_unchanged(self) -> None:
        """Raise UserError if another process worked in the workdir between the reading and the claim."""
        check_config(self.experiment, self.workdir)
        if not self.checkpoints.unchanged():
            raise UserError(f"another process wrote to {self.workdir} just now: run the same command again")

    def _from_other_run(self) -> checkpoints.Restored | None:
        if self.experiment.init_from is None:
            return None
        wanted = {"params": self._abstract.params, "ema": self._abstract.ema}
        own = config_check.expected_of_origin(self.experiment.init_from)
        restored = checkpoints.restore_from(self.experiment.init_from, wanted, check=own.check)
        own.warn_unchecked(restored)
        return restored

    def check_claim(self) -> None:
        """Raises UserError, in all processes, unless the workdir is still the folder that the first one claimed."""
        agree_on(self._claim.check if self._claim else lambda: None)

    def start(self, claim: workdirs.Claim | None) -> None:
        """Set the workdir to the step the run goes on from. `claim` is None in processes that do not write."""
        self._claim = claim
        step = self._restored.step if self._restored else 0
        self._run_id = run_id.ensure(
            self.workdir, self._restored.metadata.get("run") if self._restored else None
        )
        self._writer = self._open_files() or writers.null_writer()
        self._state = self._restored.tree if self._restored else self._first_state()
        self._say_what_starts(step)
        if not self._restored:
            self._settle(step, owed=[])  # a stop is heeded before what may compile for minutes
        if step < self.experiment.steps:
            images = abstract_images(self.experiment, self._mesh)
            self._train_step = compile_ahead("the train step", self._train_step, self._abstract, images)

    @distributed.main_process_only
    def _open_files(self) -> writers.metric_writers.MetricWriter:
        """The config, and the metrics as they were at the checkpoint."""
        write_config(self.experiment, self.workdir, self._config_text)
        if self._restored:
            writers.cut_to(self.workdir / writers.METRICS, self._restored.metadata["metrics_bytes"])
        elif not mirror.push(self.workdir):
            raise UserError(
                f"cannot write to {mirror.name_of(self.workdir)}: check the address, and your access"
            )
        step = self._restored.step if self._restored else None
        others = [writer.open(self.workdir, step) for writer in self.experiment.writers]
        writer = writers.create_writer(self.workdir, resume_step=step, others=others)
        if step is None:
            writer.write_hparams(serialize.hparams(self._config_text))
        return writer

    def _first_state(self) -> TrainState:
        first_state = jax.jit(lambda: init_state(self.experiment), out_shardings=shardings(self._abstract))
        state = compile_ahead("the initialisation", first_state)()
        if self._origin:
            state = state._replace(**self._origin.tree)
            logging.info("parameters taken from %s, step %d", self.experiment.init_from, self._origin.step)
        return state

    @distributed.main_process_only
    def _say_what_starts(self, step: int) -> None:
        params = self._state.params
        overview = parameter_overview.get_parameter_overview(name_leaves(params), include_stats=False)
        atomic.write_text(self.workdir / "parameters.txt", overview + "\n")
        provenance.file(self.experiment, self.workdir, step, len(self._source))
        parts = ", ".join(f"{part} {count_parameters(branch):,}" for part, branch in params.items())
        logging.info("%s parameters (%s); all in parameters.txt", f"{count_parameters(params):,}", parts)
        logging.info(
            "%s from step %d to %d: %d images in train, batches of %d on %d x %s",
            "resuming" if self._restored else "training", step, self.experiment.steps, len(self._source),
            self.experiment.batch_size, self._mesh.devices.size, jax.devices()[0].device_kind,
        )  # fmt: skip

    def loop(self) -> None:
        """Steps up to `Experiment.steps`, each followed by what is due."""
        first, steps = int(self._state.step), self.experiment.steps
        start = self._restored.metadata["next_batch"] if self._restored else 0
        size = self.experiment.batch_size
        rows = rows_here(self._mesh, size)
        batches = train_batches(self._source, size, self.experiment.seed, start, rows)
        feed = Prefetcher(batches, self.experiment.model.conditioning, self._mesh, self._clock)
        try:
            if self._restored:
                self._settle(first, list(self._restored.metadata["owed"]))
                self._save(first, owed=[])
            self._clock.restart()
            self._timed_from = first, time.monotonic()
            for step in range(first + 1, steps + 1):
                self._profile.before(step, self._state.step)
                self._step(self._next_batch(feed, step))
                self._after(step, last=step == steps)
        finally:
            self._profile.finish(self._state.step)
            batches.close()
            self._writer.close()
        if first >= steps:
            logging.info("already trained to step %d; bind Experiment.steps to train longer", first)
        logging.info("all in %s", mirror.name_of(self.workdir))

    def _next_batch(self, feed: Prefetcher, step: int) -> Images:
        try:
            return feed.take()
        except Exception as error:  # data that cannot be read must not cost the steps before it
            self._rescue(step - 1, [], error)
            raise

    def _step(self, images: Images) -> None:
        # what crosses unasked makes host and device wait for each other; without jit every constant does
        with jax.transfer_guard("allow" if jax.config.values["jax_disable_jit"] else "disallow"):
            self._state = self._train_step(self._state, images)
            done = jnp.copy(self._state.step)  # a copy, for the next step takes the state over
            self._in_flight.add(done)
        self._clock.tick()

    def _after(self, step: int, last: bool) -> None:
        experiment = self.experiment

        def due(every: int) -> bool:
            return every > 0 and (last or step % every == 0)

        if due(experiment.log_every):
            self._log(step)
        cadences = {"evaluation": experiment.evaluate_every, "samples": experiment.sample_every}
        self._settle(step, [name for name, every in cadences.items() if due(every)])
        if last or due(experiment.checkpoint_every):
            self._save(step, owed=[])

    def _settle(self, step: int, owed: list[str]) -> None:
        """Do what `step` owes; if asked to stop, save with what is left of it."""
        if owed:
            self._refuse_bad()
        try:
            self._interrupts.check()
            while owed:
                with self._clock.paused():
                    self._visits[owed[0]](self._writer, self._state, step)
                owed = owed[1:]
                self._interrupts.check()
        except Exception as error:  # a visit that fails, or is stopped, must not cost the steps before it
            self._rescue(step, owed, error)
            raise

    def _rescue(self, step: int, owed: list[str], error: Exception) -> None:
        """Save what there is before `error` ends the run."""
        if jax.process_count() > 1 and not isinstance(error, Interrupted):
            return  # nobody knows what the others do, and a part of the state is theirs
        self._save(step, owed)
        self.checkpoints.wait()
        if isinstance(error, Interrupted):
            logging.info("stopped at step %d, and saved: run the same command again to go on", step)

    def _log(self, step: int) -> None:
        self.check_claim()
        row, self._state = fetch_row(self._state, self._mesh)
        self._refuse_bad()
        self.checkpoints.check()
        speed = self._clock.speed()
        images = {"images_per_second": speed.steps_per_second * self.experiment.batch_size}
        self._writer.write_scalars(step, {**row, **speed._asdict(), **images})
        done = 100 * step // self.experiment.steps
        first, began = self._timed_from  # evaluation and sampling included, unlike the rate above
        left = (time.monotonic() - began) / (step - first) * (self.experiment.steps - step)
        logging.info("%d %% of %d steps done, %s left", done, self.experiment.steps, format_duration(left))

    def _save(self, step: int, owed: list[str]) -> None:
        """A checkpoint with what `step` still owes; none if the newest is that already."""
        self._refuse_bad()
        lost = self.checkpoints.failed and jax.process_count() == 1  # among several each knows its own part
        if (step, owed) == self._saved and not lost:
            return
        self.check_claim()
        self._writer.flush()
        mirror.push(self.workdir)
        with self._clock.paused():
            self.checkpoints.save(step, self._state, self._metadata(step, owed))
        self._saved = (step, owed)

    def _metadata(self, step: int, owed: list[str]) -> dict[str, Any]:
        """What a checkpoint holds besides the state."""
        metrics = self.workdir / writers.METRICS
        return {
            "owed": owed,
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
            "next_batch": step,  # the data's order: batch k is a function of (seed, k)
            "train_images": self._train_images,
            **config_check.metadata(self._config_text, self._run_id),
        }

    def _refuse_bad(self) -> None:
        """Raise UserError if any step so far was not finite, so that such a state is never saved."""
        bad_step = int(self._state.sums.bad_step)
        if not bad_step:
            return
        self.checkpoints.wait()
        good = self.checkpoints.steps()
        raise UserError(not_finite.message(self.experiment.optimizer, bad_step, good, self.workdir))
