"""Every block and command of the pages is read by what would run it; test_executed.py runs them."""

import importlib
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags

from diffenc import registry
from diffenc.cli import run_mode
from diffenc.cli.run import MODES
from diffenc.config import gin_loader
from diffenc.config.gin_files import shipped_files
from diffenc.data import manifest
from diffenc.data.manifest import Manifest, Split
from diffenc.data.prepare import VERBS
from diffenc.data.recipe import Preparable

ROOT = Path(__file__).parents[2]
LANGUAGES = ("sh", "console", "python", "gin", "toml", "text", "dockerfile")
# What no machine that runs the tests can be relied on to have. A block more here is a block nobody tries: keep it short.
NEEDS = [
    ("README.md", "PyTorch"),
    ("docs/datasets.md", "the network"),
    ("docs/datasets.md", "tensorflow-datasets, pip install 'diffenc[tfds]'"),
    ("docs/logging.md", "the package wandb, pip install 'diffenc[wandb]'"),
    ("docs/measuring.md", "the file of Inception's weights"),
    ("docs/nll_of_my_model.md", "PyTorch"),
    ("docs/scale.md", "libtpu, pip install 'diffenc[plan-tpu]'"),
    ("docs/scale.md", "a GPU"),
    ("docs/scale.md", "two hosts"),
    ("docs/trained_models.md", "a released checkpoint"),
    ("docs/trained_models.md", "a released checkpoint"),
    ("docs/workdir.md", "a GPU"),
    ("experiments/cifar10.md", "the images of CIFAR-10"),
    ("experiments/compiled.md", "libtpu, pip install 'diffenc[plan-tpu]'"),
    ("experiments/compiled.md", "libtpu, pip install 'diffenc[plan-tpu]'"),
    ("experiments/compression.md", "the images of MNIST, hours"),
    ("experiments/launch/jobset.md", "Docker"),
    ("experiments/launch/jobset.md", "Kubernetes"),
    ("experiments/launch/slurm.md", "Slurm"),
    ("experiments/launch/sweep_on_slurm.md", "Slurm"),
    ("experiments/launch/tpu_pod.md", "a Cloud TPU"),
    ("experiments/study.md", "the images of MNIST and CIFAR-10, many hours"),
    ("experiments/study.md", "the gin files of experiments/study"),
    ("experiments/tighter.md", "the run files of experiments/tighter, hours"),
    ("experiments/tighter.md", "the run files of experiments/tighter, hours"),
    ("experiments/tighter.md", "the runs' checkpoints, hours"),
    ("experiments/tighter.md", "the run files of experiments/tighter, hours"),
    ("experiments/tighter.md", "the run files of experiments/tighter, hours"),
]
# Plugins and files of a user's own, which the pages make themselves.
THEIRS = ("shifted", "my_blur")


def test_blocks_that_are_not_executed_are_those_listed_here(blocks):
    assert [(block.page, block.needs) for block in blocks if block.needs] == NEEDS


def test_a_block_says_its_language(block):
    assert block.language in LANGUAGES


def test_a_block_can_be_parsed(block):
    if block.language == "python":
        compile(block.text, str(block), "exec")
    if block.language == "toml":
        tomllib.loads(block.text)
    if block.language == "gin":
        assert gin_loader.read_bindings(block.text)
    if block.language in ("sh", "console"):
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        assert not [line for line in block.text.splitlines() if line.startswith(("$ ", ">>> "))]


def values(words, name):
    return [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """Prepared images of one's own, as far as a config asks for them."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    splits = {name: Split("", ()) for name in ("train", "test")}
    made = Manifest("folder", "mine", (64, 64, 3), 256, 1, (), splits, {}, "", "0")
    manifest.write(made, tmp_path / "mine")


def files_of(command, commands):
    """The gin files of a run: those given, else those that the page gave for its workdir."""
    given, (workdir,) = values(command.words, "gin_file"), values(command.words, "workdir") or [""]
    if given:
        return given
    for other in commands:
        theirs = values(other.words, "gin_file")
        if (
            other.page == command.page
            and theirs
            and workdir in (*values(other.words, "workdir"), named(theirs))
        ):
            return theirs
    shipped = f"gin/{Path(workdir).name}.gin"
    return [shipped] if shipped in shipped_files() else None


def named(gin_files):
    return run_mode.default_workdir(gin_files).as_posix()


def test_a_run_is_of_flags_and_bindings_that_there_are(command, commands, mine):
    words = command.words
    if words[:3] != ("python", "-m", "diffenc.run") or any(word in str(words) for word in THEIRS):
        return
    assert {word[2:].split("=")[0] for word in words[3:]} <= set(flags.FLAGS)
    (mode,) = values(words, "mode") or ["train"]
    assert mode in MODES
    files = files_of(command, commands)
    if files and not files[0].startswith("runs/"):
        (depth,) = values(words, "num_timesteps") or [None]
        more = run_mode.num_timesteps_bindings(mode, None if depth is None else int(depth))
        gin_loader.load_experiment(files, values(words, "gin_bindings") + more)


def test_a_program_is_called_as_it_wants_to_be(command):
    ours = command.words[:2] == ("python", "-m") and command.words[2].startswith(("diffenc", "experiments"))
    if not ours or command.words[2] == "diffenc.run":
        return
    program = importlib.import_module(command.words[2])
    if hasattr(program, "__path__"):
        program = importlib.import_module(f"{command.words[2]}.__main__")
    program = sys.modules[program.main.__module__]  # an entry point takes its `main` from diffenc.cli
    if hasattr(program, "parse_args") and len(command.words) > 3:
        program.parse_args([*command.words[3:]])


def test_make_has_the_target(command):
    if command.words[0] == "make":
        targets = [word for word in command.words[1:] if "=" not in word]
        made = ["make", "--dry-run", *targets]
        done = subprocess.run(made, cwd=ROOT, check=True, capture_output=True, text=True)
        assert "Nothing to be done" not in done.stdout


def test_the_text_names_only_bindings_that_there_are(page):
    text = page.read_text(encoding="utf-8")
    for span in text.split("`")[1::2]:
        if span.startswith("--gin_bindings='") and "\n" not in span:
            gin_loader.load_experiment(["gin/quickstart.gin"], values(shlex.split(span), "gin_bindings"))


def test_prepare_is_shown_for_data_sets_that_lie_in_files(commands):
    shown = {command.words[3] for command in commands if command.words[2:3] == ("diffenc.prepare",)}
    preparable = {name for name in registry.datasets if isinstance(registry.datasets[name], Preparable)}
    assert shown == {*preparable, *VERBS}
