"""`python -m diffenc.new KIND NAME`: the files of a plugin that runs as it stands, to be made one's own."""
