"""The report: one self-contained HTML page on one or several runs, by `python -m diffenc.report`.

Workdirs are only read. `run_data` reads them (through `reader`), `grouping` groups runs that differ only in their seed,
`pairs` compares groups, `curves` and `charts` make the series and their SVG, `pictures` the embedded images, `cards` the
text of each run, and `page` renders the template.
"""
