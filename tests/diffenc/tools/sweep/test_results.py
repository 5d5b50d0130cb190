"""Mean and error over seeds, from the files that evaluation leaves."""

import json
import math
import re

import numpy as np
import pytest

from diffenc.config.settings import Evaluate
from diffenc.errors import UserError
from diffenc.evaluation.evaluation_record import ElboTerms, evaluation_record
from diffenc.evaluation.loss_over_log_snr import LossDraws
from diffenc.files import atomic
from diffenc.tools.sweep import comparison, results
from diffenc.workdir.measurements import save_measurement

DIMS = 16
TERMS = ("reconstruction", "latent", "diffusion")


@pytest.fixture
def evaluated(tiny, tmp_path):
    """Files an evaluation of given terms, nats [passes, 13] each, as evaluation does; returns the workdir."""

    def file(name, seed, nats, said=None, **changes):
        changes = {"evaluate": Evaluate(passes=2), **changes}
        experiment = tiny(seed=seed, **changes)
        times = np.random.default_rng(0).uniform(size=(*nats["latent"].shape, 1))
        measured = ElboTerms(nats, times, DIMS, LossDraws(np.empty(0), np.empty(0)))
        figures = evaluation_record(experiment, measured, experiment.steps, 99, {}) | (said or {})
        save_measurement(tmp_path / name / str(seed), "evaluation", figures, measured.arrays())
        return tmp_path / name / str(seed)

    return file


def nats(number, passes=2):
    random = np.random.default_rng(number)
    return {term: random.gamma(2.0, size=(passes, 13)) for term in TERMS}


def test_mean_and_error_over_seeds(evaluated):
    given = [nats(number) for number in range(3)]
    workdirs = {seed: evaluated("a", seed, given[seed]) for seed in (2, 0, 1)}
    found = results.read_results("a", workdirs)
    assert found.seeds == (0, 1, 2)
    for component, parts in {"total": TERMS, **{term: (term,) for term in TERMS}}.items():
        bits = [sum(terms[part].mean() for part in parts) / (DIMS * math.log(2)) for terms in given]
        np.testing.assert_allclose(found.values(component), bits, rtol=1e-12)
        mean = sum(bits) / 3
        error = math.sqrt(sum((value - mean) ** 2 for value in bits) / (3 * 2))
        figure = found.mean(component)
        assert float(figure.mean) == pytest.approx(mean, abs=0.06 * error)
        assert float(figure.error or "nan") == pytest.approx(error, rel=0.06)


def test_a_pair_of_which_no_run_is_done_counts_in_the_correction(evaluated):
    """p of B - A is doubled, as Holm's smallest of two is, whether C is late or was never done."""
    a, b = (
        results.read_results(
            name, {seed: evaluated(name, seed, nats(10 * place + seed)) for seed in range(4)}
        )
        for place, name in enumerate("ab")
    )
    missing, planned = results.read_results("c", {}), dict.fromkeys("abc", range(4))

    def corrected(*pairs):
        differences, tests = comparison.comparison_sheets(pairs, planned)
        assert [row[0] for row in differences.rows] == ["b − a"]
        ((p, holm),) = (row[-3:-1] for row in tests.rows if row[1] == "paired t")
        return (
            float(str(p)),
            float(str(holm)),
            [note for note in tests.notes if note.startswith("Not tested")],
        )

    p, holm, notes = corrected((b, a), (missing, a))
    assert notes == ["Not tested, as runs are missing: c − a."]
    assert holm == pytest.approx(min(1, 2 * p), rel=0.05)
    assert corrected((b, a)) == (p, p, [])
    assert comparison.comparison_sheets([(missing, a)], planned) == ()


def test_one_seed_has_no_error_and_none_no_mean(evaluated, tmp_path):
    one = results.read_results("a", {4: evaluated("a", 4, nats(0)), 5: tmp_path / "a" / "5"})
    assert (one.seeds, one.mean("total").error) == ((4,), None)
    none = results.read_results("b", {5: tmp_path / "b" / "5"})
    assert none.seeds == ()
    assert results.describe_evaluations([none]) == ("nothing has been evaluated yet",)
    sheet = results.results_sheet([one, none])
    assert [row[0] for row in sheet.rows] == ["a", "b"]
    assert sheet.rows[0][-2:] == (1, 99)
    assert sheet.rows[1] == ("b", "-", "-", "-", "-", 0, "-")


def test_a_run_that_diverged_is_not_left_out(evaluated):
    given = [nats(0), nats(1)]
    given[1]["diffusion"][0, 0] = math.nan
    found = results.read_results("a", {seed: evaluated("a", seed, given[seed]) for seed in range(2)})
    assert (found.mean("total").mean, len(found.seeds)) == ("nan", 2)
    assert found.mean("latent").mean != "nan"
    with pytest.raises(UserError, match=r"1/evaluation.npz: holds no finite terms"):
        found.terms(1)


def test_terms_by_pass(evaluated):
    terms = nats(0)
    found = results.read_results("a", {0: evaluated("a", 0, terms)}).terms(0)
    for name in TERMS:
        np.testing.assert_allclose(found[name].values, terms[name] / (DIMS * math.log(2)), rtol=1e-9)
    whole = np.sum([terms[name] for name in TERMS], axis=0) / (DIMS * math.log(2))
    np.testing.assert_allclose(found["total"].values, whole, rtol=1e-9)


def test_terms_of_another_evaluation_are_refused(evaluated):
    workdir = evaluated("a", 0, nats(0))
    found = results.read_results("a", {0: workdir})
    other = nats(0)
    other["latent"] *= 1.01
    (workdir / "evaluation.npz").write_bytes(atomic.encode_npz(other))
    with pytest.raises(UserError, match="is of another evaluation"):
        found.terms(0)
    (workdir / "evaluation.npz").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        found.terms(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"said": {"fingerprint": "other dots"}}, "figures are of different images"),
        ({"said": {"num_images": 12}}, "figures are of different images"),
        ({"evaluate": Evaluate(passes=2, num_timesteps=100)}, "T continuous and 100"),
        ({"evaluate": Evaluate(passes=1)}, "passes 2 and 1"),
        ({"evaluate": Evaluate(passes=2, seed=3)}, "seed 0 and 3"),
        ({"evaluate": Evaluate(passes=2, batch_size=3)}, "batch_size 4 and 3"),
        ({"steps": 11}, "step 12 and 11"),
    ],
)
def test_what_is_not_alike_is_refused(evaluated, change, message):
    a = results.read_results("a", {seed: evaluated("a", seed, nats(seed)) for seed in range(2)})
    b = results.read_results("b", {0: evaluated("b", 0, nats(2), **change)})
    assert len(b.seeds) == 1
    results.require_comparable([a])
    with pytest.raises(UserError, match=message):
        results.require_comparable([a, b])


def test_what_is_stated(evaluated):
    workdir = evaluated("a", 0, nats(0), {"source": "dots of mine"})
    stated = "\n".join(results.describe_evaluations([results.read_results("a", {0: workdir})]))
    bits = np.sum(list(nats(0).values()), axis=0) / (DIMS * math.log(2))
    error = abs(bits[0].mean() - bits[1].mean()) / 2  # the standard error of the mean of two passes
    for part in (
        "13 of dots test (dots of mine), pixels test of dots",
        "12 steps",
        "T continuous",
        "2 pass(es)",
    ):
        assert part in stated
    bound = re.search(r"at most (\S+) in a run's total", stated)
    assert bound is not None
    assert error <= float(bound[1]) < 1.1 * error
    workdir = evaluated("b", 0, nats(0, passes=1), evaluate=Evaluate(passes=1))
    assert "unknown, as there is one pass" in "\n".join(
        results.describe_evaluations([results.read_results("b", {0: workdir})])
    )


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"bpd_latent": "0.1"}, "has bpd_latent '0.1'"),
        ({"step": True, "num_images": 13.0}, "has num_images 13.0, step True"),
    ],
)
def test_what_no_evaluation_writes_is_told(evaluated, said, fault):
    workdir = evaluated("a", 0, nats(0), said)
    with pytest.raises(UserError) as told:
        results.read_results("a", {0: workdir})
    assert str(told.value) == f"{workdir / 'evaluation.json'} {fault}; delete it, and evaluate the run again"


def test_what_lacks_its_parts_is_told(tmp_path):
    atomic.write_json(tmp_path / "evaluation.json", {"bpd": 1.0, "T": 10})
    with pytest.raises(
        UserError, match=r"evaluation.json lacks dataset, split, .*, num_params, precision; delete"
    ):
        results.read_results("a", {0: tmp_path})


def test_a_changed_digit_is_named_and_left_out_of_the_table(evaluated, monkeypatch):
    warned = []
    monkeypatch.setattr(results.logging, "warning", lambda text, *given: warned.append(text % given))
    workdirs = {seed: evaluated("a", seed, nats(seed)) for seed in range(3)}
    file = workdirs[1] / "evaluation.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "bpd": said["bpd"] + 1e-4}))
    found = results.read_results("a", workdirs)
    assert found.seeds == (0, 2)
    assert results.read_results("a", workdirs).seeds == (0, 2)
    assert len(warned) == 1
    assert warned[0].startswith(f"{file}: its content does not match its sha256")
    assert "evaluate the run again" in warned[0]


def test_records_from_before_are_counted(evaluated, read_record):
    workdirs = {seed: evaluated("a", seed, nats(seed)) for seed in range(2)}
    file = workdirs[0] / "evaluation.json"
    file.write_text(json.dumps(read_record(file)))
    facts = results.describe_evaluations([results.read_results("a", workdirs)])
    assert facts[0] == "records unsealed (written by an earlier version): 1 of 2"


@pytest.mark.parametrize(
    ("errors", "bound"),
    [
        ((0.006053, 0.0057), "0.0061"),
        ((0.0149,), "0.015"),
        ((0.0064,), "0.0064"),
        ((0.02, 0.02), "0.02"),
        ((1.51,), "1.6"),
    ],
)
def test_no_run_has_more_than_the_error_said_to_be_the_most(evaluated, errors, bound):
    workdirs = {k: evaluated("a", k, nats(k), {"bpd_mc_se": error}) for k, error in enumerate(errors)}
    facts = results.describe_evaluations([results.read_results("a", workdirs)])
    assert facts[-1].endswith(f"at most {bound} in a run's total")
