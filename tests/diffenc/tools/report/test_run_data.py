"""Workdirs in every state that a run, or a kill, leaves them in."""

import json
import re

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.files import stores
from diffenc.tools.report import run_data

from .conftest import (
    CONFIG,
    ROWS,
    SCHEDULE,
    evaluate,
    evaluation,
    heat_maps,
    npz,
    parsed,
    png,
    rendered,
    terms,
    text_of,
)


def read(workdir):
    return run_data.read_run(str(workdir), "run")


def test_what_there_is(whole):
    found = read(whole)
    assert (found.step, found.parameters, found.seed, found.problems) == (20, 1234, "0", ())
    assert [row["step"] for row in found.rows] == [5, 10, 20]
    assert found.rows[1] == {"step": 10, "bpd": 7.0, "bpd_diffusion": 6.0, "bpd_latent": 0.5, "bpd_reconstruction": 0.5, "grad_norm": 1.0, "test_bpd": 6.0, "test_bpd_se": 0.5}  # fmt: skip
    assert sorted(found.figures) == ["heat_maps", "loss", "schedule"]
    assert found.samples is not None
    assert found.samples[:2] == ("000000020.png", 20)


def test_a_torn_last_line_is_left_out_and_told(made):
    workdir = made("a", rows=[{"step": 5, "bpd": 9.0}])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "bpd": 8.')
    found = read(workdir)
    assert [row["step"] for row in found.rows] == [5]
    assert "incomplete" in found.problems[0]
    assert "incomplete" in rendered(workdir)


@pytest.mark.parametrize(
    "line",
    ["[]", "3", "{", '{"bpd": 1}', '{"step": "x"}', '{"step": -1}', '{"step": 1e999}', '{"step": null}', "[" * 10**5,
     '{"step": 100000000000000000000}', "\\xff"],
)  # fmt: skip
def test_lines_that_are_no_rows_are_counted(made, line):
    workdir = made("a", rows=[{"step": 5, "bpd": 9.0}])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(f'{line}\n{{"step": 10, "bpd": 8.0}}\n')
    found = read(workdir)
    assert [row["step"] for row in found.rows] == [5, 10]
    assert "1 invalid line(s)" in found.problems[0]
    rendered(workdir)


def test_what_is_not_finite_is_a_gap(made):
    workdir = made("a", rows=[{"step": 5, "bpd": None, "bpd_latent": 1.0}])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 6, "bpd": NaN, "x": "y"}\n{"step": 7, "bpd": -Infinity, "big": 1e999, "yes": true}\n'
        )
        file.write('{"step": 8, "bpd": 2.5, "whole": ' + "9" * 400 + "}\n")
    assert read(workdir).rows == (
        {"step": 5, "bpd_latent": 1.0}, {"step": 6}, {"step": 7}, {"step": 8, "bpd": 2.5},
    )  # fmt: skip


def test_an_evaluation_that_is_not_finite(made):
    workdir = made("a", said=evaluation(bpd=None, bpd_diffusion=None))
    assert "not finite" in rendered(workdir)
    parsed(rendered(workdir, made("b", said=evaluation(), config=CONFIG.replace("identity", "trainable"))))


@pytest.mark.parametrize(
    "files",
    [
        {"evaluation.json": b"{"},
        {"evaluation.json": b"[1]"},
        {"evaluation.json": b'{"bpd": 1}'},
        {"evaluation.npz": b"PK"},
        {"figures/heat_maps.npz": b"PK"},
        {"figures/heat_maps.json": b"{"},
        {"figures/heat_maps.json": b'{"npz": "", "of": 3}'},
        {"figures/heat_maps.json": b'{"npz": "", "of": {}}'},
        {"figures/schedule.json": b'{"npz": "", "of": {}, "t": 3, "rate": [1, "x", null]}'},
        {"figures/loss.json": b'{"npz": "", "of": {}}', "diagnostics/loss.json": b'{"density": "x"}'},
        {"samples/000000020.png": b"no PNG"},
        {"samples/000000020.png": b""},
        {"environment.json": b"{"},
        {"environment.json": b'{"starts": [{"step": 3, "jax": {}}]}'},
        {"dataset.json": b'{"image_shape": 3, "source": 4}'},
        {"parameters.txt": b"\xff Total: x"},
        {"parameters.txt": b"Total: ,,,", "evaluation.json": b"{"},
        {"parameters.txt": b"Total: " + b"9" * 5000, "evaluation.json": b"{"},
        {"config.gin": b"Experiment.seed = " + b"9" * 5000},
        {"evaluation.json": json.dumps(evaluation(bpd=0)).encode()},
        {"evaluation.json": json.dumps(evaluation(bpd=10**400, step=10**400)).encode()},
        {"evaluation.json": json.dumps(evaluation(bpd=5e-324, bpd_se=1e308)).encode()},
        {"evaluation.json": json.dumps(evaluation(bpd=1e308, bpd_se=1.7e308, bpd_mc_se=5e-324)).encode()},
        {"evaluation.json": json.dumps(evaluation(dataset="\ud800")).encode()},
        {"evaluation.npz": npz({**terms(), "latent": np.full((2, 3), np.nan)})},
        {"metrics.jsonl": b'{"step": 1, "bpd": 1e300}\n{"step": 2, "bpd": 1e-300}\n'},
        {"metrics.jsonl": b'{"step": 1, "test_bpd": 1, "test_bpd_se": 1e308}\n{"step": 2, "bpd": 5e-324}\n'},
        {"metrics.jsonl": b"".join(b'{"step": %d, "bpd": 1e308}\n' % step for step in range(400))},
        {"config.gin": b"\xff = \xfe\n"},
    ],
)
def test_a_damaged_file_costs_no_more_than_itself(whole, made, files):
    for name, content in files.items():
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_bytes(content)
    parsed(rendered(whole, made("plain", said=evaluation(), rows=[{"step": 5, "bpd": 1.0}])))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_images": "3"}, "has num_images '3'"),
        ({"fingerprint": None}, "has fingerprint None"),
        ({"bpd": "5", "step": True}, "has step True, bpd '5'"),
        ({"T": [1]}, "has T [1]"),
    ],
)
def test_facts_of_other_types_are_told_of(made, whole, change, said):
    other = made("other", config=CONFIG.replace("identity", "trainable"))
    (other / "evaluation.json").write_text(json.dumps(evaluation(**change)))
    page = text_of(parsed(rendered(whole, other)).find(".//main"))
    assert f"evaluation.json {said}, and is left out." in page
    assert "5.000 bits/dim" in page  # of the whole one


def test_a_damaged_total_is_told_of(made):
    found = read(made("a", files={"parameters.txt": b"Total: ,,,"}))
    assert (found.parameters, found.problems) == (None, ("parameters.txt has no total and is left out.",))
    assert read(made("b", files={"parameters.txt": b"Total: 12,345 -- 49,380 bytes\n"})).parameters == 12345


def test_terms_that_a_kill_left_are_told_of(made, whole):
    other = made("other", config=CONFIG.replace("identity", "trainable"), said=evaluation())
    (other / "evaluation.npz").write_bytes(npz({**terms(), "latent": np.full((2, 3), np.nan)}))
    page = text_of(parsed(rendered(whole, other)).find(".//main"))
    assert "other/evaluation.npz: holds no finite terms of 3 images" in page
    assert "evaluation.npz: holds no finite terms of 3 images; evaluate again." in read(other).problems


def test_arrays_of_another_figure_are_told_of(made):
    workdir = made("a", figures={"heat_maps": heat_maps()})
    (workdir / "figures/heat_maps.npz").write_bytes(npz({"x": terms()["latent"]}))
    assert "heat_maps.npz does not match figures/heat_maps.json" in read(workdir).problems[0]


@pytest.mark.parametrize("missing", ["config.gin", "metrics.jsonl"])
def test_half_a_run_is_a_run(whole, missing):
    (whole / missing).unlink()
    parsed(rendered(whole))


@pytest.mark.parametrize("name", ["", "nothing", "empty"])
def test_where_no_run_is_the_way_out_is_told(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no run .* name the --workdir of a run"):
        read(tmp_path / name)


def test_a_workdir_named_twice_is_refused(whole):
    with pytest.raises(UserError, match="is named twice"):
        run_data.read_runs([str(whole), f"{whole}/"])


@pytest.mark.parametrize("other", ["./{}", "x/../{}", "{}/../{}", "link", "file://{place}"])
def test_a_workdir_of_two_names_is_refused(whole, monkeypatch, other):
    monkeypatch.chdir(whole.parent)
    (whole.parent / "link").symlink_to(whole)
    other = other.format(whole.name, whole.name, place=whole)
    with pytest.raises(UserError, match=f"^{other} is named twice"):
        run_data.read_runs([whole.name, other])


def test_addresses_are_no_local_folders(whole, monkeypatch):
    monkeypatch.chdir(whole.parent)
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        stores.open_store("memory://whole").write(path.relative_to(whole).as_posix(), path.read_bytes())
    assert len(run_data.read_runs(["whole", "memory://whole"])) == 2


def test_the_newest_grid_is_of_the_latest_step(made):
    files = {
        f"samples/{name}": png() for name in ("000000900.png", "000001000_T50_n4_seed0.png", "notes.png")
    }
    found = read(made("a", files=files)).samples
    assert found is not None
    assert found[:2] == ("000001000_T50_n4_seed0.png", 1000)


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (["/a/b"], ["b"]),
        (["/a/b", "/a/c"], ["b", "c"]),
        (["/a/x/0", "/a/y/0"], ["x/0", "y/0"]),
        (["gs://a/x/0", "/y/0", "1"], ["x/0", "y/0", "1"]),
        (["a/b", "/a/b"], ["a/b", "/a/b"]),
    ],
)
def test_labels_tell_runs_apart_and_are_short(places, labels):
    assert run_data.unique_labels(places) == labels


@pytest.mark.parametrize(
    "name", ["evaluation.json", "figures/heat_maps.json", "dataset.json", "environment.json"]
)
def test_a_record_with_a_changed_digit_is_named_and_left_out(whole, name):
    text = (whole / name).read_text()
    place = re.search(r"[1-8](?=[^\"]*$|[\d., ])", text)
    assert place is not None
    (whole / name).write_text(text[: place.start()] + "9" + text[place.end() :])
    found = read(whole)
    (said,) = (odd for odd in found.problems if name in odd)
    assert said.startswith(f"{name}: its content does not match its sha256")
    assert f"--workdir={whole}" in said
    gone = {
        "evaluation.json": found.evaluation, "dataset.json": found.dataset, "environment.json": found.starts,
        "figures/heat_maps.json": found.figures.get("heat_maps"),
    }  # fmt: skip
    assert not gone[name]
    parsed(rendered(whole))


def test_a_digit_changed_in_an_evaluation_shows_nowhere(whole):
    text = (whole / "evaluation.json").read_text()
    (whole / "evaluation.json").write_text(text.replace('"bpd": 5.0', '"bpd": 4.0'))
    page = text_of(parsed(rendered(whole)).find(".//main"))
    assert "4.000" not in page
    assert "has not been evaluated" in page
    assert "evaluation.json: its content does not match its sha256" in page


def test_terms_that_were_edited_are_not_those_of_the_record(made):
    """Sealed, the record stands, and its terms are named; without a seal neither is believed."""
    sealed_one, unsealed = made("a", said=evaluation()), made("b", said=evaluation())
    said = json.loads((unsealed / "evaluation.json").read_text())
    del said["sha256"]
    (unsealed / "evaluation.json").write_text(json.dumps(said | {"bpd_latent": 0.6}))
    (sealed_one / "evaluation.npz").write_bytes(npz(terms(0.5)))
    for workdir, believed in ((sealed_one, True), (unsealed, False)):
        found = read(workdir)
        assert (found.evaluation is not None) == believed
        assert any("evaluation.npz: is of another evaluation than its .json" in odd for odd in found.problems)


def test_records_from_before_are_read_and_called_unsealed_once(made):
    workdir = made("a", said=evaluation(), figures={"schedule": (SCHEDULE, {})})
    for name in ("evaluation.json", "figures/schedule.json"):
        said = json.loads((workdir / name).read_text())
        del said["sha256"]
        (workdir / name).write_text(json.dumps(said))
    found = read(workdir)
    assert found.evaluation is not None
    assert found.problems == (
        "evaluation.json, figures/schedule.json: unsealed (written by an earlier version), so damage to them "
        "cannot be detected.",
    )


def test_the_figure_is_of_the_evaluation_that_the_config_asks_for(made):
    """Not of the last, which has 20 steps and fitted times; and of the latest step that was evaluated."""
    workdir = made("a", rows=ROWS)
    fitted = {"T": 20, "times": "fitted", "variance": "fitted"}
    evaluate(workdir / "evaluations/0001", evaluation(step=10, bpd=6.0, bpd_diffusion=5.0), 1.0)
    evaluate(workdir / "evaluations/0002", evaluation())
    evaluate(workdir / "evaluations/0003", evaluation(bpd=7.0, bpd_diffusion=6.0, **fitted), 2.0)
    evaluate(workdir / "evaluation", evaluation(bpd=7.0, bpd_diffusion=6.0, **fitted), 2.0)
    found = read(workdir)
    assert found.evaluation is not None
    assert (found.evaluation["bpd"], found.evaluation["T"]) == (5.0, "continuous")
    assert (found.terms_name, found.problems) == ("evaluations/0002.npz", ())
    page = text_of(parsed(rendered(workdir)).find(".//main"))
    assert "5.000 bits/dim" in page
    assert "evaluations/0002 of 2, the newest that matches the config" in page
    (workdir / "evaluations/0002.json").unlink()
    page = text_of(parsed(rendered(workdir)).find(".//main"))
    assert "7.000 bits/dim" in page, "the newest, as none is of what the config asks for"


def test_an_address_is_read_and_not_written_to(whole):
    place = "memory://bucket/run"
    store = stores.open_store(place)
    (whole / "samples" / "000000020.png").unlink()
    for path in sorted(whole.rglob("*")):
        if path.is_file():
            store.write(path.relative_to(whole).as_posix(), path.read_bytes())
    before = {name: store.read(name) for name in store.files()}
    found = run_data.read_run(place, "run")
    assert (found.step, found.evaluation, len(found.rows)) == (
        20,
        json.loads((whole / "evaluation.json").read_text()),
        3,
    )
    assert "--workdir=memory://bucket/run --mode=sample" in rendered(place)
    assert {name: store.read(name) for name in store.files()} == before


def test_a_step_that_was_saved_again_counts(made):
    workdir = made(
        "a", files={"checkpoints/000000020/META.json": b"{}", "checkpoints/000000040-1/META.json": b"{}"}
    )
    assert read(workdir).checkpoint == 40


def test_a_checkpoint_that_is_not_of_the_run_is_told(made):
    """By its config, by its identity; one of an earlier version by its config_hash; what cannot be read by nothing."""
    other = CONFIG.replace("Experiment.seed = 0", "Experiment.seed = 1")
    assert other != CONFIG

    def problems_of(metadata, number, run="ab" * 16):
        meta = metadata if isinstance(metadata, bytes) else json.dumps({"metadata": metadata}).encode()
        files = {
            "checkpoints/000000020/META.json": b"{",
            "checkpoints/000000020-1/META.json": meta,
            "run_id": run.encode(),
        }
        return " ".join(read(made(f"run_{number}", rows=ROWS, files=files)).problems)

    assert problems_of({"config": CONFIG, "run": "ab" * 16}, 0) == ""
    assert "000000020-1 was trained with another config (Experiment.seed: 1 -> 0): undo" in problems_of(
        {"config": other}, 1
    )
    assert "is of another run than" in problems_of({"config": CONFIG, "run": "cd" * 16}, 2)
    assert "its config_hash differs" in problems_of({"config_hash": "0" * 64}, 3)
    for k, damaged in enumerate((b"[", b"[]", b"{}", b"3", b'{"metadata": 3}', b"[" * 10**5, b"\xff")):
        assert problems_of(damaged, 4 + k) == ""
    assert problems_of({"config": CONFIG, "run": "cd" * 16}, 20, run="damaged") == ""
