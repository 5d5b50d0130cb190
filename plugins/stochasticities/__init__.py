"""Stochasticities: how noisy the forward path is, at given marginals."""

from diffenc_plugins.stochasticities.builtin import Constant, Markov, Nontrainable
from diffenc_plugins.stochasticities.fitted import Fitted
from diffenc_plugins.stochasticities.learned import Learned

__all__ = ["Constant", "Fitted", "Learned", "Markov", "Nontrainable"]
