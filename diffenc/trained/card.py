"""The README.md beside a file of weights: a model card, as hubs of models read it."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from diffenc.measuring.evaluate import KEYS
from diffenc.trained.weights import FILE, About

ROWS = {"bpd": "**total**", **{key: key.removeprefix("bpd_") for key in KEYS[1:]}}

TAGS = ("diffenc", "diffusion", "variational-diffusion-model", "unconditional-image-generation", "jax")

LIMITS = """\
- Bits/dim are a bound on the negative log-likelihood. They compare with others on the same images (the fingerprint
  says which) and at the same T alone.
- ± over images: how far another sample of as many images would lie. ± Monte Carlo: the error of the estimate itself.
- The parameters are the moving average over training, which samples and evaluations use; training cannot go on from
  this file.
- It draws images like those it was trained on, and has learned whatever is wrong with them."""


def text(about: About, evaluation: Mapping[str, Any] | None, num_params: int, place: str | None) -> str:
    """The card.

    Args:
      evaluation: what evaluation.json says of these parameters; None if they were not evaluated.
      place: the workdir that was exported, as the user calls it; None if the parameters come from elsewhere.
    """
    title = f"{about.dataset['dataset']}, step {about.step:,}" if about.step else about.dataset["dataset"]
    parts = [
        _front_matter(about, evaluation),
        f"# A diffusion model of {title}",
        _what(about, num_params),
        _section("Use", _use(about)),
        _section("Evaluation", _evaluated(evaluation) if evaluation else _not_evaluated(place)),
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
        "pipeline_tag: unconditional-image-generation",
        f"tags: {json.dumps(TAGS)}",
    ]
    if evaluation:
        lines.append(f"model-index: {json.dumps(_index(about, evaluation))}")
    return "\n".join(["---", *lines, "---"])


def _index(about: About, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    dataset = {"name": evaluation["dataset"], "type": evaluation["dataset"], "split": evaluation["split"]}
    metrics = [
        {"type": key, "name": f"bits/dim, {key}", "value": evaluation[key], "verified": False} for key in KEYS
    ]
    task = {"type": "unconditional-image-generation"}
    name = f"{about.dataset['dataset']}-{about.config_hash[:8]}"
    return [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]


def _what(about: About, num_params: int) -> str:
    origin = f" Its parameters come from {about.origin}." if about.origin else ""
    return (
        f"A variational diffusion model of images, as in DiffEnc (https://arxiv.org/abs/2310.19789): "
        f"{num_params:,} parameters, written by diffenc {about.code}.{origin}"
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
    count = f"{said['num_images']:,}"
    whole = "all" if said.get("split_images") == said["num_images"] else f"{said['split_images']:,}"
    images = f"{count} images of {whole} in {said['dataset']} {said['split']}" if "split_images" in said else (
        f"{count} images of {said['dataset']} {said['split']}"
    )  # fmt: skip
    lines = [
        f"Bits/dim of {images}, T {said['T']}, {said['passes']} pass(es), step {said['step']:,}; pixels "
        f"`{said['fingerprint']}`.",
        "",
        "| | bits/dim | ± over images | ± Monte Carlo |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {row} | {' | '.join(_figures(said, key))} |" for key, row in ROWS.items()),
    ]
    others = [f"{key} {said[key]}" for key in ("condition", "times", "variance") if key in said]
    return "\n".join([*lines, *(["", f"Of {', '.join(others)}."] if others else [])])


def _figures(said: Mapping[str, Any], key: str) -> Iterable[str]:
    values = (said.get(name) for name in (key, f"{key}_se", f"{key}_mc_se"))
    return ("-" if value is None else f"{value:.4f}" for value in values)


def _not_evaluated(place: str | None) -> str:
    if place is None:
        return "None of these parameters. `diffenc.load(...).elbo(images)` makes one."
    return f"""\
None of this checkpoint. These make one, and write this card anew:

```sh
python -m diffenc.run --workdir={place} --mode=evaluate
python -m diffenc.run --workdir={place} --mode=export
```"""


def _trained_on(dataset: Mapping[str, Any]) -> str:
    height, width, channels = dataset["image_shape"]
    lines = [
        f"- {dataset['dataset']}: {height}x{width}x{channels}, {dataset['num_levels']} levels",
        *([f"- version: {dataset['source']}"] if dataset.get("source") else []),
        f"- train images: `{dataset['train_images']}`"
        if dataset.get("train_images")
        else "- train images: unknown",
    ]
    return "\n".join(lines)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"
