"""What a run will cost, against counting by hand and against what is then really allocated."""

import dataclasses
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from diffenc.config import gin_loader, serialize
from diffenc.config.settings import MeshConfig, Plan
from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT
from diffenc.runtime import accelerators
from diffenc.tools.planning import plan as plans
from diffenc.tools.planning.plan import compute_plan, format_table, plan
from diffenc.training.state import init_state


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A network that mixes all 16 pixels by a matrix of `dtype`."""

    dtype: str = "float32"
    precision: jax.lax.Precision | None = None

    def init(self, key, z, log_snr):
        return jnp.zeros((16, 16))

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        flat = jnp.matmul(
            z.reshape(-1, 16).astype(self.dtype), params.astype(self.dtype), precision=self.precision
        )
        return flat.astype(z.dtype).reshape(z.shape)


@dataclasses.dataclass(frozen=True)
class Absent:
    """Dots whose files are not there."""

    image_shape = (4, 4, 1)
    num_levels = 5
    num_classes = 3

    def source(self, split):
        raise UserError("absent")

    def fingerprint(self, split):
        raise UserError("absent")


@pytest.fixture(scope="module")
def planned(tiny):
    """Makes such experiments: 12 steps of 4 images, a matrix of 16x16 in their network."""

    def make(dtype="float32", precision=None, **settings):
        base = tiny()
        model = dataclasses.replace(base.model, network=Mixed(dtype, precision))
        settings = {"compile": False, "peak_tflops": 1e-6} | settings
        return dataclasses.replace(base, model=model, dataset=Absent(), plan=Plan(**settings))

    return make


ONE = 2 * 16 * 16  # FLOPs of the matrix by one image


def test_flops_and_parameters(planned):
    figures = compute_plan(planned())
    assert figures["flops"] == {
        "train": 3 * ONE,
        "evaluate": ONE,
        "network": ONE,
    }  # forward and two gradients
    assert figures["parameters"] == {
        "encoder": 16 + 16,
        "network": 256,
        "schedule": 2,
        "stochasticity": 0,
        "generative_mean": 0,
    }
    assert figures["notes"] == ()


def test_the_time_is_that_of_the_flops_at_a_share_of_the_peak(planned):
    speed = compute_plan(planned(share=0.5, devices=2))["speed"]
    seconds = 2 * 3 * ONE / (0.5 * 1e6)  # two images on each of two devices, of 10^6 FLOP/s
    assert speed["steps_per_second"] == pytest.approx(1 / seconds)
    assert speed["images_per_second"] == pytest.approx(4 / seconds)
    assert speed["days"] == pytest.approx(12 * seconds / (24 * 3600))
    assert speed["device_hours"] == pytest.approx(2 * 12 * seconds / 3600)
    assert (speed["peak"], speed["source"]) == ({"float32": 1e6}, "plan.peak_tflops")


@pytest.mark.parametrize(("dtype", "tflops"), [("float32", 156), ("bfloat16", 312)])
def test_an_accelerator_that_is_not_there(planned, dtype, tflops):
    figures = compute_plan(planned(dtype, accelerator="a100", peak_tflops=None))
    assert figures["speed"]["peak"] == {dtype: tflops * 1e12}
    rounded = ", float32 in tfloat32" if dtype == "float32" else ""
    assert figures["speed"]["source"] == f"stated for a100{rounded}"
    assert figures["capacity"] == 40e9
    assert figures["speed"]["steps_per_second"] == pytest.approx(0.35 * tflops * 1e12 / (4 * 3 * ONE))


def test_what_is_there_and_not_known_is_measured(planned, monkeypatch):
    monkeypatch.setattr(accelerators, "measure_flops", lambda dtype: {"float32": 3e9}[dtype])
    speed = compute_plan(planned(peak_tflops=None))["speed"]
    assert speed["peak"] == {"float32": 3e9}
    assert speed["source"] == f"measured on {jax.devices()[0].device_kind}"


@pytest.fixture(scope="module")
def compiled(planned):
    """The figures, its step compiled for one image on each of four devices."""
    return compute_plan(planned(compile=True, devices=4))


def test_what_is_split_takes_a_part_on_each_device(planned):
    """The matrix of 16 x 16, its average and two moments, over two devices: half of each."""
    shape = MeshConfig(fsdp=2, rules=(("network", 0),))
    whole = compute_plan(planned())["memory"]
    split = compute_plan(dataclasses.replace(planned(devices=2), mesh=shape))["memory"]
    assert {name: whole[name] - split[name] for name in whole} == {
        "parameters": 512,
        "average": 512,
        "optimizer": 1024,
        "state": 2048,
    }


def test_a_split_state_is_gathered_for_the_step():
    whole, split = {"state": 100, "parameters": 30}, {"state": 40, "parameters": 10}
    compiled = {"arguments": 110, "results": 1, "temporary": 50, "total": 161}
    assert plans.adjust_for_sharding(whole, whole, compiled) == compiled
    assert plans.adjust_for_sharding(split, whole, None) is None
    assert plans.adjust_for_sharding(split, whole, compiled) == {
        "arguments": 50, "results": 1, "temporary": 80, "total": 131
    }  # fmt: skip


def test_memory_is_what_the_state_then_takes(planned, compiled):
    state = jax.jit(lambda: init_state(planned()))()

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    kept = 4 * (32 + 256 + 2)
    assert compiled["memory"] == {
        "parameters": kept, "average": kept, "optimizer": size(state.opt_state), "state": size(state)
    }  # fmt: skip
    taken = compiled["compiled"]
    assert taken["arguments"] == size(state) + 16  # the state and the image's bytes
    assert taken["temporary"] >= 4 * 256  # the gradient of the matrix at least
    assert taken["total"] == sum(taken[part] for part in ("arguments", "results", "temporary"))
    assert taken["results"] < size(state) / 2  # the new state takes the old one's place


def text(figures) -> str:
    """The table as it is printed, its lines joined."""
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(format_table(figures))
    return " ".join(console.export_text().split())


def test_the_backend_of_the_compiled_step_is_named(compiled):
    said = text(compiled)
    assert "on the cpu backend; others differ" in said
    assert "12 steps of 4 images on 4 device(s)" in said


@pytest.mark.parametrize(("backend", "warned"), [("cpu", True), ("gpu", False)])
def test_an_accelerator_does_not_take_the_memory_of_a_cpu(compiled, backend, warned):
    said = text(compiled | {"accelerator": "h200", "backend": backend})
    assert ("memory on h200 differs" in said) == ("network.unet.remat" in said) == warned
    assert (f"on the {backend} backend; others differ" in said) != warned


@pytest.mark.parametrize(("devices", "warned"), [(1, False), (2, True)])
def test_communication_is_left_out(planned, devices, warned):
    assert ("communication between devices" in text(compute_plan(planned(devices=devices)))) == warned


@pytest.mark.parametrize(("precision", "share"), [(jax.lax.Precision.HIGHEST, 1), (None, 0)])
def test_what_asks_for_full_precision_is_told(planned, precision, share):
    figures = compute_plan(planned(precision=precision))
    assert figures["full_precision"] == share
    assert ("100.00% of the FLOPs ask for full precision" in text(figures)) == bool(share)


def test_nothing_is_read_and_nothing_written(planned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    figures = plan(planned(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert f"{figures['speed']['steps_per_second']:,.4g}" in said
    assert "not compiled" in said
    assert "12 steps of 4 images on 1 device" in said


def test_a_model_without_contractions_has_no_speed(tiny, tmp_path, capsys):
    figures = plan(tiny(plan=Plan(compile=False)), tmp_path / "run")
    assert (figures["speed"], figures["flops"]["train"]) == (None, 0)
    assert "no convolution or matrix product" in capsys.readouterr().out


@pytest.mark.slow
def test_a_published_run_without_its_data(monkeypatch, tmp_path):
    """An H200 multiplies float32 as TensorFloat-32, and at full precision at a seventh of that (NVIDIA's data sheet)."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    bindings = ["plan.compile = False", 'plan.accelerator = "h200"', "plan.devices = 8", "plan.share = 1"]
    figures = compute_plan(gin_loader.load_experiment(["gin/mnist_vdmv_8.gin"], bindings))
    header = re.search(r"Cost: ([\d.]+) GFLOPs an image", Path("gin/mnist_vdmv_8.gin").read_text())
    assert header is not None
    assert figures["flops"]["train"] / 1e9 == pytest.approx(float(header[1]), rel=5e-4)
    assert figures["memory"]["parameters"] == 4 * 8_891_393
    assert figures["images"] == 16
    assert figures["accelerator"] == "h200"
    # the first convolution, 5 channels to 128, forward and to its kernel; of 28 rows two lack one of three taps
    first = 2 * 5 * 128 * (3 * 28 - 2) ** 2
    train = figures["flops"]["train"]
    assert figures["full_precision"] == pytest.approx(2 * first / train)
    seconds = 2e6 * 128 * ((train - 2 * first) / 494.5e12 + 2 * first / 67e12)
    assert figures["speed"]["device_hours"] == pytest.approx(seconds / 3600)
    assert figures["speed"]["source"] == "stated for h200, float32 in tfloat32"


def test_a_batch_in_parts_takes_as_many_flops(planned):
    whole = planned()
    parts = compute_plan(dataclasses.replace(whole, microbatches=2))
    assert parts["flops"] == compute_plan(whole)["flops"]


@pytest.mark.parametrize(("devices", "parts", "least"), [(3, 1, 3), (2, 4, 8)])
def test_devices_and_parts_must_divide_the_batch(planned, devices, parts, least):
    experiment = dataclasses.replace(planned(devices=devices), microbatches=parts)
    with pytest.raises(UserError, match=rf"over plan.devices = {devices}, .*take a multiple of {least}$"):
        compute_plan(experiment)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"accelerator": "h2000"},
            r"plan.accelerator = 'h2000': must be one of b200, .*or bind plan.peak_tflops",
        ),
        ({"peak_tflops": 0.0}, r"plan.peak_tflops = 0.0: must be positive"),
        ({"share": 0.0}, r"plan.share = 0.0: must be above 0, and at most 1"),
        ({"share": 1.1}, r"plan.share = 1.1"),
        ({"devices": -1}, r"plan.devices = -1: must not be negative"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Plan(**settings)


def test_plans_may_change_between_visits(tiny):
    assert (
        serialize.find_differences(
            serialize.config_text(tiny()), serialize.config_text(tiny(plan=Plan(share=0.5, compile=False)))
        )
        == []
    )
