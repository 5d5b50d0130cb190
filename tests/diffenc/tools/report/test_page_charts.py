"""What the charts of a page show, and what is said beside them."""

import json

import pytest

from .conftest import CONFIG, LOSS, SCHEDULE, parsed, rendered, text_of


def test_curves_of_other_images_are_not_laid_over_each_other(made, whole):
    other = made("other", config=CONFIG.replace("dots", "moons"), rows=[{"step": 5, "bpd": 1.0}])
    tree = parsed(rendered(whole, other))
    (section,) = (one for one in tree.iter("section") if one.get("id") == "training")
    labels = [one.get("aria-label") for one in section.iter() if one.get("role") == "img"]
    assert labels
    assert not [label for label in labels if "whole:" in label and "other:" in label]


def test_losses_of_other_images_are_not_laid_over_each_other(made):
    def loss(fingerprint):
        return {
            "loss": ({"log_snr_centre": [1.0, 0.0], "density": [0.5, 0.25], "fingerprint": fingerprint}, {})
        }

    a, b, c = (
        made(name, figures=loss(of)) for name, of in (("a", "1" * 64), ("b", "2" * 64), ("c", "1" * 64))
    )
    tree = parsed(rendered(a, b, c))
    labels = [one.get("aria-label") for one in tree.iter() if one.get("role") == "img"]
    assert [(" a: " in one, " b: " in one, "; c: " in one) for one in labels] == [
        (True, False, True),
        (False, True, False),
    ]


def section(tree, name):
    return next(one for one in tree.iter("section") if one.get("id") == name)


def test_what_the_marks_are_of_is_said(made, whole):
    said = text_of(section(parsed(rendered(whole)), "training"))
    assert (
        "Marks: the averaged (EMA) parameters on test (T continuous, 3 images), ± one standard error" in said
    )
    assert "Each mark" not in said
    rows = [{"step": step, "test_bpd": 9.0, "test_bpd_se": 0.5} for step in range(301)]
    deep = CONFIG.replace("num_images = 3", "num_images = None") + "evaluate.num_timesteps = 25\n"
    said = text_of(section(parsed(rendered(whole, made("deep", config=deep, rows=rows))), "training"))
    assert "whole: T continuous, 3 images; deep: T 25 (equal times, variance equal), all images." in said
    assert "cannot be compared" in said
    assert "Each mark is the mean of up to 3 evaluations, with the largest of their standard errors." in said
    assert "Each point is" not in said


def charts_of(tree):
    """What each chart says of itself, and its labels of y with their places, by its title."""
    found = {}
    for figure in (one for one in tree.iter("figure") if one.get("class") == "chart"):
        (drawn,) = (one for one in figure.iter() if one.get("role") == "img")
        marks = {
            text_of(one): one.get("style") for one in figure.iter("span") if (one.get("class") or "") == "y"
        }
        found[text_of(figure.find(".//strong"))] = drawn.get("aria-label"), marks
    return found


def test_each_chart_shows_its_own_numbers(whole):
    found = charts_of(parsed(rendered(whole)))
    assert "whole: from 0.99 at 0 to 0.01 at 1" in found["Share of the signal in the variance"][0]
    assert "whole: from 6 at 0 to −5 at 1" in found["Log signal-to-noise"][0]
    assert "whole: from 12 at 0 to 10 at 1" in found["Rate at which λ falls"][0]
    assert "whole: from 7 at 10 to 6 at 20" in found["Total, second half"][0]
    assert "whole: from 1 at 5 to 2 at 20" in found["Norm of the gradient"][0]
    for title in ("Rate at which λ falls", "Diffusion loss by λ"):  # 10 to 12 and 0.25 to 0.5
        assert found[title][1]["0"] == "top:100.0%"


def test_schedules_and_losses_state_their_step(made, whole):
    other = made("other", figures={"schedule": ({**SCHEDULE, "of": {"step": 1500}}, {})})
    said = text_of(section(parsed(rendered(whole, other)), "schedule"))
    assert "The schedule: whole at step 20, other at step 1,500." in said
    assert "23 images of dots train, pixels cdcdcdcdcdcdcdcd: whole at step 20." in said


@pytest.mark.parametrize(("step", "first"), [(10, 0.5), (20, 0.75), (30, 0.75)])
def test_the_newer_loss_is_shown(made, step, first):
    """LOSS is of step 20, as --mode=figures filed it."""
    diagnosed = {**LOSS, "density": [0.75, 0.75], "step": step}
    run = made(
        "a", figures={"loss": (LOSS, {})}, files={"diagnostics/loss.json": json.dumps(diagnosed).encode()}
    )
    tree = parsed(rendered(run))
    assert f"a: from {first} at 3" in charts_of(tree)["Diffusion loss by λ"][0]
    assert f"a at step {max(step, 20)}." in text_of(section(tree, "schedule"))


def test_merged_bins_of_the_loss_are_told_of(made):
    def said(name, bins):
        loss = {"log_snr_centre": [*range(bins)], "density": [0.5] * bins, "density_se": [0.1] * bins}
        return text_of(section(parsed(rendered(made(name, figures={"loss": (loss, {})}))), "schedule"))

    assert "of up to 2 bins, with the largest of their standard errors" in said("fine", 401)
    assert "of up to" not in said("coarse", 400)
