"""The evaluation that a run's config.gin specifies, read from its text, so that plugins need not be installed."""

import ast
from collections.abc import Mapping
from typing import Any

from diffenc.evaluation import saved_records
from diffenc.evaluation.saved_records import EvaluationSpec, Record, finite_number

TRAINED_STEPS = "Experiment.num_timesteps"
SPLIT, STEPS, NUM_IMAGES, SEED = (
    "evaluate.split",
    "evaluate.num_timesteps",
    "evaluate.num_images",
    "evaluate.seed",
)
ALL = "all images"


def matches_config(record: Record | None, config: Mapping[str, str]) -> bool:
    """Returns whether a record is of the bound and the images that the run's config specifies."""
    if record is None or not config or finite_number(record["step"]) is None:
        return False
    return saved_records.matches_spec(record, _parse_spec(config)) and (
        not record.get("condition") or _is_conditional(config)
    )


def _parse_spec(config: Mapping[str, str]) -> EvaluationSpec:
    bound = _chain_metadata(config) | {"time_sampler": _format_plugin(config, "time_sampler", "uniform")}
    split, seed = _parse_literal(config, SPLIT, "test"), _parse_literal(config, SEED, 0)
    path = None
    if config.get("evaluate.stochasticity", "None") != "None":
        path, trained = (
            _format_plugin(config, "stochasticity", "markov", owner) for owner in ("evaluate", "Model")
        )
        path = None if path == trained else path  # as `Evaluate.resolve` has it
    return EvaluationSpec(split, bound, _parse_literal(config, NUM_IMAGES, None), seed, path)


def describe_spec(config: Mapping[str, str]) -> str:
    """Returns e.g. "T continuous, all images" or "T 25 (equal times, variance fitted), 2,000 images"."""
    if not config:
        return "T not recorded"
    metadata, num_images = _chain_metadata(config), _parse_literal(config, NUM_IMAGES, None)
    chain = f" ({metadata['times']} times, variance {metadata['variance']})" if "times" in metadata else ""
    images = f"{num_images:,} images" if isinstance(num_images, int) else ALL
    return f"T {metadata['T']}{chain}, {images}"


def _chain_metadata(config: Mapping[str, str]) -> dict[str, Any]:
    """Returns T, times and variance in the form of evaluation.json."""
    trained, steps = _parse_literal(config, TRAINED_STEPS, 0), _parse_literal(config, STEPS, None)
    steps = trained if steps is None else steps
    if not steps:
        return {"T": "continuous"}
    times = _parse_literal(config, "evaluate.times", "equal")
    # Mirrors an evaluation without a bound variance: on the chain of training it uses the variance of training.
    as_trained = config.get("evaluate.variance") == "None" and (steps, times) == (trained, "equal")
    owner = "Experiment" if as_trained else "evaluate"
    return {"T": steps, "times": times, "variance": _format_plugin(config, "variance", "equal", owner)}


def _is_conditional(config: Mapping[str, str]) -> bool:
    """Returns whether the model has a conditioning, so that its bound may be one on -log p(x | condition)."""
    return config.get("Model.conditioning", "@conditioning.none()") != "@conditioning.none()"


def _format_plugin(config: Mapping[str, str], kind: str, default: str, owner: str = "evaluate") -> str:
    """Returns `name(field=value)` for a reference @scope/kind.name(), with the fields that the config binds."""
    bound = config.get(f"{owner}.{kind}", "None")
    name = (f"@{kind}.{default}()" if bound == "None" else bound).strip("@()")
    fields = [
        f"{key.rpartition('.')[2]}={value}" for key, value in config.items() if key.rpartition(".")[0] == name
    ]
    plain = name.rpartition("/")[2].removeprefix(f"{kind}.")
    return f"{plain}({', '.join(fields)})" if fields else plain


def _parse_literal(config: Mapping[str, str], key: str, default: Any) -> Any:
    try:
        # Literals only: nothing in a config of unknown origin is evaluated as code.
        return ast.literal_eval(config.get(key, repr(default)))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
