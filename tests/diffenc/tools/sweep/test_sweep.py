"""A sweep with a stand-in for diffenc.run, which leaves behind what a run leaves behind and keeps a list of its calls."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffenc.errors import UserError
from diffenc.tools.sweep import execution, runs
from diffenc.tools.sweep.sweep import parse_seeds
from diffenc.tools.sweep.variants import Variant

ROOT = Path(__file__).parents[4]

STAND_IN = """
import json, os, sys, time
flags = [argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:]]
mode, workdir = dict(flags)["mode"], dict(flags)["workdir"]
bound = dict(value.split(" = ") for name, value in flags if name == "gin_bindings")
with open("calls", "a") as calls:
    calls.write(f"{mode} {workdir.removeprefix(os.getcwd() + '/')}\\n")
print("started", flush=True)
if os.path.exists("hang"):
    time.sleep(600)
if os.path.exists("refuse") and "seed_1" in workdir and "blocks=2" in workdir:
    sys.exit("error: the disk is full")
if mode == "train":
    folder = f"{workdir}/checkpoints/{int(bound['Experiment.steps']):09d}"
    os.makedirs(folder)
    open(folder + "/META.json", "w").close()
else:
    record = {
        "bpd": 2.0, "T": "continuous", "dataset": "d", "fingerprint": "f", "split": "test", "num_images": 7, "passes": int(bound["evaluate.passes"]),
        "times_per_image": 1, "batch_size": 8, "seed": 0, "time_sampler": "uniform",
        "precision": "float32", "step": int(bound["Experiment.steps"]),
    }
    with open(workdir + "/evaluation.json", "w") as file:
        json.dump(record, file)
"""

# The program in a process of its own, with the stand-in.
PROGRAM = """
import sys
from diffenc.cli import sweep
from diffenc.tools.sweep import runs
runs.PROGRAM = (sys.executable, "-S", sys.argv[1])
sys.exit(sweep.main(sys.argv[2:]))
"""

BINDINGS = ("Experiment.batch_size = 8", "evaluate.num_images = 7", "Experiment.steps = 5")


def variants(passes: int = 2) -> list[Variant]:
    bindings = (*BINDINGS, f"evaluate.passes = {passes}")
    return [
        Variant(
            f"blocks={blocks}",
            ("gin/quickstart.gin",),
            (*bindings, f"network.encoder_unet.blocks = {blocks}"),
        )
        for blocks in (1, 2)
    ]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What the stand-in was called for, in order."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, "-S", str(tmp_path / "stand_in.py")))
    monkeypatch.chdir(tmp_path)

    def read() -> list[str]:
        file = tmp_path / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    return read


def test_each_run_is_trained_and_evaluated_and_all_variants_of_a_seed_before_the_next(calls):
    made = execution.run_sweep(Path("s"), variants(), [0, 1])
    order = [f"s/blocks={blocks}/seed_{seed}" for seed in (0, 1) for blocks in (1, 2)]
    assert calls() == [f"{mode} {run}" for run in order for mode in ("train", "evaluate")]
    assert [str(run.workdir) for run in made] == order


def test_a_second_call_runs_nothing_and_a_new_seed_alone_is_run(calls):
    execution.run_sweep(Path("s"), variants(), [0])
    calls()
    execution.run_sweep(Path("s"), variants(), [0])
    assert calls() == []
    execution.run_sweep(Path("s"), variants()[:1], [0, 3])
    assert calls() == ["train s/blocks=1/seed_3", "evaluate s/blocks=1/seed_3"]


def test_other_passes_are_evaluated_without_training_again(calls):
    execution.run_sweep(Path("s"), variants(), [0])
    calls()
    execution.run_sweep(Path("s"), variants(passes=3), [0])
    assert calls() == ["evaluate s/blocks=1/seed_0", "evaluate s/blocks=2/seed_0"]


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(calls):
    Path("refuse").touch()
    with pytest.raises(UserError, match=r"1 of 4 runs failed.*blocks=2/seed_1: the disk is full"):
        execution.require_done(execution.run_sweep(Path("s"), variants(), [1, 2]))
    assert len(calls()) == 3 * 2 + 1
    Path("refuse").unlink()
    execution.require_done(execution.run_sweep(Path("s"), variants(), [1, 2]))
    assert calls() == ["train s/blocks=2/seed_1", "evaluate s/blocks=2/seed_1"]


def test_a_config_at_fault_is_told_before_anything_runs(calls):
    bad = Variant("bad", ("gin/quickstart.gin",), ("network.encoder_unet.blocks = 3",))
    with pytest.raises(UserError, match=r"bad: .*blocks = 3"):
        execution.run_sweep(Path("s"), [*variants(), bad], [0])
    with pytest.raises(UserError, match="--seeds"):
        execution.run_sweep(
            Path("s"), [Variant("seeded", ("gin/quickstart.gin",), ("Experiment.seed = 1",))], [0]
        )
    assert calls() == []
    assert not Path("s").exists()


def test_a_damaged_record_is_named(calls):
    run = execution.run_sweep(Path("s"), variants()[:1], [0])[0]
    (run.workdir / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"s/blocks=1/seed_0/evaluation\.json: is not valid JSON"):
        execution.run_sweep(Path("s"), variants()[:1], [0])


def test_a_record_with_a_changed_digit_is_left_out_and_measured_again(calls, write_record):
    run = execution.run_sweep(Path("s"), variants()[:1], [0])[0]
    calls()
    file = run.workdir / "evaluation.json"
    write_record(file, json.loads(file.read_text()))
    assert runs.is_evaluated(run)
    file.write_text(file.read_text().replace('"bpd": 2.0', '"bpd": 1.0'))
    (found,) = execution.run_sweep(Path("s"), variants()[:1], [0])
    assert calls() == ["evaluate s/blocks=1/seed_0"]
    assert json.loads(file.read_text())["bpd"] == 2.0
    assert runs.is_evaluated(found)


def test_an_evaluation_on_another_path_is_not_that_of_the_config(calls, write_record):
    variant = variants()[0]
    path = "evaluate.stochasticity = @stochasticity.nontrainable()"
    (own,) = execution.run_sweep(Path("s"), [variant], [0])
    (other,) = runs.make_runs(
        Path("s"), [dataclasses.replace(variant, bindings=(*variant.bindings, path))], [0]
    )
    assert own.workdir == other.workdir
    assert [runs.is_evaluated(run) for run in (own, other)] == [True, False]
    file = own.workdir / "evaluation.json"
    write_record(file, json.loads(file.read_text()) | {"measured_path": "nontrainable"})
    assert [runs.is_evaluated(run) for run in (own, other)] == [False, True]


def start(tmp_path: Path) -> subprocess.Popen:
    flags = [f"--gin_bindings={text}" for text in (*BINDINGS, "evaluate.passes = 2")]
    grid = "--grid=network.encoder_unet.blocks = [1, 2]"
    own = ["--gin_file=gin/quickstart.gin", *flags, grid, "--seeds=1", "--output=s"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "stand_in.py"), *own],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def test_the_program_is_alone_in_its_folder_stops_on_a_signal_and_goes_on(calls, tmp_path):
    (tmp_path / "hang").touch()
    program = start(tmp_path)
    log = tmp_path / "s/blocks=1/seed_0.log"
    while not (log.exists() and log.read_text()):
        assert program.poll() is None
        time.sleep(0.02)
    with pytest.raises(UserError, match=rf"in use .* {program.pid}; .* another --output"):
        execution.run_sweep(Path("s"), variants(), [0])
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 128 + signal.SIGTERM
    assert program.stderr is not None
    assert "the same command goes on" in program.stderr.read()
    assert calls() == ["train s/blocks=1/seed_0"]
    (tmp_path / "hang").unlink()
    execution.run_sweep(Path("s"), variants(), [0])
    assert len(calls()) == 4
    assert json.loads((tmp_path / "s/blocks=2/seed_0/evaluation.json").read_text())["step"] == 5


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("4,2", [4, 2]), ("7,", [7])])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "", "a", "1,1", "-1,2", "4294967296,"])
def test_seeds_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_a_run_of_another_config_is_not_taken_for_one_that_is_done(calls):
    made = execution.run_sweep(Path("s"), variants()[:1], [0])[0]
    (made.workdir / "config.gin").write_text("Experiment.batch_size = 9\n")
    calls()
    with pytest.raises(
        UserError, match=r"s/blocks=1/seed_0 holds a run of another config .*batch_size: 9 -> 8"
    ):
        execution.run_sweep(Path("s"), variants()[:1], [0])
    assert calls() == []


@pytest.mark.parametrize(("mode", "bound"), [("evaluate", ["evaluate.step = 5"]), ("train", [])])
def test_the_step_measured_is_the_one_asked_for_also_of_a_run_trained_for_longer(calls, mode, bound):
    (run,) = runs.make_runs(Path("s"), variants()[:1], [0])
    said = [argument.removeprefix("--gin_bindings=") for argument in run.command(mode)]
    assert [text for text in said if ".step = " in text] == bound
