"""The local runner: `python -m lab.run`."""
