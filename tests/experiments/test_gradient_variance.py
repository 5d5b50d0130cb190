"""The variance of gradients that are known, and the command on a run."""

import numpy as np
import pytest
from rich.console import Console

from diffenc.errors import UserError
from diffenc.evaluation.diagnose import diagnose
from diffenc.training import loop
from experiments import gradient_variance


def test_variances_and_their_ratio():
    rng = np.random.default_rng(0)
    uniform, importance = rng.normal(0, [1.0, 2.0], (4000, 2)), rng.normal(3.0, [1.0, 0.5], (4000, 2))
    found = gradient_variance.compare_variances(uniform[:400], importance[:400])
    assert found.variance == pytest.approx(1.25, rel=0.2)
    assert gradient_variance.total_variance(uniform) == pytest.approx(5.0, rel=0.1)
    assert abs(found.ratio - 0.25) < 4 * found.ratio_se
    # of a sum of normal squares: Var(s^2) = 2 sigma^4 / (n - 1); both are independent here
    relative = (2 / 399) * ((1 + 16) / 25 + (1 + 0.0625) / 1.5625)
    assert found.ratio_se == pytest.approx(0.25 * np.sqrt(relative), rel=0.2)


def test_every_part_with_parameters_is_stated(tiny, tmp_path, capsys):
    experiment, workdir = tiny(steps=2), tmp_path / "run"
    loop.train(experiment, workdir)
    with pytest.raises(
        UserError, match="needs a loss curve: run the same command with --mode=diagnose first"
    ):
        gradient_variance.gradient_variances(experiment, workdir, None, 4)
    diagnose(experiment, workdir)
    found = gradient_variance.gradient_variances(experiment, workdir, None, 4)
    assert set(found) == {"network", "encoder", "schedule"}
    Console().print(gradient_variance.format_table(found))
    assert set(found["encoder"]) == {"uniform", "importance", "importance_by_gradient"}
    ratios = {name: part.ratio for name, part in found["encoder"].items()}
    assert ratios["uniform"] == 1
    assert len(set(ratios.values())) == 3  # each sampler draws other times
    assert "ratio to uniform" in capsys.readouterr().out


def test_too_few_batches_are_refused(capsys):
    assert gradient_variance.main(["--workdir=unused", "--batches=2"]) == 1
    assert "--batches=2: must be at least 3" in capsys.readouterr().err
