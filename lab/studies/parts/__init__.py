"""Parts that all studies share.

`study` runs one from its declaration: `training` describes a run, `execution`
makes those that are missing, `averages` and `choosers` observe them, `frame`
turns results into rows, `tables` and `plots` show rows.
"""
