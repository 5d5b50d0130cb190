"""Training: one loop over steps, with hooks after each.

After a step the hooks that are due run, in the order of `diffenc.training.hooks.make_hooks`.

A request to stop takes effect after the current step, or between the parts of evaluation and sampling. A run that stops,
or that ends by an error of a hook or the data, first saves its state with the names of the hooks still owed after the
step; a resumed run runs those first. A state that is not finite is never saved.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.core.rng import root_key
from diffenc.data.batches import train_batches
from diffenc.evaluation.precision_check import check_precision
from diffenc.files import stores
from diffenc.files.location import MovedError
from diffenc.interfaces import Images, Source
from diffenc.parallel import distributed
from diffenc.parallel.sharding import data_mesh, rows_here
from diffenc.runtime.compile_cache import compile_ahead
from diffenc.runtime.signals import Interrupted, watch_stop_signals
from diffenc.training.gradient import check_batch
from diffenc.training.hooks import Hook, make_hooks
from diffenc.training.prefetch import InFlightLimiter, Prefetcher
from diffenc.training.profiling import Profile
from diffenc.training.run_files import RunFiles
from diffenc.training.session import NotFiniteError, Session, restore_or_init
from diffenc.training.state import (
    TrainState,
    TrainStep,
    abstract_images,
    abstract_state,
    check_structure,
    make_train_step,
)
from diffenc.training.trained_bound import check_trained_bound
from diffenc.workdir import mirror


class TrainResult(NamedTuple):
    """The result of training.

    Attributes:
      state: the last state; `state.ema` are the averaged parameters, which evaluation and sampling use.
      step: total number of optimizer steps taken.
      metrics: the latest value of each metric in metrics.jsonl, such as `bpd` and `test_bpd`; empty in processes
        other than the first.
      workdir: where the run is, a path or a URL.
    """

    state: TrainState
    step: int
    metrics: dict[str, float]
    workdir: str

    def __repr__(self) -> str:
        # Without the arrays of the state, which would fill a notebook.
        return f"TrainResult(step={self.step}, metrics={self.metrics}, workdir={self.workdir!r})"


def train(experiment: Experiment, workdir: stores.PathLike = "runs/experiment") -> TrainResult:
    """Trains `experiment` in `workdir`, a folder or a URL, or resumes the run in it.

    Raises:
      UserError: the experiment, its data or the workdir are invalid (then nothing was written), or the loss became NaN
        or infinite.
      Interrupted: the run was requested to stop, as by SIGTERM or Ctrl-C, and is saved.
    """
    with jax.enable_x64(False):  # which a notebook may have on; parameters and losses are float32
        return _train(experiment, workdir)


@mirror.on_local_copy
def _train(experiment: Experiment, workdir: Path) -> TrainResult:
    mesh = data_mesh(experiment.mesh)
    check_batch(experiment, mesh)
    check_trained_bound(experiment)
    check_precision(experiment.model, experiment.model.schedule.init(root_key(experiment.seed, "init")))
    with watch_stop_signals() as interrupts:
        # Processes start at different times: without the barrier one
        # could list checkpoints while another deletes or writes them.
        distributed.barrier("before the checkpoints are read")
        # All checks come before the workdir is claimed: until then nothing is written.
        files = RunFiles(experiment, workdir)
        source = experiment.dataset.source("train")
        abstract = abstract_state(experiment, mesh)
        check_structure(experiment, abstract.params)
        # Everything up to `claimed` only reads: a refused command leaves the workdir as it was.
        train_step = make_train_step(experiment, mesh)
        hooks = make_hooks(experiment, mesh, files)
        start = files.read_start(abstract)
        with files.claimed():
            session = restore_or_init(experiment, mesh, start, files, interrupts)
            try:
                files.record_start(session.step, session.state.params, len(source))
                _log_start(session, "resuming" if start.checkpoint else "training", mesh, len(source))
                # Before compiling, which may take minutes: a new run stops here if requested, and a resumed run runs its
                # owed hooks.
                run_hooks(session, hooks, due=[*session.owed, "checkpoint"] if start.checkpoint else [])
                if session.step < experiment.steps:
                    images = abstract_images(experiment, mesh)
                    # Ahead of time, from shapes: compiling takes minutes and is
                    # logged as such, and the clock of steps starts after it.
                    compiled = compile_ahead("the train step", train_step, abstract, images)
                    _train_steps(session, compiled, hooks, source, mesh)
                else:
                    logging.info(
                        "already trained to step %d; bind Experiment.steps to train longer", session.step
                    )
            finally:
                session.writer.close()
            logging.info("all in %s", files.name)
            return TrainResult(session.state, session.step, files.last_metrics(), files.name)


def _train_steps(
    session: Session, train_step: TrainStep, hooks: Sequence[Hook], source: Source, mesh: Mesh
) -> None:
    """Trains up to `Experiment.steps`."""
    experiment, size = session.experiment, session.experiment.batch_size
    batches = train_batches(source, size, experiment.seed, session.next_batch, rows_here(mesh, size))
    prefetcher = Prefetcher(batches, experiment.model.conditioning, mesh, session.clock)
    profile = Profile(session.files.workdir, experiment.profile_at, session.clock)
    in_flight = InFlightLimiter()
    try:
        session.clock.start(session.step)
        # Order of a step: data (if the source fails, the run is saved), the step (asynchronous), the hooks that are due.
        for step in range(session.step + 1, experiment.steps + 1):
            profile.before(step, session.state.step)
            with saved_on_error(session):
                # A failing source raises here: the state before this step is intact and is saved.
                images = prefetcher.take()
            take_step(session, train_step, images, in_flight)
            run_hooks(session, hooks, [hook.name for hook in hooks if is_due(hook, step, experiment.steps)])
    finally:
        # Also after an error: a profiler left running would prevent the next run in this process from profiling.
        profile.finish(session.state.step)
        batches.close()


def take_step(session: Session, train_step: TrainStep, images: Images, in_flight: InFlightLimiter) -> None:
    """Dispatches one step without waiting for it."""
    # Implicit transfers would synchronise host and device, so they are errors, except without jit, where every constant
    # is transferred.
    with jax.transfer_guard("allow" if jax.config.values["jax_disable_jit"] else "disallow"):
        # The old state's buffers are donated: `session.state` refers
        # to deleted buffers until this assignment.
        session.state = train_step(session.state, images)
        in_flight.add(jnp.copy(session.state.step))  # a copy: the next step reuses the state's buffers
    session.step += 1
    session.clock.tick()


def is_due(hook: Hook, step: int, num_steps: int) -> bool:
    """Whether `hook` runs after `step`; after the last step all hooks run."""
    return step == num_steps or (hook.every > 0 and step % hook.every == 0)


def run_hooks(session: Session, hooks: Sequence[Hook], due: Collection[str]) -> None:
    """Runs the `hooks` named in `due`, in order; checks for a request to stop before each hook but the first."""
    # Set before the first hook runs, and shortened after each:
    # a checkpoint saved at any moment records the right list.
    session.owed = [hook.name for hook in hooks if hook.can_be_owed and hook.name in due]
    with saved_on_error(session):
        for position, hook in enumerate(hooks):
            # Also for hooks that are not due, hence after every step. Not before the first hook: a log row that is
            # due is written before the run stops, since no checkpoint records it as owed.
            if position > 0:
                session.interrupts.check()
            if hook.name in due:
                # Before each hook, so that none writes values that are not finite; this also waits for the step.
                session.require_finite()
                hook(session)
                session.owed = [name for name in session.owed if name != hook.name]


@contextlib.contextmanager
def saved_on_error(session: Session) -> Iterator[None]:
    """Saves the session, with its owed hooks, before an error or a stop within the context ends the run.

    Among several processes it saves only after a stop, which all processes reach at the same point. After another error
    the positions of the other processes are unknown, and each process holds only a part of the state.
    """
    try:
        yield
    except (NotFiniteError, MovedError):  # no state to save, or no workdir to save it in
        raise
    except Exception as error:
        stopped = isinstance(error, Interrupted)
        # Saving is a collective operation: after an error in
        # only one process, it would wait for the others forever.
        if stopped or jax.process_count() == 1:
            session.require_finite()
            session.save()
            session.files.checkpoints.wait()
        if stopped:
            logging.info("stopped at step %d, and saved: run the same command again to go on", session.step)
        raise


@distributed.main_process_only
def _log_start(session: Session, verb: str, mesh: Mesh, num_images: int) -> None:
    params, experiment = session.state.params, session.experiment
    counts = ", ".join(f"{part} {count_parameters(branch):,}" for part, branch in params.items())
    logging.info("%s parameters (%s); all in parameters.txt", f"{count_parameters(params):,}", counts)
    logging.info(
        "%s from step %d to %d: %d images in train, batches of %d on %d x %s",
        verb, session.step, experiment.steps, num_images,
        experiment.batch_size, mesh.devices.size, jax.devices()[0].device_kind,
    )  # fmt: skip
