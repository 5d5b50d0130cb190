"""Measurements that are never lost; with real processes."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from diffenc.workdir import measurements


def test_evaluations_are_numbered_and_the_newest_is_at_hand(tmp_path):
    for number, bpd in enumerate([3.5, 3.25], start=1):
        record = {"bpd": np.float32(bpd), "bpd_error": float("nan")}
        assert (
            measurements.save_measurement(tmp_path, "evaluation", record, {"bpd": np.full(4, bpd)}) == number
        )
    for name, bpd in [("evaluations/0001", 3.5), ("evaluations/0002", 3.25), ("evaluation", 3.25)]:
        said = json.loads((tmp_path / f"{name}.json").read_text())
        arrays = hashlib.sha256((tmp_path / f"{name}.npz").read_bytes()).hexdigest()
        rest = {"bpd": bpd, "bpd_error": None, "npz": arrays}
        assert said == {
            **rest,
            "sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest(),
        }
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npz")["bpd"], [bpd] * 4)
    names = {"0001.json", "0001.npz", "0002.json", "0002.npz"}
    assert set(os.listdir(tmp_path / "evaluations")) == names
    assert set(os.listdir(tmp_path)) == {"evaluations", "evaluation.json", "evaluation.npz"}


def test_a_half_filed_evaluation_is_never_written_over(tmp_path):
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "0007.npz").write_bytes(b"what a killed process filed")
    assert measurements.save_measurement(tmp_path, "evaluation", {}, {}) == 8
    assert (tmp_path / "evaluations" / "0007.npz").read_bytes() == b"what a killed process filed"


def test_a_disk_without_hard_links_keeps_evaluations_too(tmp_path, monkeypatch):
    def none(source, target):
        raise OSError(errno.EPERM, "Operation not permitted", source)

    monkeypatch.setattr(os, "link", none)
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "0002.npz").write_bytes(b"somebody's")
    monkeypatch.setattr(measurements, "_next_number", lambda folder: 1)
    assert [
        measurements.save_measurement(tmp_path, "evaluation", {"k": k}, {"k": np.array(k)}) for k in range(2)
    ] == [1, 3]
    assert (tmp_path / "evaluations" / "0002.npz").read_bytes() == b"somebody's"
    for number, k in ((1, 0), (3, 1)):
        assert np.load(tmp_path / "evaluations" / f"{number:04d}.npz")["k"] == k
    names = [f"000{number}.{kind}" for number in (1, 3) for kind in ("json", "npz")]
    assert sorted(os.listdir(tmp_path / "evaluations")) == sorted([*names, "0002.npz"])


EVALUATE_MANY = """
import sys
import numpy as np
from diffenc.workdir import measurements
for i in range(10):
    id = [int(sys.argv[2]), i]
    measurements.save_measurement(sys.argv[1], "evaluation", {"id": id}, {"id": np.array(id)})
"""


def test_evaluations_of_processes_that_race_are_all_kept(tmp_path):
    workers = [subprocess.Popen([sys.executable, "-c", EVALUATE_MANY, tmp_path, str(i)]) for i in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    ids = set()
    for path in (tmp_path / "evaluations").glob("*.json"):
        ids.add(tuple(json.loads(path.read_text())["id"]))
        np.testing.assert_array_equal(
            np.load(path.with_suffix(".npz"))["id"], json.loads(path.read_text())["id"]
        )
    assert ids == {(worker, round_) for worker in range(3) for round_ in range(10)}


FULL_DISK = """
import resource, sys
import numpy as np
from diffenc.errors import UserError
from diffenc.workdir import measurements
folder, numbers, letters = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
measurements.save_measurement(folder, "evaluation", {"bpd": 3.0}, {"a": np.zeros(4)})
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    measurements.save_measurement(folder, "evaluation", {"bpd": 2.0, "note": letters * "x"}, {"a": np.zeros(numbers)})
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("numbers", "letters"), [(4, 5000), (5000, 4)])
def test_a_full_disk_files_both_of_a_measurement_or_neither(tmp_path, numbers, letters):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, str(numbers), str(letters)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "free space there" in done.stdout
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["evaluation.json", "evaluation.npz", "evaluations/0001.json", "evaluations/0001.npz"]
    for ending in ("json", "npz"):
        newest = (tmp_path / f"evaluation.{ending}").read_bytes()
        assert newest == (tmp_path / "evaluations" / f"0001.{ending}").read_bytes()
