"""Whose run a workdir holds."""

import pytest

from diffenc.configs import describe
from diffenc.errors import UserError
from diffenc.workdirs import same_run


def test_its_own_config_is_the_same_run_and_a_damaged_one_is_another(tiny, tmp_path):
    saved = tmp_path / same_run.CONFIG
    same_run.check_config(tiny(), tmp_path)  # none yet
    text = describe.config_text(tiny()).encode()
    saved.write_bytes(text)
    same_run.check_config(tiny(), tmp_path)
    assert text.count(b"Experiment.seed = 0") == 1
    saved.write_bytes(text.replace(b"Experiment.seed = 0", b"Experiment.seed = \xff"))
    with pytest.raises(
        UserError, match=r"holds a run of another config \(Experiment.seed: .*choose another --workdir"
    ):
        same_run.check_config(tiny(), tmp_path)
