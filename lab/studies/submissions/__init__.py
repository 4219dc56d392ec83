"""Submissions that studies compare with; no part of the package.

| file | method |
|---|---|
| `adamw_schedulefree` | PyPI's `schedulefree.AdamWScheduleFree` |
| `lookahead` | NadamW inside Lookahead (Zhang et al. 2019) |
| `inverse_sqrt` | NadamW with a learning rate that needs no budget |
"""
