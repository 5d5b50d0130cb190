import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffenc.config import gin_loader
from diffenc.config.gin_files import shipped_files
from experiments import parameters

ROOT = Path(__file__).parents[2]

# Totals as published. The table under test holds the parts.
TOTALS = {
    "mnist_vdmv_8": 8_891_393,
    "mnist_diffenc_8_2": 10_795_330,
    "cifar10_vdmv_8": 8_905_219,
    "cifar10_diffenc_8_2": 10_811_462,
    "cifar10_diffenc_8_4": 11_649_350,
    "cifar10_diffenc_32_2": 32_484_422,
    "cifar10_diffenc_32_4": 33_322_310,
    "imagenet32_diffenc_32_8": 126_557_510,
}


def conv(size, inputs, outputs):
    return size * size * inputs * outputs + outputs


def dense(inputs, outputs):
    return inputs * outputs + outputs


def resnet_block(inputs, channels):
    norms = 2 * inputs + 2 * channels
    shift = 4 * channels * channels  # of the time embedding: no bias
    shortcut = conv(1, inputs, channels) if inputs != channels else 0
    return norms + conv(3, inputs, channels) + shift + conv(3, channels, channels) + shortcut


def score_network(blocks, channels, colours, powers):
    """The parameters of the score U-Net, added up layer by layer from the description of the paper."""
    head = 2 * channels + conv(3, channels, colours)
    attention = 2 * channels + 4 * dense(channels, channels)
    time = dense(channels + 1, 4 * channels) + dense(4 * channels, 4 * channels)
    down = (blocks + 2) * resnet_block(channels, channels)  # the two in the middle too
    up = (blocks + 1) * resnet_block(2 * channels, channels)
    return conv(3, colours * (1 + 2 * powers), channels) + time + down + attention + up + head


@pytest.fixture(scope="module")
def printed_and_json(tmp_path_factory):
    """What the command printed, and what it wrote."""
    target = tmp_path_factory.mktemp("parameters") / "table.json"
    command = [sys.executable, "-m", "experiments.parameters", f"--json={target}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, {run["name"]: run for run in json.loads(target.read_text())}


@pytest.mark.slow
def test_every_run_has_the_published_total(printed_and_json):
    runs = printed_and_json[1]
    assert {name: runs[name]["total"] for name in TOTALS} == TOTALS
    assert {name: runs[name]["published"] for name in TOTALS} == TOTALS
    not_in_the_paper = ["cifar10_diffenc_8_nt_tight", "mnist_diffenc_8_nt_tight", "mnist_small", "quickstart"]
    assert [name for name, run in runs.items() if run["published"] is None] == not_in_the_paper
    assert all(run["published"] in (None, run["total"]) for run in runs.values())


@pytest.mark.slow
def test_the_command_prints_a_row_a_run(printed_and_json):
    rows = [line.split() for line in printed_and_json[0].splitlines()]
    assert ["mnist_vdmv_8", "8,891,393", "0", "8,891,393", "8,891,393"] in rows
    large = "imagenet32_diffenc_32_8 122,137,603 4,419,907 126,557,510 126,557,510"
    assert large.split() in rows


@pytest.mark.parametrize("name", [name for name in shipped_files() if name not in parameters.STACKABLE])
def test_what_is_not_named_as_stackable_is_a_run(name):
    gin_loader.load_experiment([name], [])


@pytest.mark.parametrize(
    ("name", "blocks", "channels", "colours"),
    [("quickstart", 1, 32, 1), ("mnist_vdmv_8", 8, 128, 1), ("imagenet32_vdmv_32", 32, 256, 3)],
)
def test_the_score_network_has_the_parameters_of_its_layers(name, blocks, channels, colours):
    counts = parameters.count_by_part(gin_loader.load_experiment([f"gin/{name}.gin"], []))
    assert counts["network"] == score_network(blocks, channels, colours, powers=2)


def test_learned_ends_are_two_parameters():
    experiment = gin_loader.load_experiment(["gin/quickstart.gin", "gin/learned_endpoints.gin"], [])
    assert parameters.count_by_part(experiment)["schedule"] == 2


def test_a_learned_variance_is_a_parameter_of_each_step():
    bindings = ["Experiment.num_timesteps = 7", "Experiment.variance = @variance.learned()"]
    counts = parameters.count_by_part(gin_loader.load_experiment(["gin/quickstart.gin"], bindings))
    assert counts["variance"] == 7
    assert parameters.Row("learned", published=None, **counts).total == sum(counts.values())


ROWS = [
    parameters.Row("as_published", network=1_000, encoder=20, schedule=0, published=(1_000, 20)),
    parameters.Row("of_our_own", network=1_000, encoder=20, schedule=2, published=None),
]


@pytest.mark.parametrize("published", [(1_001, 20), (1_000, 21), (1_020, 0)])
def test_a_run_that_differs_is_marked_and_fails_the_command(published, monkeypatch, capsys):
    other = parameters.Row("other", network=1_000, encoder=20, schedule=0, published=published)
    monkeypatch.setattr(parameters, "load_rows", lambda: [*ROWS, other])
    assert parameters.main([]) == 1
    marked = [line.split() for line in capsys.readouterr().out.splitlines() if "≠" in line]
    assert marked == [["other", "1,000", "20", "1,020", "≠", f"{sum(published):,}"]]


def test_agreement_is_success_and_learned_ends_count_in_the_total(monkeypatch, capsys):
    monkeypatch.setattr(parameters, "load_rows", lambda: ROWS)
    assert parameters.main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["of_our_own", "1,000", "20", "1,022", "-"] in lines


def test_a_file_that_cannot_be_written_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parameters, "load_rows", lambda: ROWS)
    assert parameters.main([f"--json={tmp_path}/absent/table.json"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert "absent" in said[0]
