"""Which steps are profiled, what is written, and that nothing that goes wrong with it stops a run."""

import time

import jax
import jax.numpy as jnp
import pytest

from diffenc.errors import UserError
from diffenc.training import loop, profiling
from diffenc.training.clock import Clock


@pytest.fixture
def told(monkeypatch):
    """The log lines."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(profiling.logging, level, lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture
def recorded(monkeypatch):
    """The steps begun while a profile is taken; clu's profiler is not called."""
    steps: list[int] = []
    on: list[str] = []
    monkeypatch.setattr(profiling.profiler, "start", on.append)
    monkeypatch.setattr(profiling.profiler, "stop", on.clear)

    def run(folder, first: int, begin: int, end: int) -> list[int]:
        profile, steps[:] = profiling.Profile(folder, first, Clock()), []
        for step in range(begin, end + 1):
            profile.before(step, jnp.zeros(()))
            steps.extend([step] if on else [])
        profile.finish(jnp.zeros(()))
        assert not on, "it was stopped"
        return steps

    return run


@pytest.mark.parametrize(
    ("first", "begin", "end", "want"),
    [
        (3, 1, 12, [3, 4, 5, 6, 7]),
        (1, 1, 12, [1, 2, 3, 4, 5]),
        (11, 1, 12, [11, 12]),
        (3, 4, 12, []),
        (0, 1, 12, []),
    ],
)
def test_five_steps_are_profiled(recorded, tmp_path, told, first, begin, end, want):
    assert recorded(tmp_path, first, begin, end) == want
    line = f"profile from step {first} on in {tmp_path}/plugins/profile; TensorBoard shows it"
    assert told == [line] * bool(want)


@pytest.mark.parametrize("which", ["start", "stop"])
def test_a_profile_that_fails_costs_one_line(recorded, tmp_path, told, monkeypatch, which):
    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(profiling.profiler, which, fail)
    profile = profiling.Profile(tmp_path, 2, Clock())
    for step in range(1, 10):
        profile.before(step, jnp.zeros(()))
    profile.finish(jnp.zeros(()))
    assert told == ["no profile: no room"]


def test_a_step_that_fails_is_not_hidden_by_its_profile(tmp_path, told, monkeypatch):
    on: list[str] = []
    monkeypatch.setattr(profiling.profiler, "start", on.append)
    monkeypatch.setattr(profiling.profiler, "stop", on.clear)
    profile, gone = profiling.Profile(tmp_path, 1, Clock()), jnp.zeros(())
    gone.delete()  # waiting for it raises, as for what a step that failed left
    profile.before(1, jnp.zeros(()))
    assert on, "it is being taken"
    profile.finish(gone)
    assert not on, "it was stopped"
    (line,) = told
    assert line.startswith("no profile: ")


def test_the_clock_counts_steps_but_no_profile(tmp_path, told, monkeypatch):
    for which in ("start", "stop"):
        monkeypatch.setattr(profiling.profiler, which, lambda *_: time.sleep(0.3))
    monkeypatch.setattr(profiling.jax, "block_until_ready", lambda _: time.sleep(0.1))  # as long as a step
    clock = Clock()
    profile = profiling.Profile(tmp_path, 1, clock)
    clock.restart()
    profile.before(1, jnp.zeros(()))
    profile.finish(jnp.zeros(()))
    clock.tick()
    assert 1 / 0.5 < clock.speed().steps_per_second <= 1 / 0.2


def test_a_run_writes_the_profile_that_tensorboard_reads(tiny, tmp_path, told):
    loop.train(tiny(steps=4, checkpoint_every=0, profile_at=3), tmp_path)
    (file,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert file.stat().st_size > 0
    names = {
        event.name
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
    }
    assert any("train_step" in name for name in names)
    assert any(str(tmp_path / "plugins" / "profile") in line for line in told)


def test_a_profile_beyond_the_last_step_is_refused(tiny):
    tiny(steps=4, profile_at=4)
    with pytest.raises(UserError, match=r"Experiment.profile_at = 5: .* Experiment.steps = 4"):
        tiny(steps=4, profile_at=5)
