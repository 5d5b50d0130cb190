"""Mean and error over seeds, from the files that evaluation leaves."""

import json
import math

import numpy as np
import pytest

from diffenc import atomic
from diffenc.errors import UserError
from diffenc.evaluate import Measured, record
from diffenc.settings import Evaluate
from diffenc.workdir import keep
from experiments import summary

DIMS = 16
TERMS = ("reconstruction", "latent", "diffusion")


@pytest.fixture
def evaluated(tiny, tmp_path):
    """Files an evaluation of given terms, nats [passes, 13] each, as evaluation does; returns the workdir."""

    def file(name, seed, nats, changes=None):
        settings = Evaluate(passes=len(next(iter(nats.values()))))
        measured = Measured(nats, np.arange(13) // 4, DIMS)
        figures = record(tiny(evaluate=settings, seed=seed), measured, 12, 99, {}) | (changes or {})
        keep(tmp_path / name / f"seed_{seed}", "evaluation", figures, nats)
        return tmp_path / name / f"seed_{seed}"

    return file


def nats(number, passes=2):
    random = np.random.default_rng(number)
    return {term: random.gamma(2.0, size=(passes, 13)) for term in TERMS}


def test_mean_and_error_over_seeds(evaluated, tmp_path):
    given = [nats(number) for number in range(3)]
    for seed, terms in enumerate(given):
        evaluated("a", seed, terms)
    found = summary.summarise("a", summary.seeds_in(tmp_path / "a"))
    assert (found.seeds, found.num_params) == ((0, 1, 2), 99)
    for component, parts in {"total": TERMS, **{term: (term,) for term in TERMS}}.items():
        bits = [sum(terms[part].mean() for part in parts) / (DIMS * math.log(2)) for terms in given]
        np.testing.assert_allclose(found.values(component), bits, rtol=1e-12)
        mean = sum(bits) / 3
        error = math.sqrt(sum((value - mean) ** 2 for value in bits) / (3 * 2))
        figure = found.figure(component)
        assert float(figure.mean) == pytest.approx(mean, abs=0.06 * error)
        assert float(figure.error or "nan") == pytest.approx(error, rel=0.06)


def test_one_seed_has_no_error_and_none_no_mean(evaluated, tmp_path):
    evaluated("a", 4, nats(0))
    (tmp_path / "a" / "seed_5").mkdir()
    (tmp_path / "a" / "seed_of_mine").mkdir()
    one = summary.summarise("a", summary.seeds_in(tmp_path / "a"))
    assert (one.seeds, one.figure("total").error) == ((4,), None)
    none = summary.summarise("b", summary.seeds_in(tmp_path / "b"))
    assert (none.seeds, str(none.figure("total")), none.num_params) == ((), "- ± -", None)
    assert summary.facts([none]) == ("nothing has been evaluated yet",)
    sheet = summary.sheet([one, none])
    assert [row[0] for row in sheet.rows] == ["a", "b"]
    assert sheet.rows[0][-2:] == (1, 99)
    assert sheet.rows[1][-2:] == (0, "-")


def test_a_run_that_diverged_is_not_left_out(evaluated, tmp_path):
    for seed in range(2):
        terms = nats(seed)
        terms["diffusion"][0, 0] = math.nan if seed else 1.0
        evaluated("a", seed, terms)
    found = summary.summarise("a", summary.seeds_in(tmp_path / "a"))
    assert (found.figure("total").mean, len(found.seeds)) == ("nan", 2)
    assert found.figure("latent").mean != "nan"
    with pytest.raises(UserError, match=r"seed_1/evaluation.npz: holds no finite terms"):
        found.terms(1)


def test_terms_by_image(evaluated, tmp_path):
    terms = nats(0)
    evaluated("a", 0, terms)
    found = summary.summarise("a", summary.seeds_in(tmp_path / "a")).terms(0)
    for name in TERMS:
        np.testing.assert_allclose(found[name], terms[name].mean(axis=0) / (DIMS * math.log(2)), rtol=1e-9)
    np.testing.assert_allclose(found["total"], sum(found[name] for name in TERMS), rtol=1e-9)


def test_terms_of_another_evaluation_are_refused(evaluated, tmp_path):
    folder = evaluated("a", 0, nats(0))
    runs = summary.summarise("a", summary.seeds_in(tmp_path / "a"))
    other = nats(0)
    other["latent"] *= 1.01
    (folder / "evaluation.npz").write_bytes(atomic.npz(other))
    with pytest.raises(UserError, match="is of another evaluation"):
        runs.terms(0)
    (folder / "evaluation.npz").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        runs.terms(0)


def test_damaged_json_is_told(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation.json: is no JSON"):
        summary.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other dots"}, "figures are of different images"),
        ({"num_images": 12}, "figures are of different images"),
        ({"T": 100}, "T continuous and 100"),
        ({"passes": 7}, "passes 2 and 7"),
        ({"seed": 3}, "seed 0 and 3"),
        ({"batch_size": 3}, "batch_size 4 and 3"),
        ({"step": 11}, "step 12 and 11"),
        ({"precision": "bfloat16"}, "precision float32 and bfloat16"),
    ],
)
def test_what_is_not_alike_is_refused(evaluated, tmp_path, change, message):
    evaluated("a", 0, nats(0))
    evaluated("a", 1, nats(1))
    evaluated("b", 0, nats(2), change)
    a, b = (summary.summarise(name, summary.seeds_in(tmp_path / name)) for name in "ab")
    summary.require_alike([a])
    with pytest.raises(UserError, match=message):
        summary.require_alike([a, b])


def test_what_is_stated(evaluated, tmp_path):
    folder = evaluated("a", 0, nats(0), {"source": "dots of mine"})
    stated = "\n".join(summary.facts([summary.summarise("a", {0: folder})]))
    error = json.loads((folder / "evaluation.json").read_text())["bpd_mc_se"]
    said = ("13 of dots test (dots of mine), pixels test of dots", "12 steps", "T continuous", "2 pass(es)", f"at most {error:.1g}")  # fmt: skip
    assert all(part in stated for part in said)
    folder = evaluated("b", 0, nats(0, passes=1))
    assert "not known from one pass" in "\n".join(summary.facts([summary.summarise("b", {0: folder})]))
