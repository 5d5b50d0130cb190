"""DiffEnc: variational diffusion models with a learned, time-dependent encoder (arXiv:2310.19789).

From Python: `diffenc.registry.discover()` makes the plugins known; `diffenc.model.Model` puts them together;
`diffenc.experiment.Experiment` describes a run, and `diffenc.train.train` runs it. From the shell:
`python -m diffenc.run --help`.
"""
