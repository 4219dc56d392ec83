"""A GPU in one call: `make gpu`, or `python -m benchmarks.gpu`.

Each section answers one question in a process of its own, with a time limit of
its own; what it has measured by then is kept, whatever happens to it.
"""
