import dataclasses
import fcntl
import gzip
import hashlib
import http.server
import importlib.metadata
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffenc import prepare, registry
from diffenc.errors import UserError
from diffenc.paths import Download

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
    """Nothing but the prepared folder is there, with the source's bytes and a manifest."""
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]
    found = {path.name: path.read_bytes() for path in (data_dir / "mnist").iterdir()}
    assert found.pop("manifest.json")
    assert found == CONTENT


@pytest.mark.parametrize("named", ["", IMAGES])
def test_files_are_put_in_place_with_a_manifest(capsys, source, data_dir, named):
    status, out, _ = call(capsys, "mnist", f"--source={source / named}", f"--data_dir={data_dir}")
    assert (status, out) == (0, f"prepared mnist: 5 train images, 5 test images in {data_dir}/mnist\n")
    whole(data_dir)
    manifest = json.loads((data_dir / "mnist" / "manifest.json").read_text())
    pixels = {"count": 5, "fingerprint": hashlib.sha256(PIXELS.tobytes()).hexdigest()}
    assert manifest == {
        "name": "mnist",
        "image_shape": [28, 28, 1],
        "num_levels": 256,
        "num_classes": 10,
        "splits": {"train": pixels, "test": pixels},
        "files": {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in CONTENT.items()},
        "diffenc_version": importlib.metadata.version("diffenc"),
    }


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
    assert (status, out) == (0, f"mnist is already prepared in {data_dir}/mnist\n")
    assert {path: path.stat().st_mtime_ns for path in (data_dir / "mnist").iterdir()} == before
    whole(data_dir)


def test_files_put_there_by_hand_get_their_manifest(capsys, source, data_dir):
    data_dir.mkdir()
    (source / "letter.txt").unlink()
    source.rename(data_dir / "mnist")
    status, out, _ = call(capsys, "mnist", f"--source={data_dir / 'mnist'}", f"--data_dir={data_dir}")
    assert (status, "already prepared" in out) == (0, True)
    whole(data_dir)


@pytest.mark.parametrize("where", ["source", "target"])
def test_other_files_are_not_overwritten(capsys, source, data_dir, where):
    args = ("mnist", f"--source={source}", f"--data_dir={data_dir}")
    call(capsys, *args)
    changed = (source if where == "source" else data_dir / "mnist") / IMAGES
    changed.write_bytes(gzip.compress(gzip.decompress(changed.read_bytes())[:-1] + b"x"))
    held = (data_dir / "mnist" / IMAGES).read_bytes()
    line = error(capsys, *args)
    assert f"{data_dir}/mnist already holds other files ({IMAGES} differs" in line
    assert "delete that folder" in line
    assert (data_dir / "mnist" / IMAGES).read_bytes() == held
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def test_the_folder_appears_whole(capsys, monkeypatch, source, data_dir):
    """One rename brings it, of a folder that has everything in it."""
    seen, rename = [], os.rename

    def watched(old, new):
        if Path(new) == data_dir / "mnist":
            seen.append(({path.name for path in Path(old).iterdir()}, Path(new).exists()))
        rename(old, new)

    monkeypatch.setattr(os, "rename", watched)
    call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    assert seen == [({*CONTENT, "manifest.json"}, False)]


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


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `spoil` says what becomes of the training images."""

    spoil = "good"

    def do_GET(self):
        name = self.path.lstrip("/")
        body = CONTENT[name]
        spoil = self.spoil if name == IMAGES else "good"
        if spoil == "absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if spoil == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        if spoil in ("cut", "hangs"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if spoil == "hangs":
            self.wfile.flush()
            time.sleep(30)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """The official files at 127.0.0.1: the data set's own addresses are replaced."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Spoiled", (Server,), {})) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        registry.discover()
        mnist: Any = registry.datasets["mnist"]
        monkeypatch.setattr(
            mnist, "files", dataclasses.replace(mnist.files, downloads=downloads(running.server_port))
        )
        yield running
        running.shutdown()


def downloads(port: int) -> tuple[Download, ...]:
    return tuple(
        Download(f"http://127.0.0.1:{port}/{name}", hashlib.md5(content).hexdigest())
        for name, content in CONTENT.items()
    )


def test_a_download_is_put_in_place(capsys, server, data_dir):
    status, out, _ = call(capsys, "mnist", "--download", f"--data_dir={data_dir}")
    assert (status, out.split(":")[0]) == (0, "prepared mnist")
    whole(data_dir)


def test_what_is_there_is_not_downloaded_again(capsys, server, source, data_dir):
    call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")
    server.RequestHandlerClass.spoil = "absent"
    status, out, _ = call(capsys, "mnist", "--download", f"--data_dir={data_dir}")
    assert (status, "already prepared" in out) == (0, True)


@pytest.mark.parametrize(
    ("spoil", "says"), [("absent", "HTTP Error 404"), ("wrong", "has not the MD5"), ("cut", "cut short at")]
)
def test_a_bad_download_leaves_nothing(capsys, server, data_dir, spoil, says):
    server.RequestHandlerClass.spoil = spoil
    line = error(capsys, "mnist", "--download", f"--data_dir={data_dir}")
    assert f"http://127.0.0.1:{server.server_port}/{IMAGES}: " in line
    assert says in line
    assert list(data_dir.iterdir()) == []


def test_no_network_is_one_line(capsys, server, data_dir):
    server.shutdown()
    server.server_close()
    assert "cannot be downloaded" in error(capsys, "mnist", "--download", f"--data_dir={data_dir}")


KILLED = """
import dataclasses, sys
from diffenc import prepare, registry
from diffenc.paths import Download
registry.discover()
mnist = registry.datasets["mnist"]
wanted = tuple(dataclasses.replace(known, url=sys.argv[1] + known.name) for known in mnist.files.downloads)
mnist.files = dataclasses.replace(mnist.files, downloads=wanted)
sys.exit(prepare.main(["mnist", "--download", "--data_dir=" + sys.argv[2]]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_leaves_at_most_a_folder_that_the_next_call_clears(
    capsys, server, source, data_dir, how
):
    server.RequestHandlerClass.spoil = "hangs"
    address = f"http://127.0.0.1:{server.server_port}/"
    process = subprocess.Popen([sys.executable, "-c", KILLED, address, str(data_dir)], stderr=subprocess.PIPE)
    half = data_dir / ".mnist.partial" / IMAGES
    deadline = time.monotonic() + 60
    while not half.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    left = [path.name for path in data_dir.iterdir()]
    if how == signal.SIGINT:
        assert (process.returncode, left) == (130, [])
        assert b"Traceback" not in err
    else:
        assert (process.returncode, left) == (-signal.SIGKILL, [".mnist.partial"])
    assert call(capsys, "mnist", f"--source={source}", f"--data_dir={data_dir}")[0] == 0
    whole(data_dir)


def test_the_command_line_runs_as_a_module(source, data_dir):
    command = [sys.executable, "-m", "diffenc.prepare"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("mnist", "imagenet32", "--source", "--download", "--data_dir"):
        assert word in helped
    done = subprocess.run([*command, "mnist", f"--source={source}", f"--data_dir={data_dir}"], check=False)
    assert done.returncode == 0
    whole(data_dir)
    failed = subprocess.run([*command, "mnst", "--download"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1].startswith("error: no dataset is called 'mnst'; nearest: ")


def test_the_real_files(capsys, data_dir):
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    shared = Path(os.environ["DIFFENC_SHARED"]) / "data"
    counts = {"mnist": (60_000, 10_000), "cifar10": (15_000, 2_000), "imagenet32": (900, 100)}
    folders = {"mnist": "mnist", "cifar10": "cifar10_jpeg", "imagenet32": "imagenet32_sample"}
    for name, folder in folders.items():
        status, out, _ = call(capsys, name, f"--source={shared / folder}", f"--data_dir={data_dir}")
        train, test = counts[name]
        assert (status, out) == (
            0,
            f"prepared {name}: {train:,} train images, {test:,} test images in {data_dir}/{name}\n",
        )


def test_prepare_raises_what_main_prints(source, data_dir):
    registry.discover()
    with pytest.raises(UserError, match="nearest"):
        prepare.prepare("minst", source, data_dir)
    assert prepare.prepare("mnist", source, data_dir).startswith("prepared mnist")
