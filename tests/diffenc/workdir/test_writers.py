"""Metrics read back with TensorBoard's own reader and the standard library's json."""

import io
import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from diffenc.errors import UserError
from diffenc.workdir import writers


def _events(logdir) -> EventAccumulator:
    kinds = ("scalars", "images", "histograms", "tensors")
    return EventAccumulator(str(logdir), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def _scalars(logdir, tag) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in _events(logdir).Scalars(tag)]


def _rows(path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


def test_clus_periodic_actions_work_without_tensorflow():
    code = (
        "import sys, diffenc.workdir.writers; from clu import periodic_actions as p; p.ReportProgress;"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_tensorboard_reads_scalars_at_once(tmp_path):
    writer = writers.TensorboardWriter(tmp_path)
    writer.write_scalars(1, {"bpd": np.float32(2.5), "loss": jnp.float32(0.5)})
    writer.write_scalars(2, {"bpd": float("nan")})
    (first, second), loss = _scalars(tmp_path, "bpd"), _scalars(tmp_path, "loss")
    assert first == (1, 2.5)
    assert second[0] == 2
    assert np.isnan(second[1])
    assert loss == [(1, 0.5)]
    writer.close()


def test_tensorboard_reads_images_texts_and_histograms(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 1), dtype=np.uint8)
    color = np.random.default_rng(1).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    writer = writers.TensorboardWriter(tmp_path)
    writer.write_images(3, {"samples": images, "grid": color})
    writer.write_texts(3, {"config": "täglich"})
    writer.write_histograms(3, {"weights": np.array([0.0, 1.0, 1.0, 4.0])}, {"weights": 4})
    writer.close()
    events = _events(tmp_path)
    assert sorted(events.Tags()["images"]) == ["grid", "samples/0", "samples/1"]
    for tag, image in [("samples/0", images[0]), ("samples/1", images[1]), ("grid", color)]:
        (read,) = events.Images(tag)
        pixels = np.asarray(Image.open(io.BytesIO(read.encoded_image_string)).convert("RGB"))
        np.testing.assert_array_equal(pixels, np.broadcast_to(image, (5, 4, 3)))
        assert read.step == 3
    text = tensor_util.make_ndarray(events.Tensors("config/text_summary")[0].tensor_proto)
    assert text.tolist() == ["täglich".encode()]
    histogram = events.Histograms("weights")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max, histogram.sum) == (4, 0, 4, 6)
    assert sum(histogram.bucket) == 4


def test_the_hparams_tab_finds_its_record(tmp_path):
    writer = writers.TensorboardWriter(tmp_path)
    values = {"seed": 3, "ema": 0.5, "name": "v", "flag": True, "shape": (1, 2)}
    writer.write_hparams(values)
    writer.close()
    contents = _events(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    read = plugin_data_pb2.__dict__["HParamsPluginData"].FromString(contents).session_start_info.hparams
    found = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in read.items()}
    assert found == {"seed": 3.0, "ema": 0.5, "name": "v", "flag": True, "shape": "(1, 2)"}


def test_resumed_within_a_second_both_files_stay_and_later_rows_are_dropped(tmp_path):
    first = writers.TensorboardWriter(tmp_path)
    for step in (1, 2, 3, 4):
        first.write_scalars(step, {"bpd": float(step)})
    first.close()
    second = writers.TensorboardWriter(tmp_path, purge_step=3)
    second.write_scalars(3, {"bpd": 30.0})
    second.close()
    assert len(os.listdir(tmp_path)) == 2
    assert _scalars(tmp_path, "bpd") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_jsonl_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    writer.write_scalars(
        400, {"bpd": np.float32(2.5), "n": 3, "bad": float("nan"), "worse": jnp.float32(-jnp.inf)}
    )
    writer.write_scalars(500, {"bpd": jnp.float32(2.25)})
    expected = (
        b'{"step": 400, "bpd": 2.5, "n": 3.0, "bad": null, "worse": null}\n{"step": 500, "bpd": 2.25}\n'
    )
    assert path.read_bytes() == expected  # before any flush
    writer.close()
    again = writers.JsonlWriter(path)
    again.write_scalars(600, {})
    again.close()
    assert path.read_bytes() == expected + b'{"step": 600}\n'


WRITE_FOR_EVER = """
import sys
from diffenc.workdir import writers
writer = writers.JsonlWriter(sys.argv[1])
step = 0
while True:
    writer.write_scalars(step, {"bpd": step / 2})
    print(step, flush=True)
    step += 1
"""


def test_a_killed_process_loses_no_finished_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    child = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(200):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    told = child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    finished = int(told[-1]) if told else 199
    rows = _rows(path)
    assert rows[: finished + 1] == [{"step": step, "bpd": step / 2} for step in range(finished + 1)]


FULL_DISK = """
import resource, sys
from diffenc.workdir import writers
from diffenc.errors import UserError
writer = {"jsonl": writers.JsonlWriter, "events": writers.TensorboardWriter}[sys.argv[1]](sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for step in range(200):
    writer.write_scalars(step, {"bpd": 1.5})
try:
    writer.close()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["jsonl", "events"])
def test_a_disk_that_stays_full_is_one_line_in_the_end_and_whole_rows_stay(tmp_path, kind):
    target = tmp_path / kind
    command = [sys.executable, "-c", FULL_DISK, kind, target]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"could not write {target}")
    assert "File too large; free space" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr.count("could not write") == 1, "while it ran"
    if kind == "jsonl":
        assert target.read_bytes().endswith(b"}\n")
        assert [row["step"] for row in _rows(target)] == list(range(len(_rows(target))))
        assert len(_rows(target)) > 20
    else:
        assert _scalars(target, "bpd")[:3] == [(0, 1.5), (1, 1.5), (2, 1.5)]


KEPT = b'{"step": 1,  "bpd":2.50}\n{"bpd": 2, "step": 3}\r\n{"step": 2, "eval_bpd": null}\n'


@pytest.mark.parametrize(
    ("tail", "warned"),
    [
        (b"", False),
        (b'{"step": 4, "bpd": 2}\n', False),
        (b'{"step": 2, "bp', False),  # torn
        (b'{"step": 2}', False),  # torn just before its end
        (b'{"step": 9}\n\x00\x00\x00', False),
        (b"\x00\x00\x00\n", True),
        (b'[]\n17\n{}\n\xff\n{"step": Infinity}\n{"step": null}\n', True),
    ],
)
def test_cut_rows(tmp_path, caplog, tail, warned):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(KEPT + tail)
    writers.drop_rows_after(path, 3)
    assert path.read_bytes() == KEPT
    assert ("dropped a line that is no row" in caplog.text) == warned
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_cut_rows_leaves_a_file_alone_that_needs_no_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(KEPT)
    inode = path.stat().st_ino
    writers.drop_rows_after(path, 3)
    assert path.stat().st_ino == inode
    writers.drop_rows_after(tmp_path / "absent", 3)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def _train(workdir, resume_step, steps) -> list[str]:
    lines = []
    writer = writers.create_writer(
        workdir, resume_step=resume_step, log=lambda form, *args: lines.append(form % args)
    )
    for step in steps:
        writer.write_scalars(step, {"bpd": step / 2})
    writer.flush()
    writer.close()
    return lines


def test_a_resumed_run_reads_like_one_that_never_stopped(tmp_path):
    assert _train(tmp_path / "whole", None, range(0, 8)) == [
        f"step {s}  bpd {_shown(s / 2)}" for s in range(8)
    ]
    _train(tmp_path / "killed", None, range(0, 6))
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "bp')
    _train(tmp_path / "killed", 3, range(4, 8))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert _scalars(killed, "bpd") == _scalars(whole, "bpd") == [(s, s / 2) for s in range(8)]


def _shown(value: float) -> str:
    return "0" if value == 0 else f"{value:.3f}"


def test_a_run_that_starts_anew_drops_what_was_there(tmp_path):
    _train(tmp_path, None, range(0, 6))
    _train(tmp_path, None, range(0, 2))
    assert [row["step"] for row in _rows(tmp_path / "metrics.jsonl")] == [0, 1]
    assert [step for step, _ in _scalars(tmp_path, "bpd")] == [0, 1]


def test_the_log_line_is_for_people():
    lines = []
    writer = writers.LogWriter(lambda form, *args: lines.append(form % args))
    scalars = {
        "bpd": np.float32(2.31),
        "steps_per_second": 12.34,
        "learning_rate": 2e-4,
        "bpd_diffusion": 2.1,
        "n": 60000,
    }
    writer.write_scalars(400, scalars)
    writer.write_scalars(500, {"bpd": float("nan")})
    assert lines == [
        "step 400  bpd 2.310  learning_rate 0.0002  bpd_diffusion 2.100  n 6e+04  12.3 steps/s",
        "step 500  bpd nan",
    ]


def test_a_file_in_the_way_is_the_users_to_fix(tmp_path):
    (tmp_path / "file").write_text("")
    for make in (
        lambda: writers.JsonlWriter(tmp_path / "file" / "m"),
        lambda: writers.TensorboardWriter(tmp_path / "file"),
    ):
        with pytest.raises(UserError, match="could not write"):
            make()


def test_the_silent_writer_takes_all_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = writers.null_writer()
    writer.write_scalars(1, {"bpd": 2.0})
    writer.write_images(1, {"samples": np.zeros((1, 4, 4, 1))})
    writer.write_hparams({"seed": 1})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


class Failing(writers.NullWriter):
    """Keeps scalars until it fails."""

    def __init__(self):
        self.steps = []

    def write_scalars(self, step, scalars):
        if step == 2:
            raise ConnectionError("gone")
        self.steps.append(step)

    def close(self):
        raise AssertionError("a writer that failed is not called again")


def test_another_writer_that_fails_does_not_cost_the_run(tmp_path, caplog):
    other = Failing()
    writer = writers.create_writer(tmp_path, resume_step=None, others=[other])
    for step in (1, 2, 3):
        writer.write_scalars(step, {"bpd": 1.0})
    writer.close()
    assert other.steps == [1]
    assert [row["step"] for row in _rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    (told,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    assert "Failing failed: ConnectionError: gone; the run goes on" in told


def test_every_method_of_a_writer_is_guarded():
    """Whatever clu's interface has, `FaultTolerantWriter` hands on, and survives."""
    names = [name for name in vars(writers.metric_writers.MetricWriter) if not name.startswith("_")]
    assert len(names) >= 9

    class Broken(writers.NullWriter):
        def __getattribute__(self, name):
            if name in names:
                raise ConnectionError(name)
            return super().__getattribute__(name)

    for name in names:
        arguments = () if name in ("flush", "close") else ({},) if name == "write_hparams" else (1, {})
        getattr(writers.FaultTolerantWriter(Broken()), name)(*arguments)


def test_the_last_values_of_metrics(tmp_path):
    """By name over all rows, without what JSON has no number for; torn lines are passed over."""
    path = tmp_path / "metrics.jsonl"
    assert writers.last_values(path) == {}
    path.write_bytes(b'{"step": 1, "a": 1.0, "b": 2.0}\n{"step": 2, "a": null, "c": 3.5}\n{"step": 3, "b": 4')
    assert writers.last_values(path) == {"a": 1.0, "b": 2.0, "c": 3.5}
