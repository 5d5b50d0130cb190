"""Ticks, scales and paths, against places worked out by hand."""

import dataclasses
import math

import pytest

from diffenc.config.serialize import config_text
from diffenc.config.settings import Evaluate
from diffenc.evaluation.evaluated_bound import bound_metadata
from diffenc.registry import stochasticities, time_samplers
from diffenc.tools.report import charts, evaluation_spec, run_data
from diffenc.tools.report.curves import (
    Curve,
    Point,
    evaluated_splits,
    evaluation_curve,
    record_curve,
    second_half,
    thin,
    values_per_point,
)
from diffenc_plugins.stochasticities import Constant, Markov
from diffenc_plugins.time_samplers import Importance
from diffenc_plugins.variances import Fitted, Fixed

from .conftest import CONFIG, evaluation


def line(*points, run=0, **changes):
    return Curve(run, "a", tuple(Point(*point) for point in points), **changes)


def test_a_line_is_where_it_belongs():
    drawn = charts.make_chart("T", "x", "y", [line((0.0, 0.0), (5.0, 1.0), (10.0, 2.0))])
    assert drawn is not None
    # a twentieth of the range is left free above and below: 0 at 0.1 / 2.2, from below
    assert drawn.curves[0].line == "M0.0 954.5L500.0 500.0L1000.0 45.5"
    assert [(tick.at, tick.text) for tick in drawn.x_ticks] == [(0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8"), (100, "10")]  # fmt: skip
    assert drawn.alt == "T: y over x. a: from 0 at 0 to 2 at 10, lowest 0 at 0."


def test_a_wide_range_is_logarithmic():
    drawn = charts.make_chart("T", "x", "y", [line((0.0, 1.0), (1.0, 10.0), (2.0, 100.0))])
    assert drawn is not None
    assert drawn.y_label == "y, log scale"
    assert drawn.curves[0].line == "M0.0 954.5L500.0 500.0L1000.0 45.5"
    assert [tick.text for tick in drawn.y_ticks] == ["1", "3", "10", "30", "100"]
    areas = charts.make_chart("T", "x", "y", [line((0.0, 1.0), (1.0, 100.0))], from_zero=True)
    assert areas is not None
    assert areas.y_label == "y"
    assert areas.y_ticks[0].text == "0"
    assert areas.y_ticks[0].at == 100


def test_bands_marks_and_bars():
    band = charts.make_chart("T", "x", "y", [line((0.0, 1.0, 0.0, 2.0), (1.0, 1.0, 0.0, 2.0))])
    assert band is not None
    assert band.curves[0].band == "M0.0 954.5L1000.0 954.5L1000.0 45.5L0.0 45.5Z"
    marks = charts.make_chart(
        "T", "x", "y", [line((0.0, 1.0, 0.0, 2.0), marks=True), line((1.0, 1.0), run=9)]
    )
    assert marks is not None
    assert (marks.curves[0].marks, marks.curves[0].bars) == ("M0.0 500.0h.01", "M0.0 954.5V45.5")
    assert [curve.style for curve in marks.curves] == ["c0 d0 m0", "c1 d2 m2"]


def test_thirty_two_runs_look_different():
    assert len({charts.curve_style(run) for run in range(32)}) == 32


@pytest.mark.parametrize(
    "points",
    [
        [(3.0, 2.0)], [(3.0, 0.0)], [(1.0, -5.0), (2.0, -5.0)], [(0.0, 1e-30), (1.0, 1e30)],
        [(0.0, 1e-300), (1.0, 1e300)], [(0.0, -1e308), (1.0, 1e308)], [(0.0, 5e-324), (1.0, 1.0)], [(0.0, 5e-324)],
        [(0.0, 5e-324), (1.0, 1e-300)], [(0.0, 1.0, 1.0 - 1e308, 1.0 + 1e308), (1.0, 9.0)], [(-1e308, 1.0), (1e308, 2.0)],
        [(0.0, 1e308, 0.0, math.inf), (1.0, math.inf)], [(0.0, 0.0), (1.0, 5e-324)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("from_zero", [False, True])
def test_whatever_is_drawn_lies_in_the_box(points, from_zero):
    drawn = charts.make_chart("T", "x", "y", [line(*points)], from_zero)
    assert drawn is not None
    numbers = [
        float(part)
        for place in drawn.curves[0].line.replace("M", "L").split("L")[1:]
        for part in place.split()
    ]
    assert all(0 <= number <= 1000 for number in numbers)
    assert 1 <= len(drawn.y_ticks) <= 7


def test_of_nothing_there_is_no_chart():
    assert charts.make_chart("T", "x", "y", []) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1500.0, "1,500"), (2e6, "2M"), (2.5e6, "2.5M"), (-0.25, "−0.25"), (1e-5, "1e−5"), (200_000.0, "200,000"), (12.0, "12"), (math.inf, "inf"), (1e308, "1e308")],
)  # fmt: skip
def test_labels(value, text):
    assert charts.format_tick(value) == text


def test_thinning_keeps_means_and_extremes():
    values = [(float(k), float(k % 2)) for k in range(1000)]
    points, rows = thin(values, max_points=100)
    assert (len(points), rows) == (100, 10)
    assert points[3] == Point(34.5, 0.5, 0.0, 1.0)
    few, one = thin(values[:7], max_points=100)
    assert (few[6], one) == (Point(6.0, 0.0), 1)
    uneven, rows = thin(values[:101], max_points=100)
    assert (len(uneven), rows, uneven[-1]) == (51, 2, Point(100.0, 0.0))


def test_the_later_half_is_of_the_longest():
    long, short = line((1.0, 0.0), (5.0, 0.0), (9.0, 0.0), (10.0, 0.0)), line((4.0, 0.0), (6.0, 0.0))
    assert [[point.x for point in curve.points] for curve in second_half([long, short])] == [[5, 9, 10], [6]]
    assert second_half([]) == []


def test_curves_of_records():
    record = {"x": [1, 2, None, 4], "y": [1.0, None, 3.0, 4.0], "e": [0.5, 0.5, 0.5, 1.0]}
    assert record_curve(record, "x", "y", "e") == (Point(1.0, 1.0, 0.5, 1.5), Point(4.0, 4.0, 3.0, 5.0))
    assert record_curve(record, "x", "y") == (Point(1.0, 1.0), Point(4.0, 4.0))
    assert record_curve({"x": 3}, "x", "y") == ()
    assert len(record_curve({"x": list(range(5000)), "y": [1.0] * 5000}, "x", "y")) <= 400


def test_evaluations_in_training_and_the_last_of_the_same_split(made):
    rows = [
        {"step": 5, "test_bpd": 7.0, "test_bpd_se": 0.5},
        {"step": 10, "train_bpd": 6.0},
        {"step": 20, "test_bpd": 1.0},
    ]
    run = run_data.read_run(str(made("a", rows=rows, said=evaluation())), "a")
    found = evaluation_curve(3, run, "bpd", "test")
    assert found is not None
    assert found.points == (Point(5.0, 7.0, 6.5, 7.5), Point(20.0, 5.0, 5.0 - 0.123456, 5.0 + 0.123456))
    found = evaluation_curve(3, run, "bpd", "train")
    assert found is not None
    assert (found.points, found.label, found.run) == ((Point(10.0, 6.0),), "a, train", 3)
    assert evaluation_curve(3, run, "bpd", "validation") is None
    assert evaluated_splits([run]) == ["test", "train"]


def test_many_evaluations_keep_the_largest_of_their_errors(made):
    """300 marks two by two: values 10 apart, errors of 0.25 and 0.5."""
    rows = [{"step": k, "test_bpd": 10.0 * (k % 2), "test_bpd_se": 0.25 + 0.25 * (k % 2)} for k in range(300)]
    found = evaluation_curve(0, run_data.read_run(str(made("a", rows=rows)), "a"), "bpd", "test")
    assert found is not None
    assert (len(found.points), found.rows) == (150, 2)
    assert set(found.points) == {Point(2 * k + 0.5, 5.0, 4.5, 5.5) for k in range(150)}
    for row in rows:
        del row["test_bpd_se"]
    found = evaluation_curve(0, run_data.read_run(str(made("b", rows=rows)), "b"), "bpd", "test")
    assert found is not None
    assert {(point.low, point.high) for point in found.points} == {(None, None)}


def test_many_bins_keep_the_largest_of_their_errors():
    record = {"x": list(range(800)), "y": [0.0, 8.0] * 400, "e": [1.0, 0.5] * 400}
    assert record_curve(record, "x", "y", "e") == tuple(Point(2 * k + 0.5, 4.0, 3.0, 5.0) for k in range(400))
    assert record_curve(record, "x", "y")[0] == Point(0.5, 4.0)
    assert [values_per_point({"y": [1.0] * count}, "y") for count in (1, 400, 401, 801)] == [1, 1, 2, 3]
    assert values_per_point({"y": 3}, "y") == 1


BOUND = CONFIG + "evaluate.num_timesteps = 25\nevaluate.times = 'fitted'\nevaluate.variance = @v/variance.fixed()\nv/variance.fixed.w = 2.0\n"  # fmt: skip
OF_BOUND = {"T": 25, "times": "fitted", "variance": "fixed(w=2.0)"}


@pytest.mark.parametrize(
    ("config", "changes", "same"),
    [
        (CONFIG, {}, True),
        (CONFIG, {"T": 25}, False),
        (CONFIG, {"num_images": 4}, False),
        (CONFIG, {"seed": 1}, False),  # other three images
        (CONFIG, {"time_sampler": "importance(floor=0.1)"}, False),
        (CONFIG, {"passes": 9}, True),
        (CONFIG, {"condition": "class"}, False),
        (CONFIG + "Model.conditioning = @conditioning.by_class()\n", {"condition": "class"}, True),
        (BOUND, OF_BOUND, True),
        (BOUND, {}, False),
        (BOUND, OF_BOUND | {"times": "equal"}, False),
        (BOUND, OF_BOUND | {"variance": "fixed(w=1.0)"}, False),
        (BOUND, OF_BOUND | {"variance": "equal"}, False),
        (CONFIG.replace("_images = 3", "_images = None"), {}, False),  # of 1,300
        (CONFIG.replace("_images = 3", "_images = None"), {"num_images": 1300, "seed": 1}, True),
        (CONFIG.replace("_images = 3", "_images = 2_000"), {"num_images": 1300, "seed": 1}, True),
        (CONFIG + "evaluate.split = 'train'\n", {}, False),
        (None, {}, False),
    ],
)
def test_the_last_evaluation_is_on_the_curve_if_it_is_of_the_same(made, config, changes, same):
    run = run_data.read_run(str(made("a", config=config, rows=[{"step": 5, "test_bpd": 7.0}], said=evaluation(**changes))), "a")  # fmt: skip
    found = evaluation_curve(0, run, "bpd", "test")
    assert found is not None
    assert [point.x for point in found.points] == [5.0, 20.0][: 1 + same]
    alone = run_data.read_run(str(made("b", config=config, rows=[], said=evaluation(**changes))), "b")
    assert evaluated_splits([alone]) == ["test"] * same


ASKED = [
    {"evaluate": Evaluate()},
    {"evaluate": Evaluate(num_images=2)},
    {"evaluate": Evaluate(num_timesteps=25)},
    {"evaluate": Evaluate(num_timesteps=25, variance=Fixed(2.0))},
    {"evaluate": Evaluate(num_timesteps=25, times="fitted", variance=Fitted())},
    {"evaluate": Evaluate(time_sampler=Importance(0.2))},
    {"num_timesteps": 8, "evaluate": Evaluate()},
    {"num_timesteps": 8, "variance": Fixed(2.0), "evaluate": Evaluate()},
    {"num_timesteps": 8, "variance": Fixed(2.0), "evaluate": Evaluate(num_timesteps=9)},
    {"num_timesteps": 8, "variance": Fixed(2.0), "evaluate": Evaluate(times="fitted")},
]


def test_the_path_of_training_named_explicitly_is_no_other_path(made, tiny):
    for own in (Markov(), Constant(0.5)):
        model = dataclasses.replace(tiny().model, stochasticity=own)
        for asked in (Markov(), Constant(0.5)):
            experiment = tiny(model=model, evaluate=Evaluate(stochasticity=asked))
            said = evaluation(
                num_images=1300, **({} if asked == own else {"measured_path": stochasticities.spell(asked)})
            )
            run = run_data.read_run(
                str(made(f"{own} {asked}", config=config_text(experiment), said=said)), "a"
            )
            assert evaluation_spec.matches_config(run.evaluation, run.config)
            others = evaluation(num_images=1300, measured_path="nontrainable")
            assert not evaluation_spec.matches_config(others, run.config)


def test_configs_that_the_program_writes_ask_for_what_its_evaluations_say(made, tiny):
    """Of each config with each evaluation, only its own is of the same."""
    for row, settings in enumerate(ASKED):
        config = config_text(tiny(**settings))
        for column, other in enumerate(tiny(**changes).evaluation for changes in ASKED):
            count = other.num_images or 1300
            sampler = time_samplers.spell(other.time_sampler)
            said = evaluation(**bound_metadata(other), num_images=count, time_sampler=sampler)
            run = run_data.read_run(str(made(f"{row}_{column}", config=config, said=said)), "a")
            assert evaluation_spec.matches_config(run.evaluation, run.config) == (row == column), (
                settings,
                other,
            )
