import subprocess
import sys

import pytest

from diffenc.cli.new import main
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.tools.scaffold import targets, writing
from diffenc.tools.scaffold.plugin_spec import PluginSpec

WANTED = PluginSpec("encoder", "my_blur")

# For each line, CALL, AT and FOLDER, a process that writes the plugin there and is gone when os.CALL is called for the
# ATth time; prints how it ended. Forked from a process without threads.
KILLED = """
import os, sys
from diffenc.tools.scaffold import targets, writing
from diffenc.tools.scaffold.plugin_spec import PluginSpec

wanted = PluginSpec("encoder", "my_blur")

def write(call, at, folder):
    real, calls = getattr(os, call), []
    def killed(*args, **options):
        calls.append(args)
        if len(calls) == at:
            os._exit(9)
        return real(*args, **options)
    setattr(os, call, killed)
    writing.write_plugin(targets.package_target(folder + "/my_pack", wanted), wanted)
    os._exit(0)

for line in sys.stdin:
    call, at, folder = line.rstrip("\\n").split(" ", 2)
    child = os.fork()
    if child == 0:
        write(call, int(at), folder)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed():
    """killed(call, at, folder) -> exit status of who writes there; see KILLED."""
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def ask(call, at, folder):
            assert server.stdin is not None
            assert server.stdout is not None
            print(call, at, folder, file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield ask


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder, wanted=WANTED):
    return writing.write_plugin(targets.package_target(str(folder / "my_pack"), wanted), wanted)


def test_all_is_written_and_named(folder):
    written = make(folder)
    assert {path.relative_to(folder).as_posix() for path in written} == set(content(folder))
    assert len(written) == 6


def test_a_second_plugin_of_a_package_changes_the_index_alone(folder):
    make(folder)
    before = content(folder)
    make(folder, PluginSpec("schedule", "bent"))
    after = content(folder)
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {"my_pack/src/my_pack/__init__.py"}
    assert len(after) == len(before) + 3
    assert b"from my_pack.bent import Bent\nfrom my_pack.my_blur import MyBlur\n" in after[changed.pop()]


def test_nothing_is_overwritten(folder):
    make(folder)
    (folder / "my_pack" / "src" / "my_pack" / "my_blur.py").write_text("weeks of work")
    before = content(folder)
    with pytest.raises(UserError, match=r"my_blur\.py already exists: choose another NAME"):
        make(folder)
    with pytest.raises(UserError, match=r"my_blur\.py already exists"):
        make(folder, PluginSpec("schedule", "my_blur"))  # of another kind, in the same file
    assert content(folder) == before


@pytest.mark.parametrize("call", ["mkdir", "replace"])
@pytest.mark.parametrize("wanted", [WANTED, PluginSpec("schedule", "bent")], ids=["same", "another"])
@pytest.mark.parametrize("at", range(1, 7))
def test_what_a_killed_command_left_is_gone_on_with(folder, killed, at, wanted, call):
    """Killed before each folder is made, and before each file gets its name; then the same is called, or another."""
    assert killed(call, at, folder) in ((9,) if call == "replace" else (9, 0))
    make(folder, wanted)
    make(folder, WANTED)
    of_two = 3 * (wanted != WANTED)
    files = {name for name in content(folder) if ".tmp-" not in name}
    assert len(files) == 6 + of_two
    assert {"my_pack/pyproject.toml", "my_pack/README.md"} <= files


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(folder, monkeypatch, at, error):
    write, calls = atomic.write_text, []

    def refused(path, text):
        calls.append(path)
        if len(calls) == at:
            raise atomic.write_error(path, error) if isinstance(error, OSError) else error
        write(path, text)

    monkeypatch.setattr(atomic, "write_text", refused)
    with pytest.raises((UserError, KeyboardInterrupt)):
        make(folder)
    assert [*folder.iterdir()] == []


def test_a_refusal_later_leaves_what_was_there(folder, monkeypatch):
    make(folder)
    before = content(folder)
    monkeypatch.setattr(atomic, "write_text", lambda path, text: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(folder, PluginSpec("schedule", "bent"))
    assert content(folder) == before


def test_a_folder_that_cannot_be_made_is_one_line(folder, capsys):
    (folder / "file").write_text("in the way")
    assert main(["encoder", "my_blur", "--package=file/my_pack"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: could not write")


def test_the_command_tells_what_was_written_and_what_to_run(folder, capsys):
    assert main(["encoder", "my_blur", "--package=my_pack"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrote"
    assert {line.strip() for line in lines[1:7]} == set(content(folder))
    assert [line.split()[:4] for line in lines[8:]] == [
        ["python", "-m", "pip", "install"],
        ["python", "-m", "pytest", "my_pack"],
        ["python", "-m", "diffenc.run", "--gin_file=gin/quickstart.gin"],
    ]


def test_a_mistake_is_one_line_and_status_1(folder, capsys):
    assert main(["encodr", "my_blur", "--package=my_pack"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no kind of plugin is called 'encodr'; nearest: encoder")
    assert (captured.out, captured.err.count("\n"), [*folder.iterdir()]) == ("", 1, [])
