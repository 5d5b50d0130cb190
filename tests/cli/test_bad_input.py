"""Whatever a user gets wrong: one line on standard error, a status other than 0, nothing written or lost."""

import json
import os
import re
import shutil
import struct
from pathlib import Path

import pytest

from diffenc.data.prepare import PrepareArgs, prepare

SLOW = pytest.mark.slow


@pytest.fixture(scope="session")
def trained(start, tiny, tmp_path_factory) -> Path:
    """The workdir of a finished run of 6 steps; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    child = start([f"--gin_file={tiny}", "--workdir=run", bind("Experiment.steps = 6"), NEITHER], cwd=folder)
    assert child.wait() == 0, child.err
    return folder / "run"


@pytest.fixture(scope="session")
def of_learned_ends(start, tiny, tmp_path_factory) -> Path:
    """The workdir of a finished run of 1 step with learned end points; to be copied."""
    folder = tmp_path_factory.mktemp("other")
    other = [bind("Model.schedule = @schedule.learned_endpoints()"), bind("Experiment.steps = 1"), NEITHER]
    child = start([f"--gin_file={tiny}", "--workdir=other", *other], cwd=folder)
    assert child.wait() == 0, child.err
    return folder / "other"


def bind(text: str) -> str:
    return f"--gin_bindings={text}"


NEITHER = bind("Experiment.evaluate_every = 0\nExperiment.sample_every = 0")


@pytest.fixture
def place(tmp_path, trained, tiny) -> Path:
    """Where the program is run: beside a run, a file, a folder of data and a gin file of one's own."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "data").mkdir()
    (tmp_path / "typo.gin").write_text(f"include '{tiny}'\nExperiment.seeed = 1\n")
    (tmp_path / "odd.gin").write_text("Experiment.seed =\n")
    return tmp_path


@pytest.fixture
def fails(start, tiny, place):
    """Runs the program on `tiny` and the flags; checks what holds of every mistake; returns its message."""

    def make(*flags: str, gin_file: object = tiny, **settings) -> str:
        before = _everything(place)
        own = [] if gin_file is None else [f"--gin_file={gin_file}"]
        child = start([*own, *flags], cwd=place, **settings)
        assert child.wait() == 1, child.err
        assert "Traceback" not in child.err
        told = [line for line in child.err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
        assert len(told) == 1, child.err
        assert child.err.splitlines()[-1] == told[0], "the error comes last"
        assert child.out == ""
        assert _everything(place) == before
        assert told[0].startswith("error: ")
        return told[0].removeprefix("error: ")

    return make


def _everything(folder: Path) -> dict[str, bytes | None]:
    """All that is there, byte for byte; None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


# What is typed

ELSEWHERE = "--workdir=new"  # would be made if anything went on


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [bind("Experiment.stepss = 3")],
            "--gin_bindings: Experiment has no field 'stepss'; nearest: Experiment.steps",
        ),
        ([bind("Experimnt.steps = 3")], "--gin_bindings: nothing is called 'Experimnt'; nearest: Experiment"),
        (
            [bind("Model.encoder = @encoder.trainble()")],
            "--gin_bindings: no encoder is called 'trainble'; nearest: encoder.trainable",
        ),
        pytest.param(
            [bind("Experiment.dataset = @dataset.digit()")],
            "--gin_bindings: no dataset is called 'digit'; nearest: dataset.digits",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [bind("network.unet.blocks = 2")],
            "network.unet is not used in this experiment",
            marks=pytest.mark.slow,
        ),
        ([bind("Experiment.steps = 'many'")], "--gin_bindings: Experiment.steps = 'many': expected int"),
        pytest.param(
            [bind("optimizer.adamw.learning_rate = 'fast'")],
            "learning_rate = 'fast': expected float",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [bind("Experiment.steps = 2.5")], "Experiment.steps = 2.5: expected int", marks=pytest.mark.slow
        ),
        ([bind("Model.encoder = 3")], "Model.encoder = 3: expected @encoder.NAME()"),
        pytest.param(
            [bind("Experiment.steps = 0")], "Experiment.steps = 0: must be at least 1", marks=pytest.mark.slow
        ),
        ([bind("Experiment.ema_decay = 1.0")], "Experiment.ema_decay = 1.0: must be in [0, 1)"),
        pytest.param(
            [bind("evaluate.split = 'tst'")],
            "evaluate.split = 'tst': must be one of train, validation, test",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [bind("evaluate.split = 'validation'")],
            "dataset.digits.validation = 0: there is no validation split",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [bind("dataset.digits.validation = 1498")],
            "must be less than the 1498 images of train",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [bind("LOG_SNR_MAX = -6.0")],
            "log_snr_max = -6.0 must be greater than log_snr_min = -5.0",
            marks=pytest.mark.slow,
        ),
        ([bind("LOG_SNR_MAX = -5.0")], "log_snr_max = -5.0 must be greater than log_snr_min = -5.0"),
        pytest.param(
            [bind("schedule.linear.log_snr_min = 9.0")],
            "log_snr_max = 8.0 must be greater than log_snr_min = 9.0",
            marks=pytest.mark.slow,
        ),
        (["--mode=tran"], "--mode=tran: no such mode; nearest: train; modes: train, evaluate, sample"),
        pytest.param(["--mode=exprot"], "--mode=exprot: no such mode", marks=pytest.mark.slow),
        (["more.gin"], "'more.gin' is no flag"),
        (["--num_timesteps=9"], "--num_timesteps is not for --mode=train: it is T"),
        pytest.param(["--x64"], "--x64 is not for --mode=train", marks=pytest.mark.slow),
        pytest.param(
            ["--mode=likelihood", "--num_timesteps=9"],
            "--num_timesteps is not for --mode=likelihood",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--mode=evaluate", "--num_timesteps=0"],
            "--num_timesteps=0: must be at least 1",
            marks=pytest.mark.slow,
        ),
        ([bind("evaluate.variance = @variance.fitted()")], "evaluate.variance needs discrete time"),
        pytest.param(
            [bind("evaluate.num_timesteps = 5"), bind("evaluate.variance = @variance.fitted()")],
            "evaluate.variance: fits need a trained run",
            marks=pytest.mark.slow,
        ),
        ([bind("sample.sampler = 'dim'")], "sample.sampler = 'dim': no such sampler; nearest: ddim"),
        pytest.param([bind("fit.knots = 3")], "fit.knots = 3: must be at least 5", marks=pytest.mark.slow),
    ],
)
def test_what_is_typed_wrongly(fails, flags, message):
    assert message in fails(*flags, ELSEWHERE)


@pytest.mark.parametrize(
    ("gin_file", "message"),
    [
        (None, "no --gin_file given; for example --gin_file=gin/quickstart.gin"),
        ("gin/quikstart.gin", "gin/quikstart.gin: no such file; nearest: gin/quickstart.gin"),
        ("tpyo.gin", "tpyo.gin: no such file; nearest: typo.gin"),
        ("typo.gin", "typo.gin:2: Experiment has no field 'seeed'; nearest: Experiment.seed"),
        ("odd.gin", "odd.gin:1: 'Experiment.seed ='"),
    ],
)
def test_a_file_that_is_not_right(fails, gin_file, message):
    assert message in fails(ELSEWHERE, gin_file=gin_file)


UNET_ENCODER = "encoder.trainable.network = @network.encoder_unet()\nnetwork.encoder_unet.channels = 4"


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ("network.encoder_unet.blocks = 3", "network.encoder_unet.blocks = 3: must be 1 or an even number"),
        pytest.param(
            "network.encoder_unet.blocks = 2\nExperiment.dataset = @dataset.six()",
            "network.encoder_unet pools 2 times by 2, but the image is 6x6: its sides must be multiples of 4",
            marks=pytest.mark.slow,
        ),
        ("network.encoder_unet.groups = 3", "network.encoder_unet.groups = 3 does not divide"),
        pytest.param(
            "network.encoder_unet.dropout = 1.5",
            "network.encoder_unet.dropout = 1.5: must be in [0, 1)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_encoder_that_cannot_be_built(fails, bindings, message):
    assert message in fails(bind(f"{UNET_ENCODER}\n{bindings}"), ELSEWHERE)


def test_a_batch_that_the_devices_cannot_share(fails):
    four = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    message = fails(bind("Experiment.batch_size = 6"), ELSEWHERE, env=four)
    assert message == "Experiment.batch_size = 6 does not divide evenly over 4 devices: take a multiple of 4"
    message = fails(bind("evaluate.batch_size = 6"), ELSEWHERE, env=four)
    assert message == "evaluate.batch_size = 6 does not divide evenly over 4 devices: take a multiple of 4"


# The data


@pytest.mark.parametrize(
    "name", ["mnist", *(pytest.param(name, marks=SLOW) for name in ("cifar10", "imagenet32"))]
)
def test_data_that_are_not_there(fails, place, name):
    message = fails(bind(f"Experiment.dataset = @dataset.{name}()"), "--data_dir=data", ELSEWHERE)
    assert f"python -m diffenc.prepare {name} --source=FILE_OR_DIR --data_dir={place}/data" in message


def _official(folder: Path) -> None:
    """Two gray images a split, in MNIST's four files."""
    folder.mkdir()
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, 2, 28, 28) + b"\7" * 1568
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes(2))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda path: path.unlink(), "No such file", marks=SLOW),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), " bytes, not ", marks=SLOW),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"\7" * 784, b"\6" * 784, 1)), "hash"),
    ],
    ids=["missing", "cut", "flipped"],
)
def test_a_shard_that_is_damaged(fails, place, spoil, message):
    _official(place / "files")
    prepare(PrepareArgs("mnist", place / "files", place / "data"))
    shard = place / "data" / "mnist" / "train-00000-of-00001.array_record"
    spoil(shard)
    told = fails(bind("Experiment.dataset = @dataset.mnist()"), NEITHER, "--data_dir=data", ELSEWHERE)
    assert f"{shard}: is damaged or missing" in told
    assert message in told
    assert f"delete {shard.parent} and prepare it again with python -m diffenc.prepare" in told


@pytest.mark.slow
def test_official_files_that_are_not_prepared(fails, place):
    _official(place / "data" / "mnist")
    told = fails(bind("Experiment.dataset = @dataset.mnist()"), NEITHER, "--data_dir=data", ELSEWHERE)
    assert told.endswith(
        f"python -m diffenc.prepare mnist --source={place}/data/mnist --data_dir={place}/data"
    )


# The workdir


@pytest.mark.parametrize(
    "workdir", ["file/below", *(pytest.param(path, marks=SLOW) for path in ("file", "file/far/below"))]
)
def test_a_workdir_below_a_file(fails, place, workdir):
    told = fails(NEITHER, f"--workdir={workdir}")
    assert told == f"cannot make the folder {workdir}: file is a file; choose another --workdir"


@pytest.mark.parametrize(
    "mode",
    [
        "train",
        pytest.param("evaluate", marks=pytest.mark.slow),
        pytest.param("sample", marks=pytest.mark.slow),
    ],
)
def test_a_workdir_of_another_config(fails, mode):
    told = fails(
        f"--mode={mode}", "--workdir=run", bind("Experiment.seed = 9"), bind("optimizer.adamw.b1 = 0.5")
    )
    assert told == (
        "run holds a run of another config (Experiment.seed: 0 -> 9; optimizer.adamw.b1: 0.9 -> 0.5): choose "
        "another --workdir, or go on with its own config, --gin_file=run/config.gin"
    )


@pytest.mark.parametrize(
    "mode",
    [
        "train",
        pytest.param("evaluate", marks=pytest.mark.slow),
        pytest.param("sample", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_another_run(fails, of_learned_ends, place, mode):
    """Swapped by hand: that of a run of learned end points, whose checkpoint has other parameters."""
    shutil.rmtree(place / "run" / "checkpoints")
    shutil.copytree(of_learned_ends / "checkpoints", place / "run" / "checkpoints")
    told = fails(f"--mode={mode}", "--workdir=run", NEITHER)
    assert told.startswith(
        "checkpoint run/checkpoints/000000001 is of another run than run/run_id, of another config ("
    )
    assert "Model.schedule: @schedule.learned_endpoints() -> @schedule.linear()" in told
    assert told.endswith(
        ": move it to its own workdir; to start a run from its parameters, bind Experiment.init_from"
    )


def test_a_config_changed_by_hand(fails, place):
    """Without a --gin_file, so that it is the config of the run."""
    config = place / "run" / "config.gin"
    config.write_text(re.sub(r"(linear\.log_snr_max = ).*", r"\g<1>9.0", config.read_text()))
    told = fails("--mode=evaluate", "--workdir=run", gin_file=None)
    assert told.startswith(
        "checkpoint run/checkpoints/000000006 was trained with another config (schedule.linear.log_snr_max: "
    )
    assert told.endswith(
        " -> 9.0): undo that in run/config.gin, or start a run in another --workdir from it with Experiment.init_from"
    )


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("nowhere", "nowhere: no checkpoint there"),
        pytest.param("file", "file: no checkpoint there", marks=SLOW),
        pytest.param("run", "is of another architecture: ", marks=SLOW),
        ("run/checkpoints/000000006", "is of another architecture: "),
    ],
)
def test_an_origin_that_does_not_fit(fails, origin, message):
    other = [bind("Model.schedule = @schedule.learned_endpoints()"), NEITHER, ELSEWHERE]
    assert message in fails(*other, bind(f"Experiment.init_from = '{origin}'"))


def test_damaged_checkpoints(fails, place):
    """All of them; if one can be read, the run goes on from it."""
    for meta in place.glob("run/checkpoints/*/META.json"):
        meta.write_text(meta.read_text().replace('"step": ', '"step": 1'))
    assert "run/checkpoints: none of its checkpoints [6] can be read" in fails(NEITHER, "--workdir=run")


@pytest.mark.thin
@pytest.mark.parametrize("mode", ["evaluate", "sample"])
@pytest.mark.parametrize("workdir", ["new", "data", "file"])
def test_no_run_to_measure(fails, mode, workdir):
    told = fails(f"--mode={mode}", f"--workdir={workdir}")
    assert told == f"{workdir} holds no run: train first, or name its --workdir"


@pytest.mark.slow
def test_no_run_in_the_default_workdir(fails):
    assert fails("--mode=evaluate", gin_file="gin/quickstart.gin").startswith("runs/quickstart holds no run")


@pytest.mark.parametrize("mode", ["evaluate", pytest.param("sample", marks=SLOW)])
def test_no_such_checkpoint(fails, mode):
    told = fails(f"--mode={mode}", "--workdir=run", bind(f"{mode}.step = 3"))
    assert told == "run/checkpoints: no checkpoint of step 3; there are [6]"


def test_another_trainer_in_the_workdir(start, tiny, tmp_path):
    flags = [f"--gin_file={tiny}", "--workdir=busy", bind("Experiment.steps = 1_000_000"), NEITHER]
    first = start(flags, cwd=tmp_path)
    assert first.wait_until((tmp_path / "busy" / "metrics.jsonl").exists), first.err
    second = start(flags, cwd=tmp_path)
    assert second.wait() == 1
    (told,) = [line for line in second.err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert told.startswith(f"error: busy is in use by the training process with pid {first.pid};")
    assert first.poll() is None, "the first is not disturbed"
    os.kill(first.pid, 9)
    first.wait()


# The disk, and the numbers


def test_a_disk_that_fills_up_while_training(start, tiny, place):
    """The limit lets everything through but a checkpoint: the run goes on, its last good one stays, and is gone on from."""
    largest = max(path.stat().st_size for path in place.glob("run/checkpoints/**/*") if path.is_file())
    before = {p.name: p.read_bytes() for p in place.glob("run/checkpoints/000000006/*") if p.is_file()}
    flags = [f"--gin_file={tiny}", "--workdir=run", bind("Experiment.steps = 20"), NEITHER]
    child = start(flags, cwd=place, largest_file=largest * 3 // 4)
    assert child.wait() == 1, child.err
    assert "Traceback" not in child.err
    errors = [line for line in child.err.splitlines() if line.startswith("error: ")]
    assert errors == [child.err.splitlines()[-1]]
    refused = "was not saved: could not write run/checkpoints: File too large; free space there"
    assert f"the checkpoint of step 20 {refused}" in errors[0]
    (warned,) = re.findall(r"the checkpoint of step 12 .*", child.err)
    assert warned.startswith(f"the checkpoint of step 12 {refused}")
    assert warned.endswith("the last good checkpoint is of step 6, and the run goes on")
    assert _last_step(place / "run") == 20
    assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["000000006"]
    assert {
        p.name: p.read_bytes() for p in place.glob("run/checkpoints/000000006/*") if p.is_file()
    } == before
    again = start(flags, cwd=place)
    assert again.wait() == 0, again.err
    assert "resuming from step 6 to 20" in again.err
    steps = [json.loads(line)["step"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 6, 8, 12, 16, 20]


def _last_step(workdir: Path) -> int:
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def test_a_disk_that_is_full_from_the_start(start, tiny, place):
    """Not even the config can be written over."""
    before = _everything(place / "run")
    flags = [f"--gin_file={tiny}", "--workdir=run", NEITHER, bind("Experiment.steps = 9")]
    child = start(flags, cwd=place, largest_file=1000)
    assert child.wait() == 1
    told = child.err.splitlines()[-1]
    assert told.startswith("error: could not write run/config.gin: File too large; free space there")
    after = _everything(place / "run")
    assert after.pop(".lock") != before.pop(".lock"), "which tells the last trainer's pid"
    assert after == before


@pytest.mark.slow
def test_a_learning_rate_that_breaks_the_run(start, tiny, tmp_path):
    """For real: adamw at 1e30 after one step of warm-up."""
    rate = bind("optimizer.adamw.learning_rate = 1e30\noptimizer.adamw.warmup_steps = 1")
    often = bind("Experiment.checkpoint_every = 1\nExperiment.log_every = 3")
    child = start([f"--gin_file={tiny}", "--workdir=run", rate, often, NEITHER], cwd=tmp_path)
    assert child.wait() == 1
    (told,) = [line for line in child.err.splitlines() if line.startswith("error: ")]
    assert "became NaN or infinite at step 2; the last good checkpoint is of step 1 in run" in told
    assert "Try a smaller optimizer.adamw.learning_rate" in told
    assert "Traceback" not in child.err
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["000000001"]


# As a user would, through the interpreter


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            [], "error: no --gin_file given; for example --gin_file=gin/quickstart.gin\n", marks=SLOW
        ),
        (["--gin_file=gin/quickstart.gin", "--mode=evaluate"], "error: runs/quickstart holds no run"),
    ],
)
def test_the_command_itself(start_python, tmp_path, flags, message):
    child = start_python(flags, cwd=tmp_path)
    assert child.wait() == 1
    assert child.err.startswith(message)
    assert child.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_list_by_the_command_itself(start_python, tmp_path):
    child = start_python(["--list"], cwd=tmp_path)
    assert child.wait() == 0
    names = [line.split()[0] for line in child.out.splitlines()]
    kinds = [name.split(".")[0] for name in names]
    assert kinds == sorted(kinds, key=list(dict.fromkeys(kinds)).index), "by kind"
    assert {"encoder.identity", "encoder.nontrainable", "encoder.trainable", "schedule.linear",
            "schedule.learned_endpoints", "parameterization.epsilon", "parameterization.v", "parameterization.x",
            "generative_mean.vdm", "generative_mean.counterterm", "network.unet", "network.encoder_unet", "dataset.digits",
            "dataset.mnist", "dataset.cifar10", "dataset.imagenet32"} <= set(names)  # fmt: skip
    assert list(tmp_path.iterdir()) == []
