"""The model card: its figures counted by hand, its front matter read by a reader of YAML."""

import dataclasses
import html

import pytest
import yaml
from markdown_it import MarkdownIt

from diffenc.export import model_card
from diffenc.export.weights import WeightsMetadata

CONFIG = "Model.conditioning = @conditioning.none()\nModel.encoder = @encoder.trainable()\nModel.network = @a_b/network.unet()\n"
DATASET = {
    "dataset": "mnist", "source": "MNIST (LeCun et al.)", "train_images": 60_000, "train_identity": "ab12 without 0", "image_shape": [28, 28, 1],
    "num_levels": 256, "num_classes": 10,
}  # fmt: skip
ABOUT = WeightsMetadata(CONFIG, "0123456789abcdef", 12_000, "0.1.0", DATASET)
EVALUATION = {
    "bpd": 0.36654, "bpd_se": 0.00126, "bpd_mc_se": 0.00031,
    "bpd_reconstruction": 0.01004, "bpd_reconstruction_se": 0.00012,
    "bpd_latent": 0.0021, "bpd_diffusion": 0.35440, "bpd_diffusion_se": 0.00124, "bpd_diffusion_mc_se": None,
    "dataset": "mnist", "split": "test", "num_images": 1000, "split_images": 10_000, "fingerprint": "f00d",
    "T": "continuous", "time_sampler": "uniform", "seed": 0, "passes": 4, "precision": "float32", "step": 12_000,
}  # fmt: skip


def _card(about, evaluation, **condition_metadata):
    return model_card.render_card(about, evaluation, 8_891_393, condition_metadata)


def _front(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_is_what_hubs_read():
    front, _ = _front(_card(ABOUT, EVALUATION))
    assert front["library_name"] == "diffenc"
    assert front["pipeline_tag"] == "unconditional-image-generation"
    assert {"diffenc", "diffusion"} <= set(front["tags"])
    assert "license" not in front, "it is the user's to choose"
    ((model,), results) = front["model-index"], front["model-index"][0]["results"]
    assert model["name"] == "mnist-01234567"
    assert results[0]["task"] == {"type": "unconditional-image-generation"}
    assert results[0]["dataset"] == {"name": "mnist", "type": "mnist", "split": "test"}
    assert {one["type"]: one["value"] for one in results[0]["metrics"]} == {
        "bpd": 0.36654, "bpd_reconstruction": 0.01004, "bpd_latent": 0.0021, "bpd_diffusion": 0.35440,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "of"),
    [
        ({}, "T continuous, 1,000 of the 10,000 images, 4 pass(es)"),
        ({"T": 5, "num_images": 10_000, "passes": 1}, "T 5, all 10,000 images, 1 pass(es)"),
    ],
)
def test_what_hubs_show_says_what_it_is_of_and_how_sure(change, of):
    said = EVALUATION | change | {"batch_size": 64, "times_per_image": 2, "bpd_latent_se": float("nan")}
    front, _ = _front(_card(ABOUT, said))
    by_type = {one["type"]: one for one in front["model-index"][0]["results"][0]["metrics"]}
    assert by_type["bpd"]["name"] == f"bits/dim; {of}"
    assert by_type["bpd_diffusion"]["name"] == f"diffusion, bits/dim; {of}"
    assert by_type["bpd"]["args"] == {
        "T": said["T"], "num_images": said["num_images"], "split_images": 10_000, "fingerprint": "f00d",
        "passes": said["passes"], "precision": "float32", "time_sampler": "uniform", "times_per_image": 2,
        "batch_size": 64, "seed": 0, "se": 0.00126, "mc_se": 0.00031,
    }  # fmt: skip
    errors = {key: (one["args"]["se"], one["args"]["mc_se"]) for key, one in by_type.items()}
    assert errors["bpd_diffusion"] == (0.00124, None)
    assert errors["bpd_latent"] == (None, None)


def test_each_figure_has_both_errors():
    """A figure to the second digit of its smaller error, each error to its own second."""
    text = _card(ABOUT, EVALUATION)
    assert "| bits/dim | 0.36654 | 0.0013 | 0.00031 |\n" in text
    assert "| reconstruction, bits/dim | 0.01004 | 0.00012 | – |\n" in text
    assert "| latent, bits/dim | 0.0021 | – | – |\n" in text
    assert "| diffusion, bits/dim | 0.3544 | 0.0012 | – |\n" in text
    assert (
        "of 1,000 of the 10,000 images of mnist test, pixels `f00d`:\nT continuous, time_sampler uniform, seed 0, "
        "4 pass(es), computed in float32." in text
    )


def test_small_figures_keep_their_digits():
    text = _card(ABOUT, EVALUATION | {"bpd_latent": 0.00023421, "bpd_latent_se": 4.7e-7})
    assert "| latent, bits/dim | 0.00023421 | 4.7e-7 | – |\n" in text


def test_what_is_not_finite_is_no_metric():
    said = EVALUATION | {"bpd": None, "bpd_latent": float("nan"), "bpd_diffusion": float("inf")}
    text = _card(ABOUT, said)
    front, _ = _front(text)
    assert [one["type"] for one in front["model-index"][0]["results"][0]["metrics"]] == ["bpd_reconstruction"]
    assert "| bits/dim | not finite | 0.0013 | 0.00031 |\n" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_images": 1000}, "of all 1,000 images of mnist test"),
        (
            {"T": 100, "times": "fitted", "variance": "upper"},
            "T 100, times fitted, variance upper, time_sampler uniform, seed 0, 4 pass(es)",
        ),
        ({"condition": "class"}, "time_sampler uniform, condition class, seed 0, 4 pass(es)"),
        ({"encoder_condition": "class"}, "time_sampler uniform, encoder_condition class, seed 0, 4 pass(es)"),
        (
            {"times_per_image": 2, "batch_size": 64, "matmul_precision": "highest"},
            "time_sampler uniform, times_per_image 2, batch_size 64, seed 0, matmul_precision highest, 4 pass(es)",
        ),
        (
            {"time_sampler": "importance(floor=0.2)", "seed": 7},
            "time_sampler importance(floor=0.2), seed 7, 4 pass(es)",
        ),
    ],
)
def test_what_the_figures_are_of_is_said(change, words):
    assert words in _card(ABOUT, EVALUATION | change)


def test_an_evaluation_of_before_the_split_was_counted():
    old = {key: value for key, value in EVALUATION.items() if key != "split_images"}
    assert "of 1,000 images of mnist test" in _card(ABOUT, old)


def test_the_rest_of_it():
    _, body = _front(_card(ABOUT, None))
    assert body.startswith("\n# A diffusion model of mnist, step 12,000\n")
    for words in (
        "8,891,393 parameters, written by diffenc 0.1.0",
        "- encoder: trainable\n- network: unet",
        "- mnist: 28x28x1, 256 levels\n- version: MNIST (LeCun et al.)\n- train images: 60000\n- fingerprint: `ab12 without 0`",
        'model = diffenc.load("model.safetensors")',
        "uint8 [16, 28, 28, 1]",
        f"```gin\n{CONFIG}```\n\n</details>",
        "--gin_bindings='evaluate.step = 12000' --mode=evaluate",
    ):
        assert words in body


def test_origin_and_licence_of_the_images():
    terms = {"origin": "A. Author; https://dots.example", "licence": "none is stated"}
    _, body = _front(_card(dataclasses.replace(ABOUT, dataset=DATASET | terms), None))
    assert "- origin: A. Author; https://dots.example\n- licence of the images: none is stated\n" in body


def test_without_an_evaluation_no_figure_is_claimed():
    front, body = _front(_card(ABOUT, None))
    assert "model-index" not in front
    assert "| bits/dim |" not in body


@pytest.mark.parametrize(
    ("condition_metadata", "task"),
    [
        ({"condition": "class", "encoder_condition": "class"}, "class-conditional-image-generation"),
        ({"condition": "class"}, "class-conditional-image-generation"),
        ({"encoder_condition": "class"}, "unconditional-image-generation"),  # of p(x) still
    ],
)
def test_a_class_conditional_model_is_not_called_unconditional(condition_metadata, task):
    about = dataclasses.replace(ABOUT, config=CONFIG.replace("none()", "by_class()"))
    front, _ = _front(_card(about, EVALUATION, **condition_metadata))
    assert front.get("pipeline_tag", "class-conditional-image-generation") == task
    assert front["model-index"][0]["results"][0]["task"]["type"] == task


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("a file [x](http://y) <b>", "`a file [x](http://y) <b>`"),
        ("a `b`` file", "``` a `b`` file ```"),
        ("two\n\n# lines", "`two # lines`"),
    ],
)
def test_names_from_elsewhere_are_shown_and_not_obeyed(origin, shown):
    text = _card(dataclasses.replace(ABOUT, origin=origin), None)
    assert f"\n\nThe parameters come from {shown}.\n\n" in text


def test_a_config_stays_in_its_block():
    config = CONFIG + "a.b = '\\n````\\n'\n"
    text = _card(dataclasses.replace(ABOUT, config=config), None)
    assert f"\n\n`````gin\n{config}`````\n\n</details>" in text


def test_parameters_from_elsewhere():
    dataset = {
        key: value
        for key, value in DATASET.items()
        if key not in ("source", "train_images", "train_identity")
    }
    about = dataclasses.replace(ABOUT, origin="somebody: the file x", dataset=dataset, step=0)
    text = _card(about, None)
    assert "The parameters come from `somebody: the file x`." in text
    assert "- train images: unknown\n" in text
    assert "fingerprint" not in text.partition("## Trained on")[2].partition("## Limits")[0]
    assert "# A diffusion model of mnist\n" in text
    assert "--mode=evaluate" not in text


HOSTILE = (
    "x](http://evil) <script>alert(1)</script> *b* `c` | d\n# e\n\n<img src=x> &lt; __f__ $g$ \x1b[31m ~~h~~"
)


def test_a_strangers_texts_are_shown_as_they_are():
    """By a reader of Markdown: no element comes of them, and all of their characters are there."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    dataset = DATASET | {"dataset": HOSTILE, "source": HOSTILE, "train_identity": HOSTILE, "origin": HOSTILE}
    about = dataclasses.replace(ABOUT, dataset=dataset, code=HOSTILE, origin=HOSTILE)
    names = ("dataset", "split", "fingerprint", "precision", "time_sampler", "T", "variance")
    text = _card(about, EVALUATION | dict.fromkeys(names, HOSTILE))
    front, body = _front(text)
    page = reader.render(body.partition("<details>")[0])
    for tag in ("<script", "<img", "<em>b", "<strong>f", "<a ", "<s>", 'evil"'):
        assert tag not in page
    shown = (
        "x](http://evil) <script>alert(1)</script> *b* `c` | d # e <img src=x> &lt; __f__ $g$ \\x1b[31m ~~h~~"
    )
    assert html.unescape(page).count(shown) >= 9
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == shown


def test_a_strangers_texts_have_a_bounded_length():
    dataset = DATASET | {"dataset": "x" * 10**6, "source": "y" * 10**6}
    text = _card(
        dataclasses.replace(ABOUT, dataset=dataset),
        EVALUATION | {"dataset": "x" * 10**6, "time_sampler": "z" * 10**6},
    )
    assert len(text) < 20_000
