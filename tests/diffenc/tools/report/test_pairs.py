"""Which runs are compared, and what is said of them."""

import json

import numpy as np
import pytest
from scipy import stats

from diffenc.evaluation.significance import TestResult
from diffenc.tools.report import cards, grouping, pairs, run_data

from .conftest import BITS, CONFIG, DIMS, evaluation, npz, terms

OTHER = CONFIG.replace("identity", "trainable")


def groups(*workdirs):
    return grouping.group_by_config(run_data.read_runs([str(workdir) for workdir in workdirs]))


def test_one_run_each_is_paired_over_images(made):
    plus = np.array([0.5, 1.0, 0.25])
    (found,) = pairs.compare_groups(
        groups(made("a", said=evaluation()), made("b", config=OTHER, said=evaluation(), plus=plus))
    )
    t, bootstrap = found.results
    theirs = stats.ttest_1samp(-plus, 0.0)
    assert t.difference == pytest.approx(-plus.mean())
    assert t.error == pytest.approx(stats.sem(plus))
    assert t.two_sided == pytest.approx(theirs.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert t.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert bootstrap.difference == pytest.approx(-plus.mean())
    assert bootstrap.of == "3 images, seeds as they are"
    (says,) = found.conclusions
    assert says.startswith("a is lower than b by 0.58 bits/dim on these images.")
    assert "may explain the difference (p\u00a0=\u00a0" in says
    assert "Each was trained once" in found.caveats[0]


def test_a_clear_difference_is_called_so_and_no_more(made):
    plus = np.array([-0.5, -0.52, -0.51])
    (found,) = pairs.compare_groups(
        groups(made("a", said=evaluation()), made("b", config=OTHER, said=evaluation(), plus=plus))
    )
    assert found.conclusions[0].startswith("a is higher than b by 0.5100")
    assert "for these two trained models" in found.conclusions[0]


def test_seeds_are_paired_by_seed(made):
    more = {0: 0.2, 1: 0.3, 2: 0.4}
    workdirs = [made(f"a/{seed}", config=CONFIG.replace("seed = 0", f"seed = {seed}"), said=evaluation(), plus=0.1 * seed) for seed in more]  # fmt: skip
    workdirs += [made(f"b/{seed}", config=OTHER.replace("seed = 0", f"seed = {seed}"), said=evaluation(), plus=plus) for seed, plus in more.items()]  # fmt: skip
    a, b = groups(*workdirs)
    assert (a.name, b.name, a.totals) == ("a", "b", pytest.approx({0: 5.0, 1: 5.1, 2: 5.2}))
    assert a.mean == pytest.approx((5.1, 0.1 / np.sqrt(3)))
    (found,) = pairs.compare_groups([a, b])
    tests = {(finding.test, finding.of): finding for finding in found.results}
    theirs = stats.ttest_ind([5.0, 5.1, 5.2], [5.2, 5.3, 5.4], equal_var=False)
    assert tests["Welch", "3 + 3 runs"].two_sided == pytest.approx(theirs.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert tests["paired t", "3 pairs of runs"].difference == pytest.approx(-0.2)
    assert ("bootstrap", "3 images, seeds as they are") in tests
    assert "averaged over seeds" in found.conclusions[0]
    assert "a large p is not evidence that the two are equal" in found.caveats[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "cd" * 32}, "figures are of different images"),
        ({"num_images": 2}, "figures are of different images"),
        ({"condition": "class"}, "images given different things"),
        ({"T": 100}, "T continuous and 100"),
        ({"split": "train", "fingerprint": "ab" * 32}, "split test and train"),
        ({"seed": 1}, "seed 0 and 1"),
        ({"passes": 3}, "passes 2 and 3"),
        ({"batch_size": 2}, "batch_size 3 and 2"),
        ({"time_sampler": "importance(floor=0.1)"}, "time_sampler uniform and importance(floor=0.1)"),
        ({"times_per_image": 2}, "times_per_image 1 and 2"),
        ({"times": "fitted"}, "times None and fitted"),
        ({"variance": "fitted"}, "variance None and fitted"),
        ({"measured_path": "nontrainable"}, "measured_path None and nontrainable"),
        ({"bpd": None}, "bits/dim are not finite"),
    ],
)
def test_what_is_not_comparable_is_not_compared(made, changes, reason):
    a, b = made("a", said=evaluation()), made("b", config=OTHER, said=evaluation(**changes))
    (found,) = pairs.compare_groups(groups(a, b))
    assert reason in (found.refusal or "")
    assert found.results == ()


def test_bars_lie_on_the_side_of_their_figures():
    """From -1 to 3, which a tenth more than 3 on both sides of the middle makes -1 / 6.6 and 3 / 6.6."""
    one = TestResult("paired t", "images", 1.0, 0.5, (-1.0, 3.0), 0.2)
    (row,) = cards.make_pair_card(pairs.Pair("a", "b", results=(one,)))["rows"]
    assert row["bar"] == pytest.approx((50 - 100 / 6.6, 400 / 6.6), abs=0.02)
    assert row["dot"] == pytest.approx(50 + 100 / 6.6, abs=0.01)


@pytest.mark.parametrize(("count", "number"), [(6, 15), (7, 6)])
def test_up_to_fifteen_pairs_are_all_compared(made, count, number):
    workdirs = [made(f"r{k}", config=f"Model.k = {k}\n") for k in range(count)]
    assert len(pairs.compare_groups(groups(*workdirs))) == number


def test_one_evaluated_run_of_several_is_not_called_trained_once(made):
    a = [made(f"a{k}", config=CONFIG.replace("seed = 0", f"seed = {k}"), said=evaluation() if k == 1 else None) for k in range(3)]  # fmt: skip
    b = made("b", config=OTHER, said=evaluation(), plus=[0.1, 0.2, 0.4])
    (found,) = pairs.compare_groups(groups(*a, b))
    assert found.caveats[0].startswith("Only one run of each was evaluated, a1 and b. Whether other seeds")


def test_runs_of_unknown_seeds_are_not_taken_for_runs_of_one_seed(made):
    a, b = groups(*(made(name, config=None, rows=[], said=evaluation()) for name in "ab"))
    assert set(a.by_seed).isdisjoint(b.by_seed)


def names(made, *paths):
    """The names of groups of runs at these paths, NAME_SEED each, of a config for each NAME."""
    workdirs = []
    for path in paths:
        name, _, seed = path.rpartition("/")[2].partition("_")
        config = CONFIG.replace("identity", name).replace("seed = 0", f"seed = {seed}")
        workdirs.append(made(path, config=config))
    return [group.name for group in groups(*workdirs)]


def test_no_two_groups_have_one_name(made):
    four = [f"old/{name}_{seed}" for name in ("vdm", "enc") for seed in range(2)]
    assert names(made, *four, "new/vdm_0") == ["old/vdm_0 and 1 more", "old/enc_0 and 1 more", "new/vdm_0"]
    assert names(made, "a/vdm_0", "a/vdm_1", "b/enc_0", "b/enc_1", "b/vdm_0") == [
        "a", "b/enc_0 and 1 more", "b/vdm_0",
    ]  # fmt: skip


def test_a_run_without_an_evaluation_is_not_compared(made):
    (found,) = pairs.compare_groups(groups(made("a", said=evaluation()), made("b", config=OTHER)))
    assert found.refusal == "b has not been evaluated."


def test_terms_of_another_evaluation_are_not_compared(made):
    a, b = made("a", said=evaluation()), made("b", config=OTHER, said=evaluation())
    (b / "evaluation.npz").write_bytes(
        (made("c", said=evaluation(), plus=1.0) / "evaluation.npz").read_bytes()
    )
    (found,) = pairs.compare_groups(groups(a, b))
    assert "is of another evaluation" in (found.refusal or "")


def test_other_lengths_of_training_are_told(made):
    a, b = (
        made("a", said=evaluation()),
        made("b", config=OTHER, said=evaluation(step=10), plus=[0.1, 0.2, 0.4]),
    )
    (found,) = pairs.compare_groups(groups(a, b))
    assert "They differ, among others, in step 20 and 10." in found.caveats


def test_equal_runs_have_no_p(made):
    (found,) = pairs.compare_groups(
        groups(made("a", said=evaluation()), made("b", config=OTHER, said=evaluation()))
    )
    assert found.results[0].two_sided is None
    assert found.conclusions == (
        "a and b have the same bits/dim on these images. Their images do not vary, so there is no test.",
    )


def test_seeds_measured_differently_have_no_mean(made):
    other = CONFIG.replace("seed = 0", "seed = 1")
    (group,) = groups(made("a", said=evaluation()), made("b", config=other, said=evaluation(step=10)))
    assert group.mean is None
    assert "step 20 and 10" in (group.refusal or "")


def test_what_training_does_not_depend_on_makes_no_other_group(made):
    other = (
        CONFIG.replace("seed = 0", "seed = 1")
        .replace("steps = 20", "steps = 40")
        .replace("every = 5", "every = 7")
    )
    assert len(groups(made("a"), made("b", config=other))) == 1
    assert len(groups(made("c"), made("d", config=OTHER))) == 2


def test_the_same_seed_twice_is_not_averaged(made):
    assert [len(group.runs) for group in groups(made("a"), made("b"))] == [1, 1]


def test_of_many_groups_each_is_compared_with_the_first(made):
    workdirs = [
        made(f"r{k}", config=f"Model.k = {k}\n", said=evaluation(), plus=[0.1 * k, 0, 0]) for k in range(7)
    ]
    found = pairs.compare_groups(groups(*workdirs))
    assert [(pair.a, pair.b) for pair in found] == [("r0", f"r{k}") for k in range(1, 7)]


def of_seeds(made, name, config, figures):
    """Workdirs of one config whose bits/dim are `figures`, by seed."""
    return [
        made(f"{name}/{seed}", config=config.replace("seed = 0", f"seed = {seed}"), said=evaluation(), plus=bpd - 5.0)
        for seed, bpd in figures.items()
    ]  # fmt: skip


def test_runs_whose_seed_the_other_lacks_are_not_passed_over(made):
    ours = {0: 5.0, 1: 5.01, 2: 5.02, 3: 5.0, 4: 5.6, 5: 5.62}
    theirs = {
        4: 5.5,
        5: 5.5,
        6: 5.51,
        7: 5.52,
        8: 5.5,
        9: 5.51,
    }  # less for the shared 4 and 5, more on average
    (found,) = pairs.compare_groups(
        groups(*of_seeds(made, "a", CONFIG, ours), *of_seeds(made, "b", OTHER, theirs))
    )
    both = [list(each.values()) for each in (ours, theirs)]
    p = stats.ttest_ind(*both, equal_var=False).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    assert found.conclusions[0].startswith("a is lower than b by 0.30 bits/dim")
    assert f"(Welch, 6 + 6 runs, p\u00a0=\u00a0{p:.2g})" in found.conclusions[0]
    assert found.caveats[0].startswith("With 6 seeds a test")


def test_the_same_seeds_are_told_of_in_pairs(made):
    ours, theirs = {0: 5.0, 1: 5.1, 2: 5.25}, {2: 5.5, 0: 5.2, 1: 5.25}
    (found,) = pairs.compare_groups(
        groups(*of_seeds(made, "a", CONFIG, ours), *of_seeds(made, "b", OTHER, theirs))
    )
    p = stats.ttest_rel([5.0, 5.1, 5.25], [5.2, 5.25, 5.5]).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    assert f"(paired t, 3 pairs of runs, p\u00a0=\u00a0{p:.2g})" in found.conclusions[0]


def test_few_seeds_claim_nothing_and_five_do(made):
    """However small p is: 5 seeds a tenth apart have p < 0.001, 4 of them too."""
    for count in (4, 5):
        ours = {seed: 5.0 + 0.001 * seed for seed in range(count)}
        theirs = {seed: 5.1 + 0.0012 * seed for seed in range(count)}
        a = of_seeds(made, f"a{count}", CONFIG, ours)
        b = of_seeds(made, f"b{count}", OTHER, theirs)
        (found,) = pairs.compare_groups(groups(*a, *b))
        assert found.primary is not None
        assert (found.primary.two_sided or 1) < 1e-3
        (says,) = found.conclusions
        assert ("is larger than the choice of seeds explains" in says) == (count == 5)
        assert ("With fewer than 5 seeds of each, no claim is made about other seeds" in says) == (count == 4)


def test_three_pairs_are_corrected_after_holm(made):
    """p of each pair by scipy; the smallest times 3, the next times 2, and none below the one before."""
    random = np.random.default_rng(4)
    names = {"a": 5.0, "b": 5.02, "c": 5.05}
    figures = {name: mean + 0.02 * random.normal(size=5) for name, mean in names.items()}
    workdirs = [
        workdir
        for name, values in figures.items()
        for workdir in of_seeds(made, name, CONFIG.replace("identity", name), dict(enumerate(values)))
    ]
    found = pairs.compare_groups(groups(*workdirs))
    ps = [stats.ttest_rel(figures[pair.a], figures[pair.b]).pvalue for pair in found]  # pyright: ignore[reportAttributeAccessIssue]
    expected, least = {}, 0.0
    for rank, place in enumerate(np.argsort(ps)):
        least = expected[int(place)] = max(least, min(1.0, (3 - rank) * ps[place]))
    assert [pair.corrected for pair in found] == pytest.approx([expected[place] for place in range(3)])
    for pair in found:
        assert "corrected after Holm for 3 tests" in pair.conclusions[0]
        assert ("is larger than" in pair.conclusions[0]) == (
            pair.corrected is not None and pair.corrected <= 0.05
        )
    assert any(p <= 0.05 < (pair.corrected or 0) for p, pair in zip(ps, found, strict=True)), (
        "else nothing is tested"
    )


def test_one_image_is_too_few_for_a_test(made):
    workdirs = []
    for name, config, bits in (("a", CONFIG, 2.0), ("b", OTHER, 3.0)):
        workdirs.append(made(name, config=config))
        components = ("bpd_diffusion", "bpd_latent", "bpd_reconstruction")
        said = evaluation(bpd=3 * bits, num_images=1, **dict.fromkeys(components, bits))
        (workdirs[-1] / "evaluation.json").write_text(json.dumps(said))
        nats = np.full((2, 1), bits * DIMS * BITS)
        (workdirs[-1] / "evaluation.npz").write_bytes(
            npz({**dict.fromkeys(terms(), nats), "times": np.full((2, 1, 1), 0.5)})
        )
    (found,) = pairs.compare_groups(groups(*workdirs))
    assert found.results[0].difference == pytest.approx(-3.0)
    assert found.conclusions[0].endswith("on these images. One image is too few for a test.")
