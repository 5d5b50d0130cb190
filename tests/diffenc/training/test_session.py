"""The hint names what is there: the optimizer in use, and a checkpoint only where one was written."""

import dataclasses

from diffenc.training.session import not_finite_message
from diffenc_plugins.optimizers import AdamW


@dataclasses.dataclass(frozen=True)
class Descent:
    rate: float = 1.0

    def build(self, num_steps):
        return None


def test_of_a_run_with_a_checkpoint():
    told = not_finite_message(AdamW(), 7, [3, 5], "runs/a")
    assert "at step 7; the last good checkpoint is of step 5 in runs/a" in told
    assert (
        "a smaller optimizer.adamw.learning_rate or a longer optimizer.adamw.warmup_steps or a positive "
        "optimizer.adamw.clip_norm, in a new" in told
    )
    clipped = not_finite_message(AdamW(clip_norm=1.0), 7, [3, 5], "runs/a")
    assert "or a smaller optimizer.adamw.clip_norm, in a new" in clipped
    assert "Experiment.init_from = 'runs/a'" in told


def test_of_a_run_without_one_nothing_is_taken_up():
    told = not_finite_message(AdamW(), 2, [], "runs/a")
    assert (
        "before the first checkpoint, so nothing is saved: delete runs/a, or choose another --workdir" in told
    )
    assert "init_from" not in told
    assert "optimizer.adamw.learning_rate" in told


def test_of_another_optimizer_no_field_is_named_that_it_lacks():
    told = not_finite_message(Descent(), 2, [1], "runs/a")  # pyright: ignore[reportArgumentType]
    assert "other settings of Descent" in told
    assert "adamw" not in told
