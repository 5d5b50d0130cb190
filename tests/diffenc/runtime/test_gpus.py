"""GPUs found through the environment and nvidia-smi."""

from diffenc.runtime import gpus


def test_gpus_are_those_that_jax_would_see(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\n[ \"$*\" = --list-gpus ] && printf 'GPU 0: a\\nGPU 1: b\\n'\n")
    smi.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert gpus.visible_gpus(env) == ["0", "1"]
    assert gpus.visible_gpus({**env, "JAX_PLATFORMS": ""}) == ["0", "1"]
    assert gpus.visible_gpus({**env, "CUDA_VISIBLE_DEVICES": "3,5"}) == ["3", "5"]
    assert gpus.visible_gpus({**env, "JAX_PLATFORMS": "cpu"}) == []
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert gpus.visible_gpus(env) == []
