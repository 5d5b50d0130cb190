"""A run in progress: its state, restored or initialised, and the rules by which it is saved."""

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

# Fields by which optimizers usually set the size of a step, and the change of each that makes steps smaller.
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
      experiment: the experiment that is trained.
      state: the train state after `step`.
      step: optimizer steps taken.
      owed: names of the hooks that are due after `step` and have not run yet, for hooks that checkpoints record.
      next_batch: number of the first batch to train on.
      files: the workdir, locked for this run.
      writer: the writer of metrics.
      interrupts: raises Interrupted when the run is requested to stop.
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
        # The device keeps the number of the first bad step, read only
        # here: a check in every step would make the host wait for it.
        bad_step = int(self.state.sums.bad_step)
        if bad_step:
            # The message names the last good checkpoint, which may still be being written.
            self.files.checkpoints.wait()
            steps = self.files.checkpoints.steps()
            message = not_finite_message(self.experiment.optimizer, bad_step, steps, self.files.name)
            raise NotFiniteError(message)

    def save(self) -> None:
        """Saves a checkpoint with the names of the owed hooks, unless the newest checkpoint is the same already."""
        # A stop right after a checkpoint, or a resumed run that
        # owes nothing, would otherwise save the same state twice.
        if self.files.is_saved(self.step, self.owed):
            return
        # Order: check the lock; write metrics to disk, then to the object store; the checkpoint last, as it
        # records the length of the metrics file.
        self.files.check_claim()
        self.writer.flush()
        self.files.push()
        with self.clock.paused():
            self.files.save_checkpoint(self.state, self.step, self.owed)


def restore_or_init(
    experiment: Experiment, mesh: Mesh, start: Start, files: RunFiles, interrupts: Interrupts
) -> Session:
    """Returns the session resumed at its checkpoint, or initialised at step 0; `files` must have been claimed."""
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
        # Only params and ema: the moments of another optimizer or another number of steps would not fit.
        state = state._replace(**start.origin.tree)
        logging.info("parameters taken from %s, step %d", experiment.init_from, start.origin.step)
    return state


def not_finite_message(optimizer: Optimizer, step: int, saved: Sequence[int], workdir: str) -> str:
    """Returns the error message for a non-finite `step`: the last good checkpoint and suggested changes.

    Args:
      saved: steps of the existing checkpoints, ascending.
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
        # A clipping norm of 0 means no clipping.
        f"{SMALLER_STEPS[field] if getattr(optimizer, field) else 'a positive'} {selector}.{field}"
        for field in fields
    )
