"""The wheel: what is in it, and that it serves away from a checkout."""

import configparser
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diffenc import registry

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {"diffenc": "diffenc", "plugins": "diffenc_plugins", "gin": "diffenc_gin"}  # folder: where it goes
OTHERS = ("tests", "experiments")  # in a checkout only


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by pip from a copy of the sources, so that nothing is left in the checkout."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, *OTHERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), "."], cwd=copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(command, *, cwd, env=None, code=0):
    """The finished process; fails with its standard error unless it exits with `code`."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def away(unpacked, arguments, cwd, code=0):
    """Run Python in `cwd` on the unpacked wheel.

    -S leaves out site-packages' .pth files, and with them this checkout, if it is installed editable.
    """
    paths = sysconfig.get_paths()
    path = os.pathsep.join([str(unpacked), paths["purelib"], paths["platlib"]])
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return run([sys.executable, "-S", *arguments], cwd=cwd, env=env, code=code)


def files_of(folder):
    """Every file that belongs into the wheel, as a path within `folder`."""
    found = (
        path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return {path.relative_to(ROOT / folder).as_posix() for path in found}


def metadata_of(wheel, name):
    archive = zipfile.ZipFile(wheel)
    (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
    return archive.read(path).decode()


def pins(python_version):
    """constraints.txt as one Python reads it: {name: version}."""
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    requirements = [Requirement(line) for line in lines]
    environment = {"python_version": python_version}
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in requirements
        if one.marker is None or one.marker.evaluate(environment)
    }


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(wheel):
    expected = {f"{package}/{file}" for folder, package in PACKAGES.items() for file in files_of(folder)}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"diffenc/py.typed", "diffenc/cli/run.py", "diffenc_gin/quickstart.gin"} <= held
    assert {"diffenc_gin/fragments/base.gin", "diffenc_plugins/encoders/builtin.py"} <= held


def test_the_wheel_tells_its_entry_points(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(metadata_of(wheel, "entry_points.txt"))
    assert dict(parser["diffenc.plugins"]) == {"diffenc_plugins": "diffenc_plugins"}
    assert dict(parser["console_scripts"]) == {"diffenc": "diffenc.run:main"}


def test_the_wheel_tells_licence_python_and_description(wheel):
    metadata = email.message_from_string(metadata_of(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Apache License" in metadata_of(wheel, "licenses/LICENSE")
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_away_from_a_checkout_every_plugin_is_listed(unpacked, tmp_path):
    listed = away(unpacked, ["-m", "diffenc.run", "--list"], tmp_path).stdout
    names = [line.split()[0] for line in listed.splitlines()]
    here = {"diffenc_plugins", "diffenc"}  # a plugin package of yours may be installed beside these
    expected = [
        f"{kind}.{name}"
        for kind, plugins in registry.REGISTRIES.items()
        for name in plugins
        if plugins[name].__module__.split(".")[0] in here
    ]
    assert expected
    assert set(expected) <= set(names)


def test_away_from_a_checkout_run_files_are_found_by_name(unpacked, tmp_path):
    bindings = ["--gin_file=gin/quickstart.gin", "--gin_bindings=nonsense.x = 1"]
    refused = away(unpacked, ["-m", "diffenc.run", *bindings], tmp_path, code=1)
    assert re.search(r"^error: .*'nonsense'", refused.stderr, re.MULTILINE)
    absent = away(unpacked, ["-m", "diffenc.run", "--gin_file=gin/quickstop.gin"], tmp_path, code=1)
    assert "gin/quickstop.gin: no such file; nearest: gin/quickstart.gin" in absent.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_away_from_a_checkout_a_sweep_starts_its_runs(unpacked, tmp_path):
    flags = ["--gin_file=gin/cifar10_vdmv_8.gin", "--seeds=1", "--data_dir=absent", "--output=sweep"]
    failed = away(unpacked, ["-m", "diffenc.sweep", *flags], tmp_path, code=1)
    assert re.search(r"^error: 1 of 1 runs failed; .*absent", failed.stderr, re.MULTILINE)
    log = tmp_path / "sweep" / "cifar10_vdmv_8" / "seed_0.log"
    assert re.search("^error: .*absent", log.read_text(), re.MULTILINE)


def test_away_from_a_checkout_a_plugin_is_written_from_its_templates(unpacked, tmp_path):
    away(unpacked, ["-m", "diffenc.new", "encoder", "my_blur", "--package=my_pack"], tmp_path)
    assert (tmp_path / "my_pack" / "src" / "my_pack" / "my_blur.py").is_file()


@pytest.mark.slow
def test_away_from_a_checkout_the_papers_tables_and_the_page_of_a_report_are_there(unpacked, tmp_path):
    program = (
        "from diffenc.cli import tables; tables.main(['--table=4', '--norun', '--rows=fixed', '--output=4'])"
    )
    away(unpacked, ["-c", program], tmp_path)
    assert "DiffEnc-8-2" in (tmp_path / "4" / "table.md").read_text()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "bpd": 2.5}\n')
    away(unpacked, ["-m", "diffenc.report", "run"], tmp_path)
    assert "</html>" in (tmp_path / "report.html").read_text()


WHERE = """
import diffenc.run, diffenc_plugins, gin
for module in (diffenc.run, diffenc_plugins, gin):
    print(module.__file__)
"""


def test_modules_come_from_the_wheel_and_gin_is_the_library(unpacked, tmp_path):
    core, plugins, gin = away(unpacked, ["-c", WHERE], tmp_path).stdout.splitlines()
    assert Path(core) == unpacked / "diffenc" / "run.py"
    assert Path(plugins) == unpacked / "diffenc_plugins" / "__init__.py"
    assert Path(gin).parent == Path(sysconfig.get_paths()["purelib"]) / "gin"


def test_in_a_checkout_gin_is_the_library_too():
    found = run([sys.executable, "-c", "import gin; print(gin.__file__)"], cwd=ROOT).stdout.strip()
    assert Path(found).parent == Path(sysconfig.get_paths()["purelib"]) / "gin"


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.13"])
def test_every_direct_requirement_has_an_exact_version_within_its_bounds(python_version):
    project, pinned = PYPROJECT["project"], pins(python_version)
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text


PERMISSIVE = r"Apache|BSD|MIT|Python Software Foundation|PSF"


@pytest.mark.parametrize("requirement", PYPROJECT["project"]["dependencies"])
def test_every_package_that_is_needed_has_a_permissive_licence(requirement):
    stated = importlib.metadata.metadata(Requirement(requirement).name)
    classifiers = [line for line in stated.get_all("Classifier", []) if line.startswith("License ::")]
    licence = stated["License-Expression"] or "; ".join(classifiers) or stated["License"]
    assert re.search(PERMISSIVE, licence), licence
    assert not re.search(r"GPL|Affero|Proprietary", licence), licence


def test_constraints_are_exact_versions_alone():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        exact = r'[a-z0-9-]+==[0-9][0-9a-z.]*( ; python_version (<|>=) "3\.12")?'
        assert line.startswith("# ") or re.fullmatch(exact, line), line


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    bin_folder, elsewhere = tmp_path / "venv" / "bin", tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    run([str(bin_folder / "python"), *install], cwd=elsewhere, env=env)
    run([str(bin_folder / "python"), "-m", "pip", "check"], cwd=elsewhere, env=env)
    assert "encoder.trainable" in run([str(bin_folder / "diffenc"), "--list"], cwd=elsewhere, env=env).stdout
    bindings = ["--gin_bindings=Experiment.steps = 2", "--gin_bindings=Experiment.evaluate_every = 0"]
    bindings += ["--gin_bindings=Experiment.sample_every = 0"]
    command = [str(bin_folder / "python"), "-m", "diffenc.run", "--gin_file=gin/quickstart.gin", *bindings]
    run(command, cwd=elsewhere, env=env)
    assert (elsewhere / "runs" / "quickstart" / "config.gin").is_file()
