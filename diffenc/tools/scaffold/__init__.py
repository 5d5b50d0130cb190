"""New plugins: the files that `python -m diffenc.new KIND NAME` writes."""
