"""The README.md beside a file of weights: a model card, as hubs of models read it."""

import json
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from diffenc.errors import printable
from diffenc.evaluation import saved_records
from diffenc.evaluation.evaluation_record import KEYS
from diffenc.evaluation.formatting import format_measurement
from diffenc.evaluation.saved_records import finite_number, stored_value
from diffenc.export.weights import FILE, WeightsMetadata
from diffenc.files import record_checksum
from diffenc.files.record_checksum import ChecksumState

NAMES = {"bpd": "bits/dim", **{key: f"{key.removeprefix('bpd_')}, bits/dim" for key in KEYS[1:]}}

TAGS = ("diffenc", "diffusion", "variational-diffusion-model", "jax")
CONDITIONAL = "class-conditional-image-generation"
UNCONDITIONAL = "unconditional-image-generation"

# Of an evaluation: how the bound was measured, as far as the record says.
HOW = (
    *(
        "trained_at",
        "times",
        "variance",
        "time_sampler",
        "condition",
        "encoder_condition",
        "times_per_image",
        "batch_size",
        "seed",
    ),
    "matmul_precision",
)
# What the card reads of it, apart from the figures.
NEEDED: saved_records.RequiredKeys = {
    **saved_records.REQUIRED_KEYS,
    **{"config_hash": (str,), "precision": (str,), "split_images": (int, NoneType)},
}

LONGEST = 300  # characters of a text that comes with a run

LIMITS = """\
- Bits/dim are a bound on the negative log-likelihood. They compare with others on the same images (the fingerprint
  says which) and at the same T alone.
- ± over images: how far another sample of as many images would lie. ± Monte Carlo: the error of the estimate itself.
- The parameters are the moving average over training, which samples and evaluations use; training cannot go on from
  this file.
- It draws images like those it was trained on, and has learned whatever is wrong with them."""


def render_card(
    about: WeightsMetadata, evaluation: Mapping[str, Any] | None, num_params: int, told: Mapping[str, Any]
) -> str:
    """The card.

    Args:
      evaluation: what evaluation.json says of these parameters; None if they were not evaluated.
      told: what the model is told of an image (`Model.condition_metadata`).
    """
    name = about.dataset["dataset"]
    parts = [
        _front_matter(about, evaluation, told),
        f"# A diffusion model of {_words(name)}" + f", step {about.step:,}" * bool(about.step),
        _what(about, num_params),
        _section("Use", _use(about)),
        _section("Evaluation", _evaluated(evaluation) if evaluation else _not_evaluated(about)),
        _section("Trained on", _trained_on(about.dataset)),
        _section("Limits", LIMITS),
        f"<details>\n<summary>Config</summary>\n\n{_fenced(about.config)}\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    about: WeightsMetadata, evaluation: Mapping[str, Any] | None, told: Mapping[str, Any]
) -> str:
    """YAML; each value is written as JSON, which is YAML too."""
    lines = [
        "# license: yours to choose, for example apache-2.0",
        "library_name: diffenc",
        f"tags: {json.dumps(TAGS)}",
    ]
    task = CONDITIONAL if "condition" in told else UNCONDITIONAL
    if task == UNCONDITIONAL:  # hubs have no tag for the other
        lines.append(f"pipeline_tag: {task}")
    if evaluation:
        lines.append(f"model-index: {json.dumps(_index(about, evaluation, task))}")
    return "\n".join(["---", *lines, "---"])


def _index(about: WeightsMetadata, evaluation: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    dataset = {"name": evaluation["dataset"], "type": evaluation["dataset"], "split": evaluation["split"]}
    dataset = {key: _plain(value) for key, value in dataset.items()}
    metrics = [_metric(evaluation, key) for key in KEYS if finite_number(evaluation.get(key)) is not None]
    name = f"{_plain(about.dataset['dataset'])}-{about.config_hash[:8]}"
    return [{"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]}]


def _metric(said: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A figure for hubs, which show name and value: without T and the images nobody could compare it."""
    of = f"T {_plain(said['T'])}, {_images_of(said)} images, {said['passes']} pass(es)"
    keys = ("T", "num_images", "split_images", "fingerprint", "passes", "precision", *HOW)
    args = {name: stored_value(said, name) for name in keys if said.get(name) is not None}
    args = {name: _plain(value) if isinstance(value, str) else value for name, value in args.items()}
    errors = {name: finite_number(said.get(f"{key}_{name}")) for name in ("se", "mc_se")}
    if errors["se"] is None:
        errors["se_upper"] = finite_number(said.get(f"{key}_se_upper"))
    return {"type": key, "name": f"{NAMES[key]}; {of}", "value": said[key], "args": {**args, **errors}}


def _what(about: WeightsMetadata, num_params: int) -> str:
    parts = re.findall(r"^Model\.(\w+) = @(?:\w+/)?\w+\.(\w+)\(\)$", about.config, re.MULTILINE)
    told = "\n".join(f"- {_words(part)}: {_words(name)}" for part, name in parts)
    origin = f"\n\nThe parameters come from {_inline(about.origin)}." if about.origin else ""
    return (
        "A variational diffusion model of images, as in DiffEnc (https://arxiv.org/abs/2310.19789): "
        f"{num_params:,} parameters, written by diffenc {_words(about.code)}.\n\n{told}{origin}"
    )


def _use(about: WeightsMetadata) -> str:
    shape = ", ".join(map(str, about.dataset["image_shape"]))
    modules = tuple(re.findall(r"^import ([\w.]+)$", about.config, re.MULTILINE))
    given = f", allow_imports={modules!r}" if modules else ""
    of_file = "no code, but for that of the modules allowed" if modules else "no code"
    return f"""\
{_needed(about, modules)}```python
import diffenc
model = diffenc.load("{FILE}"{given})
images = model.sample(16)  # uint8 [16, {shape}]
```

`model.elbo(images)` measures bits/dim, `model.encode(images, t=0.5)` encodes. Reading the file runs {of_file}."""


def _needed(about: WeightsMetadata, modules: Sequence[str]) -> str:
    """Returns what has to be installed before the model can be loaded; nothing where diffenc suffices."""
    packages = [one.rpartition(" ") for one in about.packages.split(", ") if one]
    pinned = " ".join(f"{name}=={version}" for name, _, version in packages)
    installed = f"Its plugins come from other packages, by these names and versions:\n\n```sh\npip install {pinned}\n```\n\n"
    imported = (
        f"Its config imports {', '.join(f'`{module}`' for module in modules)}, which must be importable and which "
        "`allow_imports` permits: allow what you trust.\n\n"
    )
    return installed * bool(packages) + imported * bool(modules)


def _evaluated(said: Mapping[str, Any]) -> str:
    terms = ["T", *(key for key in HOW if said.get(key) is not None)]
    how = ", ".join(f"{key} {_words(stored_value(said, key))}" for key in terms)
    lines = [
        f"Bits/dim of {_images_of(said)} images of {_words(said['dataset'])} {_words(said['split'])}, pixels "
        f"{_inline(said['fingerprint'])}:",
        f"{how}, {said['passes']} pass(es), computed in {_words(said['precision'])}.",
        "",
        "| | | ± over images | ± Monte Carlo |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {' | '.join(format_measurement(said, key))} |" for key, name in NAMES.items()),
    ]
    if record_checksum.check_checksum(said) is ChecksumState.MISSING:
        lines += ["", f"The record of this evaluation is {record_checksum.UNSEALED}."]
    return "\n".join(lines)


def _images_of(said: Mapping[str, Any]) -> str:
    """How many of how many."""
    count, of = said["num_images"], said.get("split_images")
    return f"all {count:,}" if count == of else f"{count:,} of the {of:,}" if of else f"{count:,}"


def _not_evaluated(about: WeightsMetadata) -> str:
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
        "origin": dataset.get("origin"),
        "licence of the images": dataset.get("licence"),
        "train images": dataset.get("train_images", "unknown"),
    }
    found = [f"- {_words(key)}: {_words(value)}" for key, value in lines.items() if value is not None]
    if "train_identity" in dataset:
        found.append(f"- fingerprint: {_inline(dataset['train_identity'])}")
    return "\n".join(found)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _plain(value: Any) -> str:
    """In one line of bounded length, without control characters."""
    return " ".join(printable(str(value), LONGEST).split())


def _words(value: Any) -> str:
    """As running text, whatever it holds: neither Markdown nor HTML."""
    text = re.sub(r"([\\`*{}\[\]#|~$!]|\b_\B|\B_\b|\B_\B|(?<=_)_|_(?=_))", r"\\\1", _plain(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _inline(value: Any) -> str:
    """As code in a line, whatever it holds."""
    line = _plain(value)
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " * ("`" in line)
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _fenced(config: str) -> str:
    """As a block of code, whatever it holds."""
    fence = "`" * max(3, _longest_run(config) + 1)
    return f"{fence}gin\n{config}{fence}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
