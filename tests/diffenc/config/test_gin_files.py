"""Where gin files are looked for, what may be in them, and how config.gin records it."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from diffenc.config import gin_files, gin_loader, serialize
from diffenc.errors import UserError
from diffenc.workdir.config_check import write_config

SHIPPED = Path(__file__).parents[3] / "gin"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder, with run files of its own in gin/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gin" / "fragments").mkdir(parents=True)
    (tmp_path / "gin" / "fragments" / "base.gin").write_text("Experiment.steps = 77\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def bound(name):
    """The last value of each binding that a file and its includes make."""
    return {binding.name: binding.value for binding in gin_loader.read_file(name)}


def refusal(name):
    with pytest.raises(UserError) as refused:
        gin_loader.load_experiment([name], [])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_include_does_not_depend_on_the_current_folder(project):
    """A shipped file includes 'gin/fragments/base.gin', and the current folder has one of that name."""
    assert bound("gin/quickstart.gin")["Experiment.steps"] == 1_200
    assert "sample.num_timesteps" in bound("gin/quickstart.gin")
    elsewhere = write(project / "elsewhere" / "own.gin", "include 'gin/fragments/base.gin'\n")
    assert bound(elsewhere).get("Experiment.steps") != 77
    assert "Experiment.model" in bound(elsewhere)


def test_an_include_is_looked_up_beside_the_file_that_it_stands_in(project):
    write(project / "near" / "part.gin", "Experiment.seed = 3\n")
    write(project / "part.gin", "Experiment.seed = 4\n")
    outer = write(project / "near" / "outer.gin", "include 'part.gin'\n")
    assert bound(outer) == {"Experiment.seed": 3}
    assert bound(write(project / "far" / "outer.gin", "include '../near/part.gin'\n")) == {
        "Experiment.seed": 3
    }
    absolute = write(project / "far" / "absolute.gin", f"include '{project}/near/part.gin'\n")
    assert bound(absolute) == {"Experiment.seed": 3}
    lost = refusal(write(project / "far" / "lost.gin", "\ninclude 'part.gin'\n"))
    assert lost.startswith(f"{project}/far/lost.gin:2: part.gin: no such file")
    assert "beside the file that it is in" in lost


def test_a_file_on_the_command_line_that_hides_a_shipped_one_is_said(project, caplog):
    own = write(project / "gin" / "quickstart.gin", "include '../own/copy.gin'\n")
    write(project / "own" / "copy.gin", (SHIPPED / "quickstart.gin").read_text())
    with caplog.at_level("INFO", logger="absl"):
        gin_loader.load_experiment(["gin/quickstart.gin"], [])
    assert (
        f"gin/quickstart.gin is the file {Path('gin/quickstart.gin')}, not the one that comes with"
        in caplog.text
    )
    assert os.path.samefile(own, "gin/quickstart.gin")


def test_what_was_read_from_where_is_in_the_header_and_changes_nothing(project, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(project))
    own = write(project / "mine" / "run.gin", "include 'gin/quickstart.gin'\nExperiment.seed = 5\n")
    with caplog.at_level("INFO", logger="absl"):
        experiment = gin_loader.load_experiment([own], [])
        text = serialize.config_text(experiment)
        write_config(experiment, project, text)
    assert "not the one that comes with" not in caplog.text, "a whole path names no other file"
    written = (project / "config.gin").read_text()
    digest = hashlib.sha256(Path(own).read_bytes()).hexdigest()[:12]
    shipped = hashlib.sha256((SHIPPED / "quickstart.gin").read_bytes()).hexdigest()[:12]
    header = [line for line in written.splitlines() if line.startswith("#")]
    assert header[0].endswith(f"(~/mine/run.gin; SHA-256 {digest})")
    assert header[1] == f"# Read from gin/quickstart.gin (comes with diffenc; SHA-256 {shipped})"
    assert len(header) == 4, "and the two that quickstart includes"
    assert all(f"config: {line.removeprefix('# ')}" in caplog.text for line in header), "and in the log"
    assert written.endswith(text)
    assert text.count("#") == 0
    assert serialize.find_differences(written, text) == []
    assert serialize.hparams(written) == serialize.hparams(text)


def test_a_run_that_goes_on_keeps_its_header(project):
    experiment = gin_loader.load_experiment(["gin/quickstart.gin"], [])
    write_config(experiment, project, serialize.config_text(experiment))
    header = (project / "config.gin").read_text()
    again = gin_loader.load_experiment([str(project / "config.gin")], [])
    assert again == experiment
    write_config(again, project, serialize.config_text(again))
    assert (project / "config.gin").read_text() == header
    made_by_python = gin_loader.load_untrusted(header, "x", lambda module: True)
    assert made_by_python.read_from == ()
    write_config(made_by_python, project, serialize.config_text(experiment))
    assert (project / "config.gin").read_text() == header


def test_a_header_of_somebody_else_stays_within_bounds():
    lines = [
        "# Read from \x1b[31mhere",
        "# Read from " + "x" * 10_000,
        "# Read from here",
        "# something else",
    ]
    assert gin_files.records_in("\n".join(lines)) == ("Read from here",)


def test_a_byte_order_mark_and_other_line_ends_are_accepted(tmp_path):
    path = tmp_path / "windows.gin"
    path.write_bytes(b"\xef\xbb\xbfExperiment.seed = 3\r\nExperiment.steps = 4\r\n")
    assert bound(str(path)) == {"Experiment.seed": 3, "Experiment.steps": 4}


def test_a_pipe_is_read_once(tmp_path):
    """What a shell makes of <(...)."""
    text = b"include 'gin/quickstart.gin'\nExperiment.seed = 9\n"
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, text), os.close(writing)))
    writer.start()
    experiment = gin_loader.load_experiment([f"/dev/fd/{reading}"], [])
    writer.join()
    os.close(reading)
    assert experiment.seed == 9
    digest = hashlib.sha256(text).hexdigest()[:12]
    assert experiment.read_from[0] == f"Read from /dev/fd/{reading} (a pipe; SHA-256 {digest})"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a folder; name a gin file, as "),
        (
            "Experiment.seed = 1\n".encode("utf-16"),
            "cannot be read: is no UTF-8 text (invalid start byte at byte 0)",
        ),
        (b"Experiment.seed = \x00\n", "cannot be read: is no text, for it has a NUL character"),
        (b"#" * (1 << 20) + b"\n", "has more than 1,048,576 bytes: that is no config"),
    ],
)
def test_what_is_no_gin_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "odd.gin"
    path.mkdir() if content is None else path.write_bytes(content)
    assert refusal(str(path)).startswith(f"{path}: {message}")


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800.gin"])
def test_a_name_that_no_file_can_have_is_one_line(name):
    with pytest.raises(UserError, match=r"^--gin_file"):
        gin_loader.load_experiment([name], [])


def test_a_home_folder_is_expanded(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project / "home"))
    write(project / "home" / "mine.gin", "Experiment.seed = 8\n")
    assert bound("~/mine.gin") == {"Experiment.seed": 8}
    assert bound(write(project / "outer.gin", "include '~/mine.gin'\n")) == {"Experiment.seed": 8}


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "(" * 2000 + ")" * 2000, "-" * 100_000 + "1"])
def test_values_nested_too_deeply_are_one_line(tmp_path, value):
    path = write(tmp_path / "deep.gin", f"network.unet.fourier_powers = {value}\n")
    assert refusal(path).startswith(f"{path}")


def test_macros_nested_too_deeply_are_one_line(tmp_path):
    chain = "".join(f"M{i} = %M{i + 1}\n" for i in range(3000))
    path = write(
        tmp_path / "deep.gin", f"include 'gin/quickstart.gin'\n{chain}M3000 = 1\nExperiment.seed = %M0\n"
    )
    assert "nested too deeply" in refusal(path)
