"""Several processes of one run on this machine.

  python -m experiments.launch.local --processes=2 -- --gin_file=gin/quickstart.gin --workdir=runs/two

Everything after `--` goes to each process of `python -m diffenc.run`. The lines that process k writes are shown with
[k] before them. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on, once; a second Ctrl-C or SIGTERM ends all
at once. When a process fails, the
others have --grace seconds to end by themselves, then they are killed. None outlives this program (on Linux), however
it ends. The exit status is that of the first process that failed; 128 + N if signal N ended it; else 0.
"""

import argparse
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, cast

from diffenc.errors import UserError
from diffenc.runtime.gpus import visible_gpus
from diffenc.runtime.parent_death import tie_to_parent
from diffenc.runtime.signals import SignalQueue

PROGRAM = (sys.executable, "-m", "diffenc.run")
GRACE_SECONDS = 90.0  # seconds; a run notices within a minute that one of its processes is gone
POLL_SECONDS = 0.2  # seconds between two looks at the signals that came


class LineForwarder:
    """What a process writes, passed on line by line."""

    def __init__(self, prefix: str, source: IO[bytes], sink: IO[bytes]):
        self._prefix, self._source, self._sink = prefix.encode(), source, sink
        self._begun = b""

    def fileno(self) -> int:
        return self._source.fileno()

    def pump(self) -> bool:
        """Pass on all that is there; whether more may come."""
        read = os.read(self.fileno(), 2**20)  # more than a pipe holds
        *whole, self._begun = (self._begun + read).split(b"\n")
        self._show(whole)
        if not read:
            self.finish()
        return bool(read)

    def finish(self) -> None:
        """Pass on a last line that was not ended."""
        self._show([self._begun] if self._begun else [])
        self._begun = b""

    def _show(self, lines: list[bytes]) -> None:
        self._sink.write(b"".join(self._prefix + line + b"\n" for line in lines))
        self._sink.flush()


class ProcessGroup:
    """Processes that end together.

    Attributes:
      status: the exit status of the first that failed; 0 while none has.
    """

    def __init__(self, grace: float):
        self.processes: list[subprocess.Popen[bytes]] = []
        self.status = 0
        self._grace = grace
        self._deadline = float("inf")
        self._ended: set[int] = set()

    def start(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start one, in a process group of its own: the terminal's Ctrl-C reaches it through us alone."""
        process = subprocess.Popen(
            tie_to_parent(command), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            process_group=0,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def send(self, signum: int) -> None:
        """To all that still run."""
        for process in self.processes:
            process.send_signal(signum)

    def look(self) -> bool:
        """Note who ended, and kill the rest if their time is over; whether any still runs."""
        for number, process in enumerate(self.processes):
            if number not in self._ended and process.poll() is not None:
                self._ended.add(number)
                self._note(number, process.returncode)
        running = len(self._ended) < len(self.processes)
        if running and time.monotonic() > self._deadline:
            print_status(f"the others did not end within {self._grace:g} s: killed")
            self._deadline = float("inf")
            self.send(signal.SIGKILL)
        return running

    def _note(self, number: int, returncode: int) -> None:
        if returncode == 0 or self.status:
            return
        self.status = returncode if returncode > 0 else 128 - returncode
        self._deadline = time.monotonic() + self._grace
        if len(self._ended) < len(self.processes):
            print_status(
                f"process {number} ended with status {self.status}; the others have {self._grace:g} s"
            )


def run_processes(
    environments: Sequence[dict[str, str]], commands: Sequence[Sequence[str]], grace: float
) -> int:
    """Run one process for each environment and command; returns the exit status."""
    group, selector, asked = ProcessGroup(grace), selectors.DefaultSelector(), False
    with SignalQueue() as signals:
        try:
            for number, (env, command) in enumerate(zip(environments, commands, strict=True)):
                for lines in make_forwarders(number, group.start(command, env)):
                    selector.register(lines, selectors.EVENT_READ)
            while group.look():
                pump_lines(selector)
                for signum in signals.take():
                    group.send(signal.SIGKILL if asked else signum)
                    asked = True
            drain_lines(selector)
        finally:
            group.send(signal.SIGKILL)
    return group.status


def make_forwarders(number: int, process: subprocess.Popen[bytes]) -> Iterator[LineForwarder]:
    """What it writes, to our own streams."""
    for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        assert source is not None
        yield LineForwarder(f"[{number}] ", source, sink.buffer)


def pump_lines(selector: selectors.BaseSelector, wait: float = POLL_SECONDS) -> None:
    """Pass on what is written within `wait` seconds. A process that ends cuts this short: it closes its pipes."""
    if not selector.get_map():
        time.sleep(wait)
    for key, _ in selector.select(wait):
        if not cast(LineForwarder, key.fileobj).pump():
            selector.unregister(key.fileobj)


def drain_lines(selector: selectors.BaseSelector) -> None:
    """Pass on the rest. It does not wait for the end, which a grandchild that still runs may put off."""
    pump_lines(selector, wait=0)
    for key in selector.get_map().values():
        cast(LineForwarder, key.fileobj).finish()


def make_environments(
    processes: int, devices: int | None, env: dict[str, str], gpus: list[str]
) -> list[dict[str, str]]:
    """The environment of each process: its share of `gpus`; without any, so many virtual CPU devices.

    Raises:
      UserError: there are not so many GPUs.
    """
    env = {"PYTHONUNBUFFERED": "1"} | env
    if not gpus:
        count = f"--xla_force_host_platform_device_count={devices}"
        flags = {"XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} {count}".strip()} if (devices or 1) > 1 else {}
        return [env | flags for _ in range(processes)]
    each = devices or len(gpus) // processes
    if each * processes > len(gpus) or each == 0:
        raise UserError(
            f"--processes={processes} of {each or 'at least 1'} GPUs each: there are {len(gpus)}; "
            "take fewer, or set JAX_PLATFORMS=cpu"
        )
    shares = (gpus[each * number : each * (number + 1)] for number in range(processes))
    return [env | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def coordinator_flags(process: int, processes: int, port: int) -> list[str]:
    """How a process finds the others."""
    return [
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={processes}",
        f"--process_id={process}",
    ]


def find_free_port() -> int:
    """A port nobody listens on. Another program might take it before the run does: then start again."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def print_status(what: str) -> None:
    print(f"[launch] {what}", file=sys.stderr, flush=True)


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, and those of the run. Raises UserError if something is wrong with ours."""
    own, found, of_run = [*argv], "--" in argv, []
    if found:
        own, of_run = [*argv[: argv.index("--")]], [*argv[argv.index("--") + 1 :]]
    parser = argparse.ArgumentParser(prog="python -m experiments.launch.local", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--processes", type=int, required=True, help="how many")
    add("--devices", type=int, help="of each process (default: its share of the GPUs; 1 on a CPU)")
    add(
        "--grace",
        type=float,
        default=GRACE_SECONDS,
        help=f"seconds to end in after one failed (default: {GRACE_SECONDS:g})",
    )
    given = parser.parse_args(own)
    for name in ("processes", "devices"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise UserError(f"--{name}={getattr(given, name)}: must be at least 1")
    if not of_run:
        raise UserError("no flags for the run: put them after --, as -- --gin_file=gin/quickstart.gin")
    return given, of_run


def main(argv: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """The command line; returns the exit status."""
    try:
        given, of_run = parse_args(sys.argv[1:] if argv is None else argv)
        env = dict(os.environ)
        each = make_environments(given.processes, given.devices, env, visible_gpus(env))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    port = find_free_port()
    commands = [
        [*program, *of_run, *coordinator_flags(k, given.processes, port)] for k in range(given.processes)
    ]
    return run_processes(each, commands, given.grace)


if __name__ == "__main__":
    sys.exit(main())
