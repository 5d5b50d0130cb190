"""README.md's plugin is built, listed and trained; its first lines and what the pages say of a workdir are so."""

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

from diffenc.cli.run import MODES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = [
    *(f"Experiment.{name} = 2" for name in ("steps", "sample_every", "evaluate_every")),
    *("sample.num_timesteps = 2", "evaluate.passes = 2", "network.unet.channels = 8"),
]


def python(arguments, folder, path=()):
    """Run Python in `folder`, with `path` before this checkout."""
    search = os.pathsep.join([*map(str, path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": search, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plugin_folder(blocks, tmp_path_factory):
    """Where the README's plugin package is installed, built from its two blocks."""
    source, target = tmp_path_factory.mktemp("my_encoders"), tmp_path_factory.mktemp("installed")
    files = [block for block in blocks if block.page == "README.md" and block.file]
    assert {Path(block.file).name for block in files} == {"my_encoders.py", "pyproject.toml"}
    for block in files:
        (source / Path(block.file).name).write_text(block.text)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    python(["-m", "pip", "install", *options, "."], source)
    return target


@pytest.fixture(scope="module")
def workdir(plugin_folder, commands, tmp_path_factory):
    """The README's run of its own plugin, two steps long."""
    folder = tmp_path_factory.mktemp("trained")
    (words,) = (one.words for one in commands if one.page == "README.md" and "shifted" in str(one))
    python([*words[1:], *(f"--gin_bindings={binding}" for binding in SHORT)], folder, [plugin_folder])
    (name,) = (word.partition("=")[2] for word in words if word.startswith("--workdir="))
    return folder / name


def test_it_opens_with_the_two_commands(blocks):
    first = blocks[0]
    assert first.page == "README.md"
    assert first.line < 5
    assert [shlex.split(line, comments=True) for line in first.text.splitlines()] == [
        ["make", "quickstart"],
        ["make", "test"],
    ]


def test_it_is_short():
    assert len(README.splitlines()) <= 175


def test_every_target_of_the_makefile_is_told_by_make_help():
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    told = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {*re.findall(r"^make (\S+)", told, re.MULTILINE), "help"} == set(phony)


def test_every_mode_is_in_the_table_of_modes():
    section = (ROOT / "docs" / "using.md").read_text(encoding="utf-8").partition("\n## Modes\n")[2]
    first = [
        line.split("|")[1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")
    ]
    listed = re.findall(r"`(\w+)`", " ".join(first))
    assert sorted(listed) == sorted(MODES)


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
from diffenc.interfaces import NO_CONTEXT
x, log_snr = jnp.asarray([[[[0.25], [-0.5]]]]), jnp.asarray([1.5])
sigmoid = lambda value: 1 / (1 + np.exp(-value))
for start in (0.0, 0.5):
    encoder = Shifted(start)
    params = encoder.init(jax.random.key(0), x, log_snr)
    np.testing.assert_allclose(encoder.apply(params, x, log_snr, NO_CONTEXT), sigmoid(1.5 + start) * x, rtol=1e-6)
slope = jax.grad(lambda params: encoder.apply(params, x, log_snr, NO_CONTEXT).sum())(params)
assert float(slope["shift"]) != 0
"""


def test_the_plugin_is_the_formula_it_states(plugin_folder, tmp_path):
    python(["-c", CHECK], tmp_path, [plugin_folder])


def test_a_workdir_holds_what_is_said(workdir):
    page = (ROOT / "docs" / "workdir.md").read_text(encoding="utf-8").partition("\n## ")[0]
    said = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    held = {path.relative_to(workdir).as_posix() + "/" * path.is_dir() for path in workdir.rglob("*")}
    assert len(said) == 11
    for pattern in said:
        assert any(fnmatch(name, pattern) for name in held), f"{pattern} in {sorted(held)}"
    unsaid = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
    unsaid -= {name for name in unsaid for pattern in said if fnmatch(name, pattern.split("/")[0])}
    assert unsaid == {"evaluation.npz"}
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert {"bpd", "bpd_se", "bpd_mc_se"} <= set(figures)


@pytest.mark.slow
def test_the_python_example_trains_and_evaluates(blocks, tmp_path):
    (example,) = (
        block.text for block in blocks if block.page == "docs/using.md" and block.language == "python"
    )
    for long, short in {"steps=1_000": "steps=2", "channels=32": "channels=8"}.items():
        assert example.count(long) == 1
        example = example.replace(long, short)
    printed = python(["-c", example], tmp_path)
    assert 0 < float(printed.splitlines()[-1]) < 1000
    assert (tmp_path / "runs" / "mine" / "evaluation.json").is_file()
