"""Which evaluation a run's config.gin asks for, read from its text: no plugin of the run need be installed."""

import ast
from collections.abc import Mapping
from typing import Any

from diffenc.evaluation import records
from diffenc.evaluation.records import EvaluationSpec, Record, finite_number

SPLIT, STEPS, NUM_IMAGES, SEED = (
    "evaluate.split",
    "evaluate.num_timesteps",
    "evaluate.num_images",
    "evaluate.seed",
)
ALL = "all images"


def is_asked_for(said: Record | None, config: Mapping[str, str]) -> bool:
    """Whether a record is of the bound, and of the images, that the run's config asks for."""
    if said is None or not config or finite_number(said["step"]) is None:
        return False
    return records.matches_spec(said, _wanted(config)) and (not said.get("condition") or _tells(config))


def _wanted(config: Mapping[str, str]) -> EvaluationSpec:
    bound = _depth(config) | {"time_sampler": _plugin(config, "time_sampler", "uniform")}
    split, seed = _literal(config, SPLIT, "test"), _literal(config, SEED, 0)
    return EvaluationSpec(split, bound, _literal(config, NUM_IMAGES, None), seed)


def stated(config: Mapping[str, str]) -> str:
    """T continuous, all images; or T 25 (equal times, variance fitted), 2,000 images."""
    if not config:
        return "T not recorded"
    depth, num_images = _depth(config), _literal(config, NUM_IMAGES, None)
    chain = f" ({depth['times']} times, variance {depth['variance']})" if "times" in depth else ""
    images = f"{num_images:,} images" if isinstance(num_images, int) else ALL
    return f"T {depth['T']}{chain}, {images}"


def _depth(config: Mapping[str, str]) -> dict[str, Any]:
    """T, times and variance as evaluation.json spells them."""
    steps = _literal(config, STEPS, 0)
    if not steps:
        return {"T": "continuous"}
    times, variance = _literal(config, "evaluate.times", "equal"), _plugin(config, "variance", "equal")
    return {"T": steps, "times": times, "variance": variance}


def _tells(config: Mapping[str, str]) -> bool:
    """Whether a model is told anything of its images, without which no bound is one on p(x | condition)."""
    return config.get("Model.conditioning", "@conditioning.none()") != "@conditioning.none()"


def _plugin(config: Mapping[str, str], kind: str, default: str) -> str:
    """`name(field=value)` of a reference as @scope/kind.name(), with its fields as the config binds them."""
    name = config.get(f"evaluate.{kind}", f"@{kind}.{default}()").strip("@()")
    fields = [
        f"{key.rpartition('.')[2]}={value}" for key, value in config.items() if key.rpartition(".")[0] == name
    ]
    plain = name.rpartition("/")[2].removeprefix(f"{kind}.")
    return f"{plain}({', '.join(fields)})" if fields else plain


def _literal(config: Mapping[str, str], key: str, default: Any) -> Any:
    try:
        return ast.literal_eval(config.get(key, repr(default)))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
