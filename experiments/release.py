"""Makes the files of a release from the last commit: sdist, wheel, the study's models, and checksums of all.

  python -m experiments.release --output=dist

The wheel is built from the sdist, away from the checkout.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from absl import logging
from build import BuildBackendException, ProjectBuilder
from pyproject_hooks import quiet_subprocess_runner

from diffenc.errors import UserError
from diffenc.export import weights
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import STOPPED, exit_status, start_up
from experiments.study.parts import MODELS, MODELS_FOLDER

ROOT = Path(__file__).parents[1]
SUMS = "SHA256SUMS"
# Where a release states its version, and how; in the changelog the first heading counts.
STATED = {
    "pyproject.toml": r'^version = "([^"]+)"$',
    "CITATION.cff": r"^version: (\S+)$",
    "CHANGELOG.md": r"^## (.+)$",
}


def make_release(source: Path, output: Path) -> list[Path]:
    """Writes the files of a release of the checkout `source` to `output`; returns them.

    Raises:
      UserError: the stated versions differ, a model is missing, or a build failed.
    """
    version = stated_version(source)
    folders = find_models(source)
    output.mkdir(parents=True, exist_ok=True)
    models = output / f"diffenc-{version}-models.zip"
    atomic.write_bytes(models, archive_models(folders, models.stem))
    files = [*build_packages(source, output), models]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    atomic.write_text(output / SUMS, "".join(sums))
    return [*files, output / SUMS]


def stated_version(source: Path) -> str:
    """Returns the version that a checkout states.

    Raises:
      UserError: its files state different ones, or the changelog has it as unreleased.
    """
    found = {}
    for name, pattern in STATED.items():
        match = re.search(pattern, (source / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else ""
    version, cited, heading = found.values()
    if cited != version:
        raise UserError(f"CITATION.cff: version {cited!r}, where pyproject.toml has {version!r}")
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        raise UserError(
            f"CHANGELOG.md: its first heading is {heading!r}; a release needs '{version} (YYYY-MM-DD)'"
        )
    return version


def find_models(source: Path) -> list[Path]:
    """Returns the folders of the study's models in a checkout.

    Raises:
      UserError: one is missing.
    """
    place = MODELS_FOLDER.relative_to(ROOT)
    folders = [source / place / name for name in MODELS]
    missing = [folder.name for folder in folders if not (folder / weights.FILE).is_file()]
    if missing:
        raise UserError(
            f"{place} lacks {', '.join(missing)}: python -m experiments.study exports them where it has trained them; commit them"
        )
    return folders


def archive_models(folders: Sequence[Path], root: str) -> bytes:
    """Returns a zip archive of the folders, under one folder named `root`."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in folders:
            for file in sorted(folder.iterdir()):
                # Of one date, so that the same models give the same archive.
                info = zipfile.ZipInfo(f"{root}/{folder.name}/{file.name}")
                info.external_attr = 0o644 << 16
                archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def build_packages(source: Path, output: Path) -> list[Path]:
    """Builds the sdist of a checkout, and the wheel from it, by the setuptools of this environment.

    Raises:
      UserError: setuptools failed.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            sdist = Path(ProjectBuilder(source, runner=quiet_subprocess_runner).build("sdist", output))
            with tarfile.open(sdist) as archive:
                archive.extractall(unpacked, filter="data")
            (folder,) = Path(unpacked).iterdir()
            wheel = ProjectBuilder(folder, runner=quiet_subprocess_runner).build("wheel", output)
        except BuildBackendException as error:
            shown = getattr(error.exception, "output", b"") or b""
            lines = shown.decode(errors="replace").strip().splitlines()
            raise UserError("the packages could not be built: " + "\n".join(lines[-5:])) from error
    return [sdist, Path(wheel)]


def last_commit(root: Path, folder: Path) -> Path:
    """Writes the files of the last commit to `folder`, which it returns.

    Raises:
      UserError: `root` is not in a git checkout.
    """
    archive = ["git", "-C", str(root), "archive", "--format=tar", "HEAD"]
    done = subprocess.run(archive, capture_output=True)
    if done.returncode != 0:
        raise UserError(
            f"{root}: {done.stderr.decode(errors='replace').strip()}; a release is made of a commit"
        )
    with tarfile.open(fileobj=BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m experiments.release", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--output", type=path_argument, default="dist", help="folder of the files (default: dist)"
    )
    args = parser.parse_args(argv)

    def perform() -> None:
        start_up()
        with tempfile.TemporaryDirectory() as folder:
            for file in make_release(last_commit(ROOT, Path(folder)), Path(os.path.abspath(args.output))):
                logging.info("%s, %d kB", os.path.relpath(file), file.stat().st_size // 1000)

    return exit_status(perform, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
