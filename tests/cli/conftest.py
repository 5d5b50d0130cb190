"""The program in processes of their own: to be given anything, to be killed at any moment."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Imports once what takes seconds to import, then forks: each child is a process of its own that runs the
# program from its first line to its exit.
SERVER = """
import atexit, json, os, resource, signal, sys, threading
import diffenc.run, diffenc_plugins, jax, sklearn.datasets

def start(order):
    pid = os.fork()
    if pid:
        return pid
    for name, flags in (("in", os.O_RDONLY), ("out", os.O_WRONLY | os.O_CREAT), ("err", os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(order[name], flags, 0o644), ("in", "out", "err").index(name))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what runs behind it
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    if order["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
        jax.config.update("jax_enable_compilation_cache", False)  # else it leaves cut entries to all other tests
    sys.argv = ["diffenc", *order["arguments"]]
    try:
        diffenc.cli.run.main()
    except SystemExit as leaving:  # as the interpreter does, but for taking every module to pieces: seconds
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code or 0)

def status(pid):
    ended, code = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(code) if ended else None

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(start(order) if "cwd" in order else status(order["pid"])), flush=True)
"""

# A package as one would install it: a network whose program compiles in a second, images that halve only once.
PLUGINS = '''
import dataclasses
import jax
import jax.numpy as jnp
import numpy as np
from diffenc.interfaces import NO_CONTEXT
from diffenc.data.sources import ArraySource
from diffenc.registry import datasets, features, networks

@networks.register("affine")
@dataclasses.dataclass(frozen=True)
class Affine:
    """w z + b, pixel by pixel, half of it dropped in training."""

    def init(self, key, z, log_snr):
        return {"w": 0.1 * jax.random.normal(key, z.shape[1:]), "b": jnp.zeros(z.shape[1:])}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        out = params["w"][None] * z + params["b"][None]
        if context.keys is None:
            return out
        return out * jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, out.shape[1:]))(context.keys)

@datasets.register("six")
@dataclasses.dataclass(frozen=True)
class Six:
    """6x6 images."""

    image_shape = (6, 6, 1)
    num_levels = 4
    num_classes = 1

    def source(self, split):
        return ArraySource(np.zeros((9, 6, 6, 1), np.uint8), np.zeros(9, np.int32))

    def fingerprint(self, split):
        return "six"

@features.register("corner")
@dataclasses.dataclass(frozen=True)
class Corner:
    """The first four pixels of an image."""

    num_features = 4

    def metric(self):
        return "fd_corner"

    def identity(self):
        return "corner 1"

    def load(self):
        return jax.tree_util.Partial(lambda scale, images: scale * images[:, 0, :4, 0], jnp.float32(1))
'''

TINY = """
include 'gin/fragments/base.gin'
include 'gin/fragments/diffenc.gin'

LOG_SNR_MAX = 8.0
Experiment.dataset = @dataset.digits()
Experiment.steps = 40
Experiment.batch_size = 16
Experiment.ema_decay = 0.9
Experiment.log_every = 4
Experiment.checkpoint_every = 6
Experiment.evaluate_every = 20
Experiment.sample_every = 10
optimizer.adamw.learning_rate = 0.01
evaluate.passes = 2
evaluate.batch_size = 64
sample.num_timesteps = 4
sample.num = 4
"""
AFFINE = """
Model.network = @network.affine()
encoder.trainable.network = @network.affine()
"""
UNET = """
network.unet.blocks = 1
network.unet.channels = 4
network.unet.fourier_powers = (2, 3)
network.encoder_unet.blocks = 1
network.encoder_unet.channels = 4
Experiment.evaluate_every = 0  # each would be one more large program to compile
Experiment.sample_every = 0
"""


class Child:
    """One run of the program."""

    def __init__(self, pid: int, folder: Path, poll: Callable[[], int | None]):
        self.pid = pid
        self.poll = poll  # its exit status, or minus the signal that ended it; None while it runs
        self._folder = folder

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    def wait(self) -> int:
        """Its exit status."""
        while (status := self.poll()) is None:
            time.sleep(0.02)
        return status

    def wait_until(self, happened: Callable[[], object]) -> bool:
        """Whether `happened()` came true before the child ended."""
        while not happened():
            if self.poll() is not None:
                return False
            time.sleep(0.002)
        return True


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of every process: the plugins can be imported, and what one compiles the next one finds."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "cli_test_plugins.py").write_text(PLUGINS)
    installed = folder / "cli_test_plugins-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: cli-test-plugins\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[diffenc.plugins]\ncli_test_plugins = cli_test_plugins\n")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts the program: start(arguments, cwd=FOLDER) -> Child. Whatever still runs at the end is killed."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    orders, answers = server.stdin, server.stdout
    assert orders is not None
    assert answers is not None
    assert answers.readline() == "ready\n"
    ended: dict[int, int | None] = {}

    def ask(**order):
        orders.write(json.dumps(order) + "\n")
        orders.flush()
        return json.loads(answers.readline())

    def poll(pid: int) -> int | None:
        if ended[pid] is None:
            ended[pid] = ask(pid=pid)
        return ended[pid]

    def make(arguments, *, cwd: Path, env: dict[str, str] | None = None, largest_file: int | None = None):
        folder = tmp_path_factory.mktemp("child")
        streams = {"in": os.devnull, "out": str(folder / "out"), "err": str(folder / "err")}
        texts = [str(argument) for argument in arguments]
        pid = ask(arguments=texts, cwd=str(cwd), env=env or {}, largest_file=largest_file, **streams)
        ended[pid] = None
        return Child(pid, folder, lambda: poll(pid))

    yield make
    for pid in ended:
        if poll(pid) is None:
            os.kill(pid, 9)
    orders.close()
    server.wait()
    answers.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def start_two(start, tmp_path_factory):
    """Starts two processes of one run: start_two(gin_file, workdir, bindings) -> both children."""

    def make(gin_file: Path, workdir: Path | str, bindings=(), *flags: str) -> list[Child]:
        arguments = [
            f"--gin_file={gin_file}",
            f"--workdir={workdir}",
            *(f"--gin_bindings={b}" for b in bindings),
        ]
        address = [f"--coordinator=127.0.0.1:{_free_port()}", "--num_processes=2"]
        cwd = tmp_path_factory.mktemp("cwd")
        return [start([*arguments, *address, f"--process_id={k}", *flags], cwd=cwd) for k in range(2)]

    return make


@pytest.fixture(scope="session")
def start_python(environment, tmp_path_factory):
    """Like `start`, as a user would: python -m diffenc.run."""

    def make(arguments, *, cwd: Path) -> Child:
        folder = tmp_path_factory.mktemp("child")
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "diffenc.run", *map(str, arguments)],
                stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd, env=environment,
            )  # fmt: skip
        return Child(process.pid, folder, process.poll)

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A gin file: 40 steps on digits with networks that compile in a second."""
    path = tmp_path_factory.mktemp("gin") / "tiny.gin"
    path.write_text(TINY + AFFINE)
    return path


@pytest.fixture(scope="session")
def unet(tmp_path_factory) -> Path:
    """A gin file: 40 steps on digits with the smallest U-Nets."""
    path = tmp_path_factory.mktemp("gin") / "unet.gin"
    path.write_text(TINY + UNET)
    return path
