"""Which bound the evaluations in training are of: metrics.jsonl states none, so a run's config must tell."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffenc.measuring.evaluations import number
from diffenc.report.held import Held, Record

SPLIT, STEPS, NUM_IMAGES, SEED = "evaluate.split", "evaluate.steps", "evaluate.num_images", "evaluate.seed"
ALL = "all images"


def is_asked_for(held: Held) -> bool:
    """Whether evaluation.json is of the bound, and of the images, that the run's config asks for."""
    said = held.evaluation
    if said is None or not held.config or number(said["step"]) is None:
        return False
    wanted = _depth(held.config) | {"proposal": _plugin(held.config, "proposal", "uniform")}
    return (
        said["split"] == _literal(held.config, SPLIT, "test")
        and all(_words(value) == _words(said.get(key, value)) for key, value in wanted.items())
        and _same_images(held.config, said)
        and (not said.get("condition") or _tells(held.config))
    )


def stated(held: Held) -> str:
    """T continuous, all images; or T 25 (equal times, variance fitted), 2,000 images."""
    if not held.config:
        return "T not recorded"
    depth, num_images = _depth(held.config), _literal(held.config, NUM_IMAGES, None)
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


def _same_images(config: Mapping[str, str], said: Record) -> bool:
    """Of all images of the split, or of as many, which the seed draws."""
    wanted, whole = _literal(config, NUM_IMAGES, None), number(said.get("split_images"))
    if wanted is None or (isinstance(wanted, int) and whole is not None and wanted >= whole):
        return said["num_images"] == (said["num_images"] if whole is None else whole)
    seed = _literal(config, SEED, 0)
    return said["num_images"] == wanted and said.get("seed", seed) == seed


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


def _words(spelt: Any) -> Sequence[str]:
    """The same for a plugin's fields in any order."""
    return sorted(re.findall(r"[^(), ]+", str(spelt)))


def _literal(config: Mapping[str, str], key: str, default: Any) -> Any:
    try:
        return ast.literal_eval(config.get(key, repr(default)))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
