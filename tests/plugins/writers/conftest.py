"""A stand-in for the package wandb, which would want an account or a minute."""

import sys
import types

import pytest


class Run:
    def __init__(self, given):
        self.given, self.rows, self.steps, self.finished, self.hparams = given, [], None, False, {}
        self.config = types.SimpleNamespace(
            update=lambda values, allow_val_change: self.hparams.update(values)
        )

    def define_metric(self, names, step_metric):
        self.steps = names, step_metric

    def log(self, values):
        self.rows.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """Every run that was begun."""
    begun = []

    def init(**given):
        begun.append(Run(given))
        return begun[-1]

    module = types.ModuleType("wandb")
    module.__dict__.update(
        init=init,
        Image=lambda image: ("image", image.shape, int(image.sum())),
        Histogram=lambda np_histogram: ("histogram", np_histogram[0].tolist(), np_histogram[1].tolist()),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun
