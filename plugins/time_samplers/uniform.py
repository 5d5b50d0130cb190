from diffenc.core.model import UniformProposal
from diffenc.registry import proposals

Uniform = proposals.register("uniform")(UniformProposal)
