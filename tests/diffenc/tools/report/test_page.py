"""The page, parsed: what it says, what it loads, and whether one finds one's way in it."""

import base64
import hashlib
import itertools
import re

import numpy as np
import pytest

from diffenc.tools.report import cards, page

from .conftest import CONFIG, evaluation, heat_maps, parsed, rendered, text_of

EVIL = '<script>alert("1")</script>&\'<img src=x>'


@pytest.fixture
def three(made, whole):
    """A page of a whole run, of another with the other seed, and of one that was never evaluated."""
    other = made(
        "other", config=CONFIG.replace("seed = 0", "seed = 1"), said=evaluation(), plus=[[0.5, 1.0, 0.0]]
    )
    bare = made("bare", config=CONFIG.replace("identity", "trainable"), rows=[{"step": 5, "bpd": 8.5}])
    return rendered(whole, other, bare)


def table(tree, caption):
    (found,) = (one for one in tree.iter("table") if caption in text_of(one.find("caption")))
    return [[text_of(cell) for cell in row if cell.tag in ("th", "td")] for row in found.iter("tr")]


def test_the_figures_are_those_of_the_evaluation(whole):
    rows = table(parsed(rendered(whole)), "both standard errors")
    assert rows == [
        ["Term", "bits/dim", "± over images", "± Monte Carlo"],
        ["whole"],
        ["Total", "5.000", "0.12", "0.065"],
        ["Reconstruction", "0.5000", "0", "0"],
        ["Latent", "0.500000", "4.7e-7", "0"],
        ["Diffusion", "4.000", "0.12", "0.065"],
    ]


def test_the_headline(whole):
    (card,) = (
        one for one in parsed(rendered(whole)).iter("article") if one.get("aria-labelledby") == "group-1"
    )
    said = text_of(card)
    assert "5.000 bits/dim" in said
    assert "± 0.12 over images, ± 0.065 Monte Carlo" in said
    facts = dict(zip(map(text_of, card.iter("dt")), map(text_of, card.iter("dd")), strict=True))
    assert facts == {
        "Data": "dots test", "Version": "comes with the program, or not recorded", "Images": "3 of 1,300",
        "Pixels": "ab" * 8, "T": "continuous", "Passes": "2", "Step": "20", "Parameters": "1,234",
    }  # fmt: skip


def test_a_run_in_training_says_what_it_was_at_last(made):
    rows = [{"step": step, "test_bpd": 9.0 - step, "test_bpd_se": 0.25} for step in (5, 6)]
    said = text_of(parsed(rendered(made("a", rows=[*rows, {"step": 7, "bpd": 1.0}]))).find(".//article"))
    assert "has not been evaluated" in said
    assert "test 3.00 ± 0.25 at step 6" in said
    assert "step 7 of 20" in said


def test_the_data_set_and_the_environment(whole):
    tree = parsed(rendered(whole))
    (card,) = (one for one in tree.iter("article") if one.get("aria-labelledby") == "data-1")
    facts = dict(zip(map(text_of, card.iter("dt")), map(text_of, card.iter("dd")), strict=True))
    assert facts["Version"] == "unknown version of dots"
    assert facts["Known by digest"].startswith("no: bits/dim cannot be compared")
    assert (facts["Image"], facts["Levels"], facts["Train images"]) == ("2 × 2 × 1", "5", "23")
    assert facts["Pixels evaluated"] == "ab" * 32
    assert table(tree, "each run’s training") == [
        ["From", "whole from step 0"], ["diffenc", "0.1.0"], ["Python", "3.11.1"], ["JAX", "9.9.9"], ["Devices", "1 x cpu"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("images of the folder mine", "no: "),
        ("unknown version of MNIST (LeCun et al. 1998)", "no: "),
        ("MNIST (LeCun et al. 1998)", "yes"),
        ("CIFAR-10 (Krizhevsky 2009): all of train, first 1,000 of test", "yes"),
        ("CIFAR-10 (Krizhevsky 2009): all of train, unknown version of test", "in part: "),
    ],
)
def test_whether_images_are_known_by_digest(source, says):
    assert cards._describe_provenance(source).startswith(says)


def test_seeds_are_averaged_and_shared_facts_said_once(three):
    tree = parsed(three)
    card = next(one for one in tree.iter("article") if one.get("aria-labelledby") == "group-1")
    said = text_of(card)
    assert said.startswith(
        "whole and 1 more 5.25 bits/dim ± 0.25 standard error over 2 seeds"
    )  # of 5 and 5.5
    assert said.count("Pixels") == 1
    assert "5.500 bits/dim" in said


def test_what_is_not_there_has_its_command(three):
    tree = parsed(three)
    said = [text_of(one) for one in tree.iter("pre")]
    (place,) = {found for one in said for found in re.findall(r"--workdir=(\S+/bare) --mode", one)}
    run = f"python -m diffenc.run --workdir={place}"
    assert f"{run} --mode=evaluate" in said
    for command in (f"{run} --mode=sample", f"{run} --mode=diagnose"):
        assert any(command in one for one in said)
    wanted = """--mode=figures '--gin_bindings=figures.only = ("heat_maps", "encoded", "schedule")'"""
    assert any(f"{run} {wanted}" in one for one in said)
    sections = {one.get("id"): text_of(one) for one in tree.iter("section")}
    assert "Run:" in sections["environment"]


def test_what_differs_in_the_configs(three, made):
    tree = parsed(three)
    rows = table(tree, "bindings that differ between runs")
    assert rows == [
        ["Binding", "whole", "other", "bare"],
        ["Experiment.seed", "0", "1", "0"],
        ["Model.encoder", *["@encoder.identity()"] * 2, "@encoder.trainable()"],
    ]
    free = made("free", config=CONFIG.replace("every = 5", "every = 7"))
    heads = ("Differences that affect training", "Differences that do not affect training")
    tree = parsed(rendered(free, made("else", config=CONFIG.replace("identity", "trainable"))))
    assert [[row[0] for row in table(tree, head)[1:]] for head in heads] == [["Model.encoder"], ["Experiment.log_every"]]  # fmt: skip
    tree = parsed(three)
    assert CONFIG.strip() in {"".join(one.itertext()).strip() for one in tree.iter("pre")}


def test_the_numbers_behind_a_curve(whole):
    rows = [row for row in table(parsed(rendered(whole)), "whole, over steps") if len(row) > 1]
    assert rows[0] == [
        "Step", "Total, batches", "Total, test", "Diffusion, batches", "Diffusion, test", "Latent, batches",
        "Latent, test", "Reconstruction, batches", "Reconstruction, test", "Norm of the gradient",
    ]  # fmt: skip
    assert [row[-1] for row in rows[1:]] == ["1", "1", "2"]
    assert [row[:3] for row in rows[1:]] == [["5", "9", "–"], ["10", "7", "6"], ["20", "6", "5"]]


def test_nothing_is_loaded(three):
    tree = parsed(three)
    loading = ("src", "href", "srcset", "data", "action", "poster", "background", "formaction")
    found = [one.get(name) for one in tree.iter() for name in loading if one.get(name) is not None]
    assert found
    assert not [address for address in found if not address.startswith(("#", "data:"))]
    styles = "".join(text_of(one) for one in tree.iter("style"))
    assert not re.search(r"url\(|@import|@font-face", styles)
    (script,) = tree.iter("script")
    assert not re.search(r"fetch|XMLHttp|import\s|Worker|WebSocket|innerHTML", "".join(script.itertext()))
    assert "http:" not in three.replace("http-equiv", "")
    assert "https:" not in three


def test_only_its_own_script_may_run(three):
    tree = parsed(three)
    (script,) = tree.iter("script")
    digest = base64.b64encode(hashlib.sha256("".join(script.itertext()).encode()).digest()).decode()
    (policy,) = (one.get("content") for one in tree.iter("meta") if one.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_whatever_is_referred_to_is_there(three):
    tree = parsed(three)
    ids = [one.get("id") for one in tree.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    wanted = {one.get("href")[1:] for one in tree.iter("a")} | {one.get("for") for one in tree.iter("label")}
    wanted |= {name for one in tree.iter() for name in (one.get("aria-labelledby") or "").split()}
    assert wanted <= set(ids)
    assert wanted


def test_headings_are_in_order_and_landmarks_there(three):
    tree = parsed(three)
    levels = [int(one.tag[1]) for one in tree.iter() if re.fullmatch("h[1-6]", str(one.tag))]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    assert [len(list(tree.iter(tag))) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert tree.find(".").get("lang") == "en"
    assert text_of(next(tree.iter("title"))) == "whole and 1 more, bare · diffenc report"


def test_tables_pictures_and_charts_say_what_they_are(three):
    tree = parsed(three)
    for one in tree.iter("table"):
        assert text_of(one.find("caption"))
        assert all(head.get("scope") in ("col", "row", "rowgroup") for head in one.iter("th"))
    boxes = [one for one in tree.iter("div") if one.get("class") == "scroll"]
    assert len(boxes) == len(list(tree.iter("table")))
    assert all(one.get("tabindex") == "0" and one.get("aria-labelledby") for one in boxes)
    names = [text_of(one) for one in tree.iter("caption")]
    assert len(names) == len(set(names))
    assert all(one.get("alt") for one in tree.iter("img"))
    assert any("change of the encoded images at t = 0.5" in one.get("alt") for one in tree.iter("img"))
    drawn = [one for one in tree.iter() if str(one.tag).endswith("svg") and one.get("role") == "img"]
    total = next(one.get("aria-label") for one in drawn if one.get("aria-label").startswith("Total:"))
    assert "whole: from 9 at 5 to 6 at 20, lowest 6 at 20" in total
    assert "whole, test: from 6 at 10 to 5 at 20" in total
    others = [one for one in tree.iter() if str(one.tag).endswith("svg") and one.get("role") != "img"]
    assert all(one.get("aria-hidden") == "true" for one in others)


def test_the_slider(whole):
    tree = parsed(rendered(whole))
    (slider,) = tree.iter("input")
    assert (slider.get("type"), slider.get("min"), slider.get("max")) == ("range", "0", "1")
    assert slider.get("data-times") == "0.5 1"
    frames = [one.get("data-frame") for one in tree.iter("div") if one.get("data-frame")]
    assert frames == ["0", "1"]


def test_names_are_text(made, tmp_path):
    name = EVIL.replace("/", "%")
    run = made(
        name, config=f"Model.x = '{EVIL}'\n", rows=[{"step": 5, "bpd": 1.0}],
        said=evaluation(dataset=EVIL, source=EVIL, fingerprint=EVIL, device=EVIL),
        figures={"heat_maps": ({**heat_maps()[0], "rows": [EVIL, EVIL]}, heat_maps()[1])},
    )  # fmt: skip
    plain = made("plain", said=evaluation(), rows=[{"step": 5, "bpd": 1.0}])
    tree = parsed(rendered(run, plain))
    assert len(list(tree.iter("script"))) == 1
    assert all(one.get("alt") is not None for one in tree.iter("img"))
    said = text_of(tree.find(".//main"))
    assert EVIL in said
    assert name in said


def test_the_same_runs_give_the_same_bytes(made, whole):
    other = made("other", said=evaluation(), plus=[0.1, 0.2, 0.4])
    assert rendered(whole, other) == rendered(whole, other)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme):
    """WCAG 2.2: 4.5 for text (AA), 3 for what curves and edges are made of."""
    css = page_css()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme == "dark"]))
    for text in ("ink", "soft", "accent"):
        assert contrast(colours[text], colours["page"]) >= 4.5
        assert contrast(colours[text], colours["panel"]) >= 4.5
    assert contrast(colours["ink"], colours["warm-panel"]) >= 4.5
    for line in ("strong", *(f"c{k}" for k in range(8))):
        assert contrast(colours[line], colours["page"]) >= 3
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def page_css():
    return (page.PackageLoader("diffenc.tools.report", "templates").get_source(None, "style.css"))[0]  # pyright: ignore[reportArgumentType]


def contrast(one, two):
    lighter, darker = sorted((luminance(one), luminance(two)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
