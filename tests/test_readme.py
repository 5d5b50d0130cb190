"""What README.md shows is run, or at least read by what would run it."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from absl import flags

from diffenc import config, prepare, registry
from diffenc import run as command_line
from diffenc.data import manifest
from diffenc.data.manifest import Manifest, Split
from diffenc.data.recipe import Preparable
from experiments import benchmark, weak_scaling
from experiments.launch import local

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = [
    *(f"Experiment.{name} = 2" for name in ("steps", "sample_every", "evaluate_every")),
    *("sample.steps = 2", "evaluate.passes = 2", "network.unet.channels = 8"),
]
# Nearly all of a run of two steps is compilation, which this halves.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def block(language):
    """The contents of the README's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(start):
    """Every command of the README, in blocks and in the text, that starts so; as lists of arguments."""
    text = README.replace("\\\n", " ")
    found = re.findall(rf"(?:^|`)({re.escape(start)}[^`\n]*)", text, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found]


def values(arguments, name):
    return [argument.partition("=")[2] for argument in arguments if argument.startswith(f"--{name}=")]


def python(arguments, folder, path=()):
    """Run Python in `folder`, with `path` before this checkout."""
    search = os.pathsep.join([*map(str, path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": search, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_TO_COMPILE}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory):
    """Where the README's plugin package is installed, built from its two blocks."""
    source, target = tmp_path_factory.mktemp("my_encoders"), tmp_path_factory.mktemp("installed")
    module, _ = block("python")
    (source / "my_encoders.py").write_text(module)
    (source / "pyproject.toml").write_text(block("toml")[0])
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    python(["-m", "pip", "install", *options, "."], source)
    return target


@pytest.fixture(scope="module")
def workdir(plugin_folder, tmp_path_factory):
    """The README's run of its own plugin, two steps long."""
    folder = tmp_path_factory.mktemp("trained")
    (command,) = (arguments for arguments in commands("python -m diffenc.run") if "shifted" in str(arguments))
    short = [f"--gin_bindings={binding}" for binding in SHORT]
    python([*command[1:], *short], folder, [plugin_folder])
    return folder / values(command, "workdir")[0]


def test_it_opens_with_the_two_commands():
    first = block("")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make quickstart", "make test"]
    assert README.index(first[0]) < 100


def test_every_make_target_exists():
    targets = {arguments[1] for arguments in commands("make ")}
    assert targets >= {"quickstart", "test", "test-slow", "mutations", "check"}
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """Prepared images of one's own, as far as a config asks for them."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    splits = {name: Split("", ()) for name in ("train", "test")}
    made = Manifest("folder", "mine", (64, 64, 3), 256, 1, (), splits, {}, "", "0")
    manifest.write(made, tmp_path / "mine")


def test_every_run_command_is_accepted(mine):
    seen = set()
    for command in commands("python -m diffenc.run"):
        assert {argument[2:].split("=")[0] for argument in command[3:]} <= set(flags.FLAGS)
        assert set(values(command, "mode")) <= set(command_line.MODES)
        files, bindings = values(command, "gin_file"), values(command, "gin_bindings")
        if "shifted" in str(bindings) or not files or files[0].startswith("runs/"):
            continue  # run above; --list; another command's workdir
        steps = [int(value) for value in values(command, "steps")]
        mode = (values(command, "mode") or ["train"])[0]
        config.load(files, bindings + command_line.steps_bindings(mode, steps[0] if steps else None))
        seen.add((mode, *files, *bindings, *steps))
    assert len(seen) >= 16


def test_the_benchmark_is_called_as_it_wants_to_be():
    (command,) = commands("python -m experiments.benchmark")
    given = benchmark.parse(command[3:])
    assert benchmark.load(given).batch_size == 128
    assert set(benchmark.chosen("step,variants")) == {"step", "variants"}


def test_weak_scaling_is_called_as_it_wants_to_be():
    (command,) = commands("python -m experiments.weak_scaling")
    given = weak_scaling.parse(command[3:])
    config.load(given.gin_file, given.gin_bindings)


def test_the_launcher_is_called_as_it_wants_to_be():
    (command,) = commands("python -m experiments.launch.local")
    given, of_run = local.parse(command[3:])
    assert given.processes == 2
    assert {flag[2:].split("=")[0] for flag in of_run} <= set(flags.FLAGS)
    config.load(values(of_run, "gin_file"), [])


def test_pages_that_are_linked_to_are_there():
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert len(linked) >= 4
    assert [path for path in linked if not (ROOT / path).is_file()] == []


def test_lone_bindings_in_the_text_are_accepted():
    lone = [values(command, "gin_bindings") for command in commands("--gin_bindings=")]
    assert lone
    for bindings in lone:
        config.load(["gin/quickstart.gin"], bindings)


def test_a_config_of_a_workdir_is_that_of_a_command_above_it():
    workdirs = {name for command in commands("python -m diffenc.run") for name in values(command, "workdir")}
    for command in commands("python -m diffenc.run"):
        for file in values(command, "gin_file"):
            assert file.startswith("gin/") or str(Path(file).parent) in workdirs


def test_prepare_is_shown_for_data_sets_that_lie_in_files():
    shown = {command[3] for command in commands("python -m diffenc.prepare")}
    preparable = {name for name in registry.datasets if isinstance(registry.datasets[name], Preparable)}
    assert shown == {*preparable, *prepare.VERBS}


def test_every_prepare_command_is_understood():
    for command in commands("python -m diffenc.prepare"):
        given = prepare.parse(command[3:])
        assert given.source is not None or registry.datasets[given.name].files.downloads  # pyright: ignore[reportAttributeAccessIssue]


def test_the_plugin_is_listed(plugin_folder, tmp_path):
    listed = python(["-m", "diffenc.run", "--list"], tmp_path, [plugin_folder])
    (line,) = (line for line in listed.splitlines() if line.startswith("encoder.shifted "))
    assert "with a learned shift" in line


def test_the_plugin_is_trained_and_bound(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert all(math.isfinite(row["bpd"]) for row in rows if "bpd" in row)
    assert "encoder.shifted.start = 0.5" in (workdir / "config.gin").read_text()


CHECK = """
import jax, jax.numpy as jnp, numpy as np
from my_encoders import Shifted
x, log_snr = jnp.asarray([[[[0.25], [-0.5]]]]), jnp.asarray([1.5])
sigmoid = lambda value: 1 / (1 + np.exp(-value))
for start in (0.0, 0.5):
    encoder = Shifted(start)
    params = encoder.init(jax.random.key(0), x, log_snr)
    np.testing.assert_allclose(encoder.apply(params, x, log_snr), sigmoid(1.5 + start) * x, rtol=1e-6)
slope = jax.grad(lambda params: encoder.apply(params, x, log_snr).sum())(params)
assert float(slope["shift"]) != 0
"""


def test_the_plugin_is_the_formula_it_states(plugin_folder, tmp_path):
    python(["-c", CHECK], tmp_path, [plugin_folder])


def test_a_workdir_holds_what_is_said(workdir):
    section = README.partition("## What a workdir holds\n")[2].partition("\n## ")[0]
    said = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    held = {path.relative_to(workdir).as_posix() + "/" * path.is_dir() for path in workdir.rglob("*")}
    assert len(said) == 8
    for pattern in said:
        assert any(fnmatch(name, pattern) for name in held), f"{pattern} in {sorted(held)}"
    unsaid = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
    unsaid -= {name for name in unsaid for pattern in said if fnmatch(name, pattern.split("/")[0])}
    assert unsaid == {"evaluation.npz"}
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert {"bpd", "bpd_se", "bpd_mc_se"} <= set(figures)


def test_the_python_example_trains_and_evaluates(tmp_path):
    _, example = block("python")
    for long, short in {"steps=1_000": "steps=2", "channels=32": "channels=8"}.items():
        assert example.count(long) == 1
        example = example.replace(long, short)
    printed = python(["-c", example], tmp_path)
    assert 0 < float(printed.splitlines()[-1]) < 1000
    assert (tmp_path / "runs" / "mine" / "evaluation.json").is_file()
