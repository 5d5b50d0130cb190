"""The depth that a model is trained at, and what evaluation and sampling make of it."""

import re

import pytest

from diffenc.config import serialize
from diffenc.config.experiment import ADDED_LATER
from diffenc.config.settings import Evaluate, Sample
from diffenc.errors import UserError
from diffenc.workdir.config_check import check_config
from diffenc_plugins.time_samplers import Importance
from diffenc_plugins.variances import Equal, Fitted, Fixed, Learned

W, OTHER = Fixed(1.2), Fixed(0.8)
SHALLOW, DEEP = {}, {"num_timesteps": 8, "variance": W}


@pytest.mark.parametrize(
    ("trained", "bound", "resolved"),
    [
        (SHALLOW, {}, (0, Equal())),
        (SHALLOW, {"num_timesteps": 8}, (8, Equal())),
        (SHALLOW, {"num_timesteps": 8, "variance": OTHER}, (8, OTHER)),
        (DEEP, {}, (8, W)),
        (DEEP, {"num_timesteps": 8}, (8, W)),
        (DEEP, {"variance": Equal()}, (8, Equal())),
        (DEEP, {"variance": OTHER}, (8, OTHER)),
        (DEEP, {"num_timesteps": 9}, (9, Equal())),
        (DEEP, {"num_timesteps": 9, "variance": W}, (9, W)),
        (DEEP, {"num_timesteps": 0}, (0, Equal())),
        (DEEP, {"times": "fitted"}, (8, Equal())),
    ],
)
def test_what_an_evaluation_leaves_open_is_as_trained(tiny, trained, bound, resolved):
    settings = tiny(**trained, evaluate=Evaluate(**bound, passes=3, seed=4)).evaluation
    assert (settings.num_timesteps, settings.variance) == resolved
    assert (settings.passes, settings.seed, settings.times) == (3, 4, bound.get("times", "equal"))


@pytest.mark.parametrize(
    ("trained", "bound", "resolved"),
    [
        (SHALLOW, {}, (1000, Equal())),
        (SHALLOW, {"num_timesteps": 8}, (8, Equal())),
        (DEEP, {}, (8, W)),
        (DEEP, {"sampler": "ddim"}, (8, Equal())),
        (DEEP, {"num_timesteps": 1000}, (1000, Equal())),
        (DEEP, {"variance": OTHER}, (8, OTHER)),
    ],
)
def test_what_sampling_leaves_open_is_as_trained(tiny, trained, bound, resolved):
    settings = tiny(**trained, sample=Sample(**bound, num=5)).sampling
    assert (settings.num_timesteps, settings.variance, settings.num) == (*resolved, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_timesteps": -1}, "Experiment.num_timesteps = -1: must not be negative"),
        ({"variance": W}, "Experiment.variance needs discrete time: bind Experiment.num_timesteps = T"),
        (
            {"num_timesteps": 8, "variance": Fitted()},
            "Experiment.variance: what is fitted belongs to a trained run; train with another variance",
        ),
        (
            {"evaluate": Evaluate(variance=W)},
            "evaluate.variance needs discrete time: bind evaluate.num_timesteps = T",
        ),
        (
            {"evaluate": Evaluate(times="fitted")},
            "evaluate.times needs discrete time: bind evaluate.num_timesteps = T",
        ),
        (
            {"num_timesteps": 8, "evaluate": Evaluate(variance=Learned())},
            "evaluate.variance: what is learned belongs to the T equal steps of training; bind another variance",
        ),
        (
            {
                "num_timesteps": 8,
                "variance": Learned(),
                "sample": Sample(num_timesteps=9, variance=Learned()),
            },
            "sample.variance: what is learned belongs to the T equal steps of training; bind another variance",
        ),
        (
            {"variance": Learned()},
            "Experiment.variance needs discrete time: bind Experiment.num_timesteps = T",
        ),
    ],
)
def test_what_is_no_depth_is_refused(tiny, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        tiny(**changes)


def test_a_run_of_an_earlier_version_is_the_same_run(tiny):
    """It has no such fields, and T and variance of what is measured stand in its config."""
    now = serialize.config_text(tiny(evaluate=Evaluate(), sample=Sample()))
    lines = [line for line in now.splitlines(keepends=True) if line.rstrip() not in ADDED_LATER]
    before = "".join(lines).replace("evaluate.num_timesteps = None", "evaluate.num_timesteps = 0")
    before = before.replace("e.variance = None", "e.variance = @variance.equal()")
    before = before.replace("sample.num_timesteps = None", "sample.num_timesteps = 1000")
    assert len(before.splitlines()) == len(now.splitlines()) - len(ADDED_LATER)
    assert "None" not in re.findall(
        r"^(?:evaluate|sample)\.(?:num_timesteps|variance) = (.*)$", before, re.MULTILINE
    )
    assert serialize.find_differences(before, now) == []
    assert serialize.hash_text(before) == serialize.hash_text(now)
    deep = serialize.config_text(tiny(**DEEP))
    assert serialize.find_differences(before, deep) == [
        "Experiment.num_timesteps: absent -> 8",
        "Experiment.variance: absent -> @variance.fixed()",
        "variance.fixed.w: absent -> 1.2",
    ]
    assert serialize.hash_text(deep) != serialize.hash_text(now)


def test_a_variance_is_fixed_where_it_is_trained_with_and_free_where_it_is_measured_with(tiny):
    trained, other = (serialize.config_text(tiny(num_timesteps=8, variance=one)) for one in (W, OTHER))
    assert serialize.find_differences(trained, other) == ["variance.fixed.w: 1.2 -> 0.8"]
    assert serialize.hash_text(trained) != serialize.hash_text(other)
    measured = [
        serialize.config_text(tiny(num_timesteps=8, evaluate=Evaluate(variance=one))) for one in (W, OTHER)
    ]
    assert serialize.find_differences(measured[0], measured[1]) == []
    assert serialize.hash_text(measured[0]) == serialize.hash_text(measured[1])


@pytest.mark.parametrize("field", ["variance", "time_sampler"])
def test_what_is_trained_with_is_the_same_whatever_of_its_class_is_measured_with(tiny, field):
    """The text then scopes both; unscoped, it is that of the run."""
    one, two = {"variance": (W, OTHER), "time_sampler": (Importance(0.2), Importance(0.3))}[field]

    def text(trained, **measured):
        return serialize.config_text(
            tiny(num_timesteps=8, **{field: trained}, evaluate=Evaluate(num_timesteps=8, **measured))
        )

    plain, scoped = text(one), text(one, **{field: two})
    assert f"Experiment.{field} = @{field.replace('_', '__')}/{field}." in scoped
    assert serialize.find_differences(plain, scoped) == serialize.find_differences(scoped, plain) == []
    assert serialize.hash_text(plain) == serialize.hash_text(scoped)
    assert serialize.fixed_bindings(serialize.parse_bindings(plain)) == serialize.fixed_bindings(
        serialize.parse_bindings(scoped)
    )
    other = text(two, **{field: one})
    for known in (plain, scoped):
        assert len(serialize.find_differences(known, other)) == 1
        assert serialize.hash_text(known) != serialize.hash_text(other)


def test_a_run_is_measured_with_another_variance_of_its_class(tiny, tmp_path):
    (tmp_path / "config.gin").write_text(serialize.config_text(tiny(num_timesteps=8, variance=W)))
    check_config(tiny(num_timesteps=8, variance=W, evaluate=Evaluate(variance=OTHER)), tmp_path)
    with pytest.raises(UserError, match=re.escape("variance.fixed.w: 1.2 -> 0.8")):
        check_config(tiny(num_timesteps=8, variance=OTHER, evaluate=Evaluate(variance=W)), tmp_path)
