"""Runs one mode of `python -m diffenc.run` on one experiment: from the flags to the mode's function."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from diffenc.config import gin_files, gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.errors import UserError
from diffenc.files import stores
from diffenc.files.user_paths import expand_path
from diffenc.parallel import distributed
from diffenc.runtime import jax_settings
from diffenc.runtime.compile_cache import enable_cache
from diffenc.workdir import provenance
from diffenc.workdir.config_check import CONFIG

TRAINING = ("train", "plan")  # modes of the config as it trains: in float32, and without a T
SAMPLING = ("sample", "fid", "figures")  # modes that read `sample`; the others read `evaluate`
READ_ONLY = (
    "evaluate",
    "k_sample",
    "likelihood",
    "compress",
    "decompress",
    "plan",
)  # modes that only print where the workdir is read-only, or write where they are told
CONTINUOUS = ("likelihood", "diagnose", "fit_ode", "fit_stochasticity")  # modes without a T


def run_mode(mode: str, perform: Callable[[Experiment, str | Path], Any], given: Any) -> None:
    """Loads the experiment, sets JAX up and calls `perform(experiment, workdir)`.

    Args:
      mode: its name.
      given: the flags of `diffenc.cli.run`, by attribute.

    Raises:
      UserError: a flag, the config or the run in the workdir is invalid.
    """
    # Before the experiment is loaded: these settings must be made before JAX has a backend.
    _set_up_jax(mode, given)
    # Through the environment, from which data sets read the folder (`data_directory`).
    if given.data_dir is not None:
        os.environ["DIFFENC_DATA"] = os.path.abspath(expand_path(given.data_dir, "--data_dir"))
    workdir = None if given.workdir is None else expand_path(given.workdir, "--workdir")
    allowed = [name for names in given.allow_imports for name in names.split(",") if name]
    bindings = [
        *given.gin_bindings,
        *num_timesteps_bindings(mode, given.num_timesteps),
        *plan_bindings(mode, given.topology, given.quick),
    ]
    experiment = load_experiment(given.gin_file, workdir, bindings, allowed)
    # After loading, since networks in bfloat16 are refused.
    _enable_x64(mode, experiment, given.x64)
    workdir = workdir or default_workdir(given.gin_file)
    check_writable(mode, workdir)
    enable_cache()
    with distributed.translate_lost_process_errors():
        perform(experiment, workdir)


def _set_up_jax(mode: str, given: Any) -> None:
    jax_settings.override_settings()
    jax_settings.pass_over_compilers()
    if mode in TRAINING:
        jax_settings.train_in_float32()
    if mode != "plan":  # which computes nothing together with other processes
        address = distributed.parse_address(given.coordinator, given.num_processes, given.process_id)
        detect = (
            distributed.has_several_processes(os.environ) if given.distributed is None else given.distributed
        )
        distributed.start_process_group(address, detect, notice=mode == "train")
    jax_settings.check_backend()


def _enable_x64(mode: str, experiment: Experiment, x64: bool) -> None:
    if x64:
        _refuse_training(mode, "--x64", "training is in float32")
    if x64 or jax.config.values["jax_enable_x64"]:
        if network_precision(experiment) == "bfloat16":
            raise UserError("--x64 is for networks in full precision: bind their precision to 'float32'")
        jax.config.update("jax_enable_x64", True)


def load_experiment(
    gin_file: Sequence[str], workdir: str | None, bindings: Sequence[str], allow_imports: Sequence[str]
) -> Experiment:
    """Returns the experiment of the files; without files, that of the run in `workdir`.

    Raises:
      UserError: there are no files and no run; or as `gin_loader.load_experiment`. For a run, the message names the plugin
        packages with which it was trained and that are not installed now.
    """
    if gin_file:
        return gin_loader.load_experiment(gin_file, bindings, allow_imports)
    store = None if workdir is None else stores.open_store(workdir)
    text = None if store is None else store.read(CONFIG)
    if store is None or text is None:
        raise UserError("no --gin_file given; for example --gin_file=gin/quickstart.gin")
    try:
        config = gin_files.run_config(text, f"{workdir}".rstrip("/"))
        return gin_loader.load_experiment([config], bindings, allow_imports)
    except UserError as error:
        absent = provenance.missing_plugins(store.read(provenance.ENVIRONMENT))
        hint = f"; the run was trained with {absent}, which is not installed" if absent else ""
        raise UserError(f"{error}{hint}") from None


def check_writable(mode: str, workdir: str | Path) -> None:
    """Raises UserError if the run's folder is read-only, and the results of `mode` are files in it."""
    if mode in READ_ONLY or not os.path.isdir(workdir) or os.access(workdir, os.W_OK):
        return
    python = f", or draw from Python: diffenc.load({str(workdir)!r}).sample()" * (mode == "sample")
    raise UserError(
        f"--mode={mode} writes to {workdir}, which is read-only: copy the run to a folder that you may write to, and "
        f"name that as --workdir{python}"
    )


def num_timesteps_bindings(mode: str, num_timesteps: int | None) -> list[str]:
    """Returns the binding for which --num_timesteps=T stands.

    Raises:
      UserError: T is not positive, or the mode has no T.
    """
    if num_timesteps is None:
        return []
    _refuse_training(mode, "--num_timesteps", "it is T; for the length of training bind Experiment.steps")
    if mode in CONTINUOUS:
        raise UserError(f"--num_timesteps is not for --mode={mode}, which is of continuous time")
    if mode == "decompress":
        raise UserError("--num_timesteps is not for --mode=decompress: T is that of the file")
    if num_timesteps < 1:
        raise UserError(f"--num_timesteps={num_timesteps}: must be at least 1")
    return [f"{'sample' if mode in SAMPLING else 'evaluate'}.num_timesteps = {num_timesteps}"]


def plan_bindings(mode: str, topology: str | None, quick: bool | None) -> list[str]:
    """Returns the bindings for which --topology and --quick stand.

    Raises:
      UserError: the mode is not plan.
    """
    given = {"topology": topology, "quick": quick}
    bindings = [f"plan.{name} = {value!r}" for name, value in given.items() if value is not None]
    if bindings and mode != "plan":
        raise UserError("--topology and --quick are for --mode=plan")
    return bindings


def _refuse_training(mode: str, flag: str, reason: str) -> None:
    if mode in TRAINING:
        raise UserError(f"{flag} is not for --mode={mode}: {reason}")


def default_workdir(gin_file: Sequence[str]) -> Path:
    """Returns runs/NAME, with the names of several files joined by "+"; for a run's own config.gin, its folder."""
    paths = [Path(expand_path(name, "--gin_file")) for name in gin_file]
    if paths[0].name == CONFIG:
        return paths[0].parent
    return Path("runs") / "+".join(path.stem for path in paths)
