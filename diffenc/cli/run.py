"""The command line: python -m diffenc.run --gin_file=gin/NAME.gin [--mode=train|evaluate|sample|...]. See `--help`."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags

from diffenc import registry
from diffenc.cli.console import complain, say, settle_process, unread
from diffenc.config import gin_files as files
from diffenc.config import gin_loader, plugin_help, serialize
from diffenc.config.experiment import Experiment
from diffenc.errors import UserError, printable
from diffenc.evaluation import commands
from diffenc.evaluation.diagnose import diagnose
from diffenc.evaluation.fit_schedule import fit_schedule
from diffenc.evaluation.fit_variance import fit_variance
from diffenc.evaluation.k_sample import k_sample
from diffenc.evaluation.likelihood import likelihood
from diffenc.export.export import export
from diffenc.files import stores
from diffenc.files.user_paths import expand_path
from diffenc.parallel import distributed
from diffenc.runtime import jax_settings
from diffenc.runtime.compile_cache import enable_cache
from diffenc.runtime.log_format import show_log_lines_plainly
from diffenc.runtime.signals import Interrupted, reliable_ctrl_c
from diffenc.tools.fid.fid import fid
from diffenc.tools.figures.figures import figures
from diffenc.tools.planning.plan import plan
from diffenc.training.loop import train
from diffenc.workdir import provenance
from diffenc.workdir.config_check import CONFIG


class Mode(NamedTuple):
    """What can be done with an experiment.

    Attributes:
      perform: of (experiment, workdir).
      does: what that is, for --help.
    """

    perform: Callable[[Experiment, str | Path], Any]
    does: str


MODES: dict[str, Mode] = {
    "train": Mode(train, "train, or go on with the run in --workdir"),
    "evaluate": Mode(
        commands.evaluate, "bits/dim of a whole split, with errors; of T steps with --num_timesteps=T"
    ),
    "sample": Mode(commands.sample, "a grid of samples, of T steps with --num_timesteps=T"),
    "likelihood": Mode(likelihood, "bits/dim by the probability-flow ODE"),
    "diagnose": Mode(diagnose, "the loss by log-SNR, and the network at both ends of time"),
    "figures": Mode(figures, "pictures of encoder, schedule, loss and samples, with their numbers"),
    "fit_variance": Mode(
        fit_variance, "the best reverse variances of T steps, for --mode=evaluate and sample"
    ),
    "fit_schedule": Mode(fit_schedule, "the best times of T steps"),
    "k_sample": Mode(k_sample, "the importance-weighted bound of K whole chains"),
    "fid": Mode(fid, "FID and KID of samples against both splits"),
    "plan": Mode(plan, "what training will cost in time and memory; reads no data, writes nothing"),
    "export": Mode(
        export, "the averaged parameters with config and model card, for sharing and diffenc.load"
    ),
}

HELP = """\
python -m diffenc.run --gin_file=FILE [--gin_file=FILE ...] [--gin_bindings='NAME = VALUE' ...] [--mode=MODE] [FLAGS]

Modes, each on the run in --workdir (by default runs/FILE):
{modes}

Flags:
{flags}

Examples:
  python -m diffenc.run --gin_file=gin/quickstart.gin
  python -m diffenc.run --gin_file=gin/quickstart.gin --mode=evaluate --gin_bindings='evaluate.passes = 8'
  python -m diffenc.run --gin_file=gin/quickstart.gin --gin_bindings='Experiment.steps = 3_000'
  python -m diffenc.run --workdir=runs/quickstart --mode=sample --num_timesteps=250
  python -m diffenc.run --list
  python -m diffenc.run --describe=encoder.trainable
  python -m diffenc.run --helpfull        every flag of every library

The same command again goes on where the last one stopped. Exit status: 0 done; 1 a mistake, told in one line;
130 or 143 stopped by Ctrl-C or SIGTERM, a run in training saved (128 + N by signal N: SIGHUP, SIGUSR1, SIGUSR2).
"""

OF_TRAINING = ("train", "plan")
OF_SAMPLES = ("sample", "fid", "figures")
ONLY_PRINT = ("evaluate", "k_sample", "likelihood", "plan")  # where nothing can be filed
CONTINUOUS = ("likelihood", "diagnose")  # modes without a T

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "An experiment; a later file overrides an earlier one.")
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "A binding over the files: 'Experiment.seed = 1'."
)
_ALLOW_IMPORTS = flags.DEFINE_multi_string(
    "allow_imports",
    [],
    "A module that the config of a run may import, which runs its code; not needed for installed plugin packages.",
)
_MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives, a folder or gs://…; default runs/NAME.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where data sets live; default $DIFFENC_DATA, else a cache."
)
_NUM_TIMESTEPS = flags.DEFINE_integer(
    "num_timesteps",
    None,
    "T, in every mode but train and plan: binds evaluate.num_timesteps, or sample.num_timesteps.",
)
_X64 = flags.DEFINE_bool("x64", False, "Compute in float64, in every mode but train and plan.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: HOST:PORT of the first, where the others find it."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many there are, each on devices of its own."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Have JAX find the other processes; default: under srun, and on a TPU pod that says so.",
)
_LIST = flags.DEFINE_bool("list", False, "List every registered plugin, by kind, and leave.")
_DESCRIBE = flags.DEFINE_string(
    "describe",
    None,
    "Show the fields of encoder.trainable, Experiment, evaluate, ... with types and defaults.",
)


def run(arguments: Sequence[str]) -> None:
    """The program; see the module's flags."""
    show_log_lines_plainly()
    try:
        with reliable_ctrl_c():
            _run(arguments)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signum)
    except KeyboardInterrupt:
        complain("interrupted")
        distributed.exit_process(130)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        distributed.exit_process(unread())
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or 'no file named'}")


def _run(arguments: Sequence[str]) -> None:
    if arguments[1:]:
        raise UserError(f"{arguments[1]!r} is no flag; give --gin_file=FILE, and put a binding in quotes")
    registry.discover()
    if _LIST.value:
        say(listing())
        return
    if _DESCRIBE.value is not None:
        say(plugin_help.describe(_DESCRIBE.value))
        return
    perform = _choose_mode(_MODE.value)
    jax_settings.settle()
    if _MODE.value in OF_TRAINING:
        jax_settings.train_in_float32()
    _meet_others(_MODE.value)
    jax_settings.check_backend()
    if _DATA_DIR.value is not None:
        os.environ["DIFFENC_DATA"] = os.path.abspath(expand_path(_DATA_DIR.value, "--data_dir"))
    workdir = None if _WORKDIR.value is None else expand_path(_WORKDIR.value, "--workdir")
    bindings = _GIN_BINDINGS.value + num_timesteps_bindings(_MODE.value, _NUM_TIMESTEPS.value)
    experiment = load(_GIN_FILE.value, workdir, bindings)
    if _X64.value:
        _refuse_to_train(_MODE.value, "--x64", "training is in float32")
    if _X64.value or jax.config.values["jax_enable_x64"]:
        if serialize.precision(experiment) == "bfloat16":
            raise UserError("--x64 is for networks in full precision: bind their precision to 'float32'")
        jax.config.update("jax_enable_x64", True)
    place = workdir or default_workdir(_GIN_FILE.value)
    check_writable(_MODE.value, place)
    enable_cache()
    with distributed.translate_lost_process_errors():
        perform(experiment, place)


def load(gin_files: Sequence[str], workdir: str | None, bindings: Sequence[str]) -> Experiment:
    """The experiment of the files given; without any, of the config of the run that `workdir` holds.

    Raises:
      UserError: none given, and no run there; or as `config.load`. Of a run, the message names the plugin packages
        that it was trained with and that are not installed now.
    """
    allowed = [name for given in _ALLOW_IMPORTS.value for name in given.split(",") if name]
    if gin_files:
        return gin_loader.load_experiment(gin_files, bindings, allowed)
    store = None if workdir is None else stores.at(workdir)
    text = None if store is None else store.read(CONFIG)
    if store is None or text is None:
        raise UserError("no --gin_file given; for example --gin_file=gin/quickstart.gin")
    try:
        return gin_loader.load_experiment([files.of_run(text, f"{workdir}".rstrip("/"))], bindings, allowed)
    except UserError as error:
        absent = provenance.not_installed(store.read(provenance.ENVIRONMENT))
        hint = f"; the run was trained with {absent}, which is not installed" if absent else ""
        raise UserError(f"{error}{hint}") from None


def check_writable(mode: str, workdir: str | Path) -> None:
    """Raise UserError if the run's folder is read-only, and `mode` is for what it writes there."""
    if mode in ONLY_PRINT or not os.path.isdir(workdir) or os.access(workdir, os.W_OK):
        return
    python = f", or draw from Python: diffenc.load({str(workdir)!r}).sample()" * (mode == "sample")
    raise UserError(
        f"--mode={mode} writes to {workdir}, which is read-only: copy the run to a folder that you may write to, and "
        f"name that as --workdir{python}"
    )


def _meet_others(mode: str) -> None:
    if mode == "plan":  # which reads and writes nothing, and computes nothing together
        return
    address = distributed.check_address(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    detect = distributed.is_announced(os.environ) if _DISTRIBUTED.value is None else _DISTRIBUTED.value
    distributed.start_process_group(address, detect, notice=mode == "train")


def num_timesteps_bindings(mode: str, num_timesteps: int | None) -> list[str]:
    """What --num_timesteps=T binds.

    Raises:
      UserError: T is not positive, or the mode is of training.
    """
    if num_timesteps is None:
        return []
    _refuse_to_train(mode, "--num_timesteps", "it is T; for the length of training bind Experiment.steps")
    if mode in CONTINUOUS:
        raise UserError(f"--num_timesteps is not for --mode={mode}, which is of continuous time")
    if num_timesteps < 1:
        raise UserError(f"--num_timesteps={num_timesteps}: must be at least 1")
    return [f"{'sample' if mode in OF_SAMPLES else 'evaluate'}.num_timesteps = {num_timesteps}"]


def _refuse_to_train(mode: str, flag: str, reason: str) -> None:
    if mode in OF_TRAINING:
        raise UserError(f"{flag} is not for --mode={mode}: {reason}")


def _choose_mode(name: str):
    if name not in MODES:
        near = difflib.get_close_matches(name, MODES, n=1, cutoff=0.0)
        raise UserError(f"--mode={name}: no such mode; nearest: {near[0]}; modes: {', '.join(MODES)}")
    return MODES[name].perform


def default_workdir(gin_files: Sequence[str]) -> Path:
    """runs/NAME, the names of several files joined by "+"; the workdir itself for its own config.gin."""
    paths = [Path(expand_path(name, "--gin_file")) for name in gin_files]
    if paths[0].name == CONFIG:
        return paths[0].parent
    return Path("runs") / "+".join(path.stem for path in paths)


def listing() -> str:
    """Every registered plugin by kind, with the first line of its documentation."""
    lines = []
    for kind, plugins in registry.REGISTRIES.items():
        for name in plugins:
            doc = (plugins[name].__doc__ or "").strip().split("\n")[0]
            lines.append(f"{kind + '.' + name:<28}{doc}")
    return "\n".join(lines)


def _fail(message: str) -> None:
    complain(f"error: {printable(' '.join(message.split()))}")
    distributed.exit_process(1)


def help_text() -> str:
    """What --help prints: modes, flags, examples."""
    width = max(map(len, MODES))
    listed = "\n".join(f"  {name:<{width}}  {mode.does}" for name, mode in MODES.items())
    own = flags.FLAGS.module_help(__name__)
    return HELP.format(modes=listed, flags=own.strip("\n").partition("\n")[2])


def main() -> None:
    """The program, as a command."""
    settle_process()
    if any(word.partition("=")[0] in ("-steps", "--steps") for word in sys.argv[1:]):
        complain(
            "error: --steps is now called --num_timesteps; the length of training is the binding Experiment.steps"
        )
        sys.exit(1)
    if {"-h", "--help", "-help", "--helpshort"} & set(sys.argv[1:]):
        say(help_text())
        return
    app.run(run)
