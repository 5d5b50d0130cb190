"""One page about one or several runs, to be opened from disk: `python -m diffenc.report WORKDIR... --output=FILE`.

It only reads: `held` what workdirs hold, `seeds` which of them differ in no more than their seed, `pairs` what tests
say of their differences, `asked` which bound a config asks for, `curves` and `charts` what is drawn over steps, t and lambda, `pictures` what is embedded.
`page` puts it all into the template.
"""
