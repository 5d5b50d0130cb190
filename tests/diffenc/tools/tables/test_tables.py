"""Tables end to end, from files as evaluation leaves them, written by hand here; and really run."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffenc.cli import prepare, tables
from diffenc.config.serialize import config_text
from diffenc.files import atomic
from diffenc.tools.tables import paper
from diffenc.tools.tables.collection import load_lines

DIMS = {"mnist": 784, "cifar10": 3072, "imagenet32": 3072}
SHIFT = {"VDMv-8": 0.0, "DiffEnc-8-2": -0.02, "DiffEnc-8-4": -0.02, "DiffEnc-8-nt": 0.01, "VDMv-32": 0.0, "DiffEnc-32-4": -0.02, "DiffEnc-32-8": -0.01}  # fmt: skip
SMALL = ["--steps=1000", "--seeds=3", "--batch_size=16", "--blocks=1", "--channels=32", "--encoder_channels=16", "--passes=2"]  # fmt: skip
TERMS = ("reconstruction", "latent", "diffusion")


def nats_of(row, seed, images=40):
    """Terms in nats [2, images], whose passes agree; images and seeds share most of their spread between models."""
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, len(row.model)])
    unit = DIMS[row.dataset] * math.log(2)
    diffusion = 1.7 + SHIFT[row.model] + 0.1 * shared.normal(size=(1, images)) + 0.01 * shared.normal()
    diffusion += 0.005 * own.normal(size=(1, images))
    diffusion = np.repeat(diffusion, 2, axis=0)
    parts = (np.full((2, images), 0.006), np.full((2, images), 0.001), diffusion)
    return {name: part * unit for name, part in zip(TERMS, parts, strict=True)}


def record_of(row, nats, run, said):
    unit = DIMS[row.dataset] * math.log(2)
    figures = {f"bpd_{name}": float(nats[name].mean() / unit) for name in TERMS}
    return {
        "bpd": sum(figures.values()),
        "bpd_mc_se": 0.004,
        **figures,
        **{
            "dataset": row.dataset,
            "source": paper.published_images(row.dataset),
            "split": "test",
            "num_images": 40,
            "split_images": 40,
        },
        **{
            "fingerprint": f"{row.dataset} by digest",
            "T": "continuous",
            "time_sampler": "uniform",
            "seed": 0,
        },
        **{"times_per_image": 1, "passes": 2, "batch_size": run.experiment.batch_size, "step": 1000},
        **{"precision": "float32", "matmul_precision": "default", "num_params": 100 + len(row.model)},
        **said,
    }


def finish(table, folder, flags=SMALL, said=None):
    """All runs of a table as if they were done; returns terms in nats by model, noise and seed."""
    given = tables.parse_args([f"--table={table}", *flags])
    made = {}
    for line in load_lines(table, folder, tables.parse_scale(given), given.rows):
        for run in line.runs:
            nats = made[line.row.model, line.row.noise, run.seed] = nats_of(line.row, run.seed)
            run.workdir.mkdir(parents=True)
            (run.workdir / "config.gin").write_text(config_text(run.experiment))
            arrays = {**nats, "times": np.full((*nats["latent"].shape, 1), 0.5)}
            (run.workdir / "evaluation.npz").write_bytes(atomic.encode_npz(arrays))
            record = record_of(line.row, nats, run, said or {})
            (run.workdir / "evaluation.json").write_text(json.dumps(record))
    return made


def call(table, folder, *flags):
    return tables.main([f"--table={table}", f"--output={folder}", "--norun", *SMALL, *flags])


def rows_of(file):
    return list(csv.DictReader(file.open()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Table 4's fixed rows, done, and their terms."""
    folder = tmp_path_factory.mktemp("tables") / "4"
    return folder, finish(4, folder, [*SMALL, "--rows=fixed"])


@pytest.fixture(scope="module")
def shown(finished):
    assert call(4, finished[0], "--rows=fixed") == 0
    return finished[0]


def bits(nats):
    return np.sum(list(nats.values()), axis=0) / (784 * math.log(2))


def test_means_and_errors_are_those_of_the_terms(finished, shown):
    rows = rows_of(shown / "table.csv")
    assert [(row["model"], row["from"]) for row in rows] == [
        (model, where) for model in ("VDMv-8", "DiffEnc-8-2", "DiffEnc-8-nt") for where in ("here", "paper")
    ]
    for row in rows[::2]:
        by_seed = [bits(finished[1][row["model"], "fixed", seed]).mean() for seed in range(3)]
        error = float(np.std(by_seed, ddof=1)) / math.sqrt(3)
        assert float(row["total"]) == pytest.approx(np.mean(by_seed), abs=0.06 * error)
        assert float(row["total_se"]) == pytest.approx(error, rel=0.06)
        assert (row["latent"], row["latent_se"]) == ("0.0010", "0")
        assert (row["seeds"], row["parameters"]) == ("3", str(100 + len(row["model"])))
    printed = {(row["model"], row["total"], row["total_se"]) for row in rows[1::2]}
    assert printed == {("VDMv-8", "0.370", "0.002"), ("DiffEnc-8-2", "0.367", "0.001"), ("DiffEnc-8-nt", "0.378", "0.002")}  # fmt: skip


def test_differences_are_paired(finished, shown):
    rows = {row["A − B"]: row for row in rows_of(shown / "differences.csv")}
    assert set(rows) == {"DiffEnc-8-2_fixed − VDMv-8_fixed", "DiffEnc-8-nt_fixed − VDMv-8_fixed"}
    terms = finished[1]
    by_seed = [bits(terms["DiffEnc-8-2", "fixed", seed]) - bits(terms["VDMv-8", "fixed", seed]) for seed in range(3)]  # fmt: skip
    means = [difference.mean() for difference in by_seed]
    error = float(np.std(means, ddof=1)) / math.sqrt(3)
    row = rows["DiffEnc-8-2_fixed − VDMv-8_fixed"]
    assert float(row["total"]) == pytest.approx(np.mean(means), abs=0.06 * error)
    assert float(row["total_se"]) == pytest.approx(error, rel=0.06)
    unpaired = float(rows_of(shown / "table.csv")[0]["total_se"])
    assert float(row["total_se"]) < unpaired / 3
    by_image = np.mean(by_seed, axis=(0, 1))
    tests = [row for row in rows_of(shown / "tests.csv") if row["A − B"].startswith("DiffEnc-8-2")]
    assert [row["test"] for row in tests] == ["Welch", "paired t", "bootstrap", "bootstrap", "Welch"]
    assert [row["n"] for row in tests[:3]] == ["3 + 3 runs", "3 pairs of runs", "40 images, seeds as they are"]  # fmt: skip
    assert float(tests[2]["total_se"]) == pytest.approx(by_image.std() / math.sqrt(40), rel=0.1)
    assert [float(row["total"]) for row in tests[:4]] == pytest.approx([by_image.mean()] * 4, abs=0.002)
    assert float(tests[1]["p, two-sided"]) < 0.01 < float(tests[0]["p, two-sided"])
    paper_says = tests[4]
    assert (paper_says["A − B"], paper_says["total"]) == ("DiffEnc-8-2_fixed − VDMv-8_fixed, paper", "-0.0030")  # fmt: skip


def test_every_form_has_the_same_figures(shown):
    markdown, latex = ((shown / name).read_text() for name in ("table.md", "table.tex"))
    for row in rows_of(shown / "table.csv"):
        assert f"| {row['total']} ± {row['total_se']} |" in markdown
        assert rf"${row['total']} \pm {row['total_se']}$" in latex


def test_what_it_is_of_is_stated(shown):
    stated = (shown / "table.md").read_text()
    for part in (
        "40 of mnist test (MNIST (LeCun et al. 1998)), pixels mnist by digest",
        "trained for 1,000 steps",
        "T continuous, 2 pass(es)",
        "at most 0.004 in a run's total",
        "NOT the published training: steps: 2,000,000 -> 1,000; seeds: 5 -> 3; Experiment.batch_size: 128 -> 16",
        "cannot be compared with those from here",
    ):
        assert part in stated
    assert "missing" not in stated


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "4"))


def test_what_is_missing_is_said_and_the_rest_shown(copy):
    shutil.rmtree(copy / "VDMv-8_fixed" / "seed_1")
    (copy / "DiffEnc-8-2_fixed" / "seed_2" / "evaluation.json").unlink()
    stale = copy / "DiffEnc-8-2_fixed" / "seed_0" / "evaluation.json"
    stale.write_text(stale.read_text().replace('"step": 1000', '"step": 500'))
    assert call(4, copy, "--rows=fixed") == 0
    stated = (copy / "table.md").read_text()
    assert f"missing: {copy}/VDMv-8_fixed: seed 1 (to do: train, evaluate)" in stated
    assert f"missing: {copy}/DiffEnc-8-2_fixed: seed 0, 2 (to do: train, evaluate)" in stated
    rows = {row["model"]: row for row in rows_of(copy / "table.csv") if row["from"] == "here"}
    assert {model: row["seeds"] for model, row in rows.items()} == {"VDMv-8": "2", "DiffEnc-8-2": "1", "DiffEnc-8-nt": "3"}  # fmt: skip
    assert (rows["DiffEnc-8-2"]["total_se"], rows["DiffEnc-8-2"]["total"] != "") == ("", True)
    differences = {row["A − B"]: row["pairs"] for row in rows_of(copy / "differences.csv")}
    assert differences == {"DiffEnc-8-2_fixed − VDMv-8_fixed": "0", "DiffEnc-8-nt_fixed − VDMv-8_fixed": "2"}
    assert f"Not tested, as runs are missing: {'; '.join(differences)}." in stated
    assert all(row["A − B"].endswith(", paper") for row in rows_of(copy / "tests.csv"))


def test_rows_of_fewer_seeds_are_tested_when_all_of_theirs_are_there(tmp_path):
    """Table 7 has five seeds of VDMv-8 and three of DiffEnc-8-4."""
    folder, flags = tmp_path / "7", [flag for flag in SMALL if not flag.startswith("--seeds")]
    made = finish(7, folder, flags)
    assert tables.main(["--table=7", f"--output={folder}", "--norun", *flags]) == 0
    assert "Not tested" not in (folder / "table.md").read_text()
    rows = [row for row in rows_of(folder / "tests.csv") if "paper" not in row["A − B"]]
    assert {row["A − B"] for row in rows} == {"DiffEnc-8-4 − VDMv-8"}
    assert {"5 + 3", "3 + 5"} & {row["n"].removesuffix(" runs") for row in rows}
    assert {(model, seed) for model, _, seed in made} == {
        *(("VDMv-8", seed) for seed in range(5)), *(("DiffEnc-8-4", seed) for seed in range(3)),
    }  # fmt: skip


def test_of_nothing_there_is_a_table_of_the_papers_rows(tmp_path):
    assert call(4, tmp_path / "4", "--rows=fixed") == 0
    rows = rows_of(tmp_path / "4" / "table.csv")
    assert [row["total"] for row in rows] == ["", "0.370", "", "0.367", "", "0.378"]
    assert len(rows_of(tmp_path / "4" / "tests.csv")) == 2


def change(folder, **said):
    for file in folder.glob("**/evaluation.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | said))


def test_beside_other_images_the_paper_is_not_shown(copy):
    change(copy, source="unknown version of MNIST (LeCun et al. 1998)")
    assert call(4, copy, "--rows=fixed") == 0
    assert {row["from"] for row in rows_of(copy / "table.csv")} == {"here"}
    assert not any("paper" in row["A − B"] for row in rows_of(copy / "tests.csv"))
    assert "these are other images" in (copy / "table.md").read_text()


def test_different_images_are_refused(copy, capsys):
    change(copy / "VDMv-8_fixed", fingerprint="other pixels")
    assert call(4, copy, "--rows=fixed") == 1
    assert "figures are of different images" in capsys.readouterr().err


def test_runs_of_another_config_are_refused(copy, capsys):
    assert call(4, copy, "--rows=fixed", "--channels=16") == 1
    told = capsys.readouterr().err
    assert re.search(r"seed_0 holds a run of another config \(network.unet.channels: 32 -> 16\): use", told)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--rows=DiffEnc-9"],
            "--rows=DiffEnc-9: matches none of mnist/VDMv-8_fixed, mnist/VDMv-8_trainable",
        ),
        (["--rows=("], "--rows=(: not a valid regular expression"),
        (["--seeds=0"], "--seeds=0: must be at least 1"),
        (["--gin_bindings=network.unet.blockz = 2"], "nearest: network.unet.blocks"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, flags, message):
    assert call(4, tmp_path / "4", *flags) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ")
    assert message in told[-1]


def test_table_1_puts_figures_into_the_column_of_their_images(tmp_path):
    finish(1, tmp_path / "1", [*SMALL, "--seeds=1"])
    change(tmp_path / "6", source="ImageNet32 (van den Oord et al. 2016)")
    assert call(1, tmp_path / "1", "--seeds=1") == 0
    rows = rows_of(tmp_path / "1" / "table.csv")
    (nvae,) = (row for row in rows if row["model"] == "NVAE")
    cifar, new, old = (paper.published_images(name) for name in ("cifar10", "imagenet32", "imagenet32_oord"))
    assert (nvae[cifar], nvae[new], nvae[old]) == ("2.91", "", "3.92")
    ours = [row for row in rows if "here" in row["model"]]
    assert [[bool(row[head]) for head in (cifar, new, old)] for row in ours] == [
        [True, False, False],
        [True, False, False],
        [False, False, True],
        [False, False, True],
    ]
    assert ours[1]["model"] == "DiffEnc-32-4, here (1,000 steps, 1 seed(s))"
    stated = (tmp_path / "1" / "table.md").read_text()
    assert "missing" not in stated
    assert "CIFAR-10 (Krizhevsky 2009)), pixels cifar10" in stated
    assert "van den Oord et al. 2016)), pixels imagenet32" in stated


@pytest.mark.parametrize("change_of", ["source", "part"])
def test_table_1_gives_other_images_a_column_of_their_own(tmp_path, change_of):
    flags = ["--rows=cifar10", "--seeds=1", *(["--num_images=40"] if change_of == "part" else [])]
    finish(1, tmp_path / "1", [*SMALL, *flags])
    if change_of == "source":
        change(tmp_path / "2", source="unknown version of CIFAR-10 (Krizhevsky 2009)")
    assert call(1, tmp_path / "1", *flags) == 0
    rows = rows_of(tmp_path / "1" / "table.csv")
    ours = [row for row in rows if "here" in row["model"]]
    assert [row[paper.published_images("cifar10")] for row in ours] == ["", ""]
    head = {"source": "unknown version of CIFAR-10 (Krizhevsky 2009)", "part": "CIFAR-10 (Krizhevsky 2009), 40 images of test"}[change_of]  # fmt: skip
    assert all(row[head] for row in ours)
    assert not any(row[head] for row in rows if row not in ours)


@pytest.mark.slow
def test_table_4_is_really_run(shared, tmp_path, monkeypatch):
    """On MNIST: two runs of two steps each; the second time none."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "data"))
    assert prepare.main(["mnist", f"--source={shared / 'data' / 'mnist'}"]) == 0
    flags = ["--table=4", "--rows=(VDMv-8|nt)_fixed", f"--output={tmp_path / '4'}", "--steps=2", "--seeds=1"]
    flags += ["--batch_size=8", "--blocks=1", "--channels=8", "--num_images=24", "--passes=2"]
    assert tables.main(flags) == 0
    rows = rows_of(tmp_path / "4" / "table.csv")
    assert [(row["seeds"], row["total_se"] == "") for row in rows] == [("1", True), ("5", False)] * 2
    assert all(math.isfinite(float(row["total"])) for row in rows)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("4/*/seed_*/evaluation.json")}
    assert len(times) == 2
    assert tables.main(flags) == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert rows_of(tmp_path / "4" / "table.csv") == rows
