"""Averages of checkpoints on disk: `python -m lab.offline average|sweep`."""
