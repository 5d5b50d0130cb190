from diffenc.core.conditioning import Unconditional
from diffenc.registry import conditionings

Nothing = conditionings.register("none")(Unconditional)
