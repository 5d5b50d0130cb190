"""Every page is followed: its blocks executed in their order, in a folder of the page's own, as a user would.

Small: stand_ins/python.py appends bindings to commands, and stand_ins/small_networks.py takes the place of the U-Nets.
`make` says only what it would do; `runs/quickstart` is there, as `make quickstart` leaves it.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffenc.config import gin_loader

ROOT = Path(__file__).parents[2]
STAND_INS = ROOT / "tests" / "docs" / "stand_ins"
# What makes a Python block small; each is in some block.
SHORTER = {"steps=1_000": "steps=2"}
PREPARED = (
    "mnist FOLDER_WITH_THE_FILES",
    "cifar10 cifar-10-python.tar.gz",
    "imagenet32 FOLDER_WITH_THE_ARCHIVES",
)
TIMEOUT = 600
pytestmark = pytest.mark.docs


def environment(folder: Path) -> dict[str, str]:
    """What a shell with the environment activated has, and a compilation cache that all pages share."""
    given = {
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'typings'}",
        "DIFFENC_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "docs"),
        "COLUMNS": "100",
    }
    return {**os.environ, **given}


def script(path: Path, line: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def equip(folder: Path) -> None:
    """A virtual environment with all that this one has, whose `python`, `pip` and `make` are stand-ins."""
    home = folder / ".venv"
    venv.create(home, symlinks=True)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(STAND_INS)}
    (site,) = home.glob("lib/python*/site-packages")
    (site / "all.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(paths))
    )
    told = site / "small_networks-0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: small-networks\nVersion: 0\n")
    (told / "entry_points.txt").write_text("[diffenc.plugins]\nsmall_networks = small_networks\n")
    real = home / "bin" / "real"
    real.symlink_to(sys._base_executable)  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        (home / "bin" / name).unlink(missing_ok=True)
        script(home / "bin" / name, f'exec "{real}" "{STAND_INS / "python.py"}" "$@"')
    inspect = f'exec "{home / "bin" / "python"}" -m tensorboard.main "$@" --inspect'
    script(home / "bin" / "tensorboard", inspect)  # which tells what is there, and ends
    script(home / "bin" / "pip", f'exec "{home / "bin" / "python"}" -m pip "$@"')
    script(home / "bin" / "make", f'exec "{shutil.which("make")}" -C "{ROOT}" --dry-run "$@"')


def shell(text: str, folder: Path) -> str:
    """What a block of commands prints; the first that fails ends it."""
    return run(["bash", "-euo", "pipefail", "-c", text], folder)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """The folder that pages begin in: environment, data, and the run of the quickstart."""
    folder = tmp_path_factory.mktemp("home") / "page"
    run([sys.executable, str(STAND_INS / "files.py"), str(folder)], folder.parent)
    equip(folder)
    for name, source in map(str.split, PREPARED):
        shell(f"python -m diffenc.prepare {name} --source={source}", folder)
    shell("python -m diffenc.run --gin_file=gin/quickstart.gin", folder)
    shell("python -m diffenc.run --gin_file=gin/quickstart.gin --mode=evaluate", folder)
    return folder


@pytest.fixture
def place(home, tmp_path, request) -> Path:
    """A copy of it for one page. The environment is made anew: it cannot be moved."""
    folder = tmp_path / "page"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns(".venv", "cache"))
    equip(folder)
    return folder


def shortened(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


class Session:
    """A Python that a page's blocks are typed into, one after the other."""

    LOOP = """if True:
        import json, sys
        names = {"__name__": "__main__"}
        for line in sys.stdin:
            exec(compile(json.loads(line), "block", "exec"), names)
            print("\\0", flush=True)
    """

    def __init__(self, folder: Path):
        self.said = (folder / "python.log").open("w+")
        command = [str(folder / ".venv" / "bin" / "python"), "-u", "-c", self.LOOP]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        self.process = subprocess.Popen(command, cwd=folder, env=environment(folder), text=True, **pipes)

    def __call__(self, text: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(text) + "\n")
        self.process.stdin.flush()
        ended = any(line.endswith("\0\n") for line in iter(self.process.stdout.readline, ""))
        self.said.seek(0)
        assert ended, self.said.read()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.said.close()


def execute(block, folder: Path, python: Callable[[], Session]) -> None:
    if block.file:
        target = folder / block.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)
    elif block.language in ("sh", "console"):
        shell(block.text, folder)
    elif block.language == "python":
        python()(shortened(block.text))
    elif block.language == "gin":
        (folder / "block.gin").write_text(block.text)
        # some blocks are a part of a config: each is read on top of the quickstart
        gin_loader.load_experiment(["gin/quickstart.gin", str(folder / "block.gin")], [])


def test_the_page_does_what_it_says(page, blocks, request):
    name = page.relative_to(ROOT).as_posix()
    todo = [block for block in blocks if block.page == name and not block.needs]
    if all(block.language in ("text", "toml") for block in todo):
        pytest.skip("it shows nothing to execute")
    folder = request.getfixturevalue("place")

    @functools.cache
    def python() -> Session:
        session = Session(folder)
        request.addfinalizer(session.close)
        return session

    for block in todo:
        print(f"{block}", flush=True)
        execute(block, folder, python)


@pytest.mark.parametrize("long", SHORTER)
def test_what_is_shortened_occurs(long, blocks):
    assert any(long in block.text for block in blocks if block.language == "python")
