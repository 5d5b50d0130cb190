"""A run in progress: restored or initialised, never saved once it is not finite, and saved before an error ends it."""

import dataclasses
from collections.abc import Sequence

from absl import logging
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.errors import UserError
from diffenc.interfaces import Optimizer
from diffenc.registry import selector_of
from diffenc.runtime.compile_cache import compile_ahead
from diffenc.runtime.signals import Interrupts
from diffenc.training.clock import Clock
from diffenc.training.run_files import RunFiles, Start
from diffenc.training.state import TrainState, make_init
from diffenc.workdir.writers import metric_writers  # not from clu, which needs what that module does first

# Fields by which optimizers usually set how far a step goes, and how to change them for smaller steps.
SMALLER_STEPS = {
    "learning_rate": "a smaller",
    "warmup_steps": "a longer",
    "clip_norm": "a smaller",
    "max_norm": "a smaller",
}


class NotFiniteError(UserError):
    """The loss, its gradient or an update became NaN or infinite."""


@dataclasses.dataclass
class Session:
    """A run between two steps.

    Attributes:
      experiment: what is trained.
      state: the train state after `step`.
      step: optimizer steps taken.
      owed: names of the hooks that are due after `step` and have not run yet, of those that a checkpoint records.
      next_batch: number of the first batch to train on.
      files: the workdir, locked for this run.
      writer: of metrics.
      interrupts: raises Interrupted when the run is asked to stop.
      clock: counts the steps and their time.
    """

    experiment: Experiment
    state: TrainState
    step: int
    owed: list[str]
    next_batch: int
    files: RunFiles
    writer: metric_writers.MetricWriter
    interrupts: Interrupts
    clock: Clock

    def require_finite(self) -> None:
        """Waits for `step`, and raises NotFiniteError if it or a step before it was not finite."""
        # Kept on the device since the first bad step, and read only
        # here: a check every step would make the host wait every step.
        bad_step = int(self.state.sums.bad_step)
        if bad_step:
            # The message names the last good checkpoint, which may still be being written.
            self.files.checkpoints.wait()
            steps = self.files.checkpoints.steps()
            message = not_finite_message(self.experiment.optimizer, bad_step, steps, self.files.name)
            raise NotFiniteError(message)

    def save(self) -> None:
        """Saves a checkpoint with the names of the owed hooks, unless the newest is that already."""
        # A stop right after a checkpoint, or the last step that is
        # also a multiple of the cadence, would save the same twice.
        if self.files.is_saved(self.step, self.owed):
            return
        # Order of a save: still the owner; then metrics on disk, then in the object store; the checkpoint
        # last, as it records the metrics' length.
        self.files.check_claim()
        self.writer.flush()
        self.files.push()
        with self.clock.paused():
            self.files.save_checkpoint(self.state, self.step, self.owed)


def restore_or_init(
    experiment: Experiment, mesh: Mesh, start: Start, files: RunFiles, interrupts: Interrupts
) -> Session:
    """Resumes the run at its checkpoint, or initialises it at step 0; `files` must have been claimed."""
    restored = start.checkpoint
    writer = files.open_writer(restored)
    if restored is not None:
        state, step, metadata = restored.tree, restored.step, restored.metadata
    else:
        state, step, metadata = _init_state(experiment, mesh, start), 0, {"owed": [], "next_batch": 0}
    return Session(
        experiment=experiment,
        state=state,
        step=step,
        owed=list(metadata["owed"]),
        next_batch=metadata["next_batch"],
        files=files,
        writer=writer,
        interrupts=interrupts,
        clock=Clock(),
    )


def _init_state(experiment: Experiment, mesh: Mesh, start: Start) -> TrainState:
    state = compile_ahead("the initialisation", make_init(experiment, mesh))()
    if start.origin:
        # params and ema alone: moments of another optimizer or schedule of steps would not fit.
        state = state._replace(**start.origin.tree)
        logging.info("parameters taken from %s, step %d", experiment.init_from, start.origin.step)
    return state


def not_finite_message(optimizer: Optimizer, step: int, saved: Sequence[int], workdir: str) -> str:
    """Returns what happened at `step`, what is saved, and what to change.

    Args:
      saved: steps of the checkpoints there are, ascending.
    """
    event = f"the loss, its gradient or the update became NaN or infinite at step {step}"
    changes = _suggest_smaller_steps(optimizer)
    if not saved:
        return (
            f"{event}, before the first checkpoint, so nothing is saved: delete {workdir}, or choose another "
            f"--workdir, and start again with {changes}"
        )
    return (
        f"{event}; the last good checkpoint is of step {saved[-1]} in {workdir}. Try {changes}, in a new "
        f"--workdir (Experiment.init_from = '{workdir}' starts it from this one)"
    )


def _suggest_smaller_steps(optimizer: Optimizer) -> str:
    selector = selector_of(type(optimizer))
    fields = [field for field in SMALLER_STEPS if hasattr(optimizer, field)]
    if not fields:
        return f"other settings of {selector}"
    return " or ".join(
        # of a norm to clip to, 0 means none
        f"{SMALLER_STEPS[field] if getattr(optimizer, field) else 'a positive'} {selector}.{field}"
        for field in fields
    )
