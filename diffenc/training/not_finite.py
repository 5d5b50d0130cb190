"""What to tell a user whose loss became NaN or infinite."""

from collections.abc import Sequence
from pathlib import Path

from diffenc.config import names
from diffenc.interfaces import Optimizer

# Fields by which optimizers usually set how far a step goes, and what to do to them.
GENTLER = {
    "learning_rate": "a smaller",
    "warmup_steps": "a longer",
    "clip_norm": "a smaller",
    "max_norm": "a smaller",
}


def message(optimizer: Optimizer, step: int, good: Sequence[int], workdir: Path) -> str:
    """What happened at `step`, what is saved, and what to change.

    Args:
      good: steps of the checkpoints there are, ascending.
    """
    what = f"the loss, its gradient or the update became NaN or infinite at step {step}"
    if not good:
        way_out = f"delete {workdir}, or choose another --workdir, and start again with {_gentler(optimizer)}"
        return f"{what}, before the first checkpoint, so nothing is saved: {way_out}"
    return (
        f"{what}; the last good checkpoint is of step {good[-1]} in {workdir}. Try {_gentler(optimizer)}, in a new "
        f"--workdir (Experiment.init_from = '{workdir}' starts it from this one)"
    )


def _gentler(optimizer: Optimizer) -> str:
    """What may help, in the words of the optimizer that is used."""
    selector = names.selector_of(type(optimizer)) or type(optimizer).__name__
    fields = [field for field in GENTLER if hasattr(optimizer, field)]
    if not fields:
        return f"other settings of {selector}"
    return " or ".join(f"{GENTLER[field]} {selector}.{field}" for field in fields)
