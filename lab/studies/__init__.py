"""Studies of averaging on the local workloads: `python -m lab.studies`."""
