import fcntl
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module as array_record  # pyright: ignore[reportAttributeAccessIssue]

from diffenc import registry
from diffenc.cli import prepare
from diffenc.data.prepare import PrepareArgs
from diffenc.data.prepare import prepare as prepare_data
from diffenc.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
CONTENT = {
    f"{prefix}-{kind}.gz": gzip.compress(content, mtime=0)
    for prefix in ("train", "t10k")
    for kind, content in (
        ("images-idx3-ubyte", struct.pack(">4I", 2051, 5, 28, 28) + PIXELS.tobytes()),
        ("labels-idx1-ubyte", struct.pack(">2I", 2049, 5) + bytes(range(5))),
    )
}
IMAGES = "train-images-idx3-ubyte.gz"
SHARDS = ("train-00000-of-00001.array_record", "test-00000-of-00001.array_record")


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder with five images in MNIST's official files, and something else."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    (folder / "letter.txt").write_text("not data")
    return folder


@pytest.fixture
def data_dir(tmp_path) -> Path:
    return tmp_path / "data"


def call(capsys, *args) -> tuple[int, str, str]:
    status = prepare.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, out, err


def error(capsys, *args) -> str:
    """The one line that a refused call prints."""
    status, out, err = call(capsys, *args)
    assert (status, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.endswith(line + "\n")
    assert "Traceback" not in err
    return line


def whole(data_dir: Path) -> None:
    """Nothing but the prepared folder is there, and it holds the source's examples."""
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]
    names = {path.name for path in (data_dir / "mnist").iterdir()}
    assert names == {*SHARDS, "manifest.json"}
    for name in SHARDS:
        reader = array_record.ArrayRecordReader(str(data_dir / "mnist" / name))
        expected = [struct.pack("<i", k) + PIXELS[k].tobytes() for k in range(5)]
        assert reader.read_all() == expected


@pytest.mark.parametrize("named", ["", IMAGES])
def test_shards_are_put_in_place_with_a_manifest(capsys, source, data_dir, named):
    status, out, _ = call(capsys, "mnist", f"--source={source / named}", f"--data_dir={data_dir}")
    unknown = "unknown version of MNIST (LeCun et al. 1998)"
    assert (status, out) == (
        0,
        f"prepared mnist: 5 train images, 5 test images in {data_dir}/mnist: {unknown}\n",
    )
    whole(data_dir)
    manifest = json.loads((data_dir / "mnist" / "manifest.json").read_text())
    splits = {}
    for split, name in zip(("train", "test"), SHARDS, strict=True):
        content = (data_dir / "mnist" / name).read_bytes()
        shard = {"name": name, "count": 5, "bytes": len(content), "sha256": sha256(content)}
        splits[split] = {
            "count": 5,
            "sha256": sha256(PIXELS.tobytes()),
            "shards": [shard],
            "images_sha256": sha256(
                b"".join(sorted(hashlib.sha256(image.tobytes()).digest() for image in PIXELS))
            ),
        }
    assert manifest == {
        "format": 1,
        "name": "mnist",
        "source": unknown,
        "image_shape": [28, 28, 1],
        "num_levels": 256,
        "num_classes": 10,
        "classes": [],
        "splits": splits,
        "files": {
            name: {
                "bytes": len(content),
                "md5": hashlib.md5(content).hexdigest(),
                "sha256": sha256(content),
            }
            for name, content in CONTENT.items()
        },
        "note": "",
        "diffenc_version": importlib.metadata.version("diffenc"),
        "otherwise": "",
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_data_directory_may_come_from_the_environment(capsys, monkeypatch, source, data_dir):
    monkeypatch.setenv("DIFFENC_DATA", str(data_dir))
    assert call(capsys, "mnist", f"--source={source}")[0] == 0
    whole(data_dir)
    assert len(registry.datasets["mnist"]().source("train")) == 5


def test_preparing_again_changes_nothing(capsys, source, data_dir):
    args = ("mnist", f"--source={source}", f"--data_dir={data_dir}")
    call(capsys, *args)
    before = {path: path.stat().st_mtime_ns for path in (data_dir / "mnist").iterdir()}
    status, out, _ = call(capsys, *args)
    assert (status, out.split(":")[0]) == (0, "mnist is already prepared")
    assert {path: path.stat().st_mtime_ns for path in (data_dir / "mnist").iterdir()} == before
    whole(data_dir)


def test_preparing_again_verifies_the_shards(capsys, source, data_dir):
    args = ("mnist", f"--source={source}", f"--data_dir={data_dir}")
    call(capsys, *args)
    path = data_dir / "mnist" / SHARDS[1]
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    line = error(capsys, *args)
    assert f"{path}: is damaged or missing; delete {data_dir}/mnist" in line


def test_two_versions_lie_side_by_side(capsys, monkeypatch, source, data_dir):
    call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    raw = bytearray(gzip.decompress(CONTENT[IMAGES]))
    raw[16] ^= 1
    (source / IMAGES).write_bytes(gzip.compress(raw))
    line = error(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    assert f"{data_dir}/mnist already holds other data" in line
    assert f"{IMAGES} differs" in line
    assert "--as=FOLDER" in line
    assert call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}", "--as=other")[0] == 0
    monkeypatch.setenv("DIFFENC_DATA", str(data_dir))
    mnist: Any = registry.datasets["mnist"]
    first, second = (mnist(folder=folder).source("train")[0]["image"] for folder in ("mnist", "other"))
    assert int(first[0, 0, 0]) == int(second[0, 0, 0]) ^ 1
    assert first.tobytes()[1:] == second.tobytes()[1:]


def test_files_put_there_by_hand_are_converted_beside_themselves(capsys, source, data_dir):
    data_dir.mkdir()
    source.rename(data_dir / "mnist")
    args = ("mnist", f"--source={data_dir / 'mnist'}", f"--data_dir={data_dir}")
    for said in ("prepared", "already prepared"):
        status, out, _ = call(capsys, *args)
        assert (status, said in out) == (0, True)
    names = {path.name for path in (data_dir / "mnist").iterdir()}
    assert names == {*CONTENT, *SHARDS, "letter.txt", "manifest.json"}
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def test_a_folder_of_something_else_is_left_alone(capsys, source, data_dir):
    (data_dir / "mnist").mkdir(parents=True)
    (data_dir / "mnist" / "thesis.tex").write_text("precious")
    line = error(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    assert "already holds something else" in line
    assert (data_dir / "mnist" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", ""])
def test_as_is_the_name_of_a_folder(capsys, source, data_dir, name):
    args = ("mnist", f"--source={source}", f"--data_dir={data_dir}", f"--as={name}")
    if name:
        assert "--as" in error(capsys, *args)
        assert not data_dir.exists()


def test_the_folder_appears_whole(capsys, monkeypatch, source, data_dir):
    """One rename brings it, of a folder that has everything in it."""
    seen, rename = [], os.rename

    def watched(old, new):
        if Path(new) == data_dir / "mnist":
            seen.append(({path.name for path in Path(old).iterdir()}, Path(new).exists()))
        rename(old, new)

    monkeypatch.setattr(os, "rename", watched)
    call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    assert seen == [({*SHARDS, "manifest.json"}, False)]


def test_bad_files_leave_nothing(capsys, source, data_dir):
    (source / IMAGES).write_bytes(CONTENT[IMAGES][:-30])
    assert "cannot be read" in error(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    assert list(data_dir.iterdir()) == []


def test_what_is_missing_is_named(capsys, source, data_dir):
    (source / IMAGES).unlink()
    assert f"no {IMAGES}" in error(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    assert "no such file" in error(capsys, "mnist", f"--source={source}/nowhere", f"--data_dir={data_dir}")


def test_what_cannot_be_asked(capsys, data_dir):
    assert re.search(r"nearest: .*mnist", error(capsys, "minst", "--download"))
    assert "give --source=FILE_OR_DIR, or --download" in error(capsys, "mnist", f"--data_dir={data_dir}")
    assert "image-net.org" in error(capsys, "imagenet32", "--download")
    assert "login" in error(capsys, "imagenet32", "--download")
    status, out, _ = call(capsys, "digits")
    assert (status, out) == (0, "digits needs no files: nothing to prepare\n")


def test_a_data_directory_that_is_a_file_is_one_line(capsys, source, tmp_path):
    (tmp_path / "data").write_text("")
    assert "Error: " in error(capsys, "mnist", f"--source={source}", f"--data_dir={tmp_path}/data")


def test_a_prepared_folder_that_is_being_made_is_left_alone(capsys, source, data_dir):
    busy = data_dir / ".mnist.partial"
    busy.mkdir(parents=True)
    (busy / "half").write_text("someone else's")
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        line = error(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
        assert "another process prepares" in line
        assert (busy / "half").exists()
    finally:
        os.close(descriptor)
    assert call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")[0] == 0
    whole(data_dir)


def test_the_command_line_runs_as_a_module(source, data_dir):
    command = [sys.executable, "-m", "diffenc.prepare", "mnist", f"--data_dir={data_dir}"]
    assert subprocess.run([*command, f"--source={source}"], check=False).returncode == 0
    whole(data_dir)


@pytest.mark.slow
def test_the_command_line_fails_as_a_module():
    command = [sys.executable, "-m", "diffenc.prepare", "mnst", "--download"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1].startswith("error: no dataset is called 'mnst'; nearest: ")


def test_help_names_what_there_is(capsys):
    with pytest.raises(SystemExit) as left:
        prepare.main(["--help"])
    assert left.value.code == 0
    helped = capsys.readouterr().out
    for word in ("mnist", "imagenet32", "--source", "--download", "--data_dir"):
        assert word in helped


def test_prepare_raises_what_main_prints(source, data_dir):
    registry.discover()
    with pytest.raises(UserError, match="nearest"):
        prepare_data(PrepareArgs("minst", source, data_dir))
    assert prepare_data(PrepareArgs("mnist", source, data_dir)).startswith("prepared mnist")
