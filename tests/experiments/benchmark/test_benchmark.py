"""The benchmark, on a model that takes a step in no time: what it counts, compares and files."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc_plugins.conditionings import ByClass, Nothing
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.stochasticities import Constant
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import formatting, program, steps
from experiments.benchmark.subject import Compiled, Settings, Subject, random_images, without_compile_cache
from experiments.timing import Times

ONE = 2 * 16 * 16  # FLOPs of one of the two matrices by one image


def rows(part, figures):
    """The rows of its table, by heading."""
    return dict(formatting.ROWS[part](figures))


def test_the_step(subject, monkeypatch):
    monkeypatch.setattr(steps.accelerators, "measure_flops", {"float32": 1e9, "bfloat16": 2e9}.__getitem__)
    found = steps.measure_step(subject)
    assert found["parameters"] == {
        "encoder": 32,
        "network": 256,
        "schedule": 2,
        "stochasticity": 0,
        "generative_mean": 0,
    }
    assert found["flops_per_image"]["counted"] == 6 * ONE
    assert found["flops_per_image"]["xla"] > 6 * ONE  # with what is element by element
    assert set(found["build_seconds"]) == {"trace", "lower", "compile"}
    assert min(found["build_seconds"].values()) > 0
    seconds = found["step"]["seconds"]
    assert found["images_per_second"] == pytest.approx(4 / seconds)
    assert found["share_of_peak"]["float32"] == pytest.approx(4 * 6 * ONE / seconds / 1e9)
    assert found["share_of_peak"]["bfloat16"] == pytest.approx(4 * 6 * ONE / seconds / 2e9)
    assert found["memory"]["compiled"]["total"] > found["memory"]["state"]
    assert rows("step", found)["FLOPs an image, counted"] == "3.072e-06 G"


def test_the_program(subject):
    found = program.measure_program(subject)
    assert list(found) == ["vdmv", "nt", "own"]
    own = found["own"]
    assert own["arrays of parameters"] == len(jax.tree.leaves(subject.stepper.state.params))
    assert own["arguments"] == len(jax.tree.leaves((subject.stepper.state, subject.images)))
    assert own["convolutions"] == 0
    assert own["equations"] > found["vdmv"]["equations"] > found["vdmv"]["matrix products"] > 0
    assert rows("program", found)["convolutions, own"] == "0"


def test_equations_within_loops_and_calls_are_counted_once_each():
    def looped(x):
        return jax.lax.scan(lambda h, y: (jax.jit(jnp.sin)(h) * y, None), x, jnp.ones(5))[0] + 1

    counts = program.count_equations(jax.make_jaxpr(looped)(1.0).jaxpr)
    assert {counts[name] for name in ("scan", "sin", "mul", "add")} == {1}


def test_memory_is_read_after_the_steps_and_before_other_operands_come(subject, monkeypatch):
    seen = []

    def side_by_side(*_):
        seen.append("steps")
        return {"step": Times(np.asarray([1.0]))}

    def measured(dtype):
        seen.append("peak")
        return 1.0

    def memory():
        seen.append("memory")
        return {"peak_in_use": 7_000_000}

    monkeypatch.setattr(steps, "time_interleaved", side_by_side)
    monkeypatch.setattr(steps.accelerators, "measure_flops", measured)
    monkeypatch.setattr(steps, "device_memory", memory)
    found = steps.measure_step(subject)
    assert seen[:3] == ["steps", "memory", "peak"]
    assert rows("step", found)["memory, peak in use until the steps were timed"] == "7.0 MB"


def test_steps_really_are_taken(subject):
    before = int(subject.stepper.state.step)
    subject.stepper()
    assert int(subject.stepper.state.step) == before + 1


def test_variants_differ_by_their_encoder(subject):
    models = {name: one.model for name, one in steps.with_encoders(subject.experiment).items()}
    assert list(models) == ["vdmv", "nt", "own"]
    assert models["own"] == subject.experiment.model
    for name, encoder, mean in (("vdmv", "Identity", "VDM"), ("nt", "Nontrainable", "Counterterm")):
        assert type(models[name].encoder).__name__ == encoder
        assert type(models[name].generative_mean).__name__ == mean
        assert models[name].network == subject.experiment.model.network


def test_the_papers_models_are_on_its_path_and_of_classes_only_where_the_network_knows_them(tiny):
    model = tiny().model
    told = dataclasses.replace(
        model,
        encoder=dataclasses.replace(model.encoder, network=dataclasses.replace(model.network, classes=3)),
        stochasticity=Constant(0.5),
        conditioning=ByClass(),
    )
    found = {name: one.model for name, one in steps.with_encoders(tiny(model=told)).items()}
    assert found.pop("own") == told
    assert {(one.stochasticity, one.conditioning) for one in found.values()} == {(MARKOV, Nothing())}
    # Each takes a step with images of its own condition.
    subject = Subject(tiny(model=told), Settings(rounds=1, least=0.0))
    assert set(steps.measure_variants(subject)["steps"]) == {"vdmv", "nt", "own"}
    both = dataclasses.replace(told, network=told.encoder.network)
    assert steps.with_encoders(tiny(model=both))["vdmv"].model.conditioning == ByClass()


def test_a_vdm_is_not_timed_twice(tiny):
    model = dataclasses.replace(tiny().model, encoder=Identity(), generative_mean=VDM())
    assert list(steps.with_encoders(tiny(model=model))) == ["vdmv", "nt"]


def test_variants_side_by_side(subject):
    found = steps.measure_variants(subject)
    assert list(found["steps"]) == ["vdmv", "nt", "own"]
    ratio = found["steps"]["own"]["seconds"] / found["steps"]["vdmv"]["seconds"]
    assert found["over_vdmv"]["own"]["ratio"] == pytest.approx(ratio)
    assert "own / vdmv" in rows("variants", found)


def test_what_variants_cost_to_build_and_on_paper(subject, monkeypatch):
    class Fake:
        """Compiles in so many seconds to so many FLOPs, by XLA's count."""

        def __init__(self, number):
            self.number = number

        def cost_analysis(self):
            return {"flops": self.number}

    seconds = iter([2.0, 3.0])

    def compiled(*_):
        took = next(seconds)
        return Compiled(Fake(4 * 1e9 * took), {"trace": 1.0, "lower": 1.0, "compile": took})

    own = Subject(subject.experiment, subject.settings)
    own.__dict__["stepper"], own.__dict__["compiled"] = (
        subject.stepper,
        Compiled(Fake(20e9), {"trace": 2.0, "lower": 1.0, "compile": 5.0}),
    )
    times = {name: Times(np.asarray([1.0])) for name in ("vdmv", "nt", "own")}
    monkeypatch.setattr(steps, "compile_step", compiled)
    monkeypatch.setattr(steps, "time_interleaved", lambda *_: times)
    found = steps.measure_variants(own)
    assert found["on_paper"]["vdmv"] == {
        "compile_seconds": 2.0, "build_seconds": 4.0, "flops_counted": 6 * ONE, "flops_xla": 2e9
    }  # fmt: skip
    assert found["on_paper_over_vdmv"] == {
        "nt": {"compile_seconds": 1.5, "build_seconds": 1.25, "flops_counted": 1, "flops_xla": 1.5},
        "own": {"compile_seconds": 2.5, "build_seconds": 2.0, "flops_counted": 1, "flops_xla": 2.5},
    }
    of_variants = rows("variants", found)
    assert of_variants["own / vdmv, to compile"] == "2.500"
    assert of_variants["vdmv, FLOPs an image, XLA's count"] == "2 G"


def test_a_sampling_step_is_a_part_of_the_walk(subject, monkeypatch):
    def measured(calls, rounds, least):
        shapes = {name: jax.eval_shape(call).shape for name, call in calls.items()}
        assert set(shapes.values()) == {(4, 4, 4, 1)}
        seconds = {"walk": [6.0, 9.0], "network": [1.0, 2.0], "loop": [3.0, 6.0]}
        return {name: Times(np.asarray(row)) for name, row in seconds.items()}

    monkeypatch.setattr(steps, "time_interleaved", measured)
    found = steps.measure_sampling(subject)
    assert found["step"]["seconds"] == 7.5 / 3
    assert found["step_over_network"]["ratio"] == pytest.approx(7.5 / 3 / 1.5)
    assert found["step_over_network_in_loop"]["ratio"] == pytest.approx(7.5 / 4.5)
    assert "sampling step / network by itself" in rows("sampler", found)


def test_the_sampler_walks(subject):
    found = steps.measure_sampling(subject)
    assert min(found[name]["seconds"] for name in ("step", "network", "network_in_loop")) > 0


def test_contractions_one_by_one(subject):
    found = steps.measure_contractions(subject)
    by_role = {
        role: [row for row in found["each"] if row["role"] == role] for role in ("forward", "gradient")
    }
    ((forward,), gradients) = by_role.values()
    assert (forward["lhs"], forward["rhs"]) == ("float32[4,16]", "float32[16,16]")
    assert (forward["count"], forward["flops"]) == (2, 4 * ONE)
    assert sum(row["count"] for row in gradients) == 4
    total = sum(row["count"] * row["seconds"] for row in found["each"])
    assert found["seconds"]["all"] == found["seconds"]["matrix product"] == pytest.approx(total)
    assert found["step_over"]["all"]["ratio"] == pytest.approx(found["step"]["seconds"] / total)
    assert forward["flops_per_second"] == pytest.approx(4 * ONE / forward["seconds"])
    assert "step / all of them" in rows("contractions", found)
    assert found["calls"] == 2 + 4
    assert found["empty_call"]["seconds"] > 0
    assert "a call that computes nothing, of 6 calls" in rows("contractions", found)


def test_levels_are_random_and_within_range(subject):
    levels = random_images(subject.experiment, 100).images
    assert levels.shape == (100, 4, 4, 1)
    assert set(np.unique(levels)) == set(range(5))


def test_nothing_is_taken_from_the_persistent_cache(tmp_path):
    before: Any = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    least: Any = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        compilation_cache.reset_cache()
        with without_compile_cache():
            jax.jit(lambda x: x + 31)(1.0)
        assert list(tmp_path.iterdir()) == []
        jax.jit(lambda x: x + 32)(1.0)
        assert list(tmp_path.iterdir()) != []
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
        compilation_cache.reset_cache()


@pytest.fixture
def go(subject, tiny, monkeypatch):
    """Runs the program on dots, but measures `subject`; returns the exit status and what it would measure."""
    given = []

    def make(*arguments):
        given.append(arguments)
        return subject

    def run(*flags):
        return benchmark.main(["--gin_file=dots.gin", "--rounds=2", "--least=0", *flags]), given

    monkeypatch.setattr(benchmark.gin_loader, "load_experiment", lambda files, bindings: tiny())
    monkeypatch.setattr(benchmark, "Subject", make)
    return run


def test_figures_are_printed_and_filed(go, tmp_path, capsys):
    flags = ["--only=input", "--batch_size=2", "--images=30", "--sampling_steps=7"]
    status, ((experiment, settings),) = go(*flags, f"--json={tmp_path / 'found.json'}")
    assert status == 0
    assert (experiment.batch_size, settings) == (2, Settings(2, 0.0, sampling_steps=7, images=30))
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["batch_size"], found["image_shape"]) == (2, [4, 4, 1])
    assert found["input"]["images_per_second"] > 0
    assert not set(found) & set(benchmark.PARTS) - {"input"}
    assert found["hardware"]["platform"] == "cpu"
    assert found["hardware"]["cores"] >= found["hardware"]["cores_usable"] >= 1
    assert found["versions"]["jax"] == jax.__version__
    assert "--batch_size=2" in found["command"]
    assert found["date"].startswith("20")
    assert "Experiment.batch_size = 2" in found["config"]
    printed = capsys.readouterr().out
    assert "input: batch 2 of 4x4x1" in printed
    assert f"- date: {found['date']}" in printed
    assert f"- command: `{found['command']}`" in printed
    assert f"jax {jax.__version__}, jaxlib" in printed
    assert "medians and quartiles of 2 rounds" in printed
    assert "images a second" in printed


def test_what_a_part_measured_is_kept_when_a_later_one_fails(go, tmp_path, monkeypatch):
    def fail(subject):
        raise UserError("no space")

    monkeypatch.setitem(benchmark.PARTS, "checkpoint", fail)
    status, _ = go("--only=input,checkpoint", f"--json={tmp_path / 'found.json'}")
    assert status == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert "input" in found
    assert "checkpoint" not in found


def test_parts_come_in_their_own_order():
    assert benchmark.select_parts("contractions,step") == ["step", "contractions"]
    assert benchmark.select_parts(None) == list(benchmark.PARTS) == list(formatting.ROWS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=stop"], "--only=stop: 'stop' is not a part; parts: step, variants"),
        (["--rounds=0"], "--rounds=0: must be at least 1"),
        (["--batch_size=0"], "Experiment.batch_size = 0"),
        (["--least=-1"], "--least=-1.0: must not be negative"),
        (["--json=nowhere/found.json"], "--json=nowhere/found.json: create the folder"),
    ],
)
def test_mistakes_are_told_in_a_line(go, capsys, flags, message):
    assert go(*flags) == (1, [])
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in told
