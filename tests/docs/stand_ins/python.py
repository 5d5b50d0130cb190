"""Stands for `python` and `pip` where pages are executed: runs the real one, on a scale that takes seconds.

  python python.py [ARGUMENT...]

Programs of ours get bindings and flags at the end of their command line that make them small, as a user may give them;
pip gets what keeps it off the network.
"""

import os
import sys

BINDINGS = [
    "Experiment.steps = 2",
    "Experiment.batch_size = 8",
    "Experiment.evaluate_every = 0",
    "Experiment.sample_every = 0",
    "plan.compile = False",
    "evaluate.num_images = 8",
    "evaluate.batch_size = 8",
    "evaluate.passes = 2",
    "sample.num_timesteps = 2",
    "sample.num = 4",
    "fit.num_images = 64",
    "fit.knots = 9",
    "k_sample.samples = 2",
    "diagnose.num_images = 16",
    "diagnose.bins = 8",
    "figures.num_images = 32",
    "likelihood.rtol = 0.1",
    "likelihood.atol = 0.1",
    "likelihood.times_per_image = 2",
    "fit.head_steps = 2",
    "fid.nums = (8,)",
    "fid.num_images = 8",
    "fid.batch_size = 8",
    "fid.kid_images = 8",
    "fid.kid_block = 4",
]
NETWORKS = ["network.unet.blocks = 1", "network.unet.channels = 8"]
BENCHMARK = ["--batch_size=2", "--rounds=1", "--least=0", "--sampling_steps=2", "--images=16"]
SCALING = [
    "--devices=1",
    "--rounds=1",
    "--least=0",
    "--turns=1",
    "--images=2",
    "--page=scaling.md",
    "--paper=gin/quickstart.gin",
]
TABLE = ["--seeds=1", "--steps=2", "--batch_size=8", "--num_images=8", "--passes=2", "--jobs=2"]
BOUNDS = ["--num_images=8", "--few=2", "--passes=2", "--k=2", "--k_steps=2", "--num_timesteps=2,4"]

COMPRESSION = ["--num_timesteps=2", "--seeds=0", "--bins=8"]

MORE = {
    "diffenc.run": (BINDINGS, []),
    "experiments.benchmark": (NETWORKS, BENCHMARK),
    "experiments.bounds": (BINDINGS, BOUNDS),
    "experiments.compression": (BINDINGS, COMPRESSION),
    "experiments.launch.local": (BINDINGS, []),
    "diffenc.sweep": (BINDINGS, ["--seeds=1", "--jobs=2"]),
    "experiments.tables": (BINDINGS, TABLE),
    "experiments.weak_scaling": (NETWORKS, SCALING),
}
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
OF_REAL_NETWORKS = ("experiments.parameters",)  # which counts them, and trains nothing


def more(module: str, given: list[str]) -> list[str]:
    """What is added to the arguments of a program."""
    if module == "pip" and given[:1] == ["install"]:
        return OFFLINE
    bindings, flags = MORE.get(module, ([], []))
    of_a_run = any(word.startswith(("--gin_file", "--workdir", "--table")) for word in given)
    few_rows = (
        ["--rows=(?<!trainable)$"] if module == "experiments.tables" and "--rows" not in str(given) else []
    )
    if "dataset.mnist.validation" in str(given):
        bindings = [*bindings, "dataset.mnist.validation = 16"]
    return [*few_rows, *flags, *(f"--gin_bindings={one}" for one in bindings)] if of_a_run else []


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["-m"] and len(arguments) > 1:
        module, given = arguments[1], arguments[2:]
        if module in OF_REAL_NETWORKS:
            os.environ["REAL_NETWORKS"] = "1"
        arguments = ["-m", module, *given, *more(module, given)]
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
