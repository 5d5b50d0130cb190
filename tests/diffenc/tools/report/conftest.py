"""Workdirs made by hand, with numbers that can be worked out by hand."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pytest
from PIL import Image

from diffenc.tools.report import page, run_data

BITS = np.log(2)
DIMS = 4
CONFIG = """\
Experiment.dataset = @dataset.dots()
Experiment.log_every = 5
Experiment.seed = 0
Experiment.steps = 20
Model.encoder = @encoder.identity()
evaluate.num_images = 3
"""
# bits/dim of three images in two passes; the sums over terms are 3, 4, 8 and 5, 4, 6
DIFFUSION = [[2.0, 3.0, 7.0], [4.0, 3.0, 5.0]]


def npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def evaluation(**changes: Any) -> dict[str, Any]:
    """Says what an evaluation of `terms()` says."""
    said = {
        "bpd": 5.0, "bpd_se": 0.123456, "bpd_mc_se": 0.0654321,
        "bpd_reconstruction": 0.5, "bpd_reconstruction_se": 0.0, "bpd_reconstruction_mc_se": 0.0,
        "bpd_latent": 0.5, "bpd_latent_se": 4.683e-07, "bpd_latent_mc_se": 0.0,
        "bpd_diffusion": 4.0, "bpd_diffusion_se": 0.123456, "bpd_diffusion_mc_se": 0.0654321,
        "dataset": "dots", "split": "test", "num_images": 3, "split_images": 1300, "fingerprint": "ab" * 32,
        "T": "continuous", "time_sampler": "uniform", "times_per_image": 1, "passes": 2, "batch_size": 3, "seed": 0,
        "precision": "float32", "matmul_precision": "default", "device": "cpu", "step": 20, "num_params": 1234,
    }  # fmt: skip
    resolved = {f"{key}_uncertainty": 0.01 for key in said if key.endswith("_se") and "_mc_" not in key}
    return {**said, **resolved, **changes}


def terms(plus: Any = 0.0) -> dict[str, np.ndarray]:
    """Nats [passes, images], and times; `plus` bits/dim more diffusion, of each image."""
    diffusion = np.array(DIFFUSION) + np.asarray(plus)
    half = np.full((2, 3), 0.5)
    nats = {name: bits * DIMS * BITS for name, bits in (("reconstruction", half), ("latent", half), ("diffusion", diffusion))}  # fmt: skip
    return {**nats, "times": np.full((2, 3, 1), 0.5)}


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """With its checksum, as docs/workdir.md says how to compute it."""
    return {**record, "sha256": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


def evaluate(file: Path, said: dict[str, Any], plus: Any = 0.0) -> None:
    """Files an evaluation as FILE.json and FILE.npz."""
    file.parent.mkdir(exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(sealed(said)))
    file.with_suffix(".npz").write_bytes(npz(terms(plus)))


def heat_maps(t=(0.5, 1.0), n=2) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    change = np.linspace(-1, 1, n * len(t) * 9).reshape(n, len(t), 3, 3)
    return {"t": list(t), "gap": 0.5, "rows": [f"class {k}" for k in range(n)]}, {
        "x": np.zeros((n, 3, 3, 1)),
        "change": change,
    }


@pytest.fixture
def made(tmp_path) -> Callable[..., Path]:
    """Makes a workdir `name`; what is None is not there.

    `rows` are lines of metrics.jsonl, `files` contents by name, `figures` pairs of a record and arrays by name.
    """

    def make(
        name: str, *, config: str | None = CONFIG, rows=None, said: dict[str, Any] | None = None, plus: Any = 0.0,
        figures: dict[str, tuple[dict, dict]] | None = None, files: dict[str, bytes] | None = None,
    ) -> Path:  # fmt: skip
        workdir = tmp_path / name
        (workdir / "figures").mkdir(parents=True)
        if config is not None:
            (workdir / "config.gin").write_text(config)
        if rows is not None:
            (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        if said is not None:
            for key, without in (("bpd", 5.0), ("bpd_diffusion", 4.0)):
                said = {**said, key: None if said[key] is None else without + float(np.mean(plus))}
            evaluate(workdir / "evaluation", said, plus)
        for figure, (record, arrays) in (figures or {}).items():
            data = npz(arrays) if arrays else b""
            record = {
                "of": {"step": 20, "dataset": "dots"},
                **record,
                "npz": hashlib.sha256(data).hexdigest() if data else "",
            }
            (workdir / "figures" / f"{figure}.json").write_text(json.dumps(sealed(record)))
            (workdir / "figures" / f"{figure}.npz").write_bytes(data)
        for file, content in (files or {}).items():
            (workdir / file).parent.mkdir(parents=True, exist_ok=True)
            (workdir / file).write_bytes(content)
        return workdir

    return make


def png(side: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()


def row(step: int, bpd: float, grad_norm: float = 1.0) -> dict[str, float]:
    """One of training, half a bit of it latent, half reconstruction."""
    parts = {"bpd_diffusion": bpd - 1, "bpd_latent": 0.5, "bpd_reconstruction": 0.5}
    return {"step": step, "bpd": bpd, **parts, "grad_norm": grad_norm}


ROWS = [row(5, 9.0), row(10, 7.0), {"step": 10, "test_bpd": 6.0, "test_bpd_se": 0.5}, row(20, 6.0, 2.0)]
SCHEDULE = {
    "t": [0.0, 0.5, 1.0], "log_snr": [6.0, 0.0, -5.0], "alpha_squared": [0.99, 0.5, 0.01], "rate": [12.0, 11.0, 10.0],
}  # fmt: skip
LOSS = {
    "log_snr_centre": [3.0, -3.0], "density": [0.5, 0.25], "density_se": [0.1, 0.05],
    "dataset": "dots", "split": "train", "num_images": 23, "fingerprint": "cd" * 32,
}  # fmt: skip
START = {
    "step": 0, "diffenc": "0.1.0", "jax": "9.9.9", "python": "3.11.1", "devices": "1 x cpu", "commit": None,
}  # fmt: skip
CARD = {
    "dataset": "dots", "source": "unknown version of dots", "image_shape": [2, 2, 1], "num_levels": 5,
    "num_classes": 3, "train_images": 23, "train_identity": "ef" * 32,
}  # fmt: skip


@pytest.fixture
def whole(made) -> Path:
    """A workdir with everything."""
    return made(
        "whole", rows=ROWS, said=evaluation(),
        figures={"heat_maps": heat_maps(), "schedule": (SCHEDULE, {}), "loss": (LOSS, {})},
        files={
            "samples/000000020.png": png(),
            "environment.json": json.dumps(sealed({"starts": [START]})).encode(),
            "dataset.json": json.dumps(sealed(CARD)).encode(),
            "checkpoints/000000020/META.json": b"{}",
        },
    )  # fmt: skip


def rendered(*workdirs: Path | str) -> str:
    return page.render_page(run_data.read_runs([str(workdir) for workdir in workdirs]))


def parsed(html: str):
    """The tree of a page that keeps to the standard in every point."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)


def text_of(element) -> str:
    return " ".join("".join(element.itertext()).split())
