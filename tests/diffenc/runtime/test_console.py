"""How programs end, as a shell sees it."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffenc.runtime.console import exit_status

SAY = "from diffenc.runtime.console import print_line; [print_line(str(k)) for k in range(100_000)]; print('more', flush=True)"


@pytest.mark.parametrize("unbuffered", [(), ("-u",)])
def test_a_reader_who_has_enough_ends_the_program_without_a_word(unbuffered):
    command = [sys.executable, *unbuffered, "-c", SAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"0\n"
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_program_whose_output_nobody_reads_ends_without_a_word(lines):
    code = f"import sys; from diffenc.runtime.console import exit_status; sys.exit(exit_status(lambda: print({lines} * 'one\\n')))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_interrupt_that_python_loses_ends_a_program_in_one_line(capsys):
    """As in JAX's own callback of the garbage collector."""

    def press(phase, info):
        gc.callbacks.remove(press)
        os.kill(os.getpid(), signal.SIGINT)

    def perform():
        gc.callbacks.append(press)
        gc.collect()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            pass

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert exit_status(perform, "interrupted; the same command goes on") == 130
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


ROOT = Path(__file__).parents[3]
CLI = ROOT / "diffenc" / "cli"  # where the program of a thin entry point is
ELSEWHERE = {
    "experiments/launch/local.py",  # passes signals on to its processes
    "diffenc/runtime/parent_death.py",  # becomes another program at once
    "plugins/released_diffenc.py",  # calls diffenc/tools/foreign_weights.py
    "plugins/released_vdm.py",  # likewise
}


def test_every_program_ends_so():
    found = [
        path for folder in ("diffenc", "plugins", "experiments") for path in (ROOT / folder).rglob("*.py")
    ]
    programs = {path for path in found if '\nif __name__ == "__main__":' in path.read_text()}
    assert len(programs) > 10
    texts = {path: path.read_text() for path in programs}
    for path, text in texts.items():
        if "\nfrom diffenc.cli." in text and "import main\n" in text:
            texts[path] = (CLI / path.name).read_text()
    careless = {str(path.relative_to(ROOT)) for path, text in texts.items() if "exit_status(" not in text}
    assert careless == ELSEWHERE


def test_who_listens_hears_all():
    done = subprocess.run(
        [sys.executable, "-c", "from diffenc.runtime.console import print_line; print_line('α')"],
        capture_output=True, check=True, encoding="utf-8", env={"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("α\n", "")


CLOSED_IN_LATIN_1 = """
import os, sys
from diffenc.runtime.console import prepare_process
prepare_process()
print(ascii(sys.argv[1]), sys.getfilesystemencoding(), sys.stdout is not None, file=sys.stderr)
print("± to nobody")
"""


def test_names_are_utf_8_in_any_locale_and_a_closed_stream_takes_what_is_printed(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(CLOSED_IN_LATIN_1)
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = 'exec "$0" "$@" >&-'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, script, "Läufe"],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stderr == "'L\\xe4ufe' utf-8 True\n"


def test_python_without_docstrings_is_refused_in_one_line():
    command = [
        sys.executable,
        "-OO",
        "-c",
        "from diffenc.runtime.console import prepare_process; prepare_process()",
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: python -OO ")
    assert done.stderr.count("\n") == 1
