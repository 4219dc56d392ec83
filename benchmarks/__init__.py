"""Measure costs, one question a file: `python -m benchmarks` runs all."""
