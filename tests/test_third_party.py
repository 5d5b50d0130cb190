"""A plugin package of a stranger's: scaffolded, installed by pip, found, tested, trained on, removed."""

import dataclasses
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from diffenc import registry
from diffenc.tools.scaffold import targets, writing
from diffenc.tools.scaffold.plugin_spec import PluginSpec

ROOT = Path(__file__).parents[1]
KINDS = list(registry.REGISTRIES)
OFFLINE = ["--no-build-isolation", "--no-index", "--no-deps", "--quiet", "--disable-pip-version-check"]
SHORT = [
    *(f"Experiment.{name} = 2" for name in ("steps", "evaluate_every")),
    *(
        "Experiment.sample_every = 0",
        "evaluate.passes = 1",
        "network.unet.channels = 8",
        "Experiment.batch_size = 2",
    ),
]


@dataclasses.dataclass(frozen=True)
class Environment:
    """A Python of its own that sees what this one has installed, and this checkout before all."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *arguments: str, cwd: Path, code: int = 0) -> str:
        """Standard output of Python with these arguments, or, where it is to fail, standard error."""
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([self.python, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def pip(self, *arguments: str, cwd: Path) -> None:
        """This environment's pip, put to work on that one."""
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"))
    venv.create(made.folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    seen = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(seen))
    (made.folder / "lib" / version / "site-packages" / "seen.pth").write_text(lines)
    return made


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A package with a plugin of every kind, as `python -m diffenc.new` makes them one by one."""
    folder = tmp_path_factory.mktemp("theirs") / "all_kinds"
    for kind in KINDS:
        wanted = PluginSpec(kind, f"my_{kind}")
        writing.write_plugin(targets.package_target(str(folder), wanted), wanted)
    return folder


def test_what_is_made_is_formatted_and_linted(package):
    for command in (["check", "--ignore=I001"], ["format", "--check"]):
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--no-cache",
            "--config",
            str(ROOT / "pyproject.toml"),
        ]
        done = subprocess.run([*ruff, str(package)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_every_gin_file_stacks_on_the_quickstart(package, tmp_path):
    code = (
        "import sys; from diffenc import load_experiment; import all_kinds\n"
        "for kind in sys.argv[2:]:\n"
        "    files = ['gin/quickstart.gin', f'{sys.argv[1]}/gin/my_{kind}.gin']\n"
        "    name = ''.join(part.capitalize() for part in kind.split('_'))\n"
        "    print(kind, f'My{name}(' in repr(load_experiment(files)))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package / "src"), str(ROOT)])}
    command = [sys.executable, "-c", code, str(package), *KINDS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split("\n") == [*(f"{kind} True" for kind in KINDS), ""], done.stderr


@pytest.mark.slow
def test_the_tests_that_are_made_pass(package, environment):
    told = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(package), cwd=package)
    assert " passed" in told
    assert "failed" not in told


@pytest.mark.slow
def test_a_package_is_installed_found_trained_on_and_removed(environment, tmp_path):
    environment.run("-m", "diffenc.new", "encoder", "my_blur", "--package=my_pack", cwd=tmp_path)
    environment.run("-m", "diffenc.new", "schedule", "bent", "--package=my_pack", cwd=tmp_path)
    assert "my_blur" not in environment.run("-m", "diffenc.run", "--list", cwd=tmp_path)

    environment.pip("install", *OFFLINE, "./my_pack", cwd=tmp_path)
    listed = environment.run("-m", "diffenc.run", "--list", cwd=tmp_path).splitlines()
    (line,) = (line for line in listed if line.startswith("encoder.my_blur "))
    assert "with a learned gain" in line
    environment.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_pack/tests/test_bent.py", cwd=tmp_path
    )

    files = ["quickstart.gin", "my_pack/gin/my_blur.gin", "my_pack/gin/bent.gin"]
    command = ["-m", "diffenc.run", *(f"--gin_file={file}" for file in files)]
    environment.run(*command, "--workdir=run", *(f"--gin_bindings={b}" for b in SHORT), cwd=tmp_path)
    config = (tmp_path / "run" / "config.gin").read_text()
    assert "Model.encoder = @encoder.my_blur()\n" in config
    assert "schedule.bent.bend = 0.5\n" in config
    assert "import " not in config  # the entry point finds it

    environment.pip("uninstall", "--yes", "--quiet", "my-pack", cwd=tmp_path)
    assert "my_blur" not in environment.run("-m", "diffenc.run", "--list", cwd=tmp_path)
    told = environment.run("-m", "diffenc.run", "--workdir=run", "--mode=evaluate", cwd=tmp_path, code=1)
    (error,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert re.match(r"error: run/config\.gin:\d+: no encoder is called 'my_blur'; nearest: ", error)
    assert error.endswith("; the run was trained with my-pack 0.1.0, which is not installed")
    assert told.strip().splitlines()[-1] == error
