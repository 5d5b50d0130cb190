"""Table 8 from files as --mode=fid leaves them, written by hand here."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from diffenc import registry
from diffenc.cli import tables
from diffenc.config.serialize import config_text
from diffenc.registry import features
from diffenc.tools.tables import distances, paper
from diffenc.tools.tables.collection import load_lines

SMALL = ["--steps=1000", "--seeds=2", "--blocks=1", "--channels=32", "--encoder_channels=16"]
CORNER = [
    "--gin_bindings=Experiment.fid = @fid()",
    "--gin_bindings=fid.features = @features.corner()",
]
NUMS = ["--gin_bindings=fid.nums = (100, 20)"]
COLUMNS = [(20, "train"), (20, "test"), (100, "train"), (100, "test")]
INCEPTION = {"metric": "fid", "features": features.spell(features["inception"]())}


@dataclasses.dataclass(frozen=True)
class Corner:
    """Features of no weights, which nothing here computes."""

    num_features: int = 4

    def metric(self):
        return "fd_corner"

    def identity(self):
        return "corner 1"

    def load(self):
        raise AssertionError("read from records alone")


@pytest.fixture
def corner(monkeypatch):
    monkeypatch.setitem(registry.features._classes, "corner", Corner)


def drawn(name, seed, columns):
    random = np.random.default_rng([len(name), seed])
    return [
        {"num": num, "split": split, "distance": random.uniform(5, 20), "kid": random.normal(0.01, 0.003), "kid_se": 0.001, "kid_num": min(num, 50)}
        for num, split in columns
    ]  # fmt: skip


def finish(folder, flags, columns, **said):
    """Every run of table 8 as if it were done; returns distances by model and seed."""
    given, made = tables.parse_args(["--table=8", *SMALL, *flags]), {}
    for line in load_lines(8, folder, tables.parse_scale(given)):
        for run in line.runs:
            found = made[line.row.model, run.seed] = drawn(line.row.model, run.seed, columns)
            images = {
                split: {"dataset": "cifar10", "source": paper.published_images("cifar10"), "split": split, "num_images": count, "fingerprint": f"{split} digest"}
                for split, count in (("train", 50_000), ("test", 10_000))
            }  # fmt: skip
            record = {
                **{"distances": found, "images": images, "features_identity": "f286bbf4", "step": 1000},
                **{"num_images": None, "kid_images": 10_000, "kid_block": 1000, "precision": "float32"},
                **distances.sampling_metadata(run.experiment.sampling, run.experiment.fid),
                **said,
            }
            run.workdir.mkdir(parents=True)
            (run.workdir / "config.gin").write_text(config_text(run.experiment))
            (run.workdir / "fid.json").write_text(json.dumps(record))
    return made


def call(folder, *flags):
    return tables.main(["--table=8", f"--output={folder}", "--norun", *SMALL, *flags])


def rows_of(file):
    return list(csv.DictReader(file.open()))


def test_the_runs_are_those_of_table_2(tmp_path):
    scale = tables.parse_scale(tables.parse_args(["--table=8"]))
    lines = load_lines(8, tmp_path / "8", scale)
    assert [str(line.runs[2].workdir) for line in lines] == [
        f"{tmp_path}/2/VDMv-32/seed_2",
        f"{tmp_path}/2/DiffEnc-32-4/seed_2",
    ]
    assert [line.runs[0].experiment.fid.nums for line in lines] == [(10_000, 50_000)] * 2


def test_fid_is_shown_beside_the_papers(tmp_path):
    made = finish(tmp_path / "8", NUMS, COLUMNS, **INCEPTION)
    assert call(tmp_path / "8", *NUMS) == 0
    rows = rows_of(tmp_path / "8" / "table.csv")
    assert [(row["model"], row["from"]) for row in rows] == [
        (model, where) for model in ("VDMv-32", "DiffEnc-32-4") for where in ("here", "paper")
    ]
    here = [made["VDMv-32", seed][2]["distance"] for seed in range(2)]
    assert float(rows[0]["FID 100 train"]) == pytest.approx(np.mean(here), rel=0.05)
    assert float(rows[0]["FID 100 train_se"]) == pytest.approx(abs(here[0] - here[1]) / 2, rel=0.06)
    assert (rows[0]["FID 10,000 test"], rows[1]["FID 100 test"]) == ("", "")
    assert (rows[1]["FID 10,000 test"], rows[1]["FID 10,000 test_se"]) == ("18.9", "0.2")
    assert (rows[3]["FID 50,000 test"], rows[3]["seeds"]) == ("15.0", "3")
    kid = rows_of(tmp_path / "8" / "kid.csv")
    assert [row["from"] for row in kid] == ["here", "here"]
    by_hand = sum(made["DiffEnc-32-4", seed][0]["kid"] for seed in range(2)) / 2
    assert float(kid[1]["KID 20 train"]) == pytest.approx(by_hand, rel=0.05)
    heads = [head for head in kid[0] if not head.endswith("_se")]
    assert heads == ["model", "from", *(f"KID {num} {split}" for num in (20, 50) for split in ("train", "test")), "seeds"]  # fmt: skip
    stated = (tmp_path / "8" / "table.md").read_text()
    assert "50,000 of cifar10 train (CIFAR-10 (Krizhevsky 2009)), pixels train digest" in stated
    assert "NOT the published training" in stated
    assert "missing" not in stated


def test_another_distance_is_not_fid_and_not_beside_the_papers(corner, tmp_path):
    flags = [*NUMS, *CORNER]
    finish(
        tmp_path / "8",
        flags,
        COLUMNS,
        metric="fd_corner",
        features=features.spell(features["corner"]()),
    )
    assert call(tmp_path / "8", *flags) == 0
    rows = rows_of(tmp_path / "8" / "table.csv")
    assert {row["from"] for row in rows} == {"here"}
    heads = [head for head in rows[0] if not head.endswith("_se")]
    assert heads == ["model", "from", *(f"fd_corner {num} {split}" for num, split in COLUMNS), "seeds"]  # fmt: skip
    stated = (tmp_path / "8" / "table.md").read_text()
    assert "fd_corner is not FID" in stated
    assert "FID 1" not in stated
    assert "KID" not in stated
    assert "14.8" not in stated


def test_of_other_images_the_papers_are_left_out(tmp_path):
    finish(tmp_path / "8", NUMS, COLUMNS, **INCEPTION)
    for file in tmp_path.glob("2/*/*/fid.json"):
        file.write_text(
            file.read_text().replace(paper.published_images("cifar10"), "unknown version of CIFAR-10")
        )
    assert call(tmp_path / "8", *NUMS) == 0
    assert {row["from"] for row in rows_of(tmp_path / "8" / "table.csv")} == {"here"}
    assert "of other images" in (tmp_path / "8" / "table.md").read_text()


def test_against_a_part_of_a_split_the_papers_are_left_out(tmp_path):
    flags = [*NUMS, "--gin_bindings=fid.num_images = 5"]
    finish(tmp_path / "8", flags, COLUMNS, **INCEPTION, num_images=5)
    assert call(tmp_path / "8", *flags) == 0
    assert {row["from"] for row in rows_of(tmp_path / "8" / "table.csv")} == {"here"}
    stated = (tmp_path / "8" / "table.md").read_text()
    assert "the paper's numbers, of whole splits," in stated
    assert "missing" not in stated


def test_by_other_weights_than_the_published_the_papers_are_left_out(tmp_path):
    finish(tmp_path / "8", NUMS, COLUMNS, **(INCEPTION | {"metric": "fd_inception"}))
    assert call(tmp_path / "8", *NUMS) == 0
    rows = rows_of(tmp_path / "8" / "table.csv")
    assert {row["from"] for row in rows} == {"here"}
    assert "fd_inception 20 test" in rows[0]
    assert "fd_inception is not FID" in (tmp_path / "8" / "table.md").read_text()


def test_one_number_of_vectors_is_one_column_of_the_kernel_distance(tmp_path):
    columns = [(num, split) for num in (100, 200) for split in ("train", "test")]
    flags = ["--gin_bindings=fid.nums = (100, 200)"]
    finish(tmp_path / "8", flags, columns, **INCEPTION)
    for file in tmp_path.glob("2/*/*/fid.json"):
        record = json.loads(file.read_text())
        for row in record["distances"]:
            row["kid"] = {"train": 0.25, "test": 0.5}[row["split"]]
        file.write_text(json.dumps(record))
    assert call(tmp_path / "8", *flags) == 0
    row = rows_of(tmp_path / "8" / "kid.csv")[0]
    assert [head for head in row if head.startswith("KID") and not head.endswith("_se")] == ["KID 50 train", "KID 50 test"]  # fmt: skip
    assert (float(row["KID 50 train"]), float(row["KID 50 test"])) == (0.25, 0.5)


def test_what_was_measured_otherwise_than_asked_is_missing(tmp_path):
    finish(tmp_path / "8", NUMS, COLUMNS, **INCEPTION)
    scale = tables.parse_scale(tables.parse_args(["--table=8", *SMALL, *NUMS]))
    run = load_lines(8, tmp_path / "8", scale, "VDMv")[0].runs[0]
    record = json.loads((run.workdir / "fid.json").read_text())
    assert distances.is_measured(run)
    for said in (
        {"features": "corner()"},
        {"step": 999},
        {"seed": 1},
        {"num_images": 5},
        {"kid_images": 100},
        {"kid_block": 10},
        {"precision": "bfloat16"},
        {"sampling": record["sampling"] | {"steps": 10}},
        {"distances": record["distances"][:2]},
    ):
        (run.workdir / "fid.json").write_text(json.dumps(record | said))
        assert not distances.is_measured(run), said
    del record["num_images"]
    (run.workdir / "fid.json").write_text(json.dumps(record))
    assert not distances.is_measured(run), "of a version that did not state it"
    assert call(tmp_path / "8", *NUMS, "--rows=VDMv") == 0
    stated = (tmp_path / "8" / "table.md").read_text()
    assert f"missing: {tmp_path}/2/VDMv-32: seed 0 (to do: train, fid)" in stated
    assert "14.8 ± 0.2" in stated


def test_distances_by_other_weights_are_refused(tmp_path, capsys):
    finish(tmp_path / "8", NUMS, COLUMNS, **INCEPTION)
    file = tmp_path / "2" / "VDMv-32" / "seed_1" / "fid.json"
    file.write_text(file.read_text().replace("f286bbf4", "0000"))
    assert call(tmp_path / "8", *NUMS) == 1
    assert "features_identity f286bbf4 and 0000" in capsys.readouterr().err


def test_one_seed_has_no_error(tmp_path):
    flags = [*NUMS, "--seeds=1"]
    finish(tmp_path / "8", flags, COLUMNS, **INCEPTION)
    assert call(tmp_path / "8", *flags) == 0
    row = rows_of(tmp_path / "8" / "table.csv")[0]
    assert math.isfinite(float(row["FID 20 test"]))
    assert row["FID 20 test_se"] == ""
