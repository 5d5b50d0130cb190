"""What a config says: names, values, bindings, and an experiment as config text. `diffenc.config` builds from it."""
