import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from diffenc import registry
from diffenc.config import gin_loader
from diffenc.config.gin_files import shipped_files
from diffenc.config.serialize import config_text
from diffenc.tools.planning.plan import compute_plan
from diffenc.tools.tables import paper

ROOT = Path(__file__).parents[2]
NAMES = [
    "quickstart",
    "mnist_small",
    *(
        f"{data}_{model}"
        for data in ("mnist", "cifar10")
        for model in ("vdmv_8", "diffenc_8_2", "diffenc_8_nt")
    ),
    "cifar10_diffenc_8_4",
    "cifar10_vdmv_32",
    "cifar10_diffenc_32_2",
    "cifar10_diffenc_32_4",
    "imagenet32_vdmv_32",
    "imagenet32_diffenc_32_8",
]
PUBLISHED = NAMES[2:]
TIGHT = ["mnist_diffenc_8_nt_tight", "cifar10_diffenc_8_nt_tight"]  # a published run on another path
STACKABLE = {  # file: its schedule
    "learned_endpoints": "learned_endpoints",
    "learned_schedule": "monotone",
    "vdm_released": "monotone",
}


def load(name, *more) -> Any:
    return gin_loader.load_experiment([f"gin/{name}.gin", *more], [])


def comment(name):
    text = (ROOT / "gin" / f"{name}.gin").read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))


def test_these_are_the_run_files():
    assert set(shipped_files()) >= {
        f"gin/{name}.gin"
        for name in ["by_class", "learned_path", "two_heads", "separable", *STACKABLE, *NAMES, *TIGHT]
    }
    assert not (ROOT / "gin" / "__init__.py").exists()


@pytest.mark.parametrize("file", shipped_files())
def test_every_file_is_a_run_or_stacks_on_one(file):
    """Those of a plugin that was just made, too."""
    of_runs = {f"gin/{name}.gin" for name in (*NAMES, *TIGHT)}
    gin_loader.load_experiment([file] if file in of_runs else ["gin/quickstart.gin", file], [])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_file_is_the_same_read_back_from_its_complete_text(name, tmp_path):
    experiment = load(name)
    (tmp_path / "config.gin").write_text(config_text(experiment))
    assert gin_loader.load_experiment([str(tmp_path / "config.gin")], []) == experiment


@pytest.mark.thin
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("file", "schedule"), STACKABLE.items())
def test_a_learned_schedule_stacks_on_a_run_file(name, file, schedule):
    fixed, learned = load(name).model.schedule, load(name, f"gin/{file}.gin").model.schedule
    assert registry.schedules.name_of(type(fixed)) == "linear"
    assert registry.schedules.name_of(type(learned)) == schedule
    assert (learned.log_snr_max, learned.log_snr_min) == (fixed.log_snr_max, fixed.log_snr_min)


@pytest.mark.parametrize("name", NAMES)
def test_a_learned_path_stacks_on_a_run_file(name):
    markov, learned = load(name).model, load(name, "gin/learned_path.gin").model
    assert registry.stochasticities.spell(markov.stochasticity) == "markov"
    assert registry.stochasticities.name_of(type(learned.stochasticity)) == "learned"
    assert dataclasses.replace(learned, stochasticity=markov.stochasticity) == markov


@pytest.mark.parametrize("name", TIGHT)
def test_a_tight_run_is_the_published_one_on_its_own_path(name):
    tight, published = load(name), load(name.removesuffix("_tight"))
    assert registry.stochasticities.spell(tight.model.stochasticity) == "nontrainable"
    assert registry.generative_means.spell(tight.model.generative_mean) == "rescaled"
    parts = {field: getattr(published.model, field) for field in ("stochasticity", "generative_mean")}
    model = dataclasses.replace(tight.model, **parts)
    assert dataclasses.replace(tight, model=model) == published
    assert stated_cost(comment(name)) == stated_cost(comment(name.removesuffix("_tight")))
    stated = [re.search(r"Parameters: [\d,]+", comment(each)) for each in (name, name.removesuffix("_tight"))]
    assert stated[0] is not None
    assert stated[1] is not None
    assert stated[0][0] == stated[1][0]


@pytest.mark.parametrize("files", [list(STACKABLE), list(STACKABLE)[::-1]])
def test_of_two_that_stack_the_later_wins(files):
    schedule = load("quickstart", *(f"gin/{file}.gin" for file in files)).model.schedule
    assert registry.schedules.name_of(type(schedule)) == STACKABLE[files[-1]]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("imagenet32")])
def test_classes_stack_on_a_run_file(name):
    plain, told = load(name).model, load(name, "gin/by_class.gin").model
    assert (plain.conditioning.label, plain.network.classes) == (None, 0)
    assert (told.conditioning.label, told.conditioning.drop, told.network.classes) == ("class", 0.1, 10)
    encoder = getattr(told.encoder, "network", None)
    assert encoder is None or encoder.classes == 10


def test_classes_are_bound_for_another_data_set_or_part():
    files = ["gin/imagenet32_diffenc_32_8.gin", "gin/by_class.gin"]
    model = gin_loader.load_experiment(files, ["CLASSES = 1000", "network.unet.classes = 0"]).model
    assert (model.network.classes, model.encoder.network.classes) == (0, 1000)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", NAMES)
def test_schedule_and_networks_share_the_ends(name):
    model = load(name).model
    networks = [model.network, *filter(None, [getattr(model.encoder, "network", None)])]
    ends = {(part.log_snr_max, part.log_snr_min) for part in (model.schedule, *networks)}
    assert ends == {(8.0 if name == "quickstart" else 13.3, -5.0)}


@pytest.mark.parametrize(
    "name", ["by_class", "learned_path", "two_heads", "separable", *NAMES, *TIGHT, *STACKABLE]
)
def test_nothing_is_said_twice(name):
    said = {}
    for binding in gin_loader.read_file(f"gin/{name}.gin"):
        assert said.get(binding.key, ()) != binding.value, f"{binding.location}: {binding} is known already"
        said[binding.key] = binding.value


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_is_what_its_name_says(name):
    dataset, kind, *sizes = name.split("_")
    experiment = load(name)
    model = experiment.model
    encoder = {"vdmv": "identity", "diffenc": "nontrainable" if sizes[1:] == ["nt"] else "trainable"}[kind]
    assert registry.datasets.name_of(type(experiment.dataset)) == dataset
    assert registry.encoders.name_of(type(model.encoder)) == encoder
    assert registry.generative_means.name_of(type(model.generative_mean)) == (
        "vdm" if kind == "vdmv" else "counterterm"
    )
    assert registry.parameterizations.name_of(type(model.parameterization)) == "v"
    assert model.network.blocks == int(sizes[0])
    assert encoder != "trainable" or (model.encoder.network.blocks, model.encoder.network.channels) == (
        int(sizes[1]),
        64,
    )
    large = dataset == "imagenet32"
    assert (model.network.channels, experiment.batch_size) == ((256, 256) if large else (128, 128))


STEPS = {  # tables 2, 6 and 7; all others 2 million
    "cifar10_vdmv_32": 8_000_000,
    "cifar10_diffenc_32_4": 8_000_000,
    "cifar10_diffenc_8_4": 1_300_000,
    "imagenet32_vdmv_32": 1_500_000,
    "imagenet32_diffenc_32_8": 1_500_000,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_run_trains_as_published(name):
    experiment = load(name)
    optimizer = experiment.optimizer
    assert experiment.steps == STEPS.get(name, 2_000_000)
    assert experiment.ema_decay == 0.9999
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (2e-4, 100, 0.01)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.99, 1e-8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_header_states_row_command_result_and_cost(name):
    head, experiment = comment(name), load(name)
    assert f"python -m diffenc.run --gin_file=gin/{name}.gin\n" in head
    table = re.search(r"table (\d) of DiffEnc", head)
    assert table is not None
    rows = [row for row in paper.load_rows(int(table[1])) if row.gin_files == (f"gin/{name}.gin",)]
    ((total, count),) = ((row.figures["total"], row.seeds) for row in rows)
    wanted = f"Expected: {total.mean} ± {total.error} bits/dim on the test split (published: mean and standard error of {count} seeds)."
    assert wanted in head
    assert re.search(r"Parameters: [\d,]+", head)
    image, images, steps, total = stated_cost(head)
    assert (images, steps) == (experiment.batch_size, experiment.steps)
    assert total == pytest.approx(image * images * steps, rel=0.05)


def stated_cost(head):
    """FLOPs an image, images a step, steps, and FLOPs of the whole run."""
    cost = re.search(r"Cost: ([\d.]+) GFLOPs an image x (\d+) images x ([\d,]+) steps = (\S+) FLOPs\.", head)
    assert cost is not None
    return float(cost[1]) * 1e9, int(cost[2]), int(cost[3].replace(",", "")), float(cost[4])


@pytest.mark.parametrize(
    "name", ["quickstart", *(pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED)]
)
def test_the_cost_in_a_header_is_what_plan_counts(name, monkeypatch, tmp_path):
    """Convolutions and matrix products: there is one count, without what is element by element."""
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    bindings = ["plan.compile = False", "plan.devices = 1", "plan.peak_tflops = 1.0"]
    counted = compute_plan(gin_loader.load_experiment([f"gin/{name}.gin"], bindings))["flops"]["train"]
    assert stated_cost(comment(name))[0] == pytest.approx(counted, rel=5e-4)  # four digits
