"""The explorer: one self-contained HTML page of one or two trained models, by `python -m diffenc.tools.explore`.

`arrays` measures what a model makes of test images over t, and `page` renders the template with these arrays in it.
"""
