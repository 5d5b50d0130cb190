"""Weak scaling: what a program sends is read from its text, the rest is arithmetic done by hand here."""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from diffenc import registry
from diffenc.errors import UserError
from diffenc.runtime.accelerators import ACCELERATORS
from diffenc.tools.planning.flops import Work
from experiments.benchmark.subject import Settings
from experiments.weak_scaling import __main__ as weak_scaling
from experiments.weak_scaling import page, paper, point
from experiments.weak_scaling.paper import CLUSTERS, Cluster, Level, Row

HLO = """
  %all-reduce.1 = f32[10,3]{1,0} all-reduce(f32[10,3]{1,0} %p), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %ar = (f32[7]{0}, bf16[2,2]{1,0:T(8,128)}, /*index=2*/pred[5]{0}) all-reduce(%a, %b, %c), channel_id=2
  %start = f32[] all-reduce-start(%x), channel_id=3
  %done = f32[] all-reduce-done(%start)
  ROOT %g = u8[4,2]{1,0} all-gather(u8[1,2]{1,0} %y), dimensions={0}
  %s = s32[3]{0} reduce-scatter(s32[12]{0} %z), dimensions={0}
  %f = f32[100]{0} fusion(%all-reduce.1), kind=kLoop, calls=%fused
"""


def test_what_is_sent_is_read_from_the_text():
    wanted = [
        ("all-reduce", 120),
        ("all-reduce", 28 + 8 + 5),
        ("all-reduce", 4),
        ("all-gather", 8),
        ("reduce-scatter", 12),
    ]
    assert point.find_collectives(HLO) == wanted


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
whole = NamedSharding(mesh, PartitionSpec())
total = jax.jit(lambda x: x.sum(0), in_shardings=split, out_shardings=whole)
print(total.lower(jax.ShapeDtypeStruct((4, 6, 5), jnp.float32)).compile().as_text())
"""


def test_the_sum_of_a_real_program_over_two_devices():
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    assert point.find_collectives(done.stdout) == [("all-reduce", 6 * 5 * 4)]


def test_a_point_of_one_device(tiny):
    figures = point.measure_step(tiny(), Settings(rounds=3, least=0.0))
    assert (figures["devices"], figures["batch_size"], figures["platform"]) == (1, 4, "cpu")
    assert len(figures["seconds"]) == 3
    assert min(figures["seconds"]) > 0
    assert figures["parameters"] == 2 * 32 + 2  # w and b of 4x4x1 pixels, twice, and the learned ends
    assert figures["sent"] == []
    json.dumps(figures)


def test_a_ring_sends_almost_all_twice():
    """Three devices: each sends 2/3 of the bytes to sum them, 2/3 to spread the sums."""
    assert paper.all_reduce_seconds((Level(3, 10.0),), 300) == pytest.approx(40)
    assert paper.all_reduce_seconds((Level(1, 10.0),), 300) == 0


def test_nodes_send_their_share_alone():
    """Four GPUs in each of two nodes: 3/4 within, twice; then a quarter, half of it twice, between."""
    seconds = paper.all_reduce_seconds((Level(4, 100.0), Level(2, 10.0)), 800)
    assert seconds == pytest.approx(2 * 600 / 100 + 2 * 100 / 10)


@pytest.mark.parametrize(
    ("name", "devices", "bandwidth"),
    [
        ("v4-32", 16, 3 * 50e9),  # 2x2x4 closes nowhere: one link an axis
        ("v4-128", 64, 6 * 50e9),
        ("v5p-128", 64, 6 * 100e9),
        ("v5p-1024", 512, 6 * 100e9),
    ],
)
def test_slices(name, devices, bandwidth):
    (one,) = (cluster for cluster in CLUSTERS if cluster.name == name)
    assert one.devices == devices == int(name.split("-")[1]) // 2  # two cores a chip
    assert [level.bandwidth for level in one.levels] == [bandwidth]


def test_an_axis_of_one_chip_has_no_links():
    assert paper.make_torus("", "tpu_v4", 1.0, 2, 2, 1).levels == (Level(4, 2.0),)


def test_every_cluster_is_of_a_known_accelerator():
    assert {cluster.accelerator for cluster in CLUSTERS} <= set(ACCELERATORS)
    assert {"v4-32", "v5p-1024"} <= {cluster.name for cluster in CLUSTERS}


class OneTera(Work):
    """10^12 FLOPs in bfloat16 and as many in float32."""

    @property
    def by_dtype(self):
        return {"bfloat16": 10**12, "float32": 10**12}


def test_a_row_is_the_formula_by_hand():
    """An H100 does 989 TFLOP/s in bfloat16, half of that in TF32; a tenth of the peak is reached."""
    cluster = Cluster("two", "h100", (Level(2, 1e9),))
    row = paper.estimate_row(cluster, OneTera({}), images=4, parameters=1_000_000, share=0.1)
    compute = Fraction(10) * (Fraction(1, 989) + Fraction(2, 989))
    send = Fraction(4_000_000, 10**9)
    assert row.compute == pytest.approx(float(compute))
    assert row.all_reduce == pytest.approx(float(send))
    assert row.efficiency == pytest.approx(float(compute / (compute + send)))
    assert row.efficiency_hidden == 1
    assert row.images_per_second == pytest.approx(float(8 / (compute + send)))


def test_sending_that_takes_longer_than_computing_cannot_hide():
    row = Row(Cluster("", "h100", (Level(2, 1.0),)), images=2, compute=1.0, all_reduce=4.0)
    assert row.efficiency == pytest.approx(0.2)
    assert row.efficiency_hidden == pytest.approx(0.25)
    # 0.5 s an image; 95 % is reached when computing takes 19 times as long as sending
    assert row.enough == 152


POINTS = [
    {"devices": 1, "batch_size": 4, "device": "cpu", "platform": "cpu", "parameters": 10, "seconds": [1.0], "sent": []},
    {"devices": 2, "batch_size": 8, "device": "cpu", "platform": "cpu", "parameters": 10, "seconds": [2.5, 2.5],
     "sent": [("all-reduce", 40), ("all-reduce", 16)]},
]  # fmt: skip


def test_virtual_devices_are_compared_by_the_work_of_the_same_cores():
    assert page.efficiency(POINTS[1], POINTS[0], real=False) == pytest.approx(3.2 / 4)
    assert page.efficiency(POINTS[1], POINTS[0], real=True) == pytest.approx(3.2 / 8)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The program with points that are given, on paper for the smallest run; the page it writes."""
    asked = []

    def point(given, devices):
        asked.append(devices)
        return dict(POINTS[devices - 1])

    registry.discover()
    monkeypatch.setattr(weak_scaling, "measure_point", point)
    flags = ["--gin_file=gin/quickstart.gin", "--devices=1,2", "--turns=2", "--paper=gin/quickstart.gin"]
    flags += ["--remark=on a train"]
    assert weak_scaling.main([*flags, "--paper_images=2", f"--page={tmp_path / 'page.md'}"]) == 0
    return asked, (tmp_path / "page.md").read_text()


def cells(page, first):
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_the_page(measured):
    asked, page = measured
    assert asked == [1, 2, 1, 2]
    assert cells(page, "1")[1:] == ["4", "1000 ms (1000 .. 1000)", "4", "none", "0", "1.000"]
    assert cells(page, "2")[1:] == ["8", "2500 ms (2500 .. 2500)", "3.2", "2 all-reduce", "56", "0.800"]
    assert "would be 40." in page
    assert "share the cores" in page
    assert "\n- on a train\n" in page
    assert "196,882 parameters" in page  # as the README says of the quickstart
    for cluster in CLUSTERS:
        assert cells(page, cluster.name)[1:3] == [str(cluster.devices), f"{2 * cluster.devices:,}"]


def test_times_of_all_turns_are_kept(monkeypatch):
    given = weak_scaling.parse_args(["--gin_file=x", "--devices=1,2", "--turns=2"])
    times = iter(range(4))
    monkeypatch.setattr(
        weak_scaling, "measure_point", lambda given, devices: {"devices": devices, "seconds": [next(times)]}
    )
    assert [one["seconds"] for one in weak_scaling.measure_points(given)] == [[0, 2], [1, 3]]


@pytest.mark.slow
def test_a_point_that_fails_ends_it(monkeypatch, capfd):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    given = weak_scaling.parse_args(["--gin_file=gin/none.gin", "--devices=1"])
    with pytest.raises(UserError, match="1 device"):
        weak_scaling.measure_point(given, 1)
    assert "gin/none.gin: no such file" in capfd.readouterr().err


@pytest.mark.parametrize("flag", ["--images=0", "--turns=0", "--paper_images=-1", "--rounds=0"])
def test_numbers_that_cannot_be(flag, capsys):
    assert weak_scaling.main(["--gin_file=x", flag]) == 1
    assert f"error: {flag}: must be at least 1" in capsys.readouterr().err


SMALL = [
    *("network.unet.blocks = 1", "network.unet.channels = 4", "network.unet.fourier_powers = (2, 3)"),
    *("network.encoder_unet.blocks = 1", "network.encoder_unet.channels = 4"),
]


@pytest.mark.slow
def test_measured_by_real_processes(tmp_path):
    """The program itself, on one and two virtual devices."""
    bindings = [f"--gin_bindings={binding}" for binding in SMALL]
    flags = [
        "--gin_file=gin/quickstart.gin",
        *bindings,
        "--devices=1,2",
        "--images=2",
        "--rounds=2",
        "--least=0",
    ]
    file = tmp_path / "page.md"
    assert weak_scaling.main([*flags, "--turns=1", "--paper=gin/quickstart.gin", f"--page={file}"]) == 0
    parameters = int(
        file.read_text().split("images per device, ")[1].split(" parameters")[0].replace(",", "")
    )
    one, two = cells(file.read_text(), "1"), cells(file.read_text(), "2")
    assert (one[1], two[1]) == ("2", "4")
    equal = 3 * 4  # biases of 4 channels: at three shortcuts, two are added up
    assert (one[4], one[5]) == ("none", "0")
    assert (two[4], int(two[5].replace(",", ""))) == ("1 all-reduce", 4 * (parameters - equal + 3))


def test_quartiles_are_of_all_rounds():
    row = page.format_point(POINTS[0] | {"seconds": [1, 2, 3, 4, 5]}, POINTS[0], real=False)
    assert row[2] == "3000 ms (2000 .. 4000)"
    assert np.isclose(float(row[3]), 4 / 3, rtol=1e-3)
