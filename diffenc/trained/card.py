"""The README.md beside a file of weights: a model card, as hubs of models read it."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffenc.measuring.evaluate import KEYS
from diffenc.trained.weights import FILE, About

NAMES = {"bpd": "bits/dim", **{key: f"{key.removeprefix('bpd_')}, bits/dim" for key in KEYS[1:]}}

TAGS = ("diffenc", "diffusion", "variational-diffusion-model", "jax")
UNCONDITIONAL = "unconditional-image-generation"

LIMITS = """\
- Bits/dim are a bound on the negative log-likelihood. They compare with others on the same images (the fingerprint
  says which) and at the same T alone.
- ± over images: how far another sample of as many images would lie. ± Monte Carlo: the error of the estimate itself.
- The parameters are the moving average over training, which samples and evaluations use; training cannot go on from
  this file.
- It draws images like those it was trained on, and has learned whatever is wrong with them."""


def text(about: About, evaluation: Mapping[str, Any] | None, num_params: int) -> str:
    """The card. `evaluation` is what evaluation.json says of these parameters; None if they were not evaluated."""
    name = about.dataset["dataset"]
    parts = [
        _front_matter(about, evaluation),
        f"# A diffusion model of {name}" + f", step {about.step:,}" * bool(about.step),
        _what(about, num_params),
        _section("Use", _use(about)),
        _section("Evaluation", _evaluated(evaluation) if evaluation else _not_evaluated(about)),
        _section("Trained on", _trained_on(about.dataset)),
        _section("Limits", LIMITS),
        f"<details>\n<summary>Config</summary>\n\n```gin\n{about.config}```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(about: About, evaluation: Mapping[str, Any] | None) -> str:
    """YAML; each value is written as JSON, which is YAML too."""
    lines = [
        "# license: yours to choose, for example apache-2.0",
        "library_name: diffenc",
        f"tags: {json.dumps(TAGS)}",
    ]
    if not _is_told(about):
        lines.append(f"pipeline_tag: {UNCONDITIONAL}")
    if evaluation:
        lines.append(f"model-index: {json.dumps(_index(about, evaluation))}")
    return "\n".join(["---", *lines, "---"])


def _index(about: About, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    dataset = {"name": evaluation["dataset"], "type": evaluation["dataset"], "split": evaluation["split"]}
    metrics = [{"type": key, "name": NAMES[key], "value": evaluation[key]} for key in KEYS]
    task = {"type": "class-conditional-image-generation" if _is_told(about) else UNCONDITIONAL}
    name = f"{about.dataset['dataset']}-{about.config_hash[:8]}"
    return [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]


def _is_told(about: About) -> bool:
    """Whether the model is told what an image shows."""
    return "Model.conditioning = @conditioning.none()" not in about.config


def _what(about: About, num_params: int) -> str:
    parts = re.findall(r"^Model\.(\w+) = @(?:\w+/)?\w+\.(\w+)\(\)$", about.config, re.MULTILINE)
    told = "\n".join(f"- {part}: {name}" for part, name in parts)
    origin = f"\n\nThe parameters come from {about.origin}." if about.origin else ""
    return (
        "A variational diffusion model of images, as in DiffEnc (https://arxiv.org/abs/2310.19789): "
        f"{num_params:,} parameters, written by diffenc {about.code}.\n\n{told}{origin}"
    )


def _use(about: About) -> str:
    shape = ", ".join(map(str, about.dataset["image_shape"]))
    return f"""\
```python
import diffenc
model = diffenc.load("{FILE}")
images = model.sample(16)  # uint8 [16, {shape}]
```

`model.elbo(images)` measures bits/dim, `model.encode(images, t=0.5)` encodes. Reading the file runs no code."""


def _evaluated(said: Mapping[str, Any]) -> str:
    count, of = said["num_images"], said.get("split_images")
    images = f"all {count:,}" if count == of else f"{count:,} of the {of:,}" if of else f"{count:,}"
    terms = ["T", *(key for key in ("times", "variance", "condition") if said.get(key))]
    how = ", ".join(f"{key} {said[key]}" for key in terms)
    lines = [
        f"Bits/dim of {images} images of {said['dataset']} {said['split']}, pixels `{said['fingerprint']}`:",
        f"{how}, {said['passes']} pass(es), computed in {said['precision']}.",
        "",
        "| | | ± over images | ± Monte Carlo |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {' | '.join(_figures(said, key))} |" for key, name in NAMES.items()),
    ]
    return "\n".join(lines)


def _figures(said: Mapping[str, Any], key: str) -> Iterable[str]:
    values = (said.get(name) for name in (key, f"{key}_se", f"{key}_mc_se"))
    return ("-" if value is None else f"{value:.4f}" for value in values)


def _not_evaluated(about: About) -> str:
    if about.origin:
        return "None of these parameters. `diffenc.load(...).elbo(images)` makes one."
    run = f"python -m diffenc.run --workdir=WORKDIR --gin_bindings='evaluate.step = {about.step}'"
    return f"""\
None of this checkpoint. These make one, and write this card anew:

```sh
{run} --mode=evaluate
{run} --mode=export
```"""


def _trained_on(dataset: Mapping[str, Any]) -> str:
    height, width, channels = dataset["image_shape"]
    lines = {
        dataset["dataset"]: f"{height}x{width}x{channels}, {dataset['num_levels']} levels",
        "version": dataset.get("source"),
        "train images": dataset.get("train_images", "unknown"),
        "fingerprint": f"`{dataset['train_identity']}`" if "train_identity" in dataset else None,
    }
    return "\n".join(f"- {key}: {value}" for key, value in lines.items() if value is not None)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"
