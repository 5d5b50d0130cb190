"""The model card: README.md of an export, with front matter for model hubs."""

import json
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from diffenc.errors import printable
from diffenc.evaluation import saved_records
from diffenc.evaluation.evaluation_record import KEYS
from diffenc.evaluation.measurement_text import format_measurement
from diffenc.evaluation.saved_records import finite_number, stored_value
from diffenc.export.weights import FILE, WeightsMetadata
from diffenc.files import record_checksum
from diffenc.files.record_checksum import ChecksumState

NAMES = {"bpd": "bits/dim", **{key: f"{key.removeprefix('bpd_')}, bits/dim" for key in KEYS[1:]}}

LICENSE = "# license: yours to choose, for example apache-2.0"
TAGS = ("diffenc", "diffusion", "variational-diffusion-model", "jax")
CONDITIONAL = "class-conditional-image-generation"
UNCONDITIONAL = "unconditional-image-generation"

# Keys of an evaluation that describe the measurement of the bound; a record may lack some.
HOW_MEASURED = (
    *(
        "stochasticity",
        "measured_path",
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
# Keys of an evaluation that a card needs, apart from the measured values.
REQUIRED_KEYS: saved_records.RequiredKeys = {
    **saved_records.REQUIRED_KEYS,
    **{"config_hash": (str,), "precision": (str,), "split_images": (int, NoneType)},
}

MAX_LENGTH = 300  # characters of a text from a run, which may come from strangers

LIMITS = """\
- Bits/dim are a bound on the negative log-likelihood. They are comparable only for the same images (see the
  fingerprint) and the same T.
- ± over images: standard error from the choice of images. ± Monte Carlo: standard error of the estimate itself.
- The parameters are the moving average over training, as used for samples and evaluations; training cannot continue
  from this file.
- Samples resemble the training images, including their biases and errors."""


def render_card(
    about: WeightsMetadata,
    evaluation: Mapping[str, Any] | None,
    num_params: int,
    condition_metadata: Mapping[str, Any],
) -> str:
    """Returns the card as Markdown.

    Args:
      evaluation: evaluation.json of these parameters; None if they were not evaluated.
      condition_metadata: as of `Model.condition_metadata`.
    """
    name = about.dataset["dataset"]
    parts = [
        _front_matter(about, evaluation, condition_metadata),
        f"# A diffusion model of {_escape(name)}" + f", step {about.step:,}" * bool(about.step),
        _introduction(about, num_params),
        _section("Use", _usage(about)),
        _section("Evaluation", _evaluation_table(evaluation) if evaluation else _evaluation_hint(about)),
        _section("Trained on", _training_data(about.dataset)),
        _section("Limits", LIMITS),
        f"<details>\n<summary>Config</summary>\n\n{_code_block(about.config)}\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    about: WeightsMetadata, evaluation: Mapping[str, Any] | None, condition_metadata: Mapping[str, Any]
) -> str:
    """Returns the front matter as YAML; values are written as JSON, a subset of YAML, which escapes untrusted text."""
    lines = [
        LICENSE,
        "library_name: diffenc",
        f"tags: {json.dumps(TAGS)}",
    ]
    task = CONDITIONAL if "condition" in condition_metadata else UNCONDITIONAL
    if task == UNCONDITIONAL:  # hubs have no tag for conditional generation
        lines.append(f"pipeline_tag: {task}")
    if evaluation:
        lines.append(f"model-index: {json.dumps(_model_index(about, evaluation, task))}")
    return "\n".join(["---", *lines, "---"])


def _model_index(about: WeightsMetadata, evaluation: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    dataset = {"name": evaluation["dataset"], "type": evaluation["dataset"], "split": evaluation["split"]}
    dataset = {key: _one_line(value) for key, value in dataset.items()}
    metrics = [_metric(evaluation, key) for key in KEYS if finite_number(evaluation.get(key)) is not None]
    name = f"{_one_line(about.dataset['dataset'])}-{about.config_hash[:8]}"
    return [{"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]}]


def _metric(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns a value for hubs. They show only name and value, so the name states T and the images."""
    of = f"T {_one_line(record['T'])}, {_count_images(record)} images, {record['passes']} pass(es)"
    keys = ("T", "num_images", "split_images", "fingerprint", "passes", "precision", *HOW_MEASURED)
    args = {name: stored_value(record, name) for name in keys if record.get(name) is not None}
    args = {name: _one_line(value) if isinstance(value, str) else value for name, value in args.items()}
    errors = {name: finite_number(record.get(f"{key}_{name}")) for name in ("se", "mc_se")}
    if errors["se"] is None:
        errors["se_upper"] = finite_number(record.get(f"{key}_se_upper"))
    return {"type": key, "name": f"{NAMES[key]}; {of}", "value": record[key], "args": {**args, **errors}}


def _introduction(about: WeightsMetadata, num_params: int) -> str:
    # The form of plugins in config.gin: Model.PART = @[SCOPE/]KIND.NAME().
    parts = re.findall(r"^Model\.(\w+) = @(?:\w+/)?\w+\.(\w+)\(\)$", about.config, re.MULTILINE)
    plugins = "\n".join(f"- {_escape(part)}: {_escape(name)}" for part, name in parts)
    origin = f"\n\nThe parameters come from {_inline_code(about.origin)}." if about.origin else ""
    return (
        "A variational diffusion model of images, as in DiffEnc (https://arxiv.org/abs/2310.19789): "
        f"{num_params:,} parameters, written by diffenc {_escape(about.code)}.\n\n{plugins}{origin}"
    )


def _usage(about: WeightsMetadata) -> str:
    shape = ", ".join(map(str, about.dataset["image_shape"]))
    modules = tuple(re.findall(r"^import ([\w.]+)$", about.config, re.MULTILINE))
    options = f", allow_imports={modules!r}" if modules else ""
    code = "no code, except the allowed modules" if modules else "no code"
    return f"""\
{_installation(about, modules)}```python
import diffenc

model = diffenc.load("{FILE}"{options})
images = model.sample(16)  # uint8 [16, {shape}]
```

`model.elbo(images)` measures bits/dim, `model.encode(images, t=0.5)` encodes. Loading the file executes {code}."""


def _installation(about: WeightsMetadata, modules: Sequence[str]) -> str:
    """Returns instructions to install the plugins and modules needed to load the model; "" if diffenc suffices."""
    packages = [one.rpartition(" ") for one in about.packages.split(", ") if one]
    pinned = " ".join(f"{name}=={version}" for name, _, version in packages)
    installed = f"It needs plugins of other packages:\n\n```sh\npip install {pinned}\n```\n\n"
    imported = (
        f"Its config imports {', '.join(f'`{module}`' for module in modules)}, which must be importable. "
        "`allow_imports` permits it: list only modules that you trust.\n\n"
    )
    return installed * bool(packages) + imported * bool(modules)


def _evaluation_table(record: Mapping[str, Any]) -> str:
    terms = ["T", *(key for key in HOW_MEASURED if record.get(key) is not None)]
    how = ", ".join(f"{key} {_escape(stored_value(record, key))}" for key in terms)
    lines = [
        f"Bits/dim of {_count_images(record)} images of {_escape(record['dataset'])} {_escape(record['split'])}, pixels "
        f"{_inline_code(record['fingerprint'])}:",
        f"{how}, {record['passes']} pass(es), computed in {_escape(record['precision'])}.",
        "",
        "| | | ± over images | ± Monte Carlo |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {' | '.join(format_measurement(record, key))} |" for key, name in NAMES.items()),
    ]
    if record_checksum.check_checksum(record) is ChecksumState.MISSING:
        lines += ["", f"The record of this evaluation is {record_checksum.UNSEALED}."]
    return "\n".join(lines)


def _count_images(record: Mapping[str, Any]) -> str:
    """Returns `all N`, `N of the M`, or `N` if the size of the split is unknown."""
    count, total = record["num_images"], record.get("split_images")
    return f"all {count:,}" if count == total else f"{count:,} of the {total:,}" if total else f"{count:,}"


def _evaluation_hint(about: WeightsMetadata) -> str:
    if about.origin:
        return "These parameters were not evaluated. `diffenc.load(...).elbo(images)` does so."
    run = f"python -m diffenc.run --workdir=WORKDIR --gin_bindings='evaluate.step = {about.step}'"
    return f"""\
This checkpoint was not evaluated. To do so, and to update this card:

```sh
{run} --mode=evaluate
{run} --mode=export
```"""


def _training_data(dataset: Mapping[str, Any]) -> str:
    height, width, channels = dataset["image_shape"]
    lines = {
        dataset["dataset"]: f"{height}x{width}x{channels}, {dataset['num_levels']} levels",
        "version": dataset.get("source"),
        "origin": dataset.get("origin"),
        "licence of the images": dataset.get("licence"),
        "train images": dataset.get("train_images", "unknown"),
    }
    found = [f"- {_escape(key)}: {_escape(value)}" for key, value in lines.items() if value is not None]
    if "train_identity" in dataset:
        found.append(f"- fingerprint: {_inline_code(dataset['train_identity'])}")
    return "\n".join(found)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _one_line(value: Any) -> str:
    """Returns the text as one line of bounded length without control characters."""
    return " ".join(printable(str(value), MAX_LENGTH).split())


def _escape(value: Any) -> str:
    """Returns the text with Markdown and HTML escaped. Names in a run are untrusted input."""
    # Underscores are escaped only where Markdown would see emphasis: most are within names, and more readable bare.
    text = re.sub(r"([\\`*{}\[\]#|~$!]|\b_\B|\B_\b|\B_\B|(?<=_)_|_(?=_))", r"\\\1", _one_line(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _inline_code(value: Any) -> str:
    """Returns the text as inline code, fenced by more backticks than it contains."""
    line = _one_line(value)
    ticks = "`" * (_max_backticks(line) + 1)
    pad = " " * ("`" in line)
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _code_block(config: str) -> str:
    """Returns the config as a code block, fenced by more backticks than it contains."""
    fence = "`" * max(3, _max_backticks(config) + 1)
    return f"{fence}gin\n{config}{fence}"


def _max_backticks(text: str) -> int:
    """Returns the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
