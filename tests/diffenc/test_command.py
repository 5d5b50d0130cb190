"""How programs end, as a shell sees it."""

import signal
import subprocess
import sys

import pytest

SAY = "from diffenc.command import say; [say(str(k)) for k in range(100_000)]; print('more', flush=True)"


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


def test_who_listens_hears_all():
    done = subprocess.run(
        [sys.executable, "-c", "from diffenc.command import say; say('α')"],
        capture_output=True, check=True, encoding="utf-8", env={"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("α\n", "")
