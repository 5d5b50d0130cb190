"""The program's own part: flags to a mode, errors to one line, signals to exit codes."""

import inspect
import os
import pkgutil
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from diffenc import registry
from diffenc.cli import run, run_mode
from diffenc.config import gin_loader, serialize
from diffenc.errors import UserError
from diffenc.runtime.signals import Interrupted
from diffenc_plugins.variances import Fitted

GIN = "gin/quickstart.gin"


@pytest.fixture
def called(monkeypatch):
    """What was performed, in place of each mode; an exception in it is raised by them."""
    calls: list = []
    names = {mode: name for name, mode in run.MODES.items()}

    def stand_in(mode, experiment, workdir):
        if calls and isinstance(calls[-1], BaseException):
            raise calls[-1]
        calls.append((names[mode], experiment, workdir))

    monkeypatch.setattr(run.Mode, "perform", stand_in)
    return calls


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Runs the program with flags, in an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFENC_DATA", "before")
    flags.FLAGS.mark_as_parsed()

    def make(*arguments, **values) -> int:
        with flagsaver.flagsaver(**values):
            try:
                run.run(["diffenc", *arguments])
            except SystemExit as leaving:
                return leaving.code if isinstance(leaving.code, int) else -1
        return 0

    return make


@pytest.mark.parametrize("mode", ["train", "evaluate", "sample"])
def test_the_mode_is_performed_on_what_the_flags_describe(called, go, mode):
    assert go(gin_file=[GIN], gin_bindings=["Experiment.seed = 3"], workdir="there", mode=mode) == 0
    ((name, experiment, workdir),) = called
    assert (name, experiment.seed, workdir) == (mode, 3, "there")


def test_training_is_what_is_done_unless_told(called, go):
    assert go(gin_file=[GIN]) == 0
    assert called[0][0] == "train"


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        (["gin/quickstart.gin"], "runs/quickstart"),
        (["deep/er/my.run.gin"], "runs/my.run"),
        (["gin/cifar10_vdmv_8.gin", "gin/learned_endpoints.gin"], "runs/cifar10_vdmv_8+learned_endpoints"),
        (["old/run/config.gin"], "old/run"),
        (["old/run/config.gin", "more.gin"], "old/run"),
    ],
)
def test_where_a_run_lives_unless_told(files, folder):
    assert run_mode.default_workdir(files) == Path(folder)


def test_the_default_workdir_is_used(called, go):
    go(gin_file=[GIN])
    assert called[0][2] == Path("runs/quickstart")


def test_the_data_folder_reaches_the_data_sets(called, go):
    go(gin_file=[GIN])
    assert os.environ["DIFFENC_DATA"] == "before"
    go(gin_file=[GIN], data_dir="data")
    assert os.environ["DIFFENC_DATA"] == str(Path.cwd() / "data")


def test_the_list_has_every_plugin_with_its_first_doc_line(go, capsys):
    assert go(list=True) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{kind}.{name}" for kind, plugins in registry.REGISTRIES.items() for name in plugins]
    assert [line.split()[0] for line in lines] == names
    assert {"encoder.trainable", "dataset.digits", "schedule.linear", "network.unet"} <= set(names)
    for line, name in zip(lines, names, strict=True):
        kind, _, short = name.partition(".")
        first = (registry.REGISTRIES[kind][short].__doc__ or "").strip().splitlines()[0]
        assert line.split(maxsplit=1)[1] == first


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_what_is_compiled_is_kept_in_every_mode(called, go, monkeypatch, mode):
    before: list[int] = []
    monkeypatch.setattr(run_mode, "enable_cache", lambda: before.append(len(called)))
    assert go(gin_file=[GIN], mode=mode) == 0
    assert before == [0], "once, before anything is performed"


@pytest.mark.parametrize(
    ("mode", "where"),
    [("evaluate", "evaluate"), ("fit_variance", "evaluate"), ("sample", "sample"), ("fid", "sample")],
)
def test_steps_is_the_depth(called, go, mode, where):
    assert go(gin_file=[GIN], mode=mode, num_timesteps=9) == 0
    experiment = called[0][1]
    depths = {"evaluate": experiment.evaluate.num_timesteps, "sample": experiment.sample.num_timesteps}
    assert depths == {"evaluate": None, "sample": 250} | {where: 9}


def test_the_depth_comes_before_what_needs_it(called, go):
    bindings = ["evaluate.variance = @variance.fitted()"]
    assert go(gin_file=[GIN], mode="evaluate", num_timesteps=9, gin_bindings=bindings) == 0
    assert called[0][1].evaluate.variance == Fitted()


def test_a_machine_to_plan_for(called, go):
    assert go(gin_file=[GIN], mode="plan", topology="v5e:4x8", quick=True) == 0
    settings = called[0][1].plan
    assert (settings.topology, settings.quick) == ("v5e:4x8", True)


def test_x64_is_asked_for(called, go):
    assert go(gin_file=[GIN], mode="evaluate") == 0
    assert not jax.config.read("jax_enable_x64")
    try:
        assert go(gin_file=[GIN], mode="evaluate", x64=True) == 0
        assert jax.config.read("jax_enable_x64")
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_timesteps": 9, "gin_file": [GIN]}, "--num_timesteps is not for --mode=train"),
        ({"topology": "v5e:4x8", "gin_file": [GIN]}, "--topology and --quick are for --mode=plan"),
        *(
            (
                {"num_timesteps": 9, "mode": mode, "gin_file": [GIN]},
                f"--num_timesteps is not for --mode={mode}, which is of continuous time",
            )
            for mode in ("fit_ode", "fit_stochasticity")
        ),
        ({"x64": True, "gin_file": [GIN]}, "--x64 is not for --mode=train"),
        (
            {"x64": True, "mode": "evaluate", "gin_file": [GIN], "gin_bindings": ["PRECISION = 'bfloat16'"]},
            "--x64 is for networks in full precision: bind their precision to 'float32'",
        ),
        (
            {"num_timesteps": 9, "mode": "plan", "gin_file": [GIN]},
            "--num_timesteps is not for --mode=plan: it is T",
        ),
        (
            {"num_timesteps": 0, "mode": "evaluate", "gin_file": [GIN]},
            "--num_timesteps=0: must be at least 1",
        ),
        (
            {"mode": "evalute", "gin_file": [GIN]},
            "--mode=evalute: no such mode; nearest: evaluate; modes: train, ",
        ),
        ({"mode": "exprot", "gin_file": [GIN]}, "--mode=exprot: no such mode; nearest: export"),
        ({}, "no --gin_file given; for example --gin_file=gin/quickstart.gin"),
        ({"gin_file": ["gin/quickstrt.gin"]}, "gin/quickstrt.gin: no such file; nearest: gin/quickstart.gin"),
    ],
)
def test_a_mistake_is_one_line(called, go, capsys, values, message):
    assert go(**values) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert called == []


@pytest.fixture
def stranger(tmp_path, go, loud_unimported):
    """A workdir whose config imports a module of the current folder, which leaves a trace if it runs."""
    (tmp_path / "loud.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "theirs").mkdir()
    text = serialize.config_text(gin_loader.load_experiment([GIN], []))
    (tmp_path / "theirs" / "config.gin").write_text(f"import loud\n{text}")
    return tmp_path / "ran"


@pytest.mark.parametrize("mode", sorted(run.MODES))
def test_the_workdir_of_a_stranger_runs_no_code(called, go, stranger, monkeypatch, capsys, mode):
    monkeypatch.syspath_prepend(str(stranger.parent))
    assert go(workdir="theirs", mode=mode) == 1
    assert not stranger.exists()
    err = capsys.readouterr().err
    assert "error: theirs/config.gin:1: imports loud, and so would run code" in err
    assert "--allow_imports=loud" in err
    assert called == []


def test_the_workdir_of_a_stranger_runs_what_is_allowed(called, go, stranger, monkeypatch):
    monkeypatch.syspath_prepend(str(stranger.parent))
    assert go(workdir="theirs", mode="evaluate", allow_imports=["loud"]) == 0
    assert stranger.exists()
    assert called[0][2] == "theirs"


def test_a_home_folder_is_expanded_in_every_flag(called, go, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.gin").write_text(f"include '{GIN}'\n")
    assert go(gin_file=["~/own.gin"], workdir="~/there", data_dir="~/data") == 0
    assert (called[0][2], os.environ["DIFFENC_DATA"]) == (str(tmp_path / "there"), str(tmp_path / "data"))


@pytest.mark.parametrize("flag", ["workdir", "data_dir"])
@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
def test_a_path_that_cannot_be_is_one_line(called, go, capsys, flag, path):
    assert go(gin_file=[GIN], **{flag: path}) == 1
    assert capsys.readouterr().err.startswith(f"error: --{flag}")
    assert called == []


def test_a_word_that_is_no_flag_is_refused(called, go, capsys):
    """A second file, or part of a binding without quotes, would otherwise be dropped silently."""
    assert go("gin/learned_endpoints.gin", gin_file=[GIN]) == 1
    assert capsys.readouterr().err.startswith("error: 'gin/learned_endpoints.gin' is no flag")
    assert called == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("two\n  lines"), 1, "error: two lines\n"),
        (
            OSError(28, "No space left on device", "/disk/file"),
            1,
            "error: No space left on device: /disk/file\n",
        ),
        (OSError("odd"), 1, "error: odd\n"),
        (Interrupted(signal.SIGTERM), 143, ""),
        (Interrupted(signal.SIGINT), 130, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_ends_a_mode_ends_the_program(called, go, capsys, error, status, message):
    called.append(error)
    assert go(gin_file=[GIN]) == status
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize("mode", run.MODES.values(), ids=run.MODES)
def test_every_mode_names_a_function(mode):
    parameters = inspect.signature(pkgutil.resolve_name(mode.function)).parameters
    assert list(parameters)[:2] == ["experiment", "workdir"]


def test_several_names_are_described_in_one_call(go, capsys):
    assert go(describe=["evaluate", "encoder.trainable"]) == 0
    out = capsys.readouterr().out
    assert out.index("\nevaluate.passes ") < out.index("\nencoder.trainable\n")


def test_a_defect_keeps_its_traceback(called, go):
    called.append(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        go(gin_file=[GIN])


def test_help_lists_every_mode_and_flag_and_leaves_with_success(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diffenc.run", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, mode in run.MODES.items():
        assert re.search(rf"^  {name} +{re.escape(mode.summary)}$", done.stdout, re.MULTILINE)
    own = flags.FLAGS.get_flags_for_module("diffenc.cli.run")
    assert len(own) >= 12
    for flag in own:
        assert re.search(rf"^  --(\[no\])?{flag.name}: ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
