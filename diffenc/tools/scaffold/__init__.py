"""Scaffolding of new plugins, as written by `python -m diffenc.new KIND NAME`."""
