"""The command `python -m diffenc.run`: its flags, its modes and its help. See `--help`.

This module does not import JAX, which takes seconds: `diffenc.cli.run_mode` does, when a mode runs.
"""

import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from diffenc import registry
from diffenc.errors import UserError, nearest
from diffenc.runtime.console import exit_status, prepare_process, print_error, print_line
from diffenc.runtime.log_format import show_log_lines_plainly
from diffenc.runtime.signals import Interrupted


class Mode(NamedTuple):
    """A value of --mode.

    Attributes:
      function: MODULE:NAME of its function of (experiment, workdir), as text, so that a mode imports only its own modules.
      summary: its line in --help.
    """

    function: str
    summary: str

    def perform(self, experiment: Any, workdir: str | Path) -> Any:
        """Imports the mode's function and calls it."""
        return pkgutil.resolve_name(self.function)(experiment, workdir)


MODES: dict[str, Mode] = {
    "train": Mode("diffenc.training.loop:train", "train, or go on with the run in --workdir"),
    "evaluate": Mode(
        "diffenc.evaluation.commands:evaluate",
        "bits/dim of a whole split, with errors; of T steps with --num_timesteps=T",
    ),
    "sample": Mode(
        "diffenc.evaluation.commands:sample", "a grid of samples, of T steps with --num_timesteps=T"
    ),
    "likelihood": Mode("diffenc.evaluation.likelihood:likelihood", "bits/dim by the probability-flow ODE"),
    "diagnose": Mode(
        "diffenc.evaluation.diagnose:diagnose", "the loss by log-SNR, and the network at both ends of time"
    ),
    "figures": Mode(
        "diffenc.tools.figures.figures:figures",
        "pictures of encoder, schedule, loss and samples, with their numbers",
    ),
    "fit_variance": Mode(
        "diffenc.evaluation.fit_variance:fit_variance",
        "the best reverse variances of T steps, for --mode=evaluate and sample",
    ),
    "fit_schedule": Mode("diffenc.evaluation.fit_schedule:fit_schedule", "the best times of T steps"),
    "fit_stochasticity": Mode(
        "diffenc.evaluation.fit_stochasticity:fit_stochasticity",
        "the best noise of the forward path, for evaluate.stochasticity",
    ),
    "fit_ode": Mode(
        "diffenc.training.fit_ode:fit_ode", "a second head, for the likelihood of a trained encoder's ODE"
    ),
    "k_sample": Mode(
        "diffenc.evaluation.k_sample:k_sample", "the importance-weighted bound of K whole chains"
    ),
    "compress": Mode(
        "diffenc.compression.commands:compress",
        "a split's images in a file of few bits, by bits-back on T steps",
    ),
    "decompress": Mode("diffenc.compression.commands:decompress", "the images of such a file, bit for bit"),
    "fid": Mode("diffenc.tools.fid.fid:fid", "FID and KID of samples against both splits"),
    "plan": Mode(
        "diffenc.tools.planning.plan:plan",
        "what training will cost in time and memory; reads no data, writes nothing",
    ),
    "export": Mode(
        "diffenc.export.export:export",
        "the averaged parameters with config and model card, for sharing and diffenc.load",
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
  python -m diffenc.run --describe=encoder.trainable,evaluate
  python -m diffenc.run --helpfull        every flag of every library

Run the same command again to continue where the last one stopped. Exit status: 0 success; 1 an error, in one line;
130 or 143 stopped by Ctrl-C or SIGTERM, a run in training saved (128 + N by signal N: SIGHUP, SIGUSR1, SIGUSR2).
"""

flags.DEFINE_multi_string("gin_file", [], "An experiment; a later file overrides an earlier one.")
flags.DEFINE_multi_string("gin_bindings", [], "A binding over the files: 'Experiment.seed = 1'.")
flags.DEFINE_multi_string(
    "allow_imports",
    [],
    "A module that the config of a run may import, which runs its code; not needed for installed plugin packages.",
)
flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
flags.DEFINE_string("workdir", None, "Where the run lives, a folder or gs://…; default runs/NAME.")
flags.DEFINE_string("data_dir", None, "Where data sets live; default $DIFFENC_DATA, else a cache.")
flags.DEFINE_integer(
    "num_timesteps",
    None,
    "T, in every mode but train and plan: binds evaluate.num_timesteps, or sample.num_timesteps.",
)
flags.DEFINE_string(
    "topology", None, "A machine to plan for, here or not: v5e:4x8, v5p:4x4x4, h100:8. Binds plan.topology."
)
flags.DEFINE_bool("quick", None, "Plan from the network with 2 and with 4 blocks. Binds plan.quick.")
flags.DEFINE_bool("x64", False, "Compute in float64, in every mode but train and plan.")
flags.DEFINE_string(
    "coordinator", None, "Of several processes: HOST:PORT of the first, where the others find it."
)
flags.DEFINE_integer("num_processes", None, "How many there are, each on devices of its own.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
flags.DEFINE_bool(
    "distributed",
    None,
    "Have JAX find the other processes; default: under srun, and on a TPU pod that says so.",
)
_LIST = flags.DEFINE_bool("list", False, "List every registered plugin, by kind, and leave.")
_DESCRIBE = flags.DEFINE_list(
    "describe",
    None,
    "Show the fields of encoder.trainable, Experiment, evaluate, ... with types and defaults; names separated by commas.",
)


def run(arguments: Sequence[str]) -> None:
    """Runs the command given by its flags; exits with a non-zero status unless it succeeds."""
    show_log_lines_plainly()
    status = exit_status(lambda: _run(arguments))
    if status:
        _exit_process(status)


def _run(arguments: Sequence[str]) -> None:
    if arguments[1:]:
        raise UserError(f"{arguments[1]!r} is no flag; give --gin_file=FILE, and put a binding in quotes")
    mode = flags.FLAGS.mode
    if mode not in MODES:
        raise UserError(
            f"--mode={mode}: no such mode; nearest: {nearest(mode, MODES)}; modes: {', '.join(MODES)}"
        )
    registry.discover()
    if _LIST.value:
        print_line(list_plugins())
        return
    if _DESCRIBE.value is not None:
        from diffenc.config import plugin_help

        print_line("\n\n\n".join(map(plugin_help.describe, _DESCRIBE.value)))
        return
    from diffenc.cli.run_mode import run_mode

    try:
        run_mode(mode, MODES[mode].perform, flags.FLAGS)
    except Interrupted as stopped:  # the message has been logged where the run was saved
        sys.exit(128 + stopped.signum)


def _exit_process(status: int) -> None:
    """Exits, through `distributed.exit_process` if the run may have several processes."""
    distributed = sys.modules.get("diffenc.parallel.distributed")  # not imported for an error in the flags
    (distributed.exit_process if distributed else sys.exit)(status)


def list_plugins() -> str:
    """Returns a line for each registered plugin, by kind, with the first line of its documentation."""
    docs = {
        f"{kind}.{name}": (plugins[name].__doc__ or "").strip().split("\n")[0]
        for kind, plugins in registry.REGISTRIES.items()
        for name in plugins
    }
    width = max(map(len, docs))
    return "\n".join(f"{selector:<{width}}  {doc}" for selector, doc in docs.items())


def help_text() -> str:
    """Returns the text of --help: modes, flags, examples."""
    width = max(map(len, MODES))
    modes = "\n".join(f"  {name:<{width}}  {mode.summary}" for name, mode in MODES.items())
    own = flags.FLAGS.module_help(__name__)
    return HELP.format(modes=modes, flags=own.strip("\n").partition("\n")[2])


def main() -> None:
    """Runs the program on the arguments of the command line."""
    prepare_process()
    if any(word.partition("=")[0] in ("-steps", "--steps") for word in sys.argv[1:]):
        print_error(
            "error: --steps is now called --num_timesteps; the length of training is the binding Experiment.steps"
        )
        sys.exit(1)
    if {"-h", "--help", "-help", "--helpshort"} & set(sys.argv[1:]):
        print_line(help_text())
        return
    app.run(run)
