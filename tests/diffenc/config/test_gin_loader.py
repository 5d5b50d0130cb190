import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gin
import pytest

from diffenc import registry
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.gin_files import find_file, shipped_files
from diffenc.config.settings import Evaluate, Sample
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.interfaces import Network

ROOT = Path(__file__).parents[3]

SMALL = """
HIGH = 9
Experiment.model = @Model()
Experiment.dataset = @dataset.digits()
Experiment.optimizer = @optimizer.adamw()
Model.encoder = @encoder.trainable()
Model.schedule = @schedule.linear()
Model.parameterization = @parameterization.v()
Model.generative_mean = @generative_mean.counterterm()
Model.network = @network.unet()
encoder.trainable.network = @network.encoder_unet()
schedule.linear.log_snr_max = %HIGH
network.encoder_unet.log_snr_max = %HIGH
network.unet:
    log_snr_max = %HIGH
    blocks = 2
    channels = 16
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.gin"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture
def scratch_networks(monkeypatch):
    """The networks' registry, as it was again after the test."""
    monkeypatch.setattr(registry.networks, "_classes", dict(registry.networks._classes))
    return registry.networks


def refused(files, bindings):
    with pytest.raises(UserError) as error:
        gin_loader.load_experiment(files, bindings)
    message = str(error.value)
    assert "\n" not in message
    return message


def load(files, bindings) -> Any:
    return gin_loader.load_experiment(files, bindings)


def test_a_file_makes_plain_objects(small):
    experiment = load([small], [])
    unet: Any = registry.networks["unet"]
    assert [type(part) for part in (experiment, experiment.model)] == [Experiment, Model]
    assert registry.encoders.name_of(type(experiment.model.encoder)) == "trainable"
    assert experiment.model.network == unet(blocks=2, channels=16, log_snr_max=9.0)
    assert experiment.model.schedule.log_snr_max == 9.0
    assert type(experiment.model.schedule.log_snr_max) is float
    assert experiment.evaluate == Evaluate()
    assert experiment.sample == Sample()
    assert pickle.loads(pickle.dumps(experiment)) == experiment


def test_files_stack_and_the_command_line_has_the_last_word(small, tmp_path):
    more = tmp_path / "more.gin"
    more.write_text("Experiment.steps = 7\nExperiment.seed = 3\nsample.num_timesteps = 5\n")
    experiment = load([small, str(more)], ["Experiment.steps = 9\nHIGH = 8", "evaluate.passes = 2"])
    assert (experiment.steps, experiment.seed, experiment.sample.num_timesteps) == (9, 3, 5)
    assert experiment.evaluate.passes == 2
    assert experiment.model.schedule.log_snr_max == experiment.model.network.log_snr_max == 8.0


def test_nothing_is_left_of_an_earlier_load(small):
    assert gin_loader.load_experiment([small], ["Experiment.seed = 4"]).seed == 4
    assert gin_loader.load_experiment([small], []).seed == 0
    gin.finalize()  # a locked configuration is no obstacle either
    assert gin_loader.load_experiment([small], ["Experiment.seed = 5"]).seed == 5


def test_a_plugin_registered_after_a_load_is_known_to_the_next(small, scratch_networks):
    gin_loader.load_experiment([small], [])

    @scratch_networks.register("late")
    @dataclasses.dataclass(frozen=True)
    class Late(registry.networks["unet"]):
        inner: tuple[Network, ...] = ()

    bindings = [
        "Model.network = @network.late()",
        "network.late.inner = [@network.unet(), @a/network.unet()]",
    ]
    late = load([small], [*bindings, "a/network.unet.blocks = 5"]).model.network
    assert registry.networks.name_of(type(late)) == "late"
    assert [inner.blocks for inner in late.inner] == [2, 5]
    assert type(late.inner) is tuple


def test_a_file_can_import_the_module_that_holds_a_plugin(small, tmp_path, monkeypatch, scratch_networks):
    (tmp_path / "imported_pack.py").write_text(
        "import dataclasses\n"
        "from diffenc import registry\n"
        "@registry.networks.register('imported')\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Imported(registry.networks['unet']): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = gin_loader.load_experiment(
        [small], ["import imported_pack", "Model.network = @network.imported()"]
    ).model
    assert type(model.network).__module__ == "imported_pack"
    message = refused([small], ["import imported_pock"])
    assert message.startswith("--gin_bindings: import imported_pock failed: ModuleNotFoundError")


def test_scopes_keep_two_of_a_class_apart(small):
    bindings = ["Model.network = @score/network.unet()", "encoder.trainable.network = @network.unet()"]
    model = load([small], [*bindings, "score/network.unet.blocks = 4"]).model
    assert (model.network.blocks, model.network.channels) == (4, 16)
    assert model.encoder.network.blocks == 2


def test_files_are_found_where_they_are_or_among_those_that_come_along(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("small.gin") == Path(small)
    assert find_file("gin/quickstart.gin") == ROOT / "gin" / "quickstart.gin"
    assert find_file("gin/fragments/base.gin") == ROOT / "gin" / "fragments" / "base.gin"
    (tmp_path / "gin").mkdir()
    own = tmp_path / "gin" / "quickstart.gin"
    own.write_text(f"include '{small}'\nExperiment.seed = 11\n")
    assert gin_loader.load_experiment(["gin/quickstart.gin"], []).seed == 11
    assert "gin/quickstart.gin" in shipped_files()


def test_run_files_of_an_installed_copy_are_found(tmp_path):
    site = tmp_path / "site"
    for source, target in (("diffenc", "diffenc"), ("plugins", "diffenc_plugins"), ("gin", "diffenc_gin")):
        shutil.copytree(ROOT / source, site / target, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import diffenc; from diffenc.config.gin_files import find_file;"
        "print(find_file('gin/quickstart.gin')); print(diffenc.load_experiment('gin/quickstart.gin').steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    found, steps = done.stdout.split()
    assert found == str(site / "diffenc_gin" / "quickstart.gin")
    assert int(steps) > 0


def test_a_file_that_is_not_there_is_answered_with_the_nearest(small, tmp_path):
    assert (
        refused(["gin/quikstart.gin"], []) == "gin/quikstart.gin: no such file; nearest: gin/quickstart.gin"
    )
    typo = str(tmp_path / "smal.gin")
    assert refused([typo], []) == f"{typo}: no such file; nearest: {small}"
    (tmp_path / "outer.gin").write_text("\ninclude 'gin/fragments/bse.gin'\n")
    message = refused([str(tmp_path / "outer.gin")], [])
    assert message.startswith(f"{tmp_path}/outer.gin:2: gin/fragments/bse.gin: no such file")


def test_files_that_are_no_text_or_include_themselves_are_refused(tmp_path):
    binary, circle = tmp_path / "binary.gin", tmp_path / "circle.gin"
    binary.write_bytes(b"\xff\xfe\x00")
    circle.write_text(f"include '{circle}'\n")
    assert refused([str(binary)], []).startswith(f"{binary}: cannot be read: ")
    assert refused([str(circle)], []) == f"{circle}:1: {circle}: the file includes itself"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Experiment.steps = ", "'Experiment.steps =': Unable to parse value."),
        ("Experiment.steps", "'Experiment.steps': Couldn't parse statement"),
        ("Experiment.steps = 1 2", "'Experiment.steps = 1 2': Expected newline."),
        ("Experiment.steps = two", "'Experiment.steps = two': "),
        (
            "Model.encoder = @encoder.trainabel()",
            "no encoder is called 'trainabel'; nearest: encoder.trainable",
        ),
        ("Model.encoder = @network.unet()", "Model.encoder = @network.unet(): expected @encoder.NAME()"),
    ],
)
def test_faults_are_named_with_file_and_line(small, tmp_path, line, message):
    path = tmp_path / "fault.gin"
    path.write_text(f"# a comment\n\n{line}\n")
    assert refused([small, str(path)], []).startswith(f"{path}:3: {message}")
    assert refused([small], [line]).startswith(f"--gin_bindings: {message}")


def test_a_bracket_left_open_is_named_with_its_file(small, tmp_path):
    path = tmp_path / "open.gin"
    path.write_text("network.unet.fourier_powers = (1,\n")
    assert refused([small, str(path)], []).startswith(f"{path}:")
    assert "multi-line" in refused([small], ["network.unet.fourier_powers = (1,"])


def test_what_a_class_refuses_is_named_with_its_place(small, tmp_path):
    path = tmp_path / "more.gin"
    path.write_text("\nevaluate.split = 'tset'\n")
    assert refused([small, str(path)], []).startswith(f"{path}:2: evaluate.split = 'tset': must be one of")
    assert refused([small], ["HIGH = -9"]).startswith(
        f"--gin_bindings (HIGH) for {small}:13: network.encoder_unet.log_snr_max = -9.0"
    )


def test_a_class_that_raises_value_errors_is_quoted(small, scratch_networks):
    @scratch_networks.register("picky")
    @dataclasses.dataclass(frozen=True)
    class Picky(registry.networks["unet"]):
        def __post_init__(self):
            raise ValueError("blocks must be odd")

    assert refused([small], ["Model.network = @network.picky()"]) == "network.picky: blocks must be odd"


def test_references_that_lead_back_to_themselves_are_refused(small, scratch_networks):
    @scratch_networks.register("nest")
    @dataclasses.dataclass(frozen=True)
    class Nest(registry.networks["unet"]):
        inner: Network | None = None

    nest = ["Model.network = @network.nest()", "network.nest.inner = @network.nest()"]
    assert "lead back to themselves" in refused([small], nest)
    gin_loader.load_experiment(
        [small], ["Model.network = @network.nest()", "network.nest.inner = @network.unet()"]
    )


def test_what_is_missing_is_named_with_the_binding_to_add(small, tmp_path):
    assert refused([], []) == "Experiment.model is not bound: add Experiment.model = @Model()"
    message = refused([], ["Experiment.model = @Model()"])
    assert message.startswith("Model.encoder is not bound: add Model.encoder = @encoder.NAME()")
    message = refused([small], ["encoder.trainable.network = %gin.REQUIRED"])
    assert message.startswith("--gin_bindings: encoder.trainable.network is not bound: add")
    message = refused([small], ["network.unet.blocks = %gin.REQUIRED"])
    assert message == "--gin_bindings: network.unet.blocks must be given: add network.unet.blocks = VALUE"


def test_an_unread_binding_of_the_command_line_is_refused(small):
    assert refused([small], ["HIHG = 8"]) == "--gin_bindings: HIHG = 8: nothing reads it; nearest: HIGH"
    message = refused([small], ["dataset.mnist.validation = 3"])
    assert "dataset.mnist is not used in this experiment; nearest: dataset.digits.validation" in message
    assert message.endswith("; to use it, bind Experiment.dataset = @dataset.mnist()")
    swapped = ["Model.encoder = @encoder.identity()"]
    assert gin_loader.load_experiment([small], swapped).model.encoder == registry.encoders["identity"]()
    assert "encoder.trainable is not used" in refused(
        [small], [*swapped, "encoder.trainable.network = @network.unet()"]
    )


GIN_ALONE = """
import sys, pickle, gin
from diffenc import Evaluate, Experiment, Model, Sample, registry
registry.discover()
known = {("Experiment", None): Experiment, ("Model", None): Model, ("evaluate", None): Evaluate, ("sample", None): Sample}
known |= {(name, kind): r[name] for kind, r in registry.REGISTRIES.items() for name in r}
for (name, kind), cls in known.items():
    gin.external_configurable(cls, name=name, module=kind)
gin.parse_config_files_and_bindings([sys.argv[1]], sys.argv[2:])
sys.stdout.buffer.write(pickle.dumps(gin.get_configurable("Experiment")()))
"""


def test_gin_alone_makes_the_same_of_a_config(small):
    bindings = [
        "Model.network = @a/network.unet()",
        "encoder.trainable.network = @b/network.unet()",
        "network.unet.blocks = 3",
        "a/network.unet.blocks = %BLOCKS",
        "b/network.unet.channels = 32",
        "BLOCKS = 5",
        "Experiment.evaluate = @evaluate()",
        "evaluate.passes = 3",
        "Experiment.seed = 1",
        "Experiment.seed = 2",
        "HIGH = 8.5",
    ]
    done = subprocess.run(
        [sys.executable, "-c", GIN_ALONE, small, *bindings],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert gin_loader.load_experiment([small], bindings) == pickle.loads(done.stdout)


@gin.configurable
def somebodys_function(x=1):
    return x


@pytest.mark.parametrize("locked", [False, True])
def test_the_gin_configuration_of_another_program_stays_as_it_is(small, locked):
    gin.clear_config()
    gin.bind_parameter("somebodys_function.x", 42)
    if locked:
        gin.finalize()
    said = gin.config_str()
    gin_loader.load_experiment([small], [])
    with pytest.raises(UserError):
        gin_loader.load_experiment([small], ["Experiment.steps = 'many'"])
    assert (somebodys_function(), gin.config_str(), gin.config_is_locked()) == (42, said, locked)
    gin.clear_config()
    assert somebodys_function() == 1


@pytest.mark.parametrize("value", ["nan", "inf", "(1, nan)"])
def test_what_is_no_value_is_told_so(value):
    with pytest.raises(UserError) as refused:
        gin_loader.load_experiment(["gin/quickstart.gin"], [f"optimizer.adamw.learning_rate = {value}"])
    assert "is no value: write a number" in str(refused.value)
    assert "0x" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Model.mean = @generative_mean.vdm()", "Model.mean is now called Model.generative_mean"),
        ("Model.generative_mean = @mean.vdm()", "mean.vdm is now called generative_mean.vdm"),
        (
            "evaluate.proposal = @time_sampler.uniform()",
            "evaluate.proposal is now called evaluate.time_sampler",
        ),
        ("proposal.importance.floor = 0.2", "proposal.importance is now called time_sampler.importance"),
        ("evaluate.steps = 3", "evaluate.steps is now called evaluate.num_timesteps"),
        ("sample.steps = 3", "sample.steps is now called sample.num_timesteps"),
    ],
)
def test_the_new_name_of_an_old_one_is_stated(tmp_path, old, new):
    (tmp_path / "mine.gin").write_text(f"include 'gin/quickstart.gin'\n{old}\n")
    with pytest.raises(UserError, match=f"mine.gin:2: {new}: rename it"):
        gin_loader.load_experiment([str(tmp_path / "mine.gin")], [])


@pytest.mark.parametrize("field", ["file", "decoded"])
def test_the_config_of_a_run_does_not_choose_where_files_are_written(small, tmp_path, caplog, field):
    run, line = tmp_path / "config.gin", f"compress.{field} = '~/.bashrc'"
    run.write_text(SMALL + line + "\nelsewhere/" + line + "\ncompress.seed = 3\n")
    for bindings, wanted in (((), None), ((f"compress.{field} = 'here'",), "here")):
        found = gin_loader.load_experiment(str(run), bindings).compress
        assert (getattr(found, field), found.seed) == (wanted, 3)
    assert f"config.gin:19: compress.{field} is ignored: the config of a run" in caplog.text
    text = run.read_text()
    assert getattr(gin_loader.load_untrusted(text, "x", lambda _: False).compress, field) is None
    own = tmp_path / "own.gin"
    own.write_text(f"{line}\n")
    assert getattr(gin_loader.load_experiment([small, str(own)]).compress, field) == "~/.bashrc"
