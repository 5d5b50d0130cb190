"""The study: its run files, the order of its runs, and the tables and figures made from records."""

import dataclasses
import functools
import json
import math
import re
import shutil
import types
from typing import Any

import numpy as np
import pytest
from scipy import stats

import diffenc
from diffenc.config import gin_loader
from diffenc.errors import UserError
from diffenc.evaluation.evaluation_record import ElboTerms, evaluation_record
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.loss_over_log_snr import LossDraws
from diffenc.evaluation.significance import paired_test
from diffenc.export.loading import load
from diffenc.files.record_checksum import write_record
from diffenc.tools.sweep.runs import Run, make_runs
from diffenc.training import loop
from diffenc.workdir.measurements import save_measurement
from diffenc.workdir.writers import METRICS
from diffenc_plugins.stochasticities import Nontrainable
from diffenc_plugins.variances import Learned
from experiments.learned import read_learned
from experiments.study import __main__ as study
from experiments.study import figures, parts, records, tables, verdicts
from experiments.study.parts import PARTS, PRIMARIES, STAGES, Part, Primary

DIMS = 4
SEEDS = (0, 1, 2, 3, 4)
MEANS = {"first": 0.30, "second": 0.28, "third": 0.25}  # bits/dim


@pytest.fixture
def recorded(tiny, tmp_path, monkeypatch):
    """Records bits/dim as an evaluation does, by arm and seed, of a part of three arms; returns the part."""
    monkeypatch.setattr(parts, "RECORDS", tmp_path / "records")
    part = Part("toy", "Toy", "toy.gin", tuple(MEANS), (("second", "first"), ("third", "first")), SEEDS)

    def record(values, part=part, experiment=tiny(steps=3), by_pass=None, name="evaluation"):  # noqa: B008
        for (arm, seed), bits in values.items():
            diffusion = np.full((2, 3), bits * DIMS * math.log(2))
            diffusion += np.array([[0.01, -0.01, 0.0], [-0.01, 0.01, 0.0]])
            # bits/dim, up in the first pass and down in the second: by so much the mean errs over passes
            diffusion += (by_pass or {}).get(arm, 0.0) * DIMS * math.log(2) * np.array([[1.0], [-1.0]])
            nats = {"reconstruction": np.zeros((2, 3)), "latent": np.zeros((2, 3)), "diffusion": diffusion}
            terms = ElboTerms(nats, np.full((2, 3, 1), 0.5), DIMS, LossDraws(np.empty(0), np.empty(0)))
            figures = evaluation_record(
                dataclasses.replace(experiment, seed=seed), terms, experiment.steps, 99, {}
            )
            workdir = part.records / arm / f"seed_{seed}"
            save_measurement(workdir, name, figures, terms.arrays())
            rows: list[dict[str, float]] = [
                {"step": 100, "steps_per_second": 0.5, "bpd": 4.0 + seed},
                {"step": 300, "steps_per_second": 2.0, "bpd": 2.0 + seed},
            ]
            rows.insert(1, {"step": 100, "test_bpd": 3.0})  # of an evaluation while it trains
            (workdir / METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return part

    return record


def values_of(draw=0.01, seeds=SEEDS):
    random = np.random.default_rng(3)
    by_seed = random.normal(0, draw, len(seeds))
    return {
        (arm, seed): MEANS[arm] + by_seed[place] + random.normal(0, draw / 4)
        for arm in MEANS
        for place, seed in enumerate(seeds)
    }


def column(values, arm):
    return np.array([values[arm, seed] for seed in SEEDS])


def test_a_primary_comparison_is_a_paired_t_test_with_the_better_rival(recorded):
    values = values_of()
    part = recorded(values)
    primaries = (Primary(part, "third", ("first", "second")), Primary(part, "second", ("first",)))
    found = verdicts.judge(primaries)
    assert [[contrast.b for contrast in outcome.contrasts] for outcome in found] == [
        ["second", "first"],
        ["first"],
    ]
    ps = []
    for outcome in found:
        of_rivals = []
        for contrast in outcome.contrasts:
            a, rival = column(values, outcome.primary.a), column(values, contrast.b)
            assert contrast.test.difference == pytest.approx((a - rival).mean(), abs=1e-9)
            of_rivals.append(float(stats.ttest_rel(a, rival).pvalue))
            assert contrast.test.two_sided == pytest.approx(of_rivals[-1], rel=1e-5)
        ps.append(max(of_rivals))
    low, high = sorted(ps)
    holm = {low: min(1, 2 * low), high: max(min(1, 2 * low), high)}
    assert [outcome.p_holm for outcome in found] == pytest.approx([holm[p] for p in ps], rel=1e-5)


def test_an_incomplete_comparison_has_no_p_and_counts_in_the_correction(recorded):
    values = {key: value for key, value in values_of().items() if key != ("third", 4)}
    part = recorded(values)
    complete, lacking = verdicts.judge(
        (Primary(part, "second", ("first",)), Primary(part, "third", ("first",)))
    )
    assert lacking.missing == ("third/seed_4",)
    assert (lacking.contrasts, lacking.p_holm, lacking.verdict) == ((), None, "runs missing")
    expected = stats.ttest_rel(column(values, "second"), column(values, "first")).pvalue
    assert complete.p_holm == pytest.approx(min(1, 2 * expected), rel=1e-5)
    text = tables.tables((part,), (complete.primary, lacking.primary))
    assert "third − first, missing: third/seed_4." in text
    assert "1 of 15 runs missing" in text


def test_a_run_that_diverged_leaves_its_comparison_without_p(recorded):
    part = recorded(values_of() | {("third", 2): math.nan})
    complete, lacking = verdicts.judge(
        (Primary(part, "second", ("first",)), Primary(part, "third", ("first",)))
    )
    assert (lacking.not_finite, lacking.p_holm, lacking.verdict) == (("third/seed_2",), None, "not finite")
    expected = stats.ttest_rel(column(values_of(), "second"), column(values_of(), "first")).pvalue
    assert complete.p_holm == pytest.approx(min(1, 2 * expected), rel=1e-5)
    rows = tables.tables((part,), (lacking.primary,)).splitlines()
    assert any(row.startswith("| third − first | Toy | -") and row.endswith("| not finite |") for row in rows)
    (described,) = [row.strip("| ").split(" | ") for row in rows if row.startswith("| third − first | nan")]
    assert described[5:-2] == ["-", "-", "-", "0–4", "-", "-"]  # of a training that ended there are losses


def test_a_record_of_a_run_that_diverged_is_kept(recorded, tiny, monkeypatch):
    """It is of its run; its terms, which are not finite, are nothing to be compared."""
    part = recorded({("first", 0): math.nan})
    monkeypatch.setattr(records, "config_hash", lambda experiment: experiment)
    monkeypatch.setattr(records, "is_evaluated", lambda run: True)
    file = part.workdir("first", 0) / "evaluation.json"
    run: Any = types.SimpleNamespace(
        workdir=file.parent, experiment=json.loads(file.read_text()).get("config_hash")
    )
    records.check_record(run)


def test_errors_of_a_difference_are_of_the_mean_over_seeds(recorded):
    """Images of A differ as those of B do, so that the mean is left, and what its passes are apart from B's."""
    values = values_of()
    part = recorded(values, by_pass={"third": 0.003, "first": 0.001})
    (found,) = verdicts.judge((Primary(part, "third", ("first",)),))
    difference = column(values, "third") - column(values, "first")
    passes = difference.mean() + np.array([[0.002], [-0.002]])
    by_pass = found.contrasts[0].by_pass
    assert by_pass.values == pytest.approx(np.broadcast_to(passes, (2, 3)), abs=1e-9)
    assert by_pass.mc_se == pytest.approx(0.002)
    detail = next(
        line for line in tables.tables((part,), (found.primary,)).splitlines() if "± Monte Carlo" in line
    )
    (row,) = [
        line
        for line in tables.tables((part,), (found.primary,)).splitlines()
        if line.startswith("| third − first | Toy |") and line.count("|") == detail.count("|")
    ]
    cells = dict(zip(detail.split(" | "), row.split(" | "), strict=True))
    assert float(cells["± Monte Carlo |"].removesuffix(" |")) == pytest.approx(0.002)
    assert float(cells["SD over seeds"]) == pytest.approx(np.std(difference, ddof=1), rel=0.05)
    assert float(cells["without the first seed"].split()[0]) == pytest.approx(difference[1:].mean(), abs=1e-4)
    _, welch = stats.ttest_ind(column(values, "third"), column(values, "first"), equal_var=False)
    assert float(cells["p, Welch"]) == pytest.approx(welch, rel=0.05)


def test_hours_of_training_are_the_sum_over_a_parts_own_runs(recorded):
    part = recorded(values_of())
    text = tables.tables((part,), ())
    assert f"training took {15 * (100 / 0.5 + 200 / 2.0) / 3600:.1f} h, the sum over 15 runs" in text
    borrowing = part._replace(arms=("second",), pairs=(), borrowed=((part, "first"),))
    assert "training took 0.4 h, the sum over 5 runs" in tables.tables((borrowing,), ())


def test_arms_of_other_steps_are_compared_only_where_the_part_has_them(recorded, tiny):
    part = recorded(values_of())
    recorded({("third", seed): 0.25 for seed in SEEDS}, experiment=tiny(steps=7))
    with pytest.raises(UserError, match="step"):
        tables.tables((part,), ())
    assert "trained for 3 or 7 steps" in tables.tables((part._replace(equal_steps=False),), ())


def test_another_path_is_compared_with_the_arms_own_by_seed(recorded, tiny):
    values = values_of()
    part = recorded(values)._replace(other_paths=(parts.OtherPath("third", Nontrainable()),))
    assert "on another path" not in tables.tables((part,), ())
    lower = {("third", seed): values["third", seed] - 0.01 - 0.001 * seed for seed in (0, 1, 2)}
    recorded(lower, name="on_nontrainable")
    difference = -0.01 - 0.001 * np.arange(3)
    ends = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    text = tables.tables((part,), ())
    (row,) = [
        line for line in text.splitlines() if line.startswith("| third | nontrainable | -0.01100 ± 0.00058 |")
    ]
    assert [float(cell) for cell in row.split("|")[4:6]] == pytest.approx(ends, abs=1e-5)
    assert row.endswith("| 0–2 |")
    recorded({("third", 0): 0.3}, name="on_nontrainable", experiment=tiny(steps=7))
    with pytest.raises(UserError, match="step"):
        tables.tables((part,), ())


def test_seeds_of_an_arm_have_the_same_steps(recorded, tiny):
    part = recorded(values_of())
    recorded({("third", 1): 0.25}, experiment=tiny(steps=7))
    with pytest.raises(UserError, match="step"):
        tables.tables((part._replace(equal_steps=False),), ())


def test_differences_may_be_to_an_arm_of_another_part(recorded):
    values = values_of()
    part = recorded(values)
    shorter = part._replace(
        name="short", arms=("fourth",), pairs=(("fourth", "first"),), borrowed=((part, "first"),)
    )
    recorded({("fourth", seed): 0.5 for seed in SEEDS}, shorter)
    ((label, found),) = figures.differences(shorter)
    assert label == "fourth − first"
    assert found == pytest.approx(0.5 - column(values, "first"), abs=1e-9)
    assert "| fourth − first |" in tables.tables((shorter,), ())


def outcome(differences, others=(), holm: float | None = 0.01, monte_carlo=0.0):
    """Of one or more contrasts with these differences by seed; passes differ so that they have this Monte-Carlo error."""
    values = np.zeros((2, 3)) + monte_carlo * np.array([[1.0], [-1.0]]) * math.sqrt(3)
    contrasts = [
        verdicts.Contrast("b", row, paired_test(row, 0 * row), paired_test(row, 0 * row), PassValues(values))
        for row in map(np.array, (differences, *others))
    ]
    return verdicts.Outcome(PRIMARIES[0], contrasts=tuple(contrasts), p_holm=holm)


LOWER = (-0.9, -1.0, -1.1, -1.0, -1.0)  # mean -1, standard error 0.032
HIGHER = tuple(-value for value in LOWER)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (outcome(LOWER), "A ahead"),
        (outcome(HIGHER), "A behind"),
        (outcome(LOWER, holm=0.051), "cannot be told"),
        (outcome(LOWER, monte_carlo=0.015), "A ahead"),
        (outcome(LOWER, monte_carlo=0.017), "cannot be told"),
        (outcome(LOWER, others=(LOWER,)), "A ahead"),
        (outcome(LOWER, others=(HIGHER,)), "cannot be told"),
        (outcome(LOWER, others=((-1.0, -1.001, -0.999, -1.0, -1.0),), monte_carlo=0.015), "cannot be told"),
        (outcome(LOWER, holm=None), "cannot be told"),
        (verdicts.Outcome(PRIMARIES[0], missing=("vdm/seed_3",)), "runs missing"),
        (verdicts.Outcome(PRIMARIES[0], not_finite=("vdm/seed_3",)), "not finite"),
    ],
)
def test_a_verdict_needs_every_rival_and_a_small_monte_carlo_error(found, expected):
    assert found.verdict == expected


def test_every_rival_is_shown_with_an_interval_for_all_comparisons_together(recorded):
    values = values_of()
    part = recorded(values)
    text = tables.tables(
        (part,), (Primary(part, "third", ("first", "second")), Primary(part, "second", ("first",)))
    )
    for b in ("first", "second"):
        difference = column(values, "third") - column(values, b)
        ends = stats.t.interval(1 - 0.05 / 3, 4, difference.mean(), stats.sem(difference))  # of three rows
        row = next(line for line in text.splitlines() if line.startswith(f"| third − {b} | Toy |"))
        assert "| 98.33 % from | 98.33 % to |" in text
        assert [float(cell) for cell in row.split("|")[4:6]] == pytest.approx(ends, abs=2e-4)
        if b == "first":  # the part describes this pair
            pair = next(line for line in text.splitlines() if line.startswith("| third − first | -"))
            ends = stats.t.interval(0.95, 4, difference.mean(), stats.sem(difference))
            assert [float(cell) for cell in pair.split("|")[6:8]] == pytest.approx(ends, abs=2e-4)
        detail = [line for line in text.splitlines() if line.startswith(f"| third − {b} | Toy |")][1]
        assert [float(cell) for cell in detail.split("|")[3:8]] == pytest.approx(list(difference), abs=1e-4)
    assert text.index("| third − second | Toy |") < text.index("| third − first | Toy |")


def test_a_mean_of_one_seed_has_no_error_and_says_so(recorded):
    part = recorded({("first", 0): 0.3, ("second", 1): 0.25, ("second", 2): 0.25})
    rows = [line.split(" | ") for line in tables.tables((part,), ()).splitlines()]
    (first,) = [row for row in rows if row[0] == "| first"]
    assert "±" not in first[1]
    assert first[5] == "0"
    (second,) = [row for row in rows if row[0] == "| second"]
    assert second[5] == "1–2"


def test_commits_of_a_run_that_was_resumed(tmp_path):
    starts = [{"step": 0, "commit": "a" * 40}, {"step": 1000, "commit": "b" * 40 + "+"}, {"step": 1500}]
    assert records.code_history(tmp_path) == "not recorded"
    write_record(tmp_path / "environment.json", {"starts": starts})
    expected = "aaaaaaaaa to step 1,000, then bbbbbbbbb+ to step 1,500, then not recorded"
    assert records.code_history(tmp_path) == expected
    starts = [{"step": 0, "commit": "a" * 40}, {"step": 1000, "commit": "a" * 40, "jax": "1"}]
    write_record(tmp_path / "environment.json", {"starts": starts})
    assert records.code_history(tmp_path) == "aaaaaaaaa"


def test_runs_of_a_seed_are_listed_by_their_commits(recorded):
    part = recorded({(arm, 0): 0.3 for arm in MEANS})
    for arm, letter in (("first", "a"), ("third", "a")):
        record = {"starts": [{"step": 0, "commit": letter * 40}]}
        write_record(part.workdir(arm, 0) / "environment.json", record)
    text = tables.tables((part,), ())
    assert "| toy | 0 | first, third | aaaaaaaaa |\n| toy | 0 | second | not recorded |" in text


ROW = {"step": 200, "bpd": 3.0, "steps_per_second": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "not enough values"),
        ('{"step": 1', "Expecting ',' delimiter"),
        ("3", "not iterable"),
        (json.dumps({**ROW, "bpd": None}), "no metrics of a training"),
        (json.dumps({"step": 1, "steps_per_second": 1}), "'bpd'"),
        (f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "steps do not rise"),
        (json.dumps({**ROW, "steps_per_second": math.nan}), "steps do not rise, or"),
        (json.dumps({**ROW, "steps_per_second": 0}), "steps do not rise, or"),
    ],
)
def test_metrics_that_are_none_are_named(recorded, text, message):
    part = recorded({("first", 0): 0.3})
    file = part.workdir("first", 0) / METRICS
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=rf"first/seed_0/metrics\.jsonl: .*{message}.*restore it"):
        tables.tables((part,), ())


def test_a_record_of_another_run_is_refused(tmp_path, monkeypatch):
    """Every record that is kept is of its arm and seed, and a copy from another is not."""
    (run, other) = make_runs(parts.MNIST.records, parts.MNIST.variants(["vdm"]), (0, 1))
    records.check_record(run)
    monkeypatch.setattr(Run, "workdir", tmp_path)
    for file in ("evaluation.json", "evaluation.npz"):
        shutil.copy(parts.MNIST.workdir("vdm", 0) / file, tmp_path)
    records.check_record(run)
    with pytest.raises(UserError, match=r"evaluation\.json: is not of the last step of this arm and seed"):
        records.check_record(other)
    (tmp_path / "evaluation.json").write_text(
        (tmp_path / "evaluation.json").read_text().replace("1.307", "1.207", 1)
    )
    with pytest.raises(UserError, match="does not match its sha256"):
        records.check_record(run)
    shutil.copy(parts.MNIST.workdir("vdm", 0) / "evaluation.json", tmp_path)
    shutil.copy(parts.MNIST.workdir("vdm", 1) / "evaluation.npz", tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.npz"):
        records.check_record(run)
    (tmp_path / "evaluation.npz").unlink()
    with pytest.raises(UserError, match=r"evaluation\.npz: is missing"):
        records.check_record(run)


def test_what_a_run_has_learned_is_kept_of_every_checkpoint(tiny, tmp_path, monkeypatch):
    experiment = dataclasses.replace(
        tiny(steps=2), num_timesteps=3, variance=Learned(), checkpoint_every=1, keep_last=2
    )
    loop.train(experiment, tmp_path)
    monkeypatch.setattr(diffenc, "load", functools.partial(diffenc.load, allow_imports=("tests",)))
    records.complete_record(tmp_path, has_learned=True)
    kept = records.kept_learned(tmp_path)
    assert list(kept) == [1, 2]
    for step, found in kept.items():
        there = read_learned(tmp_path, step, records.POINTS)
        assert found.chain is not None
        assert there.chain is not None
        assert found.chain.w == pytest.approx(there.chain.w, abs=1e-6)
        assert found.chain.log_snr == pytest.approx(there.chain.log_snr, abs=1e-6)
        assert found.eta_squared == pytest.approx(there.eta_squared, abs=1e-6)
        assert found.log_snr == pytest.approx(there.log_snr, abs=1e-6)
    assert kept[1].chain.w.tolist() != kept[2].chain.w.tolist()  # type: ignore[union-attr]
    written = (tmp_path / records.LEARNED).stat().st_mtime_ns
    records.complete_record(tmp_path, has_learned=True)
    assert (tmp_path / records.LEARNED).stat().st_mtime_ns == written
    write_record(tmp_path / records.LEARNED, {"checkpoints": []})  # as of a run that went on
    records.complete_record(tmp_path, has_learned=True)
    assert list(records.kept_learned(tmp_path)) == [1, 2]


def test_the_picture_of_learned_chains_has_the_last_step_of_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "RECORDS", tmp_path)
    part = Part("toy", "Toy", "toy.gin", ("arm",), (), (0, 1, 2), learned=("arm",))
    start = np.array([4, -6])
    assert figures.plot_kept_learned(part, start) is None
    for seed in (0, 1):
        part.workdir("arm", seed).mkdir(parents=True)
        last = {
            "step": 20,
            "log_snr": [-5 - seed, 5 + seed],
            "eta_squared": [3, 1 + seed],
            "stops": [5, -5],
            "w": [0.5 + seed],
        }
        kept = [{**last, "step": 10, "w": [9.0]}, last]
        write_record(part.workdir("arm", seed) / records.LEARNED, {"checkpoints": kept})
    figure = figures.plot_kept_learned(part, start)
    assert figure is not None
    path, times, variances = figure.axes
    for seed in (0, 1):
        assert np.asarray(times.lines[seed].get_xydata()).tolist() == [[0, 5 - 4], [1, -5 + 6]]
        assert np.asarray(path.lines[seed].get_xydata()).tolist() == [[-5 - seed, 3], [5 + seed, 1 + seed]]
        assert np.asarray(variances.lines[seed].get_xydata()).tolist() == [[1, 0.5 + seed]]
    legend = path.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["arm", "$1 + 2\\sigma^2$"]
    assert len({line.get_color() for line in path.lines[:2]}) == 1


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_learns_is_named(part):
    for variant in part.variants(part.arms):
        experiment = gin_loader.load_experiment(variant.gin_files, ())
        model = experiment.model
        learns = type(model.stochasticity).__name__ == "Learned" or experiment.num_timesteps
        assert (variant.name in part.learned) == bool(learns)


def test_figures_are_of_what_is_recorded(recorded):
    part = recorded({})
    assert figures.plot_differences((part,), (Primary(part, "third", ("first",)),)) is None
    assert figures.plot_sizes([(part, {"second": 1})], "first") is None
    values = values_of()
    recorded(values)
    figure = figures.plot_differences((part,), (Primary(part, "third", ("first",)),))
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_fontweight() for text in axes.get_yticklabels()] == ["normal", "bold"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert np.asarray(dots[1].get_xdata()) == pytest.approx(
        column(values, "third") - column(values, "first"), abs=1e-9
    )
    figure = figures.plot_sizes([(part, {"second": 1, "third": 2}), (part, {"second": 4})], "first")
    assert figure is not None
    dots = [[line for line in axes.lines if line.get_marker() == "o"] for axes in figure.axes]
    assert [[np.asarray(line.get_xdata())[0] for line in each] for each in dots] == [[1, 2], [4]]
    assert np.asarray(dots[0][1].get_ydata()) == pytest.approx(column(values, "third"), abs=1e-9)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_training_losses_are_means_and_paired_differences_with_their_error(recorded):
    part = recorded({})
    assert figures.plot_training(part, "first") is None
    recorded(values_of())
    for seed in SEEDS:
        row = {"step": 300, "steps_per_second": 2.0, "bpd": 2.0 + 3 * seed}
        with (part.workdir("third", seed) / METRICS).open("r+") as file:
            rows = [*file.read().splitlines()[:-1], json.dumps(row)]
            file.seek(0)
            file.write("".join(f"{each}\n" for each in rows))
            file.truncate()
    figure = figures.plot_training(part, "first", start=200)
    assert figure is not None
    whole, differences = figure.axes
    means = [np.asarray(line.get_xydata()).tolist() for line in whole.lines]
    assert means == [[[300, 4.0]], [[300, 4.0]], [[300, 8.0]]]  # 2 + the mean seed, or 2 + 3 times it
    paired = [np.asarray(line.get_xydata()).tolist() for line in differences.lines[1:]]  # after that of 0
    assert paired == [[[300, 0.0]], [[300, 4.0]]]  # 2 times the mean seed
    band = differences.collections[1].get_paths()[0].vertices
    error = stats.sem([2 * seed for seed in SEEDS])
    assert sorted({round(float(y), 6) for _, y in np.asarray(band)}) == pytest.approx([4 - error, 4 + error])


def test_the_slope_of_the_training_loss_is_of_the_last_thousand_steps(tmp_path):
    """Of the ten rows after step 1,500, of which the first is off the level: slopes by the normal equations.

    Rows are means over the hundred steps before them, so that of step 1,500 is of earlier ones.
    """
    losses = {step: 9.0 if step <= 1500 else 5.0 + (step == 1600) for step in range(100, 2501, 100)}
    rows = [{"step": step, "steps_per_second": 1, "bpd": loss} for step, loss in losses.items()]
    (tmp_path / METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    # In units of 100 steps the ten rows are at -4.5 ... 4.5 from their mean, whose squares sum to 82.5.
    assert records.training_slope(tmp_path) == pytest.approx(-4.5 / 82.5)


def test_the_mean_training_losses_are_weighted_by_the_steps_of_a_row(tmp_path):
    """Rows after 200, 1,000, 1,400 and 2,000 steps: (200 x 5 + 800 x 2) / 1,000, and (400 x 1 + 600 x 3) / 1,000."""
    losses = {200: 5.0, 1000: 2.0, 1400: 1.0, 2000: 3.0}
    rows = [{"step": step, "steps_per_second": 1, "bpd": loss} for step, loss in losses.items()]
    (tmp_path / METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert records.mean_losses(tmp_path) == pytest.approx((2.6, 2.2))


def test_training_losses_of_different_steps_are_refused_and_without_reference_there_is_no_difference(
    recorded,
):
    part = recorded({("first", 0): 0.3, ("first", 1): 0.3, ("second", 0): 0.3, ("second", 1): 0.3})
    alone = figures.plot_training(part, "third")
    assert alone is not None
    assert len(alone.axes) == 1
    metrics = part.workdir("second", 1) / METRICS
    metrics.write_text(metrics.read_text().replace('"step": 300', '"step": 250'))
    with pytest.raises(UserError, match="runs have metrics of different steps"):
        figures.plot_training(part, "first")


def test_times_start_from_those_of_the_schedule():
    """13.3 - 18.3 g(t) / g(1), g a line of slope 0.8 + 0.001 + 0.05 r(1), and r, a fifth of 32 sigmoids of steepness 18."""
    times = np.linspace(0, 1, 11)
    centres = (np.arange(32) + 0.5) / 32
    risen = [
        0.2 / 32 * sum(1 / (1 + np.exp(-18 * (t - centres))) - 1 / (1 + np.exp(18 * centres))) for t in times
    ]
    g = (0.801 + 0.05 * risen[-1]) * times + risen
    assert figures.first_log_snr(parts.MNIST_T10) == pytest.approx(13.3 - 18.3 * g / g[-1], abs=1e-4)
    assert figures.first_log_snr(parts.MNIST) is None


def test_pairs_say_in_how_many_seeds_a_is_lower_and_the_errors_that_seeds_share(recorded):
    values = {
        (arm, seed): MEANS[arm] + 0.4 * ((arm, seed) == ("second", 3)) + 0.001 * seed * (arm == "third")
        for arm in MEANS
        for seed in SEEDS
    }
    part = recorded(values, by_pass={"second": 0.003})
    for seed in SEEDS:
        # The mean over the steps is then higher than that of `first` by 4/3 of the seed.
        metrics = part.workdir("second", seed) / METRICS
        old, new = (f'"bpd": {2.0 + factor * seed}}}' for factor in (1, 3))
        metrics.write_text(metrics.read_text().replace(old, new))
    rows = tables.tables((part,), ()).splitlines()
    (heads,) = [row.strip("| ").split(" | ") for row in rows if row.startswith("| A − B | total |")]
    (cells,) = [row.strip("| ").split(" | ") for row in rows if row.startswith("| second − first |")]
    cell = dict(zip(heads, cells, strict=True))
    lower = sum(values["second", seed] < values["first", seed] for seed in SEEDS)
    assert cell["A is lower in"] == f"{lower} of 5"
    assert 0 < lower < 5
    assert cell["seeds"] == "0–4"
    assert float(cell["± Monte Carlo"]) == pytest.approx(0.003)
    for when in ("first", "last"):
        mean, error = map(float, cell[f"training, {when} 1,000 steps"].split(" ± "))
        assert (mean, error) == pytest.approx((4 / 3 * 2, 4 / 3 * stats.sem(SEEDS)), rel=0.02)


def test_every_arm_runs_once_and_what_is_tested_runs_first():
    runs = [
        (stage.part.name, arm, seed) for stage in STAGES for arm in stage.arms for seed in stage.part.seeds
    ]
    assert len(runs) == len(set(runs)) == sum(len(part.arms) * len(part.seeds) for part in PARTS)
    tested = {(p.part.name, arm) for p in PRIMARIES for arm in (p.a, *p.rivals)}
    arms = [(stage.part.name, arm) for stage in STAGES for arm in stage.arms]
    assert set(arms[: len(tested)]) == tested
    assert all(len(primary.part.seeds) == 5 for primary in PRIMARIES)


ENCODER, MEAN, PATH = "encoder", "generative_mean", "stochasticity"
MEANT = {  # classes of plugins, by arm
    "vdm": {ENCODER: "Identity", MEAN: "VDM", PATH: "Markov"},
    "vdm_nontrainable_snr": {ENCODER: "Identity", MEAN: "VDM", PATH: "Markov", "schedule": "NontrainableSNR"},
    "nontrainable": {ENCODER: "Nontrainable", MEAN: "Counterterm", PATH: "Markov"},
    "nontrainable_tight": {ENCODER: "Nontrainable", MEAN: "Rescaled", PATH: "Nontrainable"},
    "diffenc": {ENCODER: "Trainable", MEAN: "Counterterm", PATH: "Markov"},
    "diffenc_learned_path": {ENCODER: "Trainable", MEAN: "Counterterm", PATH: "Learned"},
}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_arms_are_what_they_are_called_and_differ_in_nothing_else(part):
    arms = {
        variant.name: gin_loader.load_experiment(variant.gin_files, ())
        for variant in part.variants(part.arms)
    }
    first = next(iter(arms.values()))
    for arm, experiment in arms.items():
        name = arm if arm in MEANT else "diffenc"
        schedule = "Monotone" if part is parts.MNIST_T10 else "Linear"
        meant = {"schedule": schedule, **MEANT[name]}
        assert {field: type(getattr(experiment.model, field)).__name__ for field in meant} == meant
        network: Any = experiment.model.network
        if arm == "vdm_nontrainable_snr":  # it is told the ends of its own schedule
            network = dataclasses.replace(network, log_snr_max=13.3, log_snr_min=-5.0)
        assert network == first.model.network
        assert experiment.model.parameterization == first.model.parameterization
        free: dict[str, Any] = {"model": first.model, **({} if part.equal_steps else {"steps": first.steps})}
        assert dataclasses.replace(experiment, **free) == first


def test_the_control_is_told_its_own_ends_of_log_snr():
    """lambda - 2 softplus(-lambda) at both ends of the linear log-SNR."""
    (variant,) = parts.MNIST.variants(("vdm_nontrainable_snr",))
    model = gin_loader.load_experiment(variant.gin_files, ()).model
    for end in ("log_snr_max", "log_snr_min"):
        linear = getattr(model.schedule, end)
        assert getattr(model.network, end) == pytest.approx(linear - 2 * np.logaddexp(0, -linear), abs=1e-6)


def test_sizes_are_those_of_the_run_files():
    for part, sizes in ((parts.DIGITS_SIZE, parts.SIZES), (parts.DIGITS_TIME, parts.TIMES)):
        assert set(sizes) == set(part.arms) - {parts.VDM}
        for arm, blocks in sizes.items():
            (variant,) = part.variants((arm,))
            encoder: Any = gin_loader.load_experiment(variant.gin_files, ()).model.encoder
            assert encoder.network.blocks == blocks


def test_the_tables_that_are_kept_are_those_of_the_records():
    assert study.TABLES.read_text() == tables.tables(PARTS, PRIMARIES)


def test_the_page_has_the_primary_comparisons_as_the_tables_have_them():
    page = (parts.FOLDER.parent / "study.md").read_text().splitlines()
    (heads,) = [place for place, line in enumerate(page) if line.startswith("| A − B | part |")]
    kept = study.TABLES.read_text().splitlines()
    first = kept.index(page[heads])
    rows = sum(len(primary.rivals) for primary in PRIMARIES)
    assert page[heads : heads + rows + 3] == kept[first : first + rows + 3]


@pytest.mark.parametrize("folder", ["/data/checkout", "~/diffenc"])
def test_a_config_names_no_folder_of_this_machine(tmp_path, folder):
    config = tmp_path / "config.gin"
    shipped = "# Read from gin/b.gin (comes with diffenc; SHA-256 34)\nExperiment.steps = 3\n"
    config.write_text(f"# Read from study/a.gin ({folder}/study/a.gin; SHA-256 12)\n{shipped}")
    records.omit_folders(config)
    assert config.read_text() == f"# Read from study/a.gin (SHA-256 12)\n{shipped}"


def test_no_record_names_a_folder_of_a_machine():
    kept = [*parts.RECORDS.rglob("config.gin"), *parts.RECORDS.rglob("*.json")]
    assert kept
    assert [str(file) for file in kept if re.search(r"[(\"'][~/]", file.read_text())] == []


@pytest.mark.slow
def test_a_stage_runs_what_is_missing_and_writes_the_tables(tmp_path, monkeypatch):
    """By the program itself, on run files of two steps."""
    monkeypatch.setattr(parts, "FOLDER", tmp_path)
    monkeypatch.setattr(parts, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(study, "TABLES", tmp_path / "tables.md")
    monkeypatch.setattr(study, "FIGURES", tmp_path / "figures")
    (tmp_path / "base.gin").write_text(
        "include 'gin/quickstart.gin'\nExperiment.steps = 2\nExperiment.batch_size = 2\nExperiment.evaluate_every = 0\n"
        "Experiment.sample_every = 0\nnetwork.unet.channels = 8\nnetwork.unet.groups = 4\nevaluate.num_images = 4\nevaluate.passes = 2\n"
    )
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "vdm.gin").write_text("include 'gin/fragments/vdmv.gin'\n")
    other = parts.OtherPath("vdm", Nontrainable())
    toy = Part("toy", "Toy", "base.gin", ("vdm",), (), (0,), other_paths=(other,))
    for name, value in {"PARTS": (toy,), "PRIMARIES": (), "STAGES": (parts.Stage(toy, ("vdm",)),)}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "DIGITS_SIZE", toy)
    monkeypatch.setattr(study, "SIZES", {"vdm": 1})
    monkeypatch.setattr(study, "MODELS", {"toy_vdm": (toy, "vdm")})
    monkeypatch.setattr(study, "MODELS_FOLDER", tmp_path / "models")
    assert study.main([]) == 0
    assert (tmp_path / "records/toy/vdm/seed_0/evaluation.json").is_file()
    written = (tmp_path / "tables.md").read_text()
    assert "| vdm |" in written
    own, there = (
        json.loads((tmp_path / "records/toy/vdm/seed_0" / name).read_text())
        for name in ("evaluation.json", f"{other.record_name}.json")
    )
    assert ("measured_path" in own, there["measured_path"]) == (False, "nontrainable")
    assert own["bpd_reconstruction"] == there["bpd_reconstruction"]
    assert own["bpd"] < there["bpd"]  # of VDM the Markov path is the best
    assert f"({tmp_path}" not in (tmp_path / "records/toy/vdm/seed_0/config.gin").read_text()
    model = tmp_path / "models/toy_vdm"
    assert load(model).step == 2
    card = (model / "README.md").read_text()
    assert "| bits/dim |" in card
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: diffenc\n")
    held = [*(tmp_path / "records/toy/vdm/seed_0").glob("*.json"), *model.iterdir()]
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in model.iterdir())
    before = [file.stat().st_mtime_ns for file in held]
    assert study.main([]) == 0
    assert (tmp_path / "tables.md").read_text() == written
    assert [file.stat().st_mtime_ns for file in held] == before
