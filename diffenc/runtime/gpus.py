"""Lists the GPUs that JAX programs would use, without starting JAX."""

import subprocess


def visible_gpus(env: dict[str, str]) -> list[str]:
    """Returns the names of the GPUs that JAX would use in `env`.

    These are the GPUs in CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists; none if JAX_PLATFORMS selects another platform.
    """
    if (env.get("JAX_PLATFORMS") or "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in env:
        return [name for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, env=env
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())]
