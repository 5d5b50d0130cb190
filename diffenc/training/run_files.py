"""The files of one training run: config, metrics, checkpoints, samples and measurements, in a workdir bound once."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview

from diffenc.checkpoint import checkpoints
from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.core.parameters import name_leaves
from diffenc.data.sources import train_identity
from diffenc.errors import UserError
from diffenc.evaluation.image_grid import save_png
from diffenc.files import atomic, temporaries
from diffenc.interfaces import Params
from diffenc.parallel import distributed
from diffenc.parallel.collectives import agree_on
from diffenc.training.state import TrainState
from diffenc.workdir import config_check, mirror, provenance, run_id, writers
from diffenc.workdir.claim import Claim, claim
from diffenc.workdir.measurements import save_measurement


class Start(NamedTuple):
    """The starting point of a run, as read from disk: its own newest checkpoint, another run's parameters, or neither.

    Attributes:
      checkpoint: the checkpoint to resume from.
      origin: params and ema of `Experiment.init_from`.
    """

    checkpoint: checkpoints.Restored | None
    origin: checkpoints.Restored | None


class RunFiles:
    """The workdir of one training run. Nothing is written before `claimed` is entered.

    Among several processes each creates its own object, and all make the same calls; only the first writes, except for
    checkpoints, of which each process writes its part.

    Attributes:
      workdir: the folder; for a workdir on an object store, its local mirror.
      name: the workdir as the user named it, a path or a URL.
      checkpoints: the checkpoints of the run.
    """

    def __init__(self, experiment: Experiment, workdir: Path):
        """Lists the checkpoints.

        Raises:
          UserError: the workdir holds a run of another config, or a plugin of the experiment is not registered.
        """
        config_check.check_config(experiment, workdir)
        self.workdir = workdir
        self.name = mirror.display_name(workdir)
        self.checkpoints = checkpoints.Checkpoints(
            mirror.checkpoint_location(workdir), experiment.keep_last, experiment.keep_every
        )
        self._experiment = experiment
        self._config_text = serialize.config_text(experiment)
        self._train_images = train_identity(experiment.dataset)
        self._run_id = ""  # until `open_writer`
        self._claim: Claim | None = None
        self._newest: tuple[int, list[str]] | None = None  # step and owed work of the last checkpoint

    def read_start(self, abstract: TrainState) -> Start:
        """Reads the newest checkpoint; without one, the parameters of `Experiment.init_from`.

        Raises:
          UserError: the checkpoint is of another run, config, architecture or data, or cannot be read.
        """
        if not self.checkpoints.found:
            return Start(None, self._read_origin(abstract))
        expected = config_check.expected_metadata(self._experiment, self.workdir, self.name)
        # `check` runs before any array is read, so that a checkpoint of another config is refused with its reason.
        restored = self.checkpoints.restore(abstract, check=expected.check)
        expected.warn_unchecked(restored)
        config_check.check_data(self._train_images, restored, self.workdir)
        config_check.check_draws(restored, self.workdir)
        self._newest = restored.step, restored.metadata["owed"]
        return Start(restored, None)

    def _read_origin(self, abstract: TrainState) -> checkpoints.Restored | None:
        origin = self._experiment.init_from
        if origin is None:
            return None
        expected = config_check.expected_origin_metadata(origin)
        wanted = {"params": abstract.params, "ema": abstract.ema}
        restored = checkpoints.restore_from(origin, wanted, check=expected.check)
        expected.warn_unchecked(restored)
        return restored

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Locks the workdir for this run; on exit waits for the last checkpoint, then releases the lock.

        Raises:
          UserError: another process trains there, or wrote there since this object was made.
        """
        claimed = claim(self.workdir) if distributed.is_main() else contextlib.nullcontext()
        # Order on exit: checkpoints first, so that the lock is held until the last write is committed.
        with claimed as self._claim, self.checkpoints:
            # Again, under the lock: another process may have
            # written between the checks of __init__ and the claim.
            config_check.check_config(self._experiment, self.workdir)
            if not self.checkpoints.unchanged():
                raise UserError(f"another process wrote to {self.name} just now: run the same command again")
            # Only the first process holds the lock; the others may write their parts only after it has it.
            distributed.barrier("the workdir is ours")
            # Removes temporary files of killed runs. Under the lock, so that no live process still writes to them.
            distributed.main_process_only(temporaries.sweep_folder)(self.workdir, checkpoints.FOLDER)
            yield

    def check_claim(self) -> None:
        """Raises UserError, in all processes, unless the workdir is still the folder that the first process locked."""
        agree_on(self._claim.check if self._claim else lambda: None)

    def open_writer(self, restored: checkpoints.Restored | None) -> writers.metric_writers.MetricWriter:
        """Writes run_id and config.gin, and truncates the metrics to their length at the checkpoint `restored`.

        Returns:
          The writer of metrics; in processes other than the first, one that writes nothing.
        """
        # If the file with the id is lost, the id of the checkpoint is restored, not a new one made.
        self._run_id = run_id.ensure(self.workdir, restored.metadata.get("run") if restored else None)
        return self._open_writer(restored) or writers.null_writer()

    @distributed.main_process_only
    def _open_writer(self, restored: checkpoints.Restored | None) -> writers.metric_writers.MetricWriter:
        config_check.write_config(self._experiment, self.workdir, self._config_text)
        if restored:
            # Drops rows that owed hooks wrote after the checkpoint was saved: those hooks will run again.
            writers.truncate_to(self._metrics, restored.metadata["metrics_bytes"])
        # A new run on an object store: a store that cannot be written
        # to is an error here, not only at the first checkpoint.
        elif not mirror.push(self.workdir):
            raise UserError(f"cannot write to {self.name}: check the address, and your access")
        step = restored.step if restored else None
        others = [writer.open(self.workdir, step) for writer in self._experiment.writers]
        writer = writers.create_writer(self.workdir, resume_step=step, others=others)
        if step is None:
            writer.write_hparams(serialize.hparams(self._config_text))
        return writer

    @distributed.main_process_only
    def record_start(self, step: int, params: Params, num_images: int) -> None:
        """Writes parameters.txt, dataset.json and environment.json of a run that starts, or resumes, at `step`."""
        overview = parameter_overview.get_parameter_overview(name_leaves(params), include_stats=False)
        atomic.write_text(self.workdir / "parameters.txt", overview + "\n")
        provenance.write_provenance(self._experiment, self.workdir, step, num_images)

    def is_saved(self, step: int, owed: list[str]) -> bool:
        """Whether the newest checkpoint is of `step` with these `owed` hooks, as far as this process knows yet."""
        # Among several processes each knows only of failures of its own part, but all must decide alike.
        lost = self.checkpoints.failed and jax.process_count() == 1
        return (step, owed) == self._newest and not lost

    def save_checkpoint(self, state: TrainState, step: int, owed: list[str]) -> None:
        """Copies `state` to host memory and writes it in the background."""
        metadata = {
            "owed": owed,
            # The current length: a resumed run truncates the file to it, so that no step has two rows.
            "metrics_bytes": self._metrics.stat().st_size if self._metrics.exists() else 0,
            "next_batch": step,  # the data's order: batch k is a function of (seed, k)
            "train_images": self._train_images,
            **config_check.checkpoint_metadata(self._config_text, self._run_id),
        }
        self.checkpoints.save(step, state, metadata)
        # A copy, so that later changes of the caller's list do not alter what was saved.
        self._newest = step, list(owed)

    def push(self) -> None:
        """Copies changed files to the object store, if the workdir is the mirror of one."""
        mirror.push(self.workdir)

    @distributed.main_process_only
    def save_evaluation(self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes evaluation.json and evaluation.npz, and a numbered copy of each to evaluations/."""
        save_measurement(self.workdir, "evaluation", record, arrays)

    def save_samples(self, step: int, images: np.ndarray, num_levels: int) -> Path:
        """Writes samples/STEP.png and returns its path. Raises UserError if it cannot be written."""
        path = self.workdir / "samples" / f"{step:09d}.png"
        distributed.main_process_only(save_png)(path, images, num_levels)
        return path

    def last_metrics(self) -> dict[str, float]:
        """Returns the latest value of each metric in metrics.jsonl; in processes other than the first, none."""
        return distributed.main_process_only(writers.last_values)(self._metrics) or {}

    @property
    def _metrics(self) -> Path:
        return self.workdir / writers.METRICS
