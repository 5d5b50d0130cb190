from diffenc.core.model import UniformTimeSampler
from diffenc.registry import time_samplers

Uniform = time_samplers.register("uniform")(UniformTimeSampler)
