"""The report: one self-contained HTML page on one or several runs, by `python -m diffenc.report`.

It only reads: `run_data` reads workdirs, `grouping` groups runs that differ only in their seed, `pairs` computes paired tests,
`curves` and `charts` make the series and their SVG, `cards` the text of each run, `page` puts them together.
"""
