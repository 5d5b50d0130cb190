"""Starts several processes of one run on this machine.

  python -m experiments.launch.local --processes=2 -- --gin_file=gin/quickstart.gin --workdir=runs/two

Everything after `--` is passed to each process of `python -m diffenc.run`. Output lines of process k are prefixed with
[k]. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are forwarded once; a second Ctrl-C or SIGTERM kills all processes.
When a process fails, the others are killed unless they end within --grace seconds. No process outlives this program (on Linux),
however it ends. The exit status is that of the first failed process, 128 + N if signal N ended it, else 0.
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
GRACE_SECONDS = 90.0  # a run notices within a minute that one of its processes is gone
POLL_SECONDS = 0.2  # between checks for signals


class LineForwarder:
    """Forwards the output of a process in whole lines, with a prefix."""

    def __init__(self, prefix: str, source: IO[bytes], sink: IO[bytes]):
        self._prefix, self._source, self._sink = prefix.encode(), source, sink
        self._partial = b""  # the beginning of an unfinished line

    def fileno(self) -> int:
        return self._source.fileno()

    def pump(self) -> bool:
        """Forwards the available output; returns whether more may follow."""
        read = os.read(self.fileno(), 2**20)  # more than a pipe holds
        *lines, self._partial = (self._partial + read).split(b"\n")
        self._forward(lines)
        if not read:
            self.finish()
        return bool(read)

    def finish(self) -> None:
        """Forwards a last line without line break."""
        self._forward([self._partial] if self._partial else [])
        self._partial = b""

    def _forward(self, lines: list[bytes]) -> None:
        self._sink.write(b"".join(self._prefix + line + b"\n" for line in lines))
        self._sink.flush()


class ProcessGroup:
    """A group of processes that ends as a whole when one of them fails.

    Attributes:
      status: exit status of the first failed process; 0 while none has failed.
    """

    def __init__(self, grace: float):
        self.processes: list[subprocess.Popen[bytes]] = []
        self.status = 0
        self._grace = grace
        self._deadline = float("inf")
        self._ended: set[int] = set()

    def start(self, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Starts a process in its own process group, so that Ctrl-C of the terminal reaches it only through `send`."""
        process = subprocess.Popen(
            tie_to_parent(command), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            process_group=0,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def send(self, signum: int) -> None:
        """Sends a signal to all running processes."""
        for process in self.processes:
            process.send_signal(signum)

    def poll(self) -> bool:
        """Records ended processes, and kills the rest after the deadline; returns whether any is running."""
        for number, process in enumerate(self.processes):
            if number not in self._ended and process.poll() is not None:
                self._ended.add(number)
                self._record_end(number, process.returncode)
        running = len(self._ended) < len(self.processes)
        if running and time.monotonic() > self._deadline:
            print_status(f"the others did not end within {self._grace:g} s: killed")
            self._deadline = float("inf")
            self.send(signal.SIGKILL)
        return running

    def _record_end(self, number: int, returncode: int) -> None:
        if returncode == 0 or self.status:
            return
        self.status = returncode if returncode > 0 else 128 - returncode
        self._deadline = time.monotonic() + self._grace
        if len(self._ended) < len(self.processes):
            print_status(
                f"process {number} ended with status {self.status}; the others have {self._grace:g} s to end"
            )


def run_processes(
    environments: Sequence[dict[str, str]], commands: Sequence[Sequence[str]], grace: float
) -> int:
    """Runs one process for each environment and command; returns the exit status."""
    group, selector, was_signalled = ProcessGroup(grace), selectors.DefaultSelector(), False
    with SignalQueue() as signals:
        try:
            # Within the queue, so that no signal is lost while processes start.
            for number, (env, command) in enumerate(zip(environments, commands, strict=True)):
                for lines in make_forwarders(number, group.start(command, env)):
                    selector.register(lines, selectors.EVENT_READ)
            while group.poll():
                pump_lines(selector)
                for signum in signals.take():
                    group.send(signal.SIGKILL if was_signalled else signum)
                    was_signalled = True
            drain_lines(selector)
        finally:
            group.send(signal.SIGKILL)
    return group.status


def make_forwarders(number: int, process: subprocess.Popen[bytes]) -> Iterator[LineForwarder]:
    """Yields forwarders from the output and error stream of a process to our own."""
    for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        assert source is not None
        yield LineForwarder(f"[{number}] ", source, sink.buffer)


def pump_lines(selector: selectors.BaseSelector, wait: float = POLL_SECONDS) -> None:
    """Waits up to `wait` seconds for output and forwards it; returns earlier after output or the end of a pipe."""
    if not selector.get_map():
        time.sleep(wait)
    for key, _ in selector.select(wait):
        if not cast(LineForwarder, key.fileobj).pump():
            selector.unregister(key.fileobj)


def drain_lines(selector: selectors.BaseSelector) -> None:
    """Forwards the remaining output. Does not wait for the end of the pipes, which a running grandchild may keep open."""
    pump_lines(selector, wait=0)
    for key in selector.get_map().values():
        cast(LineForwarder, key.fileobj).finish()


def make_environments(
    processes: int, devices: int | None, env: dict[str, str], gpus: list[str]
) -> list[dict[str, str]]:
    """Returns the environment of each process, with its share of `gpus`, or else with `devices` virtual CPU devices.

    Raises:
      UserError: too few GPUs.
    """
    # Python buffers whole blocks when it writes to a pipe: unbuffered, lines appear as they are written.
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
    """Returns the flags by which a process finds the others."""
    return [
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={processes}",
        f"--process_id={process}",
    ]


def find_free_port() -> int:
    """Returns a free port. In the unlikely case that another program takes it first, start the run again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def print_status(message: str) -> None:
    print(f"[launch] {message}", file=sys.stderr, flush=True)


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the launcher's own flags, and those of the run. Raises UserError if its own are invalid."""
    split = argv.index("--") if "--" in argv else len(argv)
    own, run_flags = [*argv[:split]], [*argv[split + 1 :]]
    parser = argparse.ArgumentParser(prog="python -m experiments.launch.local", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--processes", type=int, required=True, help="number of processes")
    add("--devices", type=int, help="per process (default: its share of the GPUs; 1 on a CPU)")
    add(
        "--grace",
        type=float,
        default=GRACE_SECONDS,
        help=f"seconds for the others to end after one failed (default: {GRACE_SECONDS:g})",
    )
    args = parser.parse_args(own)
    for name in ("processes", "devices"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least 1")
    if not run_flags:
        raise UserError("no flags for the run: put them after --, as -- --gin_file=gin/quickstart.gin")
    return args, run_flags


def main(argv: Sequence[str] | None = None, program: Sequence[str] = PROGRAM) -> int:
    """Runs the command line; returns the exit status."""
    try:
        args, run_flags = parse_args(sys.argv[1:] if argv is None else argv)
        env = dict(os.environ)
        environments = make_environments(args.processes, args.devices, env, visible_gpus(env))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    port = find_free_port()
    commands = [
        [*program, *run_flags, *coordinator_flags(k, args.processes, port)] for k in range(args.processes)
    ]
    return run_processes(environments, commands, args.grace)


if __name__ == "__main__":
    sys.exit(main())
