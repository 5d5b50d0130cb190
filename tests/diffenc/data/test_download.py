"""Against a real server that does what bad servers do."""

import dataclasses
import hashlib
import http.server
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from diffenc.cli import prepare
from diffenc.data import download
from diffenc.data.official_files import Download
from diffenc.errors import UserError
from diffenc.runtime.progress import ProgressBars
from diffenc_plugins.datasets import Cifar10

CONTENT = np.random.default_rng(0).bytes(900_000)
OTHER = np.random.default_rng(1).bytes(900_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT. `plan` says what becomes of each request, the last entry of all further ones."""

    protocol_version = "HTTP/1.1"
    plan: tuple[str, ...] = ("good",)
    content = CONTENT
    endless = 0  # pieces of 100 kB that were taken beyond the end
    asked: list[str | None]

    def do_GET(self):
        given = self.headers["Range"]
        what = self.plan[min(len(self.asked), len(self.plan) - 1)]
        self.asked.append(given)
        start = int(given[6:-1]) if given and what != "ignores ranges" else 0
        whole = OTHER if what == "other" else self.content
        if what == "absent":
            return self.send_error(404)
        if start >= len(whole) or (given and what == "refuses ranges"):
            return self.send_error(416)
        body = whole[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if what == "another range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        length = {"says less": len(body) - 1000, "says more": len(body) + 1000}.get(what, len(body))
        if what in ("says nothing", "never ends"):
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        body = body[: len(body) // 2] if what == "breaks off" else body
        try:
            self.wfile.write(body)
            while what == "never ends":
                self.wfile.write(bytes(100_000))
                type(self).endless += 1
        except OSError:
            pass
        if what in ("breaks off", "says more", "never ends"):
            self.close_connection = True

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[http.server.ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    handler = type("Spoiled", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def fetch(server, folder: Path, *plan: str) -> Path:
    """The downloaded file, if all goes well."""
    server.RequestHandlerClass.plan = plan
    server.RequestHandlerClass.asked.clear()
    url = f"http://127.0.0.1:{server.server_port}/official.bin"
    wanted = Download(url, hashlib.md5(CONTENT).hexdigest(), len(CONTENT))
    with ProgressBars() as bars:
        download.fetch([wanted], folder, bars)
    return folder / "official.bin"


def refused(server, folder: Path, *plan: str) -> str:
    with pytest.raises(UserError) as caught:
        fetch(server, folder, *plan)
    assert f"http://127.0.0.1:{server.server_port}/official.bin: " in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_server_is_asked_once(server, tmp_path):
    assert fetch(server, tmp_path, "good").read_bytes() == CONTENT
    assert server.RequestHandlerClass.asked == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["official.bin"]
    fetch(server, tmp_path, "absent")
    assert server.RequestHandlerClass.asked == []


@pytest.mark.parametrize(
    "plan",
    [
        ("breaks off", "good"),
        ("breaks off", "breaks off", "breaks off", "good"),
        ("breaks off", "ignores ranges"),
        ("breaks off", "another range"),
        ("breaks off", "refuses ranges"),
        ("other", "good"),
        ("absent", "good"),
        ("says more",),
        ("says nothing",),
        ("never ends", "good"),
    ],
    ids=" then ".join,
)
def test_what_can_be_mended_is(server, tmp_path, plan):
    if plan[-1] == "another range":  # whose bytes are of no use, but then it sends them all
        plan = (*plan, "good")
    assert fetch(server, tmp_path, *plan).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["official.bin"]


def test_what_has_come_is_not_asked_for_again(server, tmp_path):
    fetch(server, tmp_path, "breaks off", "breaks off", "good")
    assert server.RequestHandlerClass.asked == [None, "bytes=450000-", "bytes=675000-"]


def test_all_that_a_server_without_ranges_sends_is_taken_from_its_first_byte(server, tmp_path):
    fetch(server, tmp_path, "breaks off", "ignores ranges")
    assert server.RequestHandlerClass.asked == [None, "bytes=450000-"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("absent", "HTTP Error 404"),
        ("other", "has not the MD5"),
        ("never ends", "more comes than the 900,000 bytes"),
    ],
)
def test_what_cannot_be_mended_is_told(server, tmp_path, what, says):
    assert says in refused(server, tmp_path, what)
    assert len(server.RequestHandlerClass.asked) == 4
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    assert server.RequestHandlerClass.endless < 4 * 200  # what the sockets hold


def test_a_server_that_says_less_than_it_sends_is_gone_on_with(server, tmp_path):
    fetch(server, tmp_path, "says less", "good")
    assert server.RequestHandlerClass.asked == [None, "bytes=899000-"]


def test_a_later_call_goes_on_where_an_earlier_one_failed(server, tmp_path):
    says = refused(server, tmp_path, "breaks off", "absent")
    assert "run the same command again to resume" in says
    assert (tmp_path / "official.bin.part").stat().st_size == 450_000
    assert fetch(server, tmp_path, "good").read_bytes() == CONTENT
    assert server.RequestHandlerClass.asked == ["bytes=450000-"]


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / "official.bin.part").write_bytes(OTHER[:1000])
    assert fetch(server, tmp_path, "good").read_bytes() == CONTENT
    assert server.RequestHandlerClass.asked == ["bytes=1000-", None]


def test_a_part_as_long_as_the_file_is_not_trusted(server, tmp_path):
    (tmp_path / "official.bin.part").write_bytes(OTHER)
    assert fetch(server, tmp_path, "good").read_bytes() == CONTENT


def test_no_server_is_told(server, tmp_path):
    server.shutdown()
    server.server_close()
    assert "cannot be downloaded" in refused(server, tmp_path, "good")


def test_a_disk_that_refuses_is_no_fault_of_the_servers(server, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        fetch(server, tmp_path / "a" / "b", "good")


# The whole command


@pytest.fixture
def archive(server, monkeypatch) -> bytes:
    """CIFAR-10's one file, with two images a batch, at the server's address."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
            batch = {"data": np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8), "labels": [1, 2]}
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content := pickle.dumps(batch, 2))
            packed.addfile(member, io.BytesIO(content))
    content = server.RequestHandlerClass.content = stream.getvalue()
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    wanted = Download(url, hashlib.md5(content).hexdigest(), len(content))
    monkeypatch.setattr(Cifar10, "files", dataclasses.replace(Cifar10.files, downloads=(wanted,)))
    return content


def test_what_is_downloaded_is_converted_and_not_kept(server, archive, capsys, tmp_path):
    args = ["cifar10", "--download", f"--data_dir={tmp_path}"]
    assert prepare.main(args) == 0
    names = sorted(path.name for path in (tmp_path / "cifar10").iterdir())
    assert [name.split("-")[0] for name in names] == ["manifest.json", "test", "train"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]
    said = json.loads((tmp_path / "cifar10" / "manifest.json").read_text())
    assert said["files"]["cifar-10-python.tar.gz"]["md5"] == hashlib.md5(archive).hexdigest()
    server.RequestHandlerClass.asked.clear()
    assert prepare.main(args) == 0
    assert "cifar10 is already prepared: 10 train images, 2 test images" in capsys.readouterr().out
    assert server.RequestHandlerClass.asked == []


def test_a_command_that_failed_goes_on_with_what_had_come(server, archive, capsys, tmp_path):
    args = ["cifar10", "--download", f"--data_dir={tmp_path}"]
    server.RequestHandlerClass.plan = ("breaks off", "absent")
    assert prepare.main(args) == 1
    assert "run the same command again to resume" in capsys.readouterr().err
    server.RequestHandlerClass.plan = ("good",)
    server.RequestHandlerClass.asked.clear()
    assert prepare.main(args) == 0
    assert server.RequestHandlerClass.asked == [f"bytes={len(archive) // 2}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]
