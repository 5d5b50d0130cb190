"""Parts of the benchmark that involve the host: the input pipeline, and checkpoints."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import UInt8

from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.data.batches import train_batches
from diffenc.interfaces import Batch, Images
from diffenc.parallel.sharding import images_to_devices
from diffenc.training.clock import Clock
from diffenc.training.prefetch import InFlightLimiter, Prefetcher
from diffenc.training.state import abstract_state
from experiments.benchmark.ocdbt import OcdbtSaver
from experiments.benchmark.subject import Subject, make_initial_state
from experiments.timing import Call, Times, time_call, time_interleaved


def measure_pipeline(subject: Subject) -> dict[str, Any]:
    """Measures images/s from a data set in memory to the devices, and the time that the step waits for images."""
    experiment, settings = subject.experiment, subject.settings
    batches = train_batches(subject.source, experiment.batch_size, experiment.seed)

    def put() -> Images:
        return images_to_devices(next(batches), experiment.model.conditioning, subject.mesh)

    logging.info("timing the input pipeline")
    try:
        took = time_interleaved({"batch": put}, settings.rounds, settings.least)["batch"]
        return {
            "images": len(subject.source),
            "batch": took.figures(),
            "images_per_second": experiment.batch_size / took.median,
            **measure_fed_steps(subject, batches),
        }
    finally:
        batches.close()


def measure_fed_steps(subject: Subject, batches: Iterator[Batch]) -> dict[str, Any]:
    """Measures steps on batches of the pipeline, as in training, and steps on a batch that stays on the devices."""
    stepper, clock, in_flight = subject.stepper, Clock(), InFlightLimiter()
    prefetcher = Prefetcher(batches, subject.experiment.model.conditioning, subject.mesh, clock)

    def step() -> jax.Array:
        # A copy, since the next step is donated the state, this number included.
        done = jnp.copy(stepper.take(prefetcher.take()))
        in_flight.add(done)
        clock.tick()
        return done

    logging.info("timing steps that are fed")
    calls = {"resident": stepper, "fed": step}
    took = time_interleaved(calls, subject.settings.rounds, subject.settings.least)
    clock.restart()  # without the other steps, during which the pipeline would get ahead
    in_a_row = time_call(step, subject.settings.rounds * took["fed"].calls)
    waited = clock.speed().data_wait
    return {
        "steps": {name: times.figures() for name, times in took.items()},
        "fed_over_resident": took["fed"].over(took["resident"]),
        "wait_seconds_per_step": waited,
        "share_waited": waited / in_a_row,
    }


def measure_checkpoints(subject: Subject, folder: Path | None = None) -> dict[str, Any]:
    """Measures saving and restoring the state, the same bytes in one file, and the same leaves in OCDBT.

    Args:
      folder: a folder on the disk to measure; None = the folder of temporary files.
    """
    rounds, state = subject.settings.rounds, make_initial_state(subject.experiment, subject.mesh)
    flat = flatten_bytes(state)
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        Checkpoints(Path(name, "ours"), keep_last=1) as ours,
    ):
        logging.info("timing checkpoints of %.1f MB", flat.nbytes / 1e6)
        saver, file = CheckpointSaver(ours, state), FileWriter(Path(name), flat)
        ocdbt = OcdbtSaver(Path(name, "ocdbt"), state)
        writes = time_interleaved({"save": saver, "file": file, "ocdbt": ocdbt}, rounds, least=0.0)
        abstract = abstract_state(subject.experiment, subject.mesh)
        calls = {
            "restore": lambda: ours.restore(abstract).tree,
            "file": lambda: np.load(file.path),
            "ocdbt": ocdbt.restore,
        }
        cached = time_interleaved(calls, rounds, least=0.0)
        reads = time_uncached(calls, Path(name), rounds)
    # without the calls that warmed up
    blocked = Times(np.asarray(saver.blocked_seconds[-rounds:]))
    return {
        "bytes": flat.nbytes,
        "save": writes["save"].figures(),
        "save_holds_training_up": blocked.figures(),
        "held_up_over_save": blocked.over(writes["save"]),
        "file_write": writes["file"].figures(),
        "save_over_file": writes["save"].over(writes["file"]),
        "restore": reads["restore"].figures(),
        "file_read": reads["file"].figures(),
        "restore_over_file": reads["restore"].over(reads["file"]),
        "restore_cached": cached["restore"].figures(),
        "file_read_cached": cached["file"].figures(),
        "restore_over_file_cached": cached["restore"].over(cached["file"]),
        "ocdbt_save": writes["ocdbt"].figures(),
        "ocdbt_restore": reads["ocdbt"].figures(),
        "ocdbt_restore_cached": cached["ocdbt"].figures(),
        "ocdbt_over_save": writes["ocdbt"].over(writes["save"]),
        "ocdbt_over_restore": reads["ocdbt"].over(reads["restore"]),
        "ocdbt_over_restore_cached": cached["ocdbt"].over(cached["restore"]),
    }


def time_uncached(calls: Mapping[str, Call], folder: Path, rounds: int) -> dict[str, Times]:
    """Times calls in turns, with the files in `folder` read from disk each time, as after a restart of the machine."""
    rows: list[dict[str, float]] = []
    for _ in range(1 + rounds):  # the first warms up
        rows.append({})
        for name, call in calls.items():
            drop_page_cache(folder)
            rows[-1][name] = time_call(call, 1)
    return {name: Times(np.asarray([row[name] for row in rows[1:]])) for name in calls}


def drop_page_cache(folder: Path) -> None:
    """Makes the operating system drop the files in `folder` from its page cache."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with open(path, "rb") as file:
                # This drops clean pages only: the files must have been synced.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class FileWriter:
    """A call writes an array to a new file, synced to disk, then removes the previous file.

    Attributes:
      path: path of the newest file.
    """

    def __init__(self, folder: Path, array: np.ndarray):
        self._folder, self._array, self._number = folder, array, 0

    def __call__(self) -> None:
        previous = self.path
        self._number += 1
        write_array(self.path, self._array)
        previous.unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        return self._folder / f"{self._number}.npy"


class CheckpointSaver:
    """A call saves a checkpoint and waits until it is on disk.

    Attributes:
      blocked_seconds: seconds until `save` returned, of each call.
    """

    def __init__(self, checkpoints: Checkpoints, state: Any):
        self._checkpoints, self._state, self._step = checkpoints, state, 0
        self.blocked_seconds: list[float] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        self._step += 1
        self._checkpoints.save(self._step, self._state, {})
        self.blocked_seconds.append(time.perf_counter() - start)
        self._checkpoints.wait()


def flatten_bytes(tree: Any) -> UInt8[np.ndarray, " n"]:
    """Returns the bytes of all leaves in one array."""
    return np.concatenate([np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(tree)])


def write_array(path: Path, array: np.ndarray) -> None:
    """Calls np.save and syncs the file to disk."""
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
