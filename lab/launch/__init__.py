"""Studies on AlgoPerf and on the local workloads: `python -m lab.launch`."""
