import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module as array_record  # pyright: ignore[reportAttributeAccessIssue]

from diffenc.cli import prepare
from diffenc.data import manifest, shard_writing
from diffenc.data.recipe import Recipe
from diffenc.errors import UserError
from diffenc.runtime.progress import ProgressBars

SHAPE = (4, 4, 1)
COUNTS = {"train": 23, "test": 10}
FILES = {"all": {"sha256": "f00d"}}


def pixels(split: str) -> np.ndarray:
    return np.random.default_rng(COUNTS[split]).integers(0, 256, (COUNTS[split], *SHAPE), dtype=np.uint8)


def labels(split: str) -> np.ndarray:
    return np.arange(COUNTS[split], dtype=np.int32) % 3


class Reads:
    """Gives the examples in batches of seven, and remembers where it was told to begin."""

    def __init__(self, stop_at: int = 10**9, error: BaseException | None = None):
        self.asked: list[tuple[str, int]] = []
        self.stop_at = stop_at
        self.error = error

    def __call__(self, split: str, first: int) -> Iterator:
        self.asked.append((split, first))
        for start in range(first, COUNTS[split], 7):
            if split == "train" and start + 7 > self.stop_at and self.error:
                raise self.error
            yield {
                "image": pixels(split)[start : start + 7],
                "label": labels(split)[start : start + 7],
            }


def recipe(read) -> Recipe:
    return Recipe("toy", {}, SHAPE, 3, read, "toys")


@pytest.fixture(autouse=True)
def eight_a_shard(monkeypatch):
    monkeypatch.setattr(shard_writing, "SHARD_BYTES", 8 * (16 + 4))


def convert(folder: Path, read, files=FILES):
    folder.mkdir(exist_ok=True)
    with ProgressBars() as bars:
        return shard_writing.convert(recipe(read), files, folder, bars)


def everything(folder: Path, split: str) -> list[bytes]:
    found = []
    for path in sorted(folder.glob(f"{split}-*")):
        found += array_record.ArrayRecordReader(str(path)).read_all()
    return found


def whole(folder: Path, made) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "test-00000-of-00002.array_record",
        "test-00001-of-00002.array_record",
        "train-00000-of-00003.array_record",
        "train-00001-of-00003.array_record",
        "train-00002-of-00003.array_record",
    ]
    for split in COUNTS:
        rows = zip(labels(split), pixels(split), strict=True)
        expected = [int(label).to_bytes(4, "little") + image.tobytes() for label, image in rows]
        assert everything(folder, split) == expected
        held = made.splits[split]
        assert held.sha256 == hashlib.sha256(pixels(split).tobytes()).hexdigest()
        assert held.count == COUNTS[split]
        for shard in held.shards:
            content = (folder / shard.name).read_bytes()
            assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [shard.count for shard in made.splits["train"].shards] == [8, 8, 7]


def test_a_split_is_cut_into_shards_of_one_size(tmp_path):
    whole(tmp_path / "a", convert(tmp_path / "a", Reads()))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no"), MemoryError()])
def test_a_call_that_was_stopped_is_gone_on_with(tmp_path, error):
    folder = tmp_path / "a"
    with pytest.raises(type(error)):
        convert(folder, Reads(stop_at=21, error=error))
    kept = {path: path.stat().st_ino for path in folder.glob("train-0000?.array_record")}
    assert len(kept) == 1 + (error.__class__ is not None)
    read = Reads()
    whole(folder, convert(folder, read))
    assert read.asked == [("train", 16), ("test", 0)]
    assert {path.stat().st_ino for path in folder.glob("train-0000[01]-*")} == set(kept.values())


def test_a_call_stopped_while_it_gave_shards_their_names_is_gone_on_with(tmp_path, monkeypatch):
    folder, replace = tmp_path / "a", os.replace

    def stopping(old, new):
        if "train-00001-of" in str(new):
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, Reads())
    monkeypatch.setattr(os, "replace", replace)
    read = Reads()
    whole(folder, convert(folder, read))
    assert read.asked == [("train", 23), ("test", 0)]


def test_a_kept_shard_that_is_damaged_is_made_again_with_all_after_it(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        convert(folder, Reads(stop_at=21, error=KeyboardInterrupt()))
    path = folder / "train-00000.array_record"
    content = path.read_bytes()
    place = content.index(pixels("train")[3].tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    read = Reads()
    whole(folder, convert(folder, read))
    assert read.asked == [("train", 0), ("test", 0)]


def test_what_was_begun_from_other_files_is_not_gone_on_with(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        convert(folder, Reads(stop_at=21, error=KeyboardInterrupt()))
    read = Reads()
    whole(folder, convert(folder, read, files={"all": {"sha256": "beef"}}))
    assert read.asked == [("train", 0), ("test", 0)]


def test_it_clears_all_but_downloads(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "x.array_record.tmp").write_bytes(b"")
    shard_writing.clear_work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_a_source_that_is_no_good_raises_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"^moth-eaten$"):
        convert(tmp_path / "a", Reads(stop_at=10, error=UserError("moth-eaten")))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
    def read(split, first):
        yield {"image": pixels(split), "label": np.full(COUNTS[split], label, np.int32)}

    with pytest.raises(UserError, match=rf"toy train: labels {label} \.\. {label} are not in 0 \.\. 2"):
        convert(tmp_path / "a", read)


def test_a_full_disk_at_the_last_moment_keeps_the_shards(official, goes_on, tmp_path, monkeypatch):
    def refuses(*args):
        raise UserError("no room for the manifest")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", refuses)
        assert goes_on() == 1
    kept = {path.stat().st_ino for path in (tmp_path / "data" / ".mnist.partial").glob("*.array_record")}
    assert len(kept) == 14
    assert goes_on() == 0
    assert kept <= {path.stat().st_ino for path in (tmp_path / "data" / "mnist").iterdir()}


# Real processes, killed or without room

COMMAND = """
import sys
from pathlib import Path
from diffenc import prepare
from diffenc.data import manifest
from diffenc.data import shard_writing
shard_writing.SHARD_BYTES = 30 * 788
write = shard_writing._write_shard
def slowly(path, stream):
    made = write(path, stream)
    print(made.name, flush=True)
    __import__("time").sleep(float(sys.argv[2]))
    return made
shard_writing._write_shard = slowly
sys.exit(prepare.main(sys.argv[3:]))
"""


@pytest.fixture
def official(tmp_path) -> list[str]:
    """The arguments that prepare 200 images a split of MNIST's kind: seven shards each."""
    folder = tmp_path / "files"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = np.random.default_rng(len(prefix)).integers(0, 256, (200, 28, 28), dtype=np.uint8)
        header = np.array([0x803, 200, 28, 28], ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, 200], ">u4").tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes(k % 10 for k in range(200)))
    return ["mnist", f"--source={folder}", f"--data_dir={tmp_path / 'data'}"]


def start(official, seconds: float, **how) -> subprocess.Popen:
    command = [sys.executable, "-c", COMMAND, "_", str(seconds), *official]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.fixture
def goes_on(official, monkeypatch):
    """Runs the same command in this process, which takes less time to start."""
    monkeypatch.setattr(shard_writing, "SHARD_BYTES", 30 * 788)
    return lambda: prepare.main(official)


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, *(pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGINT, signal.SIGTERM))],
)
def test_a_process_that_is_stopped_leaves_whole_shards_that_the_next_keeps(official, goes_on, tmp_path, how):
    process = start(official, 0.2)
    assert process.stdout is not None
    made = [process.stdout.readline().strip() for _ in range(3)]
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130}.get(how, -how)
    partial = tmp_path / "data" / ".mnist.partial"
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".mnist.partial"]
    assert {*made, "recipe.json"} <= {path.name for path in partial.iterdir()}
    kept = {(partial / name).stat().st_ino for name in made}
    assert goes_on() == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist"]
    assert kept <= {path.stat().st_ino for path in (tmp_path / "data" / "mnist").iterdir()}
    assert b"".join(everything(tmp_path / "data" / "mnist", "train")) == expected(tmp_path)


def expected(tmp_path: Path) -> bytes:
    raw = (tmp_path / "files" / "train-images-idx3-ubyte").read_bytes()[16:]
    images = [raw[784 * k : 784 * (k + 1)] for k in range(200)]
    return b"".join((k % 10).to_bytes(4, "little") + image for k, image in enumerate(images))


def test_a_full_disk_is_told_and_the_next_call_goes_on(official, goes_on, tmp_path):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(official, 0, preexec_fn=small_files)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert "File too large" in err
    assert ".mnist.partial" in err
    assert "the same command goes on" in err.splitlines()[-1]
    assert goes_on() == 0
    assert b"".join(everything(tmp_path / "data" / "mnist", "train")) == expected(tmp_path)
