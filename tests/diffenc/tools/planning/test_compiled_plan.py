"""Programs of a run compiled for given devices: this machine's own stand for those of another here."""

import dataclasses
import importlib.util
import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from diffenc.config.settings import MeshConfig, Plan
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT
from diffenc.tools.planning import compiled_plan, programs
from diffenc.tools.planning import plan as plans
from diffenc.tools.planning.compiled_plan import compute_compiled_plan, format_compiled_plan, verdicts
from diffenc.tools.planning.programs import Measured, extrapolate
from diffenc.tools.planning.topology import parse_topology

V5E = parse_topology("v5e:1x1")
ONE = 2 * 16 * 16  # FLOPs of a matrix by one image


@dataclasses.dataclass(frozen=True)
class Deep:
    """A network of `blocks` matrices that each mix all 16 pixels."""

    blocks: int = 3
    precision: str = "float32"
    remat: bool = False

    def init(self, key, z, log_snr):
        return jnp.zeros((self.blocks, 16, 16))

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        flat = z.reshape(-1, 16)
        for matrix in params:
            flat = jnp.sin(flat @ matrix)
        return flat.reshape(z.shape)


@pytest.fixture(scope="module")
def planned(tiny):
    """Makes such experiments, of 12 steps of 4 images."""

    def make(network=None, **settings):
        base = tiny()
        model = dataclasses.replace(base.model, network=network or Deep())
        sample = dataclasses.replace(base.sample, num=3, num_timesteps=40)
        plan = dataclasses.replace(Plan(topology="v5e:1x1"), **settings)
        return dataclasses.replace(base, model=model, sample=sample, plan=plan)

    return make


@pytest.fixture(scope="module")
def found(planned):
    return compute_compiled_plan(planned(), V5E, jax.devices()[:1])


def printed(costs) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(format_compiled_plan(costs))
    return " ".join(console.export_text().split())


def test_each_program_does_its_flops(found):
    """A step of training is each matrix forward and its two gradients, whose input is an encoder's."""
    flops = {name: one["flops"] for name, one in found["programs"].items()}
    assert flops == {"train": 4 * 3 * 3 * ONE, "evaluate": 4 * 3 * ONE, "sample": 3 * 3 * ONE}
    assert found["programs"]["sample"]["images"] == 3


def test_the_state_is_in_the_arguments(found, planned):
    """16 numbers of memory each step: parameters, average and two moments of 3 matrices, at least."""
    numbers = found["programs"]["train"]["numbers"]
    assert numbers["arguments"] >= 4 * 4 * 3 * 256
    assert numbers["total"] == sum(numbers[part] for part in ("arguments", "results", "temporary", "code"))
    assert found["programs"]["train"]["fits"]
    assert verdicts(found) == []


def test_a_compiler_without_an_estimate_leaves_the_share_that_is_assumed(found):
    train = found["programs"]["train"]
    assert train["estimated_seconds"] is None
    at_peak = 4 * 9 * ONE / 197e12  # float32 by TPUs' default products, of bfloat16
    assert train["seconds_at_peak"] == pytest.approx(at_peak)
    assert found["days"] == pytest.approx(12 * at_peak / 0.35 / 86400)
    assert "this compiler estimates no time" in printed(found)


def test_an_estimate_is_its_cycles_at_the_machines_clock(found, planned, monkeypatch):
    """Of sampling, 20 stretches of 2 steps each."""
    numbers = {"total": 1.0, "cycles": 3e6, "traffic": 10.0, "processor_seconds": 1.0}
    monkeypatch.setattr(compiled_plan, "measure_program", lambda program: Measured(numbers))
    costs = compute_compiled_plan(planned(), V5E, jax.devices()[:1])
    train, sample = costs["programs"]["train"], costs["programs"]["sample"]
    assert train["estimated_seconds"] == pytest.approx(3e6 / 1.5e9)
    assert sample["estimated_seconds"] == pytest.approx(train["estimated_seconds"] / 2)
    assert sample["numbers"]["traffic"] == 5.0
    assert train["share_of_peak"] == pytest.approx(4 * 9 * ONE / 197e12 / 2e-3)
    assert costs["days"] == pytest.approx(12 * 2e-3 / 86400)
    said = printed(costs)
    assert "the compiler's estimate │ 2 │" in said
    assert "nothing of this was measured" in said


def test_what_does_not_fit_is_a_sentence_with_ways_out(planned, monkeypatch):
    def measure(program):
        if program.what == "the train step":
            return Measured({}, "Used 18.2G of 15.75G hbm")
        return Measured({"total": 20e9, "processor_seconds": 0.0})

    monkeypatch.setattr(compiled_plan, "measure_program", measure)
    costs = compute_compiled_plan(planned(), V5E, jax.devices()[:1])
    train, evaluation, sampling = verdicts(costs)
    assert train.startswith("the train step does not fit on a device of v5e:1x1 (Used 18.2G of 15.75G hbm). ")
    for way in (
        "PRECISION = 'bfloat16'",
        "Experiment.microbatches = 2",
        "remat = True",
        "mesh.fsdp = 2",
        "chips",
    ):
        assert way in train
    assert "(20.0 GB of 17.2 GB)" in evaluation
    assert "evaluate.batch_size" in evaluation
    assert "sample.num" in sampling
    assert "NO │ NO │ NO" in printed(costs)


def test_a_program_that_is_too_large_is_no_error(planned, monkeypatch):
    def refuse(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory.\nUsed 1G.\n\nAll buffers: …")

    program = programs.make_programs(planned(), plans.make_mesh())["train"]
    monkeypatch.setattr(programs, "compile_ahead", refuse)
    assert programs.measure_program(program) == Measured({}, "Ran out of memory. Used 1G.")


def test_numbers_of_few_blocks_are_continued_in_a_line():
    small = Measured({"total": 10.0, "processor_seconds": 3.0})
    large = Measured({"total": 14.0, "fusions": 2.0, "processor_seconds": 4.0})
    line = extrapolate(small, large, (2, 4), 8)
    assert line.numbers == {"total": 22.0, "fusions": 6.0, "processor_seconds": 7.0}
    assert extrapolate(small, Measured({}, "large"), (2, 4), 8).too_large == "large"


def test_no_number_of_more_blocks_is_below_that_of_few():
    small, large = (Measured({"code": code, "processor_seconds": 1.0}) for code in (9.0, 7.0))
    assert extrapolate(small, large, (2, 4), 32).numbers["code"] == 7.0
    assert extrapolate(small, large, (2, 4), 3).numbers["code"] == 8.0
    memory = {"arguments": 5.0, "results": 0.0, "temporary": 1.0}
    small, large = (
        Measured(memory | {"code": code, "total": 6.0 + code, "processor_seconds": 1.0})
        for code in (9.0, 7.0)
    )
    assert extrapolate(small, large, (2, 4), 32).numbers["total"] == 5.0 + 0.0 + 1.0 + 7.0


def test_quick_is_the_whole_where_a_line_is_right(planned, monkeypatch):
    """Arguments grow by the same bytes with each block."""

    def measure(program):
        leaves = jax.tree.leaves(program.arguments)
        return Measured({"total": sum(leaf.size for leaf in leaves), "processor_seconds": 1})

    monkeypatch.setattr(compiled_plan, "measure_program", measure)
    whole, quick = (
        compute_compiled_plan(planned(Deep(7), quick=quick), V5E, jax.devices()[:1])
        for quick in (False, True)
    )
    for name, one in quick["programs"].items():
        assert one["numbers"]["total"] == whole["programs"][name]["numbers"]["total"]
        assert one["numbers"]["processor_seconds"] == 2
    assert quick["programs"]["train"]["flops"] == 4 * 3 * 7 * ONE
    assert "extrapolated from 2 and 4 blocks" in printed(quick)


def test_training_alone_can_be_compiled(planned, monkeypatch):
    monkeypatch.setattr(compiled_plan, "measure_program", lambda program: Measured({"total": 1.0}))
    costs = compute_compiled_plan(planned(only_training=True), V5E, jax.devices()[:1])
    assert list(costs["programs"]) == ["train"]
    assert "evaluation" not in printed(costs)


def test_quick_needs_blocks(planned):
    @dataclasses.dataclass(frozen=True)
    class Flat(Deep):
        blocks: None = None  # pyright: ignore[reportIncompatibleVariableOverride]

        def init(self, key, z, log_snr):
            return jnp.zeros((1, 16, 16))

    with pytest.raises(UserError, match=r"plan\.quick .* no field `blocks`"):
        compute_compiled_plan(planned(Flat(), quick=True), V5E, jax.devices()[:1])


def test_quick_is_of_a_topology():
    with pytest.raises(UserError, match=r"plan\.quick needs plan\.topology"):
        Plan(quick=True)


def test_a_mesh_of_other_devices_is_refused(planned):
    split = dataclasses.replace(planned(), mesh=MeshConfig(fsdp=2))
    with pytest.raises(UserError, match=r"mesh\.fsdp = 2 do not arrange the 1 devices"):
        compute_compiled_plan(split, V5E, jax.devices()[:1])


def test_without_the_compiler_an_estimate_is_given_and_called_so(
    planned, monkeypatch, caplog, capsys, tmp_path
):
    monkeypatch.setattr(plans, "missing_compiler", lambda topology: "pip install it")
    with caplog.at_level("WARNING"):
        costs = plans.plan(planned(topology="v5e:2x2"), tmp_path)
    assert "the compiler for v5e:2x2 is not installed" in caplog.text
    assert "an estimate from counted FLOPs" in caplog.text
    assert "pip install it" in caplog.text
    assert (costs["devices"], costs["accelerator"], costs["compiled"]) == (4, "tpu_v5e", None)
    assert "12 steps of 4 images on 4 device(s)" in capsys.readouterr().out


def test_the_mode_prints_what_the_compiler_says(planned, monkeypatch, capsys, tmp_path):
    numbers = {"total": 20e9, "cycles": 3e6, "processor_seconds": 1.0}
    monkeypatch.setattr(compiled_plan, "measure_program", lambda program: Measured(numbers))
    monkeypatch.setattr(plans, "missing_compiler", lambda topology: None)
    monkeypatch.setattr(plans, "list_devices", lambda topology: jax.devices()[:1])
    costs = plans.plan(planned(), tmp_path)
    said = capsys.readouterr().out
    assert costs["programs"]["train"]["numbers"]["total"] == 20e9
    assert "v5e:1x1: 1 device(s)" in said
    assert "the train step does not fit on a device of v5e:1x1 (20.0 GB of 17.2 GB)" in said


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_tpus_compiler_reads_the_programs(planned, tmp_path):
    """On four chips: what each gradient of 3 matrices takes is summed over them."""
    costs = plans.plan(planned(topology="v5e:2x2"), tmp_path)
    train = costs["programs"]["train"]
    assert (costs["kind"], costs["devices"]) == ("TPU v5 lite", 4)
    assert train["fits"]
    assert train["estimated_seconds"] > train["seconds_at_peak"]
    assert train["collectives"]["all-reduce"][1] >= 4 * 3 * 256
