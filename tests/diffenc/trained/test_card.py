"""The model card: its figures counted by hand, its front matter read by a reader of YAML."""

import dataclasses

import pytest
import yaml

from diffenc.trained import card
from diffenc.trained.weights import About

CONFIG = "Model.conditioning = @conditioning.none()\nModel.encoder = @encoder.trainable()\nModel.network = @a_b/network.unet()\n"
DATASET = {
    "dataset": "mnist", "source": "MNIST (LeCun et al.)", "train_images": 60_000, "train_identity": "ab12 without 0", "image_shape": [28, 28, 1],
    "num_levels": 256, "num_classes": 10,
}  # fmt: skip
ABOUT = About(CONFIG, "0123456789abcdef", 12_000, "0.1.0", DATASET)
EVALUATION = {
    "bpd": 0.36654, "bpd_se": 0.00126, "bpd_mc_se": 0.00031,
    "bpd_reconstruction": 0.01004, "bpd_reconstruction_se": 0.00012,
    "bpd_latent": 0.0021, "bpd_diffusion": 0.35440, "bpd_diffusion_se": 0.00125, "bpd_diffusion_mc_se": None,
    "dataset": "mnist", "split": "test", "num_images": 1000, "split_images": 10_000, "fingerprint": "f00d",
    "T": "continuous", "passes": 4, "precision": "float32", "step": 12_000,
}  # fmt: skip


def _front(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_is_what_hubs_read():
    front, _ = _front(card.text(ABOUT, EVALUATION, 7))
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


def test_each_figure_has_both_errors():
    text = card.text(ABOUT, EVALUATION, 8_891_393)
    assert "| bits/dim | 0.3665 | 0.0013 | 0.0003 |\n" in text
    assert "| reconstruction, bits/dim | 0.0100 | 0.0001 | - |\n" in text
    assert "| latent, bits/dim | 0.0021 | - | - |\n" in text
    assert (
        "| diffusion, bits/dim | 0.3544 | 0.0013 | - |\n" in text
        or "| diffusion, bits/dim | 0.3544 | 0.0012 | - |\n" in text
    )
    assert (
        "of 1,000 of the 10,000 images of mnist test, pixels `f00d`:\nT continuous, 4 pass(es), computed in float32."
        in text
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_images": 1000}, "of all 1,000 images of mnist test"),
        (
            {"T": 100, "times": "fitted", "variance": "upper"},
            "T 100, times fitted, variance upper, 4 pass(es)",
        ),
        ({"condition": "class"}, "T continuous, condition class, 4 pass(es)"),
    ],
)
def test_what_the_figures_are_of_is_said(change, words):
    assert words in card.text(ABOUT, EVALUATION | change, 7)


def test_an_evaluation_of_before_the_split_was_counted():
    old = {key: value for key, value in EVALUATION.items() if key != "split_images"}
    assert "of 1,000 images of mnist test" in card.text(ABOUT, old, 7)


def test_the_rest_of_it():
    _, body = _front(card.text(ABOUT, None, 8_891_393))
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


def test_without_an_evaluation_no_figure_is_claimed():
    front, body = _front(card.text(ABOUT, None, 7))
    assert "model-index" not in front
    assert "| bits/dim |" not in body


def test_a_model_that_is_told_classes_is_not_called_unconditional():
    about = dataclasses.replace(ABOUT, config=CONFIG.replace("none()", "by_class()"))
    front, _ = _front(card.text(about, EVALUATION, 7))
    assert "pipeline_tag" not in front
    assert front["model-index"][0]["results"][0]["task"]["type"] == "class-conditional-image-generation"


def test_parameters_from_elsewhere():
    dataset = {
        key: value
        for key, value in DATASET.items()
        if key not in ("source", "train_images", "train_identity")
    }
    about = dataclasses.replace(ABOUT, origin="somebody: the file x", dataset=dataset, step=0)
    text = card.text(about, None, 7)
    assert "The parameters come from somebody: the file x." in text
    assert "- train images: unknown\n" in text
    assert "fingerprint" not in text.partition("## Trained on")[2].partition("## Limits")[0]
    assert "# A diffusion model of mnist\n" in text
    assert "--mode=evaluate" not in text
