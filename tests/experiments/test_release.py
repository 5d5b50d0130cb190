"""The files of a release: complete, of one version, of what is committed."""

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffenc.errors import UserError
from experiments import release
from experiments.study.parts import MODELS

ROOT = Path(__file__).parents[2]
MODELS_FOLDER = "experiments/study/models"
NAMES = list(MODELS)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a commit holds of the packages, of a version 7.8.9 that is released, with models of a few bytes."""
    source = tmp_path_factory.mktemp("source")
    for name in ("diffenc", "plugins", "gin"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    state(source, "pyproject.toml", 'version = "0.1.0"', 'version = "7.8.9"', of=ROOT)
    (source / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 7.8.9\n")
    (source / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 7.8.9 (2031-02-03)\n\n- New.\n\n## 0.1.0 (2026-01-01)\n"
    )
    for name in NAMES:
        folder = source / MODELS_FOLDER / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode())
        (folder / "README.md").write_text(f"# {name}\n")
    return source


def state(folder, name, old, new, of):
    text = (of / name).read_text()
    assert text.count(old) == 1
    (folder / name).write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("release") / "dist"
    return {path.name: path for path in release.make_release(source, output)}


def test_a_release_is_sdist_wheel_models_and_checksums(files):
    assert set(files) == {
        "diffenc-7.8.9.tar.gz",
        "diffenc-7.8.9-py3-none-any.whl",
        "diffenc-7.8.9-models.zip",
        "SHA256SUMS",
    }
    folder = files["SHA256SUMS"].parent
    assert {path.name for path in folder.iterdir()} == set(files)
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") == 3


def test_the_wheel_of_the_sdist_lacks_no_file(files):
    held = set(zipfile.ZipFile(files["diffenc-7.8.9-py3-none-any.whl"]).namelist())
    for folder, package in (("diffenc", "diffenc"), ("plugins", "diffenc_plugins"), ("gin", "diffenc_gin")):
        paths = [path for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
        wanted = {f"{package}/{path.relative_to(ROOT / folder)}" for path in paths if path.is_file()}
        assert wanted
        assert wanted <= held
    with tarfile.open(files["diffenc-7.8.9.tar.gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "gin/quickstart.gin"} <= names


def test_the_models_are_under_one_folder(files):
    with zipfile.ZipFile(files["diffenc-7.8.9-models.zip"]) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    wanted = {f"diffenc-7.8.9-models/{name}/model.safetensors": name.encode() for name in NAMES}
    wanted |= {f"diffenc-7.8.9-models/{name}/README.md": f"# {name}\n".encode() for name in NAMES}
    assert contents == wanted


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("CITATION.cff", "7.8.9", "7.8.8", "CITATION.cff: version '7.8.8', where pyproject.toml has '7.8.9'"),
        ("CITATION.cff", "\nversion: 7.8.9", "", "CITATION.cff: version ''"),
        (
            "CHANGELOG.md",
            "7.8.9 (2031-02-03)",
            "Unreleased: 7.8.9",
            "its first heading is 'Unreleased: 7.8.9'",
        ),
        ("CHANGELOG.md", "7.8.9 (", "7x8.9 (", "needs '7.8.9 "),
    ],
)
def test_a_release_of_two_versions_is_refused(source, tmp_path, name, old, new, message):
    for each in release.STATED:
        shutil.copy(source / each, tmp_path)
    state(tmp_path, name, old, new, of=source)
    with pytest.raises(UserError) as refused:
        release.stated_version(tmp_path)
    assert message in str(refused.value)


def test_a_release_without_a_model_is_refused(source, tmp_path):
    shutil.copytree(source / MODELS_FOLDER, tmp_path / MODELS_FOLDER)
    assert [folder.name for folder in release.find_models(tmp_path)] == NAMES
    (tmp_path / MODELS_FOLDER / NAMES[1] / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"models lacks {NAMES[1]}: python -m experiments.study"):
        release.find_models(tmp_path)


def test_a_build_that_fails_says_why(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "broken"\nversion = "not a version"\n')
    with pytest.raises(UserError) as refused:
        release.build_packages(tmp_path, tmp_path / "dist")
    assert "could not be built" in str(refused.value)
    assert "project.version" in str(refused.value)


def test_a_release_is_of_what_is_committed(tmp_path):
    checkout, folder = tmp_path / "checkout", tmp_path / "folder"
    checkout.mkdir()
    with pytest.raises(UserError, match="a release is made of a commit"):
        release.last_commit(checkout, folder)
    (checkout / "file").write_text("committed")
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "A file"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    (checkout / "file").write_text("changed")
    (checkout / "other").write_text("new")
    assert [path.name for path in release.last_commit(checkout, folder).iterdir()] == ["file"]
    assert (folder / "file").read_text() == "committed"
